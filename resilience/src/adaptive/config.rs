//! Which rule moves the limit, between which bounds, on what samples.

mod algorithms;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};

pub use self::algorithms::{
    AimdConfig, AlgorithmConfig, CubicConfig, Gradient2Config, GradientConfig, VegasConfig,
};
use super::algorithm::Bounds;
use crate::{
    bulkhead::QueueConfig,
    config::{AT_MOST, Field, LESS, Millis, PolicyError, Ratio, ensure, ensure_order},
    context::Priority,
};

/// An adaptive limit on calls under way.
///
/// Of `initial`, `min` and `max`, those that a document does not write follow those that it does:
/// `{ max = 10 }` begins at 10 and may fall to 1.
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
    /// It never goes below; at least 1. Default 20, or a tenth of `max` if that is less (and never more
    /// than `initial`): Netflix `Gradient2Limit`, whose 20 is a tenth of its 200.
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
        // A limit whose ends are one could not move.
        let least = default.min.min(max.div_ceil(10));
        let least = it.initial.map_or(least, |initial| least.min(initial));
        let min = it.min.unwrap_or(least.max(1));
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
