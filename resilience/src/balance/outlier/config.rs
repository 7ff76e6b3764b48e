//! When an endpoint is left out, and for how long: as written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{AT_MOST, Field, Millis, PolicyError, Ratio, ensure, ensure_order};

/// When an endpoint is left out, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct OutlierConfig {
    /// Failed answers, timeouts and broken streams in a row that eject; 0 is off. Default 5: Envoy
    /// `consecutive_5xx`.
    #[cfg_attr(feature = "schema", schemars(range(max = 65_535)))]
    pub consecutive_5xx: u32,
    /// Gateway errors (502, 503, 504), timeouts and broken streams in a row that eject; 0 is off.
    /// Default 0: Envoy enforces its 5 at 0 %.
    #[cfg_attr(feature = "schema", schemars(range(max = 65_535)))]
    pub consecutive_gateway: u32,
    /// Failed connections, timeouts and broken streams in a row that eject; 0 is off. Default 5:
    /// Envoy `consecutive_local_origin_failure`.
    #[cfg_attr(feature = "schema", schemars(range(max = 65_535)))]
    pub consecutive_local_origin: u32,
    /// Failed connections in a row that eject; 0 is off. Default 1: nginx `max_fails`; a refused
    /// connection is a fact, not a symptom, and whoever restarts registers anew.
    #[cfg_attr(feature = "schema", schemars(range(max = 65_535)))]
    pub consecutive_connect: u32,
    /// How often endpoints are compared, and after how long without an ejection the next one is a
    /// step shorter; more than "0s". Default "10s": Envoy `interval`.
    pub interval: Millis,
    /// How long the first ejection lasts; the n-th lasts n times as long. Default "30s": Envoy
    /// `base_ejection_time`.
    pub eject: Millis,
    /// The longest an ejection lasts. Default "300s": Envoy `max_ejection_time`.
    pub eject_max: Millis,
    /// Up to this is added by chance, so that many callers do not come back at once. Default "0s":
    /// Envoy `max_ejection_time_jitter`.
    pub eject_jitter: Millis,
    /// Share of endpoints that may be out at once, in [0, 1]. Default 50 %: a guess; Envoy's 10 %
    /// protects large clusters, ours are small.
    pub max_ejected: Ratio,
    /// Whether of two or more endpoints one may be out whatever `max_ejected` says. Default true:
    /// Envoy's `always_eject_one_host`, which its users of small clusters have to know of.
    pub always_eject_one: bool,
    /// Ejects whoever succeeds clearly less often than the others.
    pub success_rate: SuccessRateConfig,
    /// Ejects whoever fails most calls.
    pub failure_percentage: FailurePercentageConfig,
    /// Ejects whoever is much slower than the others.
    pub latency: LatencyOutlierConfig,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local_origin: 5,
            consecutive_connect: 1,
            interval: Millis::new(10_000),
            eject: Millis::new(30_000),
            eject_max: Millis::new(300_000),
            eject_jitter: Millis::new(0),
            max_ejected: Ratio::percent(50),
            always_eject_one: true,
            success_rate: SuccessRateConfig::default(),
            failure_percentage: FailurePercentageConfig::default(),
            latency: LatencyOutlierConfig::default(),
        }
    }
}

/// Ejects an endpoint whose success rate is below mean − `deviations` × σ of all that were called
/// enough, and below the mean by `min_gap`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SuccessRateConfig {
    /// Whether it does. Default true: Envoy `enforcing_success_rate` 100 %.
    pub enforce: bool,
    /// Endpoints that must have been called enough; at least 2. Default 5: Envoy
    /// `success_rate_minimum_hosts`. One outlier of n is at most √(n − 1) σ away: below 5 it could
    /// not be seen.
    #[cfg_attr(feature = "schema", schemars(range(min = 2)))]
    pub min_hosts: u32,
    /// Calls in an interval that are enough; at least 1. Default 100: Envoy
    /// `success_rate_request_volume`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub min_requests: u32,
    /// Standard deviations (of the population) below the mean; more than 0. Default 1.9: Envoy
    /// `success_rate_stdev_factor` 1900.
    pub deviations: f64,
    /// How far below the mean it must be in any case, in [0, 1]. Default 5 %: a guess; without it
    /// near-equals are ejected where all are well.
    pub min_gap: Ratio,
}

impl Default for SuccessRateConfig {
    fn default() -> Self {
        Self {
            enforce: true,
            min_hosts: 5,
            min_requests: 100,
            deviations: 1.9,
            min_gap: Ratio::percent(5),
        }
    }
}

/// Ejects an endpoint that failed at least `threshold` of its calls in an interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct FailurePercentageConfig {
    /// Whether it does. Default true, other than Envoy's 0 %: with few endpoints, or many equally
    /// bad ones, the success rate sees nothing.
    pub enforce: bool,
    /// Failed share, in (0, 1]. Default 85 %: Envoy `failure_percentage_threshold`.
    pub threshold: Ratio,
    /// Endpoints that must have been called enough; at least 1. Default 5: Envoy
    /// `failure_percentage_minimum_hosts`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub min_hosts: u32,
    /// Calls in an interval that are enough; at least 1. Default 50: Envoy
    /// `failure_percentage_request_volume`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub min_requests: u32,
}

impl Default for FailurePercentageConfig {
    fn default() -> Self {
        Self {
            enforce: true,
            threshold: Ratio::percent(85),
            min_hosts: 5,
            min_requests: 50,
        }
    }
}

/// Ejects an endpoint whose latency at `quantile` in an interval is more than `factor` times the
/// median of all endpoints', and more than `min_gap` above it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LatencyOutlierConfig {
    /// Whether it does. Default false: no peer has it, and `peak_ewma` avoids slow endpoints anyway.
    pub enforce: bool,
    /// Which of an endpoint's latencies counts, in (0, 1). Default 50 %: a guess; the endpoint is
    /// slow, not the odd call.
    pub quantile: Ratio,
    /// How many times as slow; more than 1, at most 1000. Default 3: a guess; latencies are known to
    /// a quarter.
    pub factor: f64,
    /// How much slower in any case. Default "50ms": a guess; three times nothing is nothing.
    pub min_gap: Millis,
    /// Endpoints that must have been called enough; at least 3. Default 5: as the others.
    #[cfg_attr(feature = "schema", schemars(range(min = 3)))]
    pub min_hosts: u32,
    /// Answers in an interval that are enough; at least 1. Default 50: as `failure_percentage`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub min_requests: u32,
}

impl Default for LatencyOutlierConfig {
    fn default() -> Self {
        Self {
            enforce: false,
            quantile: Ratio::percent(50),
            factor: 3.0,
            min_gap: Millis::new(50),
            min_hosts: 5,
            min_requests: 50,
        }
    }
}

/// A count of failures in a row shares a word with three others.
const IN_A_ROW_MAX: u32 = u16::MAX as u32;

/// Times any latency that is measured it is still a time.
const FACTOR_MAX: f64 = 1_000.0;

impl OutlierConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for (path, count) in [
            ("consecutive_5xx", self.consecutive_5xx),
            ("consecutive_gateway", self.consecutive_gateway),
            ("consecutive_local_origin", self.consecutive_local_origin),
            ("consecutive_connect", self.consecutive_connect),
        ] {
            ensure(count <= IN_A_ROW_MAX, path, count, "at most 65535")?;
        }
        let positive = "more than \"0s\"";
        ensure(
            !self.interval.0.is_zero(),
            "interval",
            self.interval,
            positive,
        )?;
        ensure(!self.eject.0.is_zero(), "eject", self.eject, positive)?;
        let default = Self::default();
        ensure_order(
            self.eject <= self.eject_max,
            Field::new("eject", self.eject, default.eject),
            Field::new("eject_max", self.eject_max, default.eject_max),
            AT_MOST,
        )?;
        share("max_ejected", self.max_ejected)?;
        self.success_rate
            .validate()
            .map_err(|e| e.within("success_rate"))?;
        self.failure_percentage
            .validate()
            .map_err(|e| e.within("failure_percentage"))?;
        self.latency.validate().map_err(|e| e.within("latency"))
    }

    /// How many of `hosts` may be out at once. Never all: somebody must take the calls.
    pub(in crate::balance) fn places(&self, hosts: u32) -> u32 {
        // 57 % of 100 is 56.999…: rounding up by a millionth gives 57.
        let share = (f64::from(hosts) * self.max_ejected.fraction() + 1e-6) as u32;
        share
            .max(u32::from(self.always_eject_one && hosts >= 2))
            .min(hosts.saturating_sub(1))
    }

    /// How long the `times`-th ejection in a row lasts, without its jitter.
    pub(super) fn lasts(&self, times: u32) -> Duration {
        self.eject
            .0
            .saturating_mul(times.max(1))
            .min(self.eject_max.0)
    }

    /// The count after one more ejection: it does not grow beyond what the longest needs, so that
    /// as many healthy intervals bring it down again.
    pub(super) fn more(&self, times: u32) -> u32 {
        if self.eject.0.saturating_mul(times) < self.eject_max.0.saturating_add(self.eject.0) {
            times.saturating_add(1)
        } else {
            times
        }
    }
}

fn share(path: &str, value: Ratio) -> Result<(), PolicyError> {
    ensure(value.fraction() <= 1.0, path, value, "0% to 100%")
}

fn at_least(path: &str, value: u32, least: u32) -> Result<(), PolicyError> {
    ensure(value >= least, path, value, &format!("at least {least}"))
}

impl SuccessRateConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        at_least("min_hosts", self.min_hosts, 2)?;
        at_least("min_requests", self.min_requests, 1)?;
        ensure(
            self.deviations > 0.0 && self.deviations.is_finite(),
            "deviations",
            self.deviations,
            "more than 0",
        )?;
        share("min_gap", self.min_gap)
    }
}

impl FailurePercentageConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            self.threshold.fraction() > 0.0 && self.threshold.fraction() <= 1.0,
            "threshold",
            self.threshold,
            "more than 0% and at most 100%",
        )?;
        at_least("min_hosts", self.min_hosts, 1)?;
        at_least("min_requests", self.min_requests, 1)
    }
}

impl LatencyOutlierConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            self.quantile.fraction() > 0.0 && self.quantile.fraction() < 1.0,
            "quantile",
            self.quantile,
            "more than 0% and less than 100%",
        )?;
        ensure(
            self.factor > 1.0 && self.factor <= FACTOR_MAX,
            "factor",
            self.factor,
            "more than 1, at most 1000",
        )?;
        at_least("min_hosts", self.min_hosts, 3)?;
        at_least("min_requests", self.min_requests, 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_its_path() {
        let cases = [
            ("consecutive_5xx = 65536", "consecutive_5xx"),
            (r#"interval = "0s""#, "interval"),
            (r#"eject = "0s""#, "eject"),
            (r#"eject_max = "1s""#, "eject_max"),
            (r#"max_ejected = "150%""#, "max_ejected"),
            ("success_rate = { min_hosts = 1 }", "success_rate.min_hosts"),
            (
                "success_rate = { min_requests = 0 }",
                "success_rate.min_requests",
            ),
            (
                "success_rate = { deviations = 0.0 }",
                "success_rate.deviations",
            ),
            (
                r#"success_rate = { min_gap = "101%" }"#,
                "success_rate.min_gap",
            ),
            (
                r#"failure_percentage = { threshold = "0%" }"#,
                "failure_percentage.threshold",
            ),
            (
                "failure_percentage = { min_hosts = 0 }",
                "failure_percentage.min_hosts",
            ),
            (r#"latency = { quantile = "100%" }"#, "latency.quantile"),
            ("latency = { factor = 1.0 }", "latency.factor"),
            ("latency = { factor = 1e300 }", "latency.factor"),
            ("latency = { min_hosts = 2 }", "latency.min_hosts"),
        ];
        for (text, path) in cases {
            let config: OutlierConfig = toml::from_str(text).expect(text);
            let error = config.validate().expect_err(text);
            assert_eq!(error.path, path, "{text}");
            assert!(error.to_string().contains(&error.allowed), "{error}");
        }
        OutlierConfig::default().validate().expect("defaults work");
        assert!(toml::from_str::<OutlierConfig>("latency = { p = 1 }").is_err());
    }

    #[test]
    fn how_many_may_be_out() {
        // share, always one, hosts → places
        let cases = [
            (10, true, 0, 0),
            (10, true, 1, 0),
            (10, true, 2, 1),
            (10, true, 10, 1),
            (10, true, 29, 2),
            (10, false, 9, 0),
            (10, false, 10, 1),
            (57, true, 100, 57),
            (0, false, 100, 0),
            (100, true, 5, 4),
        ];
        for (percent, always_eject_one, hosts, want) in cases {
            let config = OutlierConfig {
                max_ejected: Ratio::percent(percent),
                always_eject_one,
                ..OutlierConfig::default()
            };
            assert_eq!(config.places(hosts), want, "{percent} % of {hosts}");
        }
    }

    #[test]
    fn the_count_of_ejections_stops_at_the_longest() {
        let config = OutlierConfig {
            eject: Millis::new(10_000),
            eject_max: Millis::new(25_000),
            ..OutlierConfig::default()
        };
        let mut times = 0;
        let mut lasted = Vec::new();
        for _ in 0..6 {
            times = config.more(times);
            lasted.push(config.lasts(times).as_secs());
        }
        // Envoy: n grows while n·base < max + base.
        assert_eq!(
            (lasted.as_slice(), times),
            ([10, 20, 25, 25, 25, 25].as_slice(), 4)
        );
    }
}
