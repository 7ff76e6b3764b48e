//! The rules and their parameters.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::config::{AT_MOST, Field, Millis, PolicyError, Ratio, ensure, ensure_order};

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
/// Envoy samples over 100 ms; set [`AdaptiveConfig::window`](super::AdaptiveConfig::window) to that
/// for the same pace.
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
    pub(super) fn validate(&self) -> Result<(), PolicyError> {
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
