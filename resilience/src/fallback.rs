//! Fallback: what to answer when there is no answer.
//!
//! A page without its recommendations is a page; a page with an error instead of them is none. Where
//! a worse answer is better than none (a cached one, an empty list, another provider's), the caller
//! should get that one, and the operator should see it: a fallback that looks like a success hides
//! an outage until the day on which it fails too. So an answer that stands in for another is marked,
//! and metrics count it as *degraded*, never as ok.
//!
//! # What it does not do
//! It does not try again, and it does not cache. A fallback that calls what is just failing (the
//! same database) fails with it. The caller's own errors (4xx) are answers, not outages.
//!
//! # Source
//! Hystrix fallbacks (`fallbackSuccess` apart from `success`), resilience4j, Polly.

use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::{
    config::{PolicyError, ensure},
    outcome::{Policy, Rejected},
};

/// `selvedge-degraded`: why an answer stands in for another.
pub static DEGRADED: HeaderName = HeaderName::from_static("selvedge-degraded");

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The callee's own answer, with this status.
    Status(StatusCode),
    /// A policy refused the call, or its time was up.
    Rejected(Rejected),
    /// The call failed.
    Failed,
}

impl Cause {
    /// A stable, lower-case name for the header, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Rejected(rejected) => rejected.policy.as_str(),
            Self::Failed => "failed",
        }
    }

    #[cfg(any(test, feature = "tower"))]
    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.as_str())
    }
}

/// Marks an answer that stands in for another: an extension of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Degraded(pub Cause);

/// What is answered in another's place, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct FallbackConfig {
    /// Statuses that are as good as no answer, 500 to 599. Default 502, 503, 504: the statuses that
    /// proxies answer with when the callee does not.
    #[cfg_attr(feature = "schema", schemars(inner(range(min = 500, max = 599))))]
    pub statuses: Vec<u16>,
    /// Whether a refusal by a policy (an open circuit, a full bulkhead, a deadline) is one. Default
    /// true. A caller who is over its own rate limit is never one.
    pub rejected: bool,
    /// Whether a failed call is one. Default true.
    pub failed: bool,
    /// The answer.
    pub answer: FixedAnswer,
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self {
            statuses: vec![502, 503, 504],
            rejected: true,
            failed: true,
            answer: FixedAnswer::default(),
        }
    }
}

/// An answer that is always the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct FixedAnswer {
    /// 200 to 599. Default 200: a degraded answer is one.
    #[cfg_attr(feature = "schema", schemars(range(min = 200, max = 599)))]
    pub status: u16,
    /// Default "application/json".
    pub content_type: String,
    /// At most 64 KiB. Default "{}".
    pub body: String,
}

const BODY_MAX: usize = 64 << 10;

impl Default for FixedAnswer {
    fn default() -> Self {
        Self {
            status: 200,
            content_type: "application/json".to_owned(),
            body: "{}".to_owned(),
        }
    }
}

impl FallbackConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for status in &self.statuses {
            let fits = (500..=599).contains(status);
            ensure(fits, "statuses", status, "500 to 599")?;
        }
        let some = !self.statuses.is_empty() || self.rejected || self.failed;
        ensure(some, "statuses", "[]", "some, or rejected, or failed")?;
        self.answer.validate().map_err(|e| e.within("answer"))
    }

    /// Whether `cause` is as good as no answer.
    ///
    /// Who is refused by a rate limit has asked for too much, and must hear it.
    pub fn applies(&self, cause: Cause) -> bool {
        match cause {
            Cause::Status(status) => self.statuses.contains(&status.as_u16()),
            Cause::Rejected(rejected) => self.rejected && rejected.policy != Policy::RateLimit,
            Cause::Failed => self.failed,
        }
    }
}

impl FixedAnswer {
    fn validate(&self) -> Result<(), PolicyError> {
        let status = (200..=599).contains(&self.status);
        ensure(status, "status", self.status, "200 to 599")?;
        let value = HeaderValue::try_from(self.content_type.as_str());
        let fits = value.is_ok() && !self.content_type.is_empty();
        ensure(fits, "content_type", &self.content_type, "a media type")?;
        let fits = self.body.len() <= BODY_MAX;
        ensure(fits, "body", self.body.len(), "at most 65536 bytes")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    #[test]
    fn what_is_as_good_as_no_answer() {
        let rejected = |policy| Cause::Rejected(Rejected::new(policy, Reason::Full));
        let cases = [
            (
                Cause::Status(StatusCode::SERVICE_UNAVAILABLE),
                true,
                "status",
            ),
            (
                Cause::Status(StatusCode::INTERNAL_SERVER_ERROR),
                false,
                "status",
            ),
            (Cause::Status(StatusCode::NOT_FOUND), false, "status"),
            (rejected(Policy::Breaker), true, "breaker"),
            (rejected(Policy::Deadline), true, "deadline"),
            (rejected(Policy::RateLimit), false, "rate_limit"),
            (Cause::Failed, true, "failed"),
        ];
        for (cause, applies, name) in cases {
            assert_eq!(
                FallbackConfig::default().applies(cause),
                applies,
                "{cause:?}"
            );
            assert_eq!(cause.header(), name);
        }
        let nothing: FallbackConfig =
            toml::from_str("statuses = [500]\nrejected = false\nfailed = false").expect("parses");
        assert!(!nothing.applies(rejected(Policy::Breaker)) && !nothing.applies(Cause::Failed));
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_path() {
        for (text, path) in [
            ("statuses = [404]", "statuses"),
            (
                "statuses = []\nrejected = false\nfailed = false",
                "statuses",
            ),
            ("answer = { status = 101 }", "answer.status"),
            (
                "answer = { content_type = \"a\\nb\" }",
                "answer.content_type",
            ),
            ("answer = { content_type = \"\" }", "answer.content_type"),
        ] {
            let config: FallbackConfig = toml::from_str(text).expect(text);
            assert_eq!(config.validate().expect_err(text).path, path, "{text}");
        }
        assert!(toml::from_str::<FallbackConfig>("on = [503]").is_err());
        FallbackConfig::default().validate().expect("works");
    }
}
