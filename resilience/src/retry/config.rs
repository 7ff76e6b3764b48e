//! Which answers are worth another try, and how often.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::config::{BackoffRange, BudgetSpec, ByteSize, Millis, PolicyError, Ratio, ensure};

/// Retries towards one destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Tries after the first. Default 2: AWS SDKs make 3 attempts in all.
    pub attempts: u32,
    /// Answers that are tried again. Default 502, 503, 504: what proxies answer for a callee that
    /// is not there.
    pub codes: Vec<u16>,
    /// Wait before a try: full jitter, doubling. Default "25ms..250ms": Envoy's base and cap.
    pub backoff: BackoffRange,
    /// How much all retries together may add. Default "20% min 3/s": Envoy `retry_budget`.
    pub budget: BudgetSpec,
    /// Try calls again that are not idempotent (POST, PATCH) and may have been processed.
    /// Default false. Calls that were never sent are always tried again.
    pub non_idempotent: bool,
    /// Body kept for another try; a longer one makes its call final. Default "64KiB": linkerd.
    pub replay: ByteSize,
    /// The longest `Retry-After` that is waited for. Default "5s": AWS SDKs clamp to +5 s.
    pub retry_after_max: Millis,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 2,
            codes: vec![502, 503, 504],
            backoff: BackoffRange {
                base: Duration::from_millis(25),
                max: Duration::from_millis(250),
            },
            budget: BudgetSpec {
                ratio: Ratio::percent(20),
                min_per_second: 3,
            },
            non_idempotent: false,
            replay: ByteSize(64 << 10),
            retry_after_max: Millis::new(5_000),
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
        super::budget::validate(self.budget)
    }

    /// Whether an answer with this status is worth another try.
    pub fn retries_status(&self, status: StatusCode) -> bool {
        self.codes.contains(&status.as_u16())
    }

    /// Whether a call that may have been processed can be made again.
    pub fn retries_method(&self, method: &Method) -> bool {
        self.non_idempotent || is_idempotent(method)
    }
}

/// Source: RFC 9110 §9.2.2.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS | Method::TRACE
    )
}
