//! `[leases]` of `registry.toml`.

use std::time::Duration;

use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize};

/// When a silent instance is taken out, and when it is not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeasesConfig {
    /// Share of a zone's leases that must be renewed in time, else no lease of it ends; in
    /// [0.5, 1). Default 0.85: Eureka's `renewalPercentThreshold`.
    pub preserve_below: f64,
    /// Leases in a zone that a share can be spoken of; with fewer, only the loss of servers stops
    /// evictions. Default 10: below it Eureka's rule misleads (Netflix/eureka#1127).
    pub min_leases: usize,
    /// In so much time at most the share that would stop evictions is evicted. Default "10s": a
    /// guess between our leases and Eureka's pass of 60 s.
    pub pass: Millis,
    /// Instances of a service that are never evicted while evictions are stopped. Default 1.
    pub min_keep: usize,
    /// Who is silent for so long is no longer expected, so that stopped evictions go on some day.
    /// Default "15m": Eureka's `renewalThresholdUpdateIntervalMs`.
    pub rebase_after: Millis,
    /// What a restart gives to those it remembers, at least. Default "90s": Eureka's lease.
    pub restart_grace: Millis,
    /// More than a third of the servers gone within this time stops evictions. Default "30s".
    pub server_loss_within: Millis,
    /// How long a server that was isolated, stopped or has just caught up waits before it evicts.
    /// Default "5s": two rounds in which a claim made elsewhere arrives.
    pub settle: Millis,
}

impl Default for LeasesConfig {
    fn default() -> Self {
        Self {
            preserve_below: 0.85,
            min_leases: 10,
            pass: Millis::new(10_000),
            min_keep: 1,
            rebase_after: Millis::new(15 * 60_000),
            restart_grace: Millis::new(90_000),
            server_loss_within: Millis::new(30_000),
            settle: Millis::new(5_000),
        }
    }
}

impl LeasesConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        if !(0.5..1.0).contains(&self.preserve_below) {
            let allowed = "0.5 or more and less than 1.0";
            let value = self.preserve_below;
            return Err(PolicyError::new("leases.preserve_below", value, allowed));
        }
        let hour = Duration::from_secs(3600);
        for (field, value, least) in [
            ("leases.pass", self.pass, Duration::from_millis(100)),
            (
                "leases.rebase_after",
                self.rebase_after,
                Duration::from_secs(1),
            ),
            ("leases.restart_grace", self.restart_grace, Duration::ZERO),
            (
                "leases.server_loss_within",
                self.server_loss_within,
                Duration::ZERO,
            ),
            ("leases.settle", self.settle, Duration::ZERO),
        ] {
            if !(least..=hour).contains(&value.0) {
                let allowed = format!("\"{}\" to \"1h\"", Millis(least));
                return Err(PolicyError::new(field, value, allowed));
            }
        }
        Ok(())
    }
}
