//! Which rule moves the limit, between which bounds, on what samples.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::algorithm::Bounds;
use crate::{
    bulkhead::QueueConfig,
    config::{AT_MOST, Field, LESS, Millis, PolicyError, Ratio, ensure, ensure_order},
    context::Priority,
};

/// An adaptive limit on calls under way.
///
/// Of `initial`, `min` and `max`, those that a document does not write follow those that it does:
/// `{ max = 10 }` begins at 10, and may fall no further.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveConfig {
    /// How the limit moves. Default "gradient2".
    pub algorithm: AlgorithmConfig,
    /// Where it begins. Default 20, or what is nearest to it between `min` and `max`: Netflix
    /// `Gradient2Limit`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
    pub initial: u32,
    /// It never goes below; at least 1. Default 20, or `initial` or `max` if that is less: Netflix
    /// `Gradient2Limit`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
    pub min: u32,
    /// It never goes above; at most 1 000 000. Default 200, or `initial` or `min` if that is more:
    /// Netflix `Gradient2Limit`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
    pub max: u32,
    /// How long samples are collected before the limit moves. Default "1s": Netflix
    /// `WindowedLimit`.
    pub window: Millis,
    /// Samples that a window must hold; it lasts longer until it does. 1 to 10 000. Default 10:
    /// Netflix `WindowedLimit` (which forgets the window instead).
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
    pub min_samples: u32,
    /// Calls faster than this are no samples. Default "100us": Netflix `WindowedLimit`.
    pub min_rtt: Millis,
    /// Calls slower than this, finished or given up, count as dropped. Default "5s": the timeout of
    /// Netflix `AIMDLimit`.
    pub drop_after: Millis,
    /// Who comes when the limit is reached may wait. Not written: refused at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueConfig>,
    /// What each class of calls is sure of once the limit is reached; shares of at most 100 %
    /// together. Calls of no class that is named here have what is left, and only they wait in `queue`:
    /// a class has its share at once, and beyond it is refused.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub partitions: BTreeMap<String, Ratio>,
    /// What tells a request's class. Default "priority": its `x-priority`.
    pub partition_by: PartitionBy,
}

/// The document, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    algorithm: AlgorithmConfig,
    initial: Option<u32>,
    min: Option<u32>,
    max: Option<u32>,
    window: Millis,
    min_samples: u32,
    min_rtt: Millis,
    drop_after: Millis,
    queue: Option<QueueConfig>,
    partitions: BTreeMap<String, Ratio>,
    partition_by: PartitionBy,
}

impl Default for Written {
    fn default() -> Self {
        let config = AdaptiveConfig::default();
        Self {
            algorithm: config.algorithm,
            initial: None,
            min: None,
            max: None,
            window: config.window,
            min_samples: config.min_samples,
            min_rtt: config.min_rtt,
            drop_after: config.drop_after,
            queue: config.queue,
            partitions: config.partitions,
            partition_by: config.partition_by,
        }
    }
}

impl<'de> Deserialize<'de> for AdaptiveConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let it = Written::deserialize(deserializer)?;
        let default = Self::default();
        // No further than is allowed: what is refused then is what was written.
        let most = [it.initial, it.min].into_iter().flatten();
        let most = || most.fold(default.max, u32::max).min(LIMIT_MAX);
        let max = it.max.unwrap_or_else(most);
        let least = [it.initial, it.max].into_iter().flatten();
        let least = || least.fold(default.min, u32::min).max(1);
        let min = it.min.unwrap_or_else(least);
        let initial = it
            .initial
            .unwrap_or_else(|| default.initial.min(max).max(min));
        Ok(Self {
            algorithm: it.algorithm,
            initial,
            min,
            max,
            window: it.window,
            min_samples: it.min_samples,
            min_rtt: it.min_rtt,
            drop_after: it.drop_after,
            queue: it.queue,
            partitions: it.partitions,
            partition_by: it.partition_by,
        })
    }
}

/// What tells the class of a request under an adaptive limit with `partitions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PartitionBy {
    /// The class of its priority: `critical`, `default`, `batch` or `lowest`.
    #[default]
    Priority,
    /// A header field's value, as `{ header = "x-tenant" }`.
    Header(String),
}

impl PartitionBy {
    /// Only what can be told of a request is a class: a name that no request has would have its
    /// share for nothing.
    fn validate(&self, partitions: &BTreeMap<String, Ratio>) -> Result<(), PolicyError> {
        match self {
            Self::Header(name) => {
                let token = http::HeaderName::try_from(name.as_str()).is_ok();
                ensure(token, "partition_by.header", name, "a header's name")
            }
            Self::Priority => {
                let allowed = "critical, default, batch, lowest, or partition_by = { header = .. }";
                let class = |name: &str| Priority::CLASSES.contains(&name);
                let odd = partitions.keys().find(|name| !class(name));
                odd.map_or(Ok(()), |name| {
                    Err(PolicyError::new("partitions", name, allowed))
                })
            }
        }
    }
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self {
            algorithm: AlgorithmConfig::default(),
            initial: 20,
            min: 20,
            max: 200,
            window: Millis::new(1000),
            min_samples: 10,
            min_rtt: Millis(Duration::from_micros(100)),
            drop_after: Millis::new(5000),
            queue: None,
            partitions: BTreeMap::new(),
            partition_by: PartitionBy::Priority,
        }
    }
}

/// The most calls that a limit may allow.
const LIMIT_MAX: u32 = 1_000_000;

impl AdaptiveConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for (path, limit) in [
            ("max", self.max),
            ("min", self.min),
            ("initial", self.initial),
        ] {
            let fits = (1..=LIMIT_MAX).contains(&limit);
            ensure(fits, path, limit, "1 to 1000000")?;
        }
        let default = Self::default();
        let min = Field::new("min", self.min, default.min);
        let max = Field::new("max", self.max, default.max);
        let initial = Field::new("initial", self.initial, default.initial);
        ensure_order(self.min <= self.max, min, max, AT_MOST)?;
        ensure_order(self.min <= self.initial, min, initial, AT_MOST)?;
        ensure_order(self.initial <= self.max, initial, max, AT_MOST)?;
        let positive =
            |name, value: Millis| ensure(!value.0.is_zero(), name, value, "more than \"0s\"");
        positive("window", self.window)?;
        positive("drop_after", self.drop_after)?;
        ensure(
            (1..=10_000).contains(&self.min_samples),
            "min_samples",
            self.min_samples,
            "1 to 10000",
        )?;
        ensure_order(
            self.min_rtt < self.drop_after,
            Field::new("min_rtt", self.min_rtt, default.min_rtt),
            Field::new("drop_after", self.drop_after, default.drop_after),
            LESS,
        )?;
        if let AlgorithmConfig::Gradient(gradient) = &self.algorithm {
            let limit = gradient.measure_limit;
            let default = GradientConfig::default().measure_limit;
            let measured = Field::new("algorithm.gradient.measure_limit", limit, default);
            ensure_order(limit <= self.max, measured, max, AT_MOST)?;
        }
        if let Some(queue) = &self.queue {
            queue.validate().map_err(|e| e.within("queue"))?;
        }
        self.validate_partitions()?;
        self.algorithm.validate().map_err(|e| e.within("algorithm"))
    }

    fn validate_partitions(&self) -> Result<(), PolicyError> {
        let mut sum = 0;
        for (name, share) in &self.partitions {
            let path = format!("partitions.{name}");
            let allowed = "more than 0%, at most 100% together";
            sum += millionths(*share);
            ensure(
                share.fraction() > 0.0 && share.fraction() <= 1.0 && sum <= MILLION,
                &path,
                share,
                allowed,
            )?;
        }
        Ok(())
    }

    /// As [`validate`](Self::validate), for a limit whose host tells classes of requests apart. Whoever
    /// asks for a [`Partition`](super::Partition) by its name may call it what they like.
    pub(crate) fn validate_for_requests(&self) -> Result<(), PolicyError> {
        self.validate()?;
        self.partition_by.validate(&self.partitions)
    }

    /// The class that a request says it is of; `None` without partitions.
    #[cfg(feature = "tower")]
    pub(crate) fn class_of<'a>(
        &self,
        priority: impl FnOnce() -> Priority,
        headers: &'a http::HeaderMap,
    ) -> Option<&'a str> {
        if self.partitions.is_empty() {
            return None;
        }
        match &self.partition_by {
            PartitionBy::Priority => Some(priority().class()),
            PartitionBy::Header(name) => headers.get(name.as_str())?.to_str().ok(),
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            min: f64::from(self.min),
            max: f64::from(self.max),
            initial: f64::from(self.initial),
        }
    }
}

pub(super) const MILLION: u64 = 1_000_000;

/// A share in fixed point: 0.3 × 10 must be 3, never 3.0000000000000004 rounded up.
pub(super) fn millionths(share: Ratio) -> u64 {
    (share.fraction() * MILLION as f64).round() as u64
}

/// The rule, by its name with its defaults, or as a table of its parameters.
///
/// ```
/// # use selvedge_resilience::adaptive::AlgorithmConfig;
/// # #[derive(serde::Deserialize)] struct Doc { algorithm: AlgorithmConfig }
/// let plain: Doc = toml::from_str(r#"algorithm = "vegas""#)?;
/// let tuned: Doc = toml::from_str(r#"algorithm = { vegas = { smoothing = "50%" } }"#)?;
/// # let _ = (plain.algorithm, tuned.algorithm);
/// # Ok::<_, toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AlgorithmConfig {
    /// By drops alone: for callees whose latency says nothing.
    Aimd(AimdConfig),
    /// By drops alone too, but quickly back to where the last one was, and slowly past it.
    Cubic(CubicConfig),
    /// By the queue that the round trip over an idle callee's betrays.
    Vegas(VegasConfig),
    /// By the round trip against its own long average.
    Gradient2(Gradient2Config),
    /// By the round trip against one that is measured at a very low limit now and then.
    Gradient(GradientConfig),
}

impl Default for AlgorithmConfig {
    fn default() -> Self {
        Self::Gradient2(Gradient2Config::default())
    }
}

/// Parameters of [`AlgorithmConfig::Aimd`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct AimdConfig {
    /// What a drop leaves of the limit, in (0, 1). Default 90 %: Netflix `AIMDLimit`.
    pub backoff: Ratio,
}

impl Default for AimdConfig {
    fn default() -> Self {
        Self {
            backoff: Ratio::percent(90),
        }
    }
}

/// Parameters of [`AlgorithmConfig::Cubic`].
///
/// The limit *t* seconds after a drop at *W* calls is `scale × (t − K)³ + W`, with
/// *K* = ∛(*W* × (1 − `beta`) ÷ `scale`): steep at first, flat at *W*, steep beyond it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CubicConfig {
    /// What a drop leaves of the limit, in (0, 1). Default 70 %: RFC 9438, AWS SDKs.
    pub beta: Ratio,
    /// How fast the limit moves, more than 0 and at most 1000. Default 0.4: RFC 9438, AWS SDKs.
    pub scale: f64,
}

impl Default for CubicConfig {
    fn default() -> Self {
        Self {
            beta: Ratio::percent(70),
            scale: 0.4,
        }
    }
}

impl CubicConfig {
    /// The curve: what a limit that was `top` before its last drop has become `since` then.
    ///
    /// ```
    /// use std::time::Duration;
    /// let cubic = selvedge_resilience::adaptive::CubicConfig::default();
    /// assert_eq!(cubic.at(10.0, Duration::ZERO).round(), 7.0);
    /// assert_eq!(cubic.at(10.0, Duration::from_secs(2)).round(), 10.0);
    /// ```
    pub fn at(&self, top: f64, since: Duration) -> f64 {
        let flat = (top * (1.0 - self.beta.fraction()) / self.scale).cbrt();
        self.scale * (since.as_secs_f64() - flat).powi(3) + top
    }
}

/// Parameters of [`AlgorithmConfig::Vegas`]; defaults from Netflix `VegasLimit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VegasConfig {
    /// Queued calls, times log₁₀ of the limit, below which it grows. Default 3.
    pub alpha: u32,
    /// Queued calls, times log₁₀ of the limit, above which it shrinks. Default 6.
    pub beta: u32,
    /// What one decrease leaves of the limit, in (0, 1). Not written: the limit less its log₁₀.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decrease: Option<Ratio>,
    /// How much of a change takes effect at once, in (0, 1]. Default 100 %.
    pub smoothing: Ratio,
    /// Windows, times the limit, after which the idle round trip is measured anew; at least 1.
    /// Default 30.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub probe_every: u32,
}

impl Default for VegasConfig {
    fn default() -> Self {
        Self {
            alpha: 3,
            beta: 6,
            decrease: None,
            smoothing: Ratio::percent(100),
            probe_every: 30,
        }
    }
}

/// Parameters of [`AlgorithmConfig::Gradient2`]; defaults from Netflix `Gradient2Limit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Gradient2Config {
    /// Calls that may queue at the callee. Default 4.
    pub queue: u32,
    /// How much of a change takes effect at once, in (0, 1]. Default 20 %.
    pub smoothing: Ratio,
    /// How much slower than the average is no sign of overload, at least 100 %. Default 150 %.
    pub tolerance: Ratio,
    /// Windows that the long average looks back on; at least 10. Default 600.
    #[cfg_attr(feature = "schema", schemars(range(min = 10)))]
    pub long_window: u32,
}

impl Default for Gradient2Config {
    fn default() -> Self {
        Self {
            queue: 4,
            smoothing: Ratio::percent(20),
            tolerance: Ratio::percent(150),
            long_window: 600,
        }
    }
}

/// Parameters of [`AlgorithmConfig::Gradient`]; defaults from Envoy's gradient controller.
///
/// Envoy samples over 100 ms; set [`AdaptiveConfig::window`] to that for the same pace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct GradientConfig {
    /// How often the idle round trip is measured. Default "60s".
    pub measure_every: Millis,
    /// How much later than that it may be, at most, so that not all measure at once. Default 15 %.
    pub jitter: Ratio,
    /// The limit while it is measured; at least 1, at most `max`. Default 3.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
    pub measure_limit: u32,
    /// Calls that a measurement takes, 1 to 10 000. Default 50.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
    pub measure_samples: u32,
    /// How much slower than idle is no sign of overload. Default 25 %.
    pub buffer: Ratio,
}

impl Default for GradientConfig {
    fn default() -> Self {
        Self {
            measure_every: Millis::new(60_000),
            jitter: Ratio::percent(15),
            measure_limit: 3,
            measure_samples: 50,
            buffer: Ratio::percent(25),
        }
    }
}

impl AlgorithmConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        let part = |name: &str, ratio: Ratio, up_to_one: bool| {
            let f = ratio.fraction();
            let fits = f > 0.0 && (f < 1.0 || (up_to_one && f <= 1.0));
            let allowed = if up_to_one {
                "more than 0%, at most 100%"
            } else {
                "between 0% and 100%"
            };
            ensure(fits, name, ratio, allowed)
        };
        match self {
            Self::Aimd(c) => part("aimd.backoff", c.backoff, false),
            Self::Cubic(c) => {
                part("cubic.beta", c.beta, false)?;
                let fits = c.scale > 0.0 && c.scale <= 1_000.0;
                ensure(fits, "cubic.scale", c.scale, "more than 0, at most 1000")
            }
            Self::Vegas(c) => {
                let default = VegasConfig::default();
                ensure_order(
                    c.alpha <= c.beta,
                    Field::new("vegas.alpha", c.alpha, default.alpha),
                    Field::new("vegas.beta", c.beta, default.beta),
                    AT_MOST,
                )?;
                ensure(
                    c.probe_every > 0,
                    "vegas.probe_every",
                    c.probe_every,
                    "at least 1",
                )?;
                if let Some(decrease) = c.decrease {
                    part("vegas.decrease", decrease, false)?;
                }
                part("vegas.smoothing", c.smoothing, true)
            }
            Self::Gradient2(c) => {
                part("gradient2.smoothing", c.smoothing, true)?;
                ensure(
                    c.tolerance.fraction() >= 1.0,
                    "gradient2.tolerance",
                    c.tolerance,
                    "at least 100%",
                )?;
                ensure(
                    c.long_window >= 10,
                    "gradient2.long_window",
                    c.long_window,
                    "at least 10",
                )
            }
            Self::Gradient(c) => {
                ensure(
                    !c.measure_every.0.is_zero(),
                    "gradient.measure_every",
                    c.measure_every,
                    "more than \"0s\"",
                )?;
                ensure(
                    c.jitter.fraction() <= 1.0,
                    "gradient.jitter",
                    c.jitter,
                    "at most 100%",
                )?;
                ensure(
                    c.measure_limit > 0,
                    "gradient.measure_limit",
                    c.measure_limit,
                    "at least 1",
                )?;
                ensure(
                    (1..=10_000).contains(&c.measure_samples),
                    "gradient.measure_samples",
                    c.measure_samples,
                    "1 to 10000",
                )
            }
        }
    }
}

/// The table as written.
#[cfg(feature = "schema")]
#[derive(schemars::JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is asked for")]
enum Table {
    Aimd(AimdConfig),
    Cubic(CubicConfig),
    Vegas(VegasConfig),
    Gradient2(Gradient2Config),
    Gradient(GradientConfig),
}

const NAMES: &[&str] = &["aimd", "cubic", "vegas", "gradient2", "gradient"];

impl<'de> Deserialize<'de> for AlgorithmConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = AlgorithmConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("aimd, cubic, vegas, gradient2 or gradient, or a table { name = {..} }")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<AlgorithmConfig, E> {
                Ok(match name {
                    "aimd" => AlgorithmConfig::Aimd(AimdConfig::default()),
                    "cubic" => AlgorithmConfig::Cubic(CubicConfig::default()),
                    "vegas" => AlgorithmConfig::Vegas(VegasConfig::default()),
                    "gradient2" => AlgorithmConfig::Gradient2(Gradient2Config::default()),
                    "gradient" => AlgorithmConfig::Gradient(GradientConfig::default()),
                    other => return Err(E::unknown_variant(other, NAMES)),
                })
            }
            fn visit_map<A: de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<AlgorithmConfig, A::Error> {
                let Some(name) = map.next_key::<String>()? else {
                    return Err(de::Error::invalid_length(0, &self));
                };
                let algorithm = match name.as_str() {
                    "aimd" => AlgorithmConfig::Aimd(map.next_value()?),
                    "cubic" => AlgorithmConfig::Cubic(map.next_value()?),
                    "vegas" => AlgorithmConfig::Vegas(map.next_value()?),
                    "gradient2" => AlgorithmConfig::Gradient2(map.next_value()?),
                    "gradient" => AlgorithmConfig::Gradient(map.next_value()?),
                    other => return Err(de::Error::unknown_variant(other, NAMES)),
                };
                match map.next_key::<String>()? {
                    Some(_) => Err(de::Error::invalid_length(2, &self)),
                    None => Ok(algorithm),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for AlgorithmConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AlgorithmConfig".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let table = generator.subschema_for::<Table>();
        schemars::json_schema!({
            "description": "How the limit moves",
            "anyOf": [{ "enum": NAMES }, table]
        })
    }
}
