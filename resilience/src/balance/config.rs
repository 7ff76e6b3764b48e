//! What a destination's balancing is made of, as written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Millis, PolicyError, Ratio, ensure};

/// Which of the endpoints takes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BalancePolicy {
    /// Of two drawn by weight, the one with the lower peak latency × calls under way.
    #[default]
    PeakEwma,
    /// Of two drawn by weight, the one with fewer calls under way.
    LeastRequest,
    /// In turns, by weight, the turns of one endpoint spread evenly.
    RoundRobin,
    /// By chance, by weight.
    Random,
    /// By the call's hash on a ring of virtual nodes; an endpoint that is full passes on.
    RingHash,
    /// By the call's hash in a table of 65,537 places; an endpoint that is full passes on.
    Maglev,
}

impl BalancePolicy {
    /// Whether a call's hash decides where it goes.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// What of a request decides where a hashing policy places it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HashOn {
    /// A header field's value.
    Header(String),
    /// A cookie's value.
    Cookie(String),
    /// The path, without the query.
    Path,
    /// The caller's address: the request's `IpAddr` extension. The proxies know it; a service puts it
    /// there.
    Source,
}

/// How the calls to one destination are spread over its endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BalanceConfig {
    /// Which endpoint takes a call. Default "peak_ewma": linkerd's and Finagle's choice.
    pub policy: BalancePolicy,
    /// Time constant with which `peak_ewma` forgets a peak. Default "10s": Finagle `PeakEwma`.
    pub decay: Millis,
    /// With `ring_hash` and `maglev`: the most that an endpoint carries, as a share of what it
    /// would carry if all calls under way were spread evenly; more than 100 %, or 0 for no bound.
    /// Default 125 %: c = 1.25 of Mirrokni, Thorup and Zadimoghaddam, 2017; HAProxy advises 150 %.
    pub load_factor: Ratio,
    /// With `ring_hash`: points on the ring of an endpoint of average weight, 1 to 4,096. Default
    /// 160: libketama.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4096)))]
    pub virtual_nodes: u32,
    /// With `ring_hash` and `maglev`: what decides where a call goes, such as
    /// `{ header = "x-user" }`, `{ cookie = "session" }`, `"path"` or `"source"`. A call that lacks
    /// it goes by chance. Not set: whatever the caller puts into the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// How many endpoints (of each zone, if `locality` is set) this process calls at all; 0 is
    /// all. Default 0: below some hundred endpoints connections are cheap.
    pub subset: u32,
    /// If fewer of the endpoints than this are in, ejections and probes are not believed and calls
    /// go to all, in [0, 1]; 0 never does. Default 50 %: Envoy `healthy_panic_threshold`.
    pub panic_threshold: Ratio,
    /// How an endpoint that is new or comes back is given more and more calls. Not set: at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStartConfig>,
    /// Whether near endpoints come first. Not set: all are alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<LocalityConfig>,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            policy: BalancePolicy::default(),
            decay: Millis::new(10_000),
            load_factor: Ratio::percent(125),
            virtual_nodes: 160,
            hash_on: None,
            subset: 0,
            panic_threshold: Ratio::percent(50),
            slow_start: None,
            locality: None,
        }
    }
}

/// How fast the share of a new endpoint grows.
///
/// Its weight is × max(`min_weight`, (age ÷ window)^(1 ÷ aggression)), compared with that of the
/// oldest: where all are new, none is held back. `ring_hash` and `maglev` do without: it would
/// move keys all the time.
///
/// Source: Envoy `slow_start_config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SlowStartConfig {
    /// After this time an endpoint has its whole share; more than "0s". Default "30s": a guess,
    /// the time in which a JVM or a cache warms up; Envoy has no default.
    pub window: Millis,
    /// 1 is a straight line; more gives more at the start; more than 0. Default 1: Envoy.
    pub aggression: f64,
    /// The share it begins with, in [0, 1]. Default 10 %: Envoy `min_weight_percent`.
    pub min_weight: Ratio,
}

impl Default for SlowStartConfig {
    fn default() -> Self {
        Self {
            window: Millis::new(30_000),
            aggression: 1.0,
            min_weight: Ratio::percent(10),
        }
    }
}

/// How near endpoints are preferred.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LocalityConfig {
    /// How much more than its part a tier (zone, region, elsewhere) can carry before calls spill to
    /// the next: at 140 %, as long as 72 % of it is in; at least 100 %. Default 140 %: Envoy
    /// `overprovisioning_factor`.
    pub overprovisioning: Ratio,
    /// Share of all callers that run in this caller's zone, in (0, 1]: the part of the whole load
    /// that the zone's endpoints must be able to carry. Not set: the zone is taken to be as large
    /// as its callers need, as with Envoy's priorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callers: Option<Ratio>,
}

impl Default for LocalityConfig {
    fn default() -> Self {
        Self {
            overprovisioning: Ratio::percent(140),
            callers: None,
        }
    }
}

impl BalanceConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let positive = "more than \"0s\"";
        ensure(!self.decay.0.is_zero(), "decay", self.decay, positive)?;
        let named = match &self.hash_on {
            Some(HashOn::Header(name)) => Some(("hash_on.header", name)),
            Some(HashOn::Cookie(name)) => Some(("hash_on.cookie", name)),
            _ => None,
        };
        if let Some((path, name)) = named {
            let token = http::HeaderName::try_from(name.as_str()).is_ok();
            ensure(token, path, name, "a name of letters, digits and dashes")?;
        }
        let factor = self.load_factor.fraction();
        ensure(
            factor == 0.0 || factor > 1.0,
            "load_factor",
            self.load_factor,
            "more than 100%, or 0%",
        )?;
        ensure(
            (1..=4096).contains(&self.virtual_nodes),
            "virtual_nodes",
            self.virtual_nodes,
            "1 to 4096",
        )?;
        ensure(
            self.panic_threshold.fraction() <= 1.0,
            "panic_threshold",
            self.panic_threshold,
            "0% to 100%",
        )?;
        if let Some(slow) = &self.slow_start {
            slow.validate().map_err(|e| e.within("slow_start"))?;
        }
        if let Some(locality) = &self.locality {
            locality.validate().map_err(|e| e.within("locality"))?;
        }
        Ok(())
    }
}

impl SlowStartConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        let positive = "more than \"0s\"";
        ensure(!self.window.0.is_zero(), "window", self.window, positive)?;
        ensure(
            self.aggression > 0.0 && self.aggression.is_finite(),
            "aggression",
            self.aggression,
            "more than 0",
        )?;
        ensure(
            self.min_weight.fraction() <= 1.0,
            "min_weight",
            self.min_weight,
            "0% to 100%",
        )
    }

    /// The share of its weight that an endpoint of this age has, in (0, 1].
    pub(super) fn factor(&self, age: Duration) -> f64 {
        if age >= self.window.0 {
            return 1.0;
        }
        // At least a second, as Envoy: a share of nothing would never grow up.
        let age = age.as_secs_f64().max(1.0);
        let part = (age / self.window.0.as_secs_f64()).min(1.0);
        let part = if (self.aggression - 1.0).abs() < f64::EPSILON {
            part
        } else {
            part.powf(1.0 / self.aggression)
        };
        part.max(self.min_weight.fraction())
    }
}

impl LocalityConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            self.overprovisioning.fraction() >= 1.0,
            "overprovisioning",
            self.overprovisioning,
            "at least 100%",
        )?;
        let Some(callers) = self.callers else {
            return Ok(());
        };
        let share = callers.fraction();
        ensure(
            share > 0.0 && share <= 1.0,
            "callers",
            callers,
            "more than 0% and at most 100%",
        )
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_its_path() {
        let cases = [
            (r#"decay = "0s""#, "decay"),
            (r#"load_factor = "100%""#, "load_factor"),
            (r#"load_factor = "50%""#, "load_factor"),
            ("virtual_nodes = 0", "virtual_nodes"),
            ("virtual_nodes = 4097", "virtual_nodes"),
            (r#"panic_threshold = "101%""#, "panic_threshold"),
            (r#"slow_start = { window = "0s" }"#, "slow_start.window"),
            ("slow_start = { aggression = 0.0 }", "slow_start.aggression"),
            ("slow_start = { aggression = nan }", "slow_start.aggression"),
            (
                r#"slow_start = { min_weight = "200%" }"#,
                "slow_start.min_weight",
            ),
            (
                r#"locality = { overprovisioning = "99%" }"#,
                "locality.overprovisioning",
            ),
            (r#"locality = { callers = "0%" }"#, "locality.callers"),
            (r#"locality = { callers = "101%" }"#, "locality.callers"),
        ];
        for (text, path) in cases {
            let config: BalanceConfig = toml::from_str(text).expect(text);
            let error = config.validate().expect_err(text);
            assert_eq!(error.path, path, "{text}");
            assert!(error.to_string().contains(&error.allowed), "{error}");
        }
        BalanceConfig::default().validate().expect("defaults work");
        for text in ["polcy = \"random\"", "policy = \"fastest\""] {
            assert!(toml::from_str::<BalanceConfig>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = r#"
            policy = "ring_hash"
            load_factor = "0%"
            subset = 20
            slow_start = { window = "1m", aggression = 2.0 }
            locality = { callers = "33%" }
        "#;
        let config: BalanceConfig = toml::from_str(text).expect("parses");
        config.validate().expect("works");
        let printed = toml::to_string(&config).expect("prints");
        assert_eq!(
            toml::from_str::<BalanceConfig>(&printed).expect("parses again"),
            config
        );
    }

    #[test]
    fn slow_start_ramps_as_envoys() {
        let ramp = |aggression, min: u32| SlowStartConfig {
            window: Millis::new(60_000),
            aggression,
            min_weight: Ratio::percent(min),
        };
        let cases = [
            ("floor", ramp(1.0, 10), 0, 0.1),
            ("one second at least", ramp(1.0, 0), 0, 1.0 / 60.0),
            ("half way", ramp(1.0, 10), 30, 0.5),
            ("aggressive", ramp(2.0, 10), 15, 0.5),
            ("hesitant", ramp(0.5, 10), 30, 0.25),
            ("grown up", ramp(1.0, 10), 60, 1.0),
        ];
        for (name, config, age, want) in cases {
            let got = config.factor(Duration::from_secs(age));
            assert!((got - want).abs() < 1e-9, "{name}: {got}, want {want}");
        }
    }
}
