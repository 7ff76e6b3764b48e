//! When a service counts as overloaded, and how fast it reacts.

use serde::{Deserialize, Serialize};

use crate::config::{Millis, PolicyError, Ratio, ensure};

/// Load shedding by priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ShedConfig {
    /// Mean wait before the handler above which the service is overloaded. Default "20ms": DAGOR.
    pub target: Millis,
    /// How long waits are collected before the cursor moves. Default "1s": DAGOR.
    pub window: Millis,
    /// Waits after which it moves even earlier, 1 to 500 000. Default 2000: DAGOR.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 500_000)))]
    pub samples: u32,
    /// How much less is admitted after an overloaded window, in (0, 1). Default 5 %: DAGOR's α.
    pub decrease: Ratio,
    /// How much more is admitted after another, as a share of what came, in (0, 1]. Default 1 %:
    /// DAGOR's β.
    pub increase: Ratio,
}

impl Default for ShedConfig {
    fn default() -> Self {
        Self {
            target: Millis::new(20),
            window: Millis::new(1000),
            samples: 2000,
            decrease: Ratio::percent(5),
            increase: Ratio::percent(1),
        }
    }
}

impl ShedConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let positive =
            |name, value: Millis| ensure(!value.0.is_zero(), name, value, "more than \"0s\"");
        positive("target", self.target)?;
        positive("window", self.window)?;
        ensure(
            (1..=500_000).contains(&self.samples),
            "samples",
            self.samples,
            "1 to 500000",
        )?;
        let (down, up) = (self.decrease.fraction(), self.increase.fraction());
        ensure(
            down > 0.0 && down < 1.0,
            "decrease",
            self.decrease,
            "between 0% and 100%",
        )?;
        ensure(
            up > 0.0 && up <= 1.0,
            "increase",
            self.increase,
            "more than 0%, at most 100%",
        )
    }
}
