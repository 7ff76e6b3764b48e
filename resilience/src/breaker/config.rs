//! When a circuit opens, how long it stays open, and what closes it.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::config::{AT_MOST, Field, Millis, PolicyError, Ratio, ensure, ensure_order};

/// Circuit breaking for one destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Who decides: results, or an operator. Default "auto".
    pub mode: Mode,
    /// Share of failed calls that opens the circuit, in (0, 1]. Default 50 %: Hystrix
    /// `errorThresholdPercentage`.
    pub failure_rate: Ratio,
    /// Share of slow calls that opens it, in (0, 1]. Not set: slow calls do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_rate: Option<Ratio>,
    /// A call is slow when it takes longer than this. Default "60s": resilience4j
    /// `slowCallDurationThreshold`. A call cancelled after this long counts as failed.
    pub slow_after: Millis,
    /// Failures in a row that open it whatever the share; 0 is off. Default 0.
    pub consecutive: u32,
    /// What the shares are taken over: a span of time ("10s"), the last calls ("100 calls"), or
    /// all calls with the older counting less ("fading 100 calls"). Default "10s": Hystrix
    /// `metrics.rollingStats.timeInMilliseconds`.
    pub over: Window,
    /// Steps in which a window over time moves, 1 to 1000. Default 10: Hystrix
    /// `metrics.rollingStats.numBuckets`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1000)))]
    pub buckets: u32,
    /// Calls the window must hold before a share counts; a window over fewer calls is content with
    /// all of them. Default 20: Hystrix `requestVolumeThreshold`.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub min_requests: u32,
    /// How long the circuit stays open before it probes. Default "5s": Hystrix
    /// `sleepWindowInMilliseconds`.
    pub open_for: Millis,
    /// What the open time is multiplied by each time the probes fail, 1 to 100. Default 2:
    /// linkerd's exponential backoff.
    #[cfg_attr(feature = "schema", schemars(range(min = 1.0, max = 100.0)))]
    pub open_multiplier: f64,
    /// The longest it stays open, also when the callee's `Retry-After` asks for more. Default
    /// "60s": a guess, between Envoy's 300 s and Hystrix's constant 5 s.
    pub open_for_max: Millis,
    /// Share of the open time that chance adds, 0 to 1, so that a fleet does not probe in step; at
    /// `open_for_max` it takes away instead. Default 0: each circuit opens by its own calls.
    /// resilience4j and linkerd offer 0.5.
    pub open_jitter: Ratio,
    /// Calls let through while half-open, 1 to 4095. Default 3: a guess; one (Hystrix) lets a
    /// single unlucky packet keep a healthy service out.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4095)))]
    pub probes: u32,
    /// Share of the probes that must succeed to close the circuit, in (0, 1]. Not set: fewer than
    /// `failure_rate` may fail (resilience4j).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_rate: Option<Ratio>,
    /// How long the last probe may take, once all are out, before the circuit opens again.
    /// Default "60s": a guess.
    pub probe_wait: Millis,
    /// What a call means that was cancelled after `slow_after` or after its deadline. Default
    /// "judge".
    pub on_cancel: OnCancel,
}

/// Who decides about a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mode {
    /// The results do.
    #[default]
    Auto,
    /// Every call is refused.
    ForcedOpen,
    /// Every call passes, and none is counted.
    Disabled,
    /// Every call passes and is counted; a threshold that is reached is only reported.
    MetricsOnly,
}

/// What a call that nobody waited for says of the callee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnCancel {
    /// It failed, if it had run for `slow_after` or past its deadline: a timeout around the breaker
    /// must not hide a callee that hangs.
    #[default]
    Judge,
    /// Nothing.
    Ignore,
}

/// What shares are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Window {
    /// The last span of time, written `"10s"`.
    Time(Millis),
    /// The last calls, written `"100 calls"`.
    Calls(u32),
    /// All calls, each counting e^(−1/N) of the one after it, written `"fading 100 calls"`.
    Fading(u32),
}

const WINDOW_FORMS: &str = r#""10s", "100 calls" or "fading 100 calls""#;

/// A window that is not written in any of its forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a window: write it as {WINDOW_FORMS}")]
pub struct WindowError(String);

impl FromStr for Window {
    type Err = WindowError;
    fn from_str(text: &str) -> Result<Self, WindowError> {
        let fail = || WindowError(text.to_owned());
        let calls = |text: &str| {
            let number = text.strip_suffix("calls")?.trim_end();
            number.replace('_', "").parse().ok()
        };
        let text = text.trim();
        if let Some(fading) = text.strip_prefix("fading ") {
            calls(fading.trim_start())
                .map(Self::Fading)
                .ok_or_else(fail)
        } else if text.ends_with("calls") {
            calls(text).map(Self::Calls).ok_or_else(fail)
        } else {
            text.parse().map(Self::Time).map_err(|_| fail())
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(span) => span.fmt(f),
            Self::Calls(n) => write!(f, "{n} calls"),
            Self::Fading(n) => write!(f, "fading {n} calls"),
        }
    }
}

impl Serialize for Window {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Window {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Window".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let text = format!("what shares are taken over, as {WINDOW_FORMS}");
        let time = crate::config::TIME_PATTERN;
        let pattern = format!("^({time}|(fading )?[0-9][0-9_]* ?calls)$");
        schemars::json_schema!({ "type": "string", "pattern": pattern, "description": text })
    }
}

impl From<Millis> for Window {
    fn from(span: Millis) -> Self {
        Self::Time(span)
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            failure_rate: Ratio::percent(50),
            slow_rate: None,
            slow_after: Millis::new(60_000),
            consecutive: 0,
            over: Window::Time(Millis::new(10_000)),
            buckets: 10,
            min_requests: 20,
            open_for: Millis::new(5_000),
            open_multiplier: 2.0,
            open_for_max: Millis::new(60_000),
            open_jitter: Ratio::percent(0),
            probes: 3,
            close_rate: None,
            probe_wait: Millis::new(60_000),
            on_cancel: OnCancel::Judge,
        }
    }
}

/// The most calls that a window may be over: a ring of 256 KiB.
const CALLS_MAX: u32 = 1 << 20;

impl BreakerConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        self.validate_shares()?;
        self.validate_window()?;
        self.validate_times()
    }

    fn validate_shares(&self) -> Result<(), PolicyError> {
        let shares = [
            ("failure_rate", Some(self.failure_rate)),
            ("slow_rate", self.slow_rate),
            ("close_rate", self.close_rate),
        ];
        for (path, share) in shares {
            let Some(share) = share else { continue };
            let ok = share.fraction() > 0.0 && share.fraction() <= 1.0;
            ensure(ok, path, share, "more than 0, at most 100%")?;
        }
        ensure(
            self.open_jitter.fraction() <= 1.0,
            "open_jitter",
            self.open_jitter,
            "0 to 100%",
        )?;
        ensure(
            (1..=4095).contains(&self.probes),
            "probes",
            self.probes,
            "1 to 4095",
        )
    }

    fn validate_window(&self) -> Result<(), PolicyError> {
        ensure(
            (1..=1000).contains(&self.buckets),
            "buckets",
            self.buckets,
            "1 to 1000",
        )?;
        let (ok, allowed) = match self.over {
            Window::Time(span) => (
                span.0 >= Duration::from_millis(1) * self.buckets,
                format!("at least buckets = {} milliseconds", self.buckets),
            ),
            Window::Calls(n) | Window::Fading(n) => (
                (1..=CALLS_MAX).contains(&n),
                format!("1 to {CALLS_MAX} calls"),
            ),
        };
        ensure(ok, "over", self.over, &allowed)?;
        ensure(
            self.min_requests > 0,
            "min_requests",
            self.min_requests,
            "at least 1",
        )
    }

    fn validate_times(&self) -> Result<(), PolicyError> {
        for (path, time) in [
            ("slow_after", self.slow_after),
            ("open_for", self.open_for),
            ("probe_wait", self.probe_wait),
        ] {
            ensure(!time.0.is_zero(), path, time, "more than \"0s\"")?;
        }
        let default = Self::default();
        ensure_order(
            self.open_for <= self.open_for_max,
            Field::new("open_for", self.open_for, default.open_for),
            Field::new("open_for_max", self.open_for_max, default.open_for_max),
            AT_MOST,
        )?;
        ensure(
            (1.0..=100.0).contains(&self.open_multiplier),
            "open_multiplier",
            self.open_multiplier,
            "1 to 100",
        )
    }

    /// The number of calls that a share needs: a window over fewer calls is content with all.
    pub(crate) fn min_calls(&self) -> u32 {
        match self.over {
            Window::Calls(n) => self.min_requests.min(n),
            Window::Time(_) | Window::Fading(_) => self.min_requests,
        }
    }
}
