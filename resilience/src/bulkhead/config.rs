//! How many at once, and who may wait.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Order, slots::Rules};
use crate::config::{Millis, PolicyError, ensure};

/// A limit on calls under way, written as a number or as a table.
///
/// ```
/// # use selvedge_resilience::bulkhead::BulkheadConfig;
/// # #[derive(serde::Deserialize)] struct Doc { bulkhead: BulkheadConfig }
/// let plain: Doc = toml::from_str("bulkhead = 200")?;
/// let queued: Doc = toml::from_str(r#"bulkhead = { max = 200, queue = { max = 50, wait = "100ms" } }"#)?;
/// assert_eq!(plain.bulkhead.max, queued.bulkhead.max);
/// # Ok::<_, toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BulkheadConfig {
    /// Calls under way at once; at least 1.
    pub max: u32,
    /// Who comes when it is full may wait. Not written: refused at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueConfig>,
}

/// A bounded queue before a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Calls that may wait, 1 to 1 000 000. Default 100: a guess; what a service of 10 ms a call
    /// with 10 slots works off in 100 ms.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
    pub max: u32,
    /// How long one may wait. Default "100ms": a guess, well below the patience of a caller that
    /// waits a second; Cinnamon takes a third of the request's timeout.
    pub wait: Millis,
    /// Who is served first. Default "adaptive": Facebook's adaptive LIFO.
    pub order: Order,
    /// With `adaptive`: how long the queue must have stood without being empty before the newest
    /// goes first. Default "100ms": *N* of Facebook's controlled delay.
    pub overload_after: Millis,
}

const WAITING_MAX: u32 = 1_000_000;

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            max: 100,
            wait: Millis::new(100),
            order: Order::Adaptive,
            overload_after: Millis::new(100),
        }
    }
}

impl QueueConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            (1..=WAITING_MAX).contains(&self.max),
            "max",
            self.max,
            "1 to 1000000",
        )?;
        ensure(
            self.wait.0 > Duration::ZERO,
            "wait",
            self.wait,
            "more than \"0s\"",
        )
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules {
            max: self.max,
            wait: self.wait.0,
            order: self.order,
            overload_after: self.overload_after.0,
        }
    }
}

impl BulkheadConfig {
    /// At most `max` at once, nobody waits.
    pub const fn new(max: u32) -> Self {
        Self { max, queue: None }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        ensure(self.max > 0, "max", self.max, "at least 1")?;
        match &self.queue {
            Some(queue) => queue.validate().map_err(|e| e.within("queue")),
            None => Ok(()),
        }
    }

    pub(super) fn rules(&self) -> Rules {
        self.queue
            .as_ref()
            .map_or(Rules::NO_QUEUE, QueueConfig::rules)
    }
}

/// The table as written.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Table {
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    max: u32,
    #[serde(default)]
    queue: Option<QueueConfig>,
}

impl<'de> Deserialize<'de> for BulkheadConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = BulkheadConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of calls, or a table { max, queue }")
            }
            fn visit_u64<E: de::Error>(self, max: u64) -> Result<BulkheadConfig, E> {
                u32::try_from(max)
                    .map(BulkheadConfig::new)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(max), &self))
            }
            fn visit_i64<E: de::Error>(self, max: i64) -> Result<BulkheadConfig, E> {
                u32::try_from(max)
                    .map(BulkheadConfig::new)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(max), &self))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<BulkheadConfig, A::Error> {
                let Table { max, queue } =
                    Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(BulkheadConfig { max, queue })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for BulkheadConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BulkheadConfig".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let table = generator.subschema_for::<Table>();
        schemars::json_schema!({
            "description": "Calls under way at once, and who may wait",
            "anyOf": [{ "type": "integer", "minimum": 1 }, table]
        })
    }
}
