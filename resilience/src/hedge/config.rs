//! When a hedge is sent, and for which calls.

use std::{fmt, str::FromStr, time::Duration};

use http::{Extensions, HeaderMap, Method};
use serde::{Deserialize, Serialize};

use crate::{
    config::{
        AT_MOST, ByteSize, Field, LESS, Millis, PolicyError, Ratio, UnitError, ensure, ensure_order,
    },
    retry::Safety,
};

/// Hedges towards one destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HedgeConfig {
    /// How long a try may take before another one is sent beside it: a time ("50ms"), or the
    /// latency that so many calls stay below ("p95"). Default "p95": Dean and Barroso.
    pub after: HedgeAfter,
    /// Hedges of one call, 1 to 4. Default 1: Finagle and failsafe-go; gRPC caps all tries at 5.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4)))]
    pub max: u32,
    /// A measured latency below this counts as this. Default "1ms": Finagle; a timer is no finer.
    pub min_delay: Millis,
    /// A measured latency above this means that the callee is slow for everybody, which hedges
    /// would only make worse: none are sent. Default "2s": Finagle.
    pub max_delay: Millis,
    /// How far back latencies are looked at, "1s" to "10m". Default "30s": Finagle.
    pub window: Millis,
    /// Latencies that the window must hold before a quantile of them means anything; never fewer
    /// than it takes for one of them to lie above it. Default 20: one in twenty is above "p95".
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
    pub min_samples: u32,
    /// Hedge calls that are not idempotent (POST, PATCH; all of gRPC) too: both tries may be
    /// processed. Default false. One call is marked with [`Idempotent`](crate::retry::Idempotent).
    pub non_idempotent: bool,
    /// Body kept for a hedge; calls with a longer one are not hedged. Default "64KiB": linkerd's
    /// limit for retries.
    pub replay: ByteSize,
    /// While tries race, how long the head of a gRPC answer is held for the verdict behind it.
    /// Default "1s": as for retries.
    pub grpc_trailers: Millis,
    /// Tell the callee which try it is. Default true: one that is short of capacity should refuse
    /// hedges first.
    pub announce: bool,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self {
            after: HedgeAfter::Quantile(Ratio::percent(95)),
            max: 1,
            min_delay: Millis::new(1),
            max_delay: Millis::new(2_000),
            window: Millis::new(30_000),
            min_samples: 20,
            non_idempotent: false,
            replay: ByteSize(64 << 10),
            grpc_trailers: Millis::new(1_000),
            announce: true,
        }
    }
}

impl HedgeConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        match self.after {
            HedgeAfter::Fixed(delay) => ensure(
                !delay.0.is_zero(),
                "after",
                self.after,
                "more than \"0s\": a hedge at once doubles all traffic",
            )?,
            // Percent by percent, p99.9 is a hair more than 0.999.
            HedgeAfter::Quantile(q) => ensure(
                (0.5..=0.999_001).contains(&q.fraction()),
                "after",
                self.after,
                "\"p50\" to \"p99.9\"",
            )?,
        }
        ensure(
            (1..=4).contains(&self.max),
            "max",
            self.max,
            "1 to 4 hedges",
        )?;
        let default = Self::default();
        ensure_order(
            self.min_delay <= self.max_delay,
            Field::new("min_delay", self.min_delay, default.min_delay),
            Field::new("max_delay", self.max_delay, default.max_delay),
            AT_MOST,
        )?;
        ensure(
            (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&self.window.0),
            "window",
            self.window,
            "\"1s\" to \"10m\"",
        )?;
        ensure(
            (1..=1_000_000).contains(&self.min_samples),
            "min_samples",
            self.min_samples,
            "1 to 1000000",
        )?;
        ensure(
            self.replay.0 <= 1 << 20,
            "replay",
            self.replay,
            "at most \"1MiB\" a call",
        )
    }

    /// Refuses a hedge that would never be sent: `per_try` is over before it is due. Paths are those of
    /// the whole document.
    pub(crate) fn fits(&self, per_try: Option<Millis>) -> Result<(), PolicyError> {
        let Some(per_try) = per_try else {
            return Ok(());
        };
        let total = Field {
            name: "timeouts.backendRequest",
            value: per_try,
            is_default: false,
        };
        let due = match self.after {
            HedgeAfter::Fixed(delay) => Field {
                name: "hedge.after",
                value: delay,
                is_default: false,
            },
            HedgeAfter::Quantile(_) => {
                let default = Self::default().min_delay;
                Field::new("hedge.min_delay", self.min_delay, default)
            }
        };
        ensure_order(due.value < per_try, due, total, LESS)
    }

    /// Whether two tries of this request at once are harmless.
    pub fn safety(&self, method: &Method, headers: &HeaderMap, extensions: &Extensions) -> Safety {
        Safety::of(method, headers, extensions, self.non_idempotent)
    }

    /// Latencies that must be known before the quantile counts.
    pub(super) fn samples_for(&self, quantile: Ratio) -> u64 {
        // The subtraction is not exact: 1 − 0.9 is a little less than a tenth.
        let one_above = (1.0 / (1.0 - quantile.fraction()) - 1e-6).ceil() as u64;
        one_above.max(u64::from(self.min_samples))
    }
}

/// When a hedge is due.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum HedgeAfter {
    /// After a fixed time, written `"50ms"`.
    Fixed(Millis),
    /// After the time that this share of the calls stays below, written `"p95"`, `"p99.5"`.
    Quantile(Ratio),
}

impl FromStr for HedgeAfter {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.trim().strip_prefix('p') {
            Some(percent) => format!("{percent}%").parse().map(Self::Quantile),
            None => text.parse().map(Self::Fixed),
        }
    }
}

impl fmt::Display for HedgeAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(delay) => delay.fmt(f),
            Self::Quantile(q) => {
                // To four digits after the point: 0.95 × 100 is not 95 in binary.
                let percent = (q.fraction() * 1e6).round() / 1e4;
                write!(f, "p{percent}")
            }
        }
    }
}

impl TryFrom<String> for HedgeAfter {
    type Error = UnitError;
    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<HedgeAfter> for String {
    fn from(after: HedgeAfter) -> Self {
        after.to_string()
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for HedgeAfter {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HedgeAfter".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let time = crate::config::TIME_PATTERN;
        schemars::json_schema!({
            "type": "string",
            "pattern": format!("^({time}|p[0-9]{{2}}([.][0-9]+)?)$"),
            "description": r#"a duration as "50ms", or a quantile of latencies as "p95""#,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for after in ["50ms", "p95", "p99.9", "p50", "1s"] {
            let text = format!("after = {after:?}\nmax = 2");
            let config: HedgeConfig = toml::from_str(&text).expect("parses");
            config.validate().expect("works");
            assert_eq!(config.after.to_string(), after);
            let printed = toml::to_string(&config).expect("prints");
            let again: HedgeConfig = toml::from_str(&printed).expect("parses again");
            assert_eq!(again, config);
        }
        HedgeConfig::default().validate().expect("works");
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_path() {
        const CASES: &[(&str, &str)] = &[
            (r#"after = "0s""#, "after"),
            (r#"after = "p49""#, "after"),
            (r#"after = "p100""#, "after"),
            ("max = 0", "max"),
            ("max = 5", "max"),
            (r#"min_delay = "3s""#, "min_delay"),
            (r#"window = "999ms""#, "window"),
            (r#"window = "11m""#, "window"),
            ("min_samples = 0", "min_samples"),
            (r#"replay = "2MiB""#, "replay"),
        ];
        for (text, path) in CASES {
            let config: HedgeConfig = toml::from_str(text).expect(text);
            let error = config.validate().expect_err(text);
            assert_eq!(error.path, *path, "{text}");
        }
        for text in [
            r#"after = "95%""#,
            r#"after = "pp95""#,
            r#"after = "p""#,
            r#"after = "-5ms""#,
            r#"delay = "5ms""#,
        ] {
            assert!(toml::from_str::<HedgeConfig>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_quantile_needs_one_latency_above_it() {
        let config = HedgeConfig {
            min_samples: 5,
            ..HedgeConfig::default()
        };
        for (after, want) in [
            ("p50", 5),
            ("p90", 10),
            ("p95", 20),
            ("p99", 100),
            ("p99.9", 1000),
        ] {
            let HedgeAfter::Quantile(q) = after.parse().expect("valid") else {
                panic!("{after} is a quantile");
            };
            assert_eq!(config.samples_for(q), want, "{after}");
        }
    }
}
