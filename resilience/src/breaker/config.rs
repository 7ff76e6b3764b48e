//! When a circuit opens, how long it stays open, and what closes it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Millis, PolicyError, Ratio, ensure};

/// Circuit breaking for one destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Share of failed calls that opens the circuit, in (0, 1]. Default 50 %: Hystrix
    /// `errorThresholdPercentage`.
    pub failure_rate: Ratio,
    /// Share of slow calls that opens it, in (0, 1]. Not set: slow calls do not count.
    pub slow_rate: Option<Ratio>,
    /// A call is slow when it takes longer than this. Default "60s": resilience4j
    /// `slowCallDurationThreshold`. A call cancelled after this long counts as failed.
    pub slow_after: Millis,
    /// Failures in a row that open it whatever the share; 0 is off. Default 0.
    pub consecutive: u32,
    /// The span that the shares are taken over. Default "10s": Hystrix
    /// `metrics.rollingStats.timeInMilliseconds`.
    pub over: Millis,
    /// Calls the window must hold before a share counts. Default 20: Hystrix
    /// `requestVolumeThreshold`.
    pub min_requests: u32,
    /// How long the circuit stays open before it probes. Default "5s": Hystrix
    /// `sleepWindowInMilliseconds`.
    pub open_for: Millis,
    /// The longest it stays open: the time doubles each time a probe fails. Default "60s": a
    /// guess, between Envoy's 300 s and Hystrix's constant 5 s.
    pub open_for_max: Millis,
    /// Calls let through while half-open; their failure rate decides. Default 3: a guess; one
    /// (Hystrix) lets a single unlucky packet keep a healthy service out.
    pub probes: u32,
    /// How long half-open waits for its probes before it opens again. Default "60s": a guess.
    pub probe_wait: Millis,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_rate: Ratio::percent(50),
            slow_rate: None,
            slow_after: Millis::new(60_000),
            consecutive: 0,
            over: Millis::new(10_000),
            min_requests: 20,
            open_for: Millis::new(5_000),
            open_for_max: Millis::new(60_000),
            probes: 3,
            probe_wait: Millis::new(60_000),
        }
    }
}

impl BreakerConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let share = |r: Ratio| r.fraction() > 0.0 && r.fraction() <= 1.0;
        let above_zero = "more than \"0s\"";
        ensure(
            share(self.failure_rate),
            "failure_rate",
            self.failure_rate,
            "more than 0, at most 100%",
        )?;
        if let Some(slow) = self.slow_rate {
            ensure(share(slow), "slow_rate", slow, "more than 0, at most 100%")?;
        }
        ensure(
            !self.slow_after.0.is_zero(),
            "slow_after",
            self.slow_after,
            above_zero,
        )?;
        ensure(
            self.over.0 >= Duration::from_millis(10),
            "over",
            self.over,
            "at least \"10ms\": ten buckets of a millisecond",
        )?;
        ensure(
            self.min_requests > 0,
            "min_requests",
            self.min_requests,
            "at least 1",
        )?;
        ensure(
            !self.open_for.0.is_zero(),
            "open_for",
            self.open_for,
            above_zero,
        )?;
        ensure(
            self.open_for_max >= self.open_for,
            "open_for_max",
            self.open_for_max,
            &format!("at least open_for = {}", self.open_for),
        )?;
        ensure(
            (1..=4095).contains(&self.probes),
            "probes",
            self.probes,
            "1 to 4095",
        )?;
        ensure(
            !self.probe_wait.0.is_zero(),
            "probe_wait",
            self.probe_wait,
            above_zero,
        )
    }
}
