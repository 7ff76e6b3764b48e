//! How many keys a table tracks, and how long it remembers an idle one.

use serde::{Deserialize, Serialize};

use crate::config::{Millis, PolicyError, ensure};

/// Bounds of a [`Keyed`](super::Keyed) table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct KeyedConfig {
    /// Keys tracked at once, 1 to 16 777 216. Default 10 000: a guess, ten megabytes of breakers;
    /// more routes than any gateway we have seen, fewer than an attacker can invent.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 16_777_216)))]
    pub capacity: u32,
    /// A key not asked for during this long is forgotten, unless its core must stay. Default
    /// "10m": a guess, long against any open time and short against a deployment.
    pub idle: Millis,
}

/// The most keys a table may be told to track.
const CAPACITY_MAX: u32 = 1 << 24;

impl Default for KeyedConfig {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            idle: Millis::new(600_000),
        }
    }
}

impl KeyedConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            (1..=CAPACITY_MAX).contains(&self.capacity),
            "capacity",
            self.capacity,
            "1 to 16777216",
        )?;
        ensure(
            !self.idle.0.is_zero(),
            "idle",
            self.idle,
            "more than \"0s\"",
        )
    }
}
