//! Which tries are worth another one, how soon, and how much all of them may add.

use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    backoff::Jitter,
    budget::{self, Budget},
    cost::CostConfig,
};
use crate::{
    classify::GrpcCode,
    config::{BackoffRange, BudgetSpec, ByteSize, Millis, PolicyError, Ratio, ShareSpec, ensure},
    outcome::FailureClass,
};

/// Retries towards one destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Tries after the first. Default 2: AWS SDKs make 3 attempts in all.
    #[cfg_attr(feature = "schema", schemars(range(max = 10)))]
    pub attempts: u32,
    /// Answers that are tried again. Default 502, 503, 504: what proxies answer for a callee that
    /// is not there.
    #[cfg_attr(feature = "schema", schemars(inner(range(min = 400, max = 599))))]
    pub codes: Vec<u16>,
    /// gRPC statuses that are tried again. Default `UNAVAILABLE`: the one that gRPC's documentation
    /// calls transient.
    pub grpc: Vec<GrpcCode>,
    /// Failures without an answer that are tried again. Default connect, reset, timeout, other: all
    /// but a callee that breaks the protocol, which will break it again.
    pub errors: Vec<ErrorClass>,
    /// Wait before a try: doubling from the base up to the maximum. Default "25ms..250ms": Envoy's
    /// base and cap.
    pub backoff: BackoffRange,
    /// How waits are spread: full, equal, decorrelated, none. Default full: AWS.
    pub jitter: Jitter,
    /// How much all retries together may add. Default "20% min 3/s": Envoy's share, and a floor
    /// for those with little traffic.
    pub budget: BudgetSpec,
    /// How many retries and hedges may be under way, waiting ones included, for the calls under
    /// way. Default "50% min 10": what the death of one of two instances needs at once.
    pub in_flight: ShareSpec,
    /// A cost bucket on top of the budget, for clients with little traffic. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostConfig>,
    /// Try calls again that are not idempotent (POST, PATCH) and may have been processed.
    /// Default false. Calls that were never sent are always tried again.
    pub non_idempotent: bool,
    /// Body kept for another try; a longer one makes its call final. Default "64KiB": linkerd.
    pub replay: ByteSize,
    /// The longest `Retry-After` or pushback that is waited for. Default "5s": AWS SDKs clamp to
    /// +5 s.
    pub retry_after_max: Millis,
    /// How long the head of a gRPC answer is held for its trailers, so that a failure that comes
    /// after an empty body is tried again too. "0s": never. Default "1s": a guess; streams that
    /// send a head long before their first message would want less.
    pub grpc_trailers: Millis,
    /// Tell the callee which try it is, if not the first: `x-envoy-attempt-count`,
    /// `grpc-previous-rpc-attempts`. Default true: a callee that knows can refuse retries first.
    pub announce: bool,
}

/// Why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ErrorClass {
    /// No connection came about.
    Connect,
    /// The connection or stream broke.
    Reset,
    /// One try took too long.
    Timeout,
    /// The callee broke the protocol.
    Protocol,
    /// Anything else.
    Other,
}

impl ErrorClass {
    fn of(class: FailureClass) -> Self {
        match class {
            FailureClass::Connect => Self::Connect,
            FailureClass::Reset => Self::Reset,
            FailureClass::Timeout => Self::Timeout,
            FailureClass::Protocol => Self::Protocol,
            _ => Self::Other,
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 2,
            codes: vec![502, 503, 504],
            grpc: vec![GrpcCode::Unavailable],
            errors: vec![
                ErrorClass::Connect,
                ErrorClass::Reset,
                ErrorClass::Timeout,
                ErrorClass::Other,
            ],
            backoff: BackoffRange {
                base: Duration::from_millis(25),
                max: Duration::from_millis(250),
            },
            jitter: Jitter::Full,
            budget: BudgetSpec {
                ratio: Ratio::percent(20),
                min_per_second: 3,
            },
            in_flight: budget::DEFAULT_SHARE,
            cost: None,
            non_idempotent: false,
            replay: ByteSize(64 << 10),
            retry_after_max: Millis::new(5_000),
            grpc_trailers: Millis::new(1_000),
            announce: true,
        }
    }
}

impl RetryConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            self.attempts <= 10,
            "attempts",
            self.attempts,
            "0 to 10 tries after the first",
        )?;
        for code in &self.codes {
            ensure(
                (400..600).contains(code),
                "codes",
                code,
                "statuses from 400 to 599",
            )?;
        }
        ensure(
            !self.grpc.contains(&GrpcCode::Ok),
            "grpc",
            "OK",
            "codes of failures",
        )?;
        let range = self.backoff;
        ensure(
            range.base <= range.max,
            "backoff",
            range,
            "a base that is not above the maximum",
        )?;
        ensure(
            self.replay.0 <= 1 << 20,
            "replay",
            self.replay,
            "at most \"1MiB\" a call",
        )?;
        if let Some(cost) = &self.cost {
            cost.validate().map_err(|e| e.within("cost"))?;
        }
        budget::validate(self.budget)?;
        budget::validate_share(self.in_flight)
    }

    /// The budget that this configuration describes.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn new_budget(&self) -> Result<Budget, PolicyError> {
        Budget::with(self.budget, self.in_flight, budget::DEFAULT_TTL)
    }

    /// Whether an answer with this status is worth another try.
    pub fn retries_status(&self, status: StatusCode) -> bool {
        self.codes.contains(&status.as_u16())
    }

    /// Whether a failure of this kind is worth another try.
    pub fn retries_error(&self, class: FailureClass) -> bool {
        self.errors.contains(&ErrorClass::of(class))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let text = r#"
            attempts = 1
            grpc = ["UNAVAILABLE", "ABORTED"]
            errors = ["connect", "timeout"]
            jitter = "decorrelated"
            in_flight = "20% min 3"
            cost = { tokens = 100 }
            grpc_trailers = "0s"
        "#;
        let config: RetryConfig = toml::from_str(text).expect("parses");
        config.validate().expect("works");
        let printed = toml::to_string(&config).expect("prints");
        let again: RetryConfig = toml::from_str(&printed).expect("parses again");
        assert_eq!(again, config);
        assert!(config.retries_error(FailureClass::Connect));
        assert!(!config.retries_error(FailureClass::Reset));
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_path() {
        const CASES: &[(&str, &str)] = &[
            ("attempts = 11", "attempts"),
            ("codes = [200]", "codes"),
            (r#"grpc = ["OK"]"#, "grpc"),
            (r#"backoff = "2s..1s""#, "backoff"),
            (r#"budget = "2000%""#, "budget"),
            (r#"in_flight = "2000%""#, "in_flight"),
            (r#"replay = "2MiB""#, "replay"),
            ("cost = { retry = 0 }", "cost.retry"),
        ];
        for (text, path) in CASES {
            let config: RetryConfig = toml::from_str(text).expect(text);
            assert_eq!(config.validate().expect_err(text).path, *path);
        }
        for text in [
            r#"grpc = ["unavailable"]"#,
            r#"errors = ["slow"]"#,
            r#"jitter = "some""#,
            "trys = 3",
        ] {
            assert!(toml::from_str::<RetryConfig>(text).is_err(), "{text}");
        }
    }
}
