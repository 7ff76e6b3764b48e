//! Which faults, for whom, how often.

use std::time::Duration;

use http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};

use crate::config::{Millis, PolicyError, Ratio, ensure};

/// Faults for the requests that match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct FaultConfig {
    /// Waiting before the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<DelayConfig>,
    /// An answer, or a broken connection, in the call's place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<AbortConfig>,
    /// All of them must match. Empty: every request does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Calls that may suffer at once; others pass unharmed. Not written: any number, as Envoy's
    /// `max_active_faults`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub max_active: Option<u32>,
}

/// A delay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DelayConfig {
    /// How long. Not written: only where the request says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<Millis>,
    /// Whether a request may say so itself, in `x-envoy-fault-delay-request` (milliseconds).
    /// Default false: strangers must not stretch calls.
    #[serde(default)]
    pub by_header: bool,
    /// The longest that a request may ask for. Default "10s": a guess, below most timeouts.
    #[serde(default = "DelayConfig::longest")]
    pub max: Millis,
    /// Of how many requests. Default 0 %: Envoy's `FractionalPercent`. A request may ask for less,
    /// in `x-envoy-fault-delay-request-percentage`.
    #[serde(default = "zero")]
    pub percentage: Ratio,
}

/// An abort: one of `status`, `grpc_status`, `reset`, or what the request asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AbortConfig {
    /// This HTTP status, 200 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 200, max = 599)))]
    pub status: Option<u16>,
    /// This gRPC status, 0 to 16, in an answer without a body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 16)))]
    pub grpc_status: Option<u8>,
    /// No answer: the call fails as if its connection had broken.
    #[serde(default)]
    pub reset: bool,
    /// Whether a request may say so itself, in `x-envoy-fault-abort-request` (HTTP status) or
    /// `x-envoy-fault-abort-grpc-request`. Default false.
    #[serde(default)]
    pub by_header: bool,
    /// Of how many requests. Default 0 %: Envoy's `FractionalPercent`. A request may ask for less,
    /// in `x-envoy-fault-abort-request-percentage`.
    #[serde(default = "zero")]
    pub percentage: Ratio,
}

/// What a header must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// Its name.
    pub name: String,
    /// Its value. Not written: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// What its value begins with; not together with `exact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Matches the requests that would not.
    #[serde(default)]
    pub invert: bool,
}

fn zero() -> Ratio {
    Ratio::percent(0)
}

impl DelayConfig {
    fn longest() -> Millis {
        Millis::new(10_000)
    }

    fn validate(&self) -> Result<(), PolicyError> {
        if let Some(fixed) = self.fixed {
            ensure(fixed.0 > Duration::ZERO, "fixed", fixed, "more than \"0s\"")?;
        }
        let any = self.fixed.is_some() || self.by_header;
        ensure(any, "fixed", "nothing", "a duration, or by_header = true")?;
        ensure(!self.max.0.is_zero(), "max", self.max, "more than \"0s\"")?;
        share(self.percentage)
    }
}

impl AbortConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        if let Some(status) = self.status {
            let fits = (200..=599).contains(&status) && StatusCode::from_u16(status).is_ok();
            ensure(fits, "status", status, "200 to 599")?;
        }
        if let Some(status) = self.grpc_status {
            ensure(status <= 16, "grpc_status", status, "0 to 16")?;
        }
        let ways = usize::from(self.status.is_some())
            + usize::from(self.grpc_status.is_some())
            + usize::from(self.reset);
        let allowed = "one of status, grpc_status and reset, or by_header = true";
        let fits = ways == 1 || (ways == 0 && self.by_header);
        ensure(fits, "status", format!("{ways} ways to abort"), allowed)?;
        share(self.percentage)
    }
}

impl HeaderMatch {
    fn validate(&self) -> Result<(), PolicyError> {
        let name = self.name.parse::<HeaderName>();
        ensure(name.is_ok(), "name", &self.name, "a header's name")?;
        ensure(
            self.exact.is_none() || self.prefix.is_none(),
            "prefix",
            self.prefix.as_deref().unwrap_or_default(),
            "not together with exact",
        )
    }
}

/// In fixed point it is a whole number of millionths: less than one of them would be never.
fn share(percentage: Ratio) -> Result<(), PolicyError> {
    let f = percentage.fraction();
    ensure(
        f <= 1.0 && (f <= 0.0 || super::millionths(percentage) > 0),
        "percentage",
        percentage,
        "0% to 100%, in steps of 0.0001%",
    )
}

impl FaultConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        if let Some(delay) = &self.delay {
            delay.validate().map_err(|e| e.within("delay"))?;
        }
        if let Some(abort) = &self.abort {
            abort.validate().map_err(|e| e.within("abort"))?;
        }
        for header in &self.headers {
            header.validate().map_err(|e| e.within("headers"))?;
        }
        if let Some(max) = self.max_active {
            ensure(max > 0, "max_active", max, "at least 1")?;
        }
        Ok(())
    }
}
