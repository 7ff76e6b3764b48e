//! What a caller is told of its limit, before it runs into it.
//!
//! ```text
//! RateLimit-Policy: "burst";q=100;w=10      the limit: 100 in 10 s
//! RateLimit: "burst";r=50;t=30              what is left of it: 50 for the next 30 s
//! Retry-After: 30                           with a 429: never before t
//! ```
//!
//! Both are structured-field lists. The times are whole seconds and rounded *up*: a caller that
//! trusts them is not refused.
//!
//! Source: draft-ietf-httpapi-ratelimit-headers (2025-09), RFC 9651 (strings), RFC 9110 §10.2.3.

use std::{fmt::Write, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};

use super::Status;
use crate::{
    config::{PolicyError, Rate},
    outcome::Rejected,
};

/// `RateLimit`.
pub static RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `RateLimit-Policy`.
pub static RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The name of a limit as callers see it, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyName(
    /// Quoted and escaped.
    String,
);

impl PolicyName {
    /// `name`: printable ASCII, not empty.
    ///
    /// # Errors
    /// [`PolicyError`] if a structured field cannot carry it.
    pub fn new(name: &str) -> Result<Self, PolicyError> {
        let printable = |c: char| (' '..='~').contains(&c);
        if name.is_empty() || !name.chars().all(printable) {
            return Err(PolicyError::new(
                "name",
                format!("{name:?}"),
                "printable ASCII, at least one character",
            ));
        }
        let mut quoted = String::with_capacity(name.len() + 2);
        quoted.push('"');
        for c in name.chars() {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
        Ok(Self(quoted))
    }

    /// `RateLimit-Policy` for a limit: its quota `q` and window `w`.
    ///
    /// A burst beyond the rate's own count is told as the window in which it comes back.
    pub fn policy(&self, rate: Rate) -> HeaderValue {
        let (quota, window) = if rate.burst > rate.count {
            let fills = rate.per.as_secs_f64() * f64::from(rate.burst) / f64::from(rate.count);
            (rate.burst, Duration::from_secs_f64(fills))
        } else {
            (rate.count, rate.per)
        };
        self.with(&[("q", u64::from(quota)), ("w", whole_seconds(window).max(1))])
    }

    /// `RateLimit`: `remaining` cells for the next `reset`.
    pub fn limit(&self, remaining: u32, reset: Duration) -> HeaderValue {
        self.with(&[("r", u64::from(remaining)), ("t", whole_seconds(reset))])
    }

    /// Writes both fields into the head of an answer.
    pub fn write(&self, headers: &mut HeaderMap, status: Status) {
        headers.append(RATE_LIMIT_POLICY.clone(), self.policy(status.rate));
        headers.append(
            RATE_LIMIT.clone(),
            self.limit(status.remaining, status.reset),
        );
    }

    /// Writes both fields and `Retry-After` into the head of a 429.
    ///
    /// After `retry_after` one cell conforms, so that is the window that `RateLimit` speaks of, and
    /// `Retry-After` is the same number. A refusal that no waiting can help carries neither time.
    pub fn write_refused(&self, headers: &mut HeaderMap, rate: Rate, rejected: &Rejected) {
        headers.append(RATE_LIMIT_POLICY.clone(), self.policy(rate));
        if let Some(wait) = rejected.retry_after {
            headers.append(RATE_LIMIT.clone(), self.limit(0, wait));
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
    }

    fn with(&self, parameters: &[(&str, u64)]) -> HeaderValue {
        let mut text = self.0.clone();
        for (name, value) in parameters {
            write!(text, ";{name}={value}").expect("a String takes everything");
        }
        HeaderValue::try_from(text).expect("printable ASCII is a header value")
    }
}

/// Rounded up; capped at the largest integer of a structured field.
fn whole_seconds(d: Duration) -> u64 {
    const LARGEST: u64 = 999_999_999_999_999;
    let up = d.as_secs().saturating_add(u64::from(d.subsec_nanos() > 0));
    up.min(LARGEST)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::outcome::{Policy, Reason};

    fn rate(text: &str) -> Rate {
        text.parse().expect("rate")
    }

    #[test]
    fn hdr_3_policy_and_what_is_left() {
        let name = PolicyName::new("burst").expect("valid");
        assert_eq!(name.policy(rate("100/10s")), r#""burst";q=100;w=10"#);
        assert_eq!(
            name.limit(50, Duration::from_secs(30)),
            r#""burst";r=50;t=30"#
        );
    }

    #[test]
    fn the_window_is_the_one_in_which_the_quota_comes_back() {
        let name = PolicyName::new("n").expect("valid");
        let cases = [
            ("50/s", r#""n";q=50;w=1"#),
            ("50/s burst 100", r#""n";q=100;w=2"#),
            ("50/s burst 10", r#""n";q=50;w=1"#),
            ("5/250ms", r#""n";q=5;w=1"#),
            ("3/s burst 4", r#""n";q=4;w=2"#),
            ("1000/h", r#""n";q=1000;w=3600"#),
        ];
        for (text, want) in cases {
            assert_eq!(name.policy(rate(text)), want, "{text}");
        }
    }

    #[test]
    fn retry_after_is_never_earlier_than_t_and_never_too_early() {
        let name = PolicyName::new("n").expect("valid");
        for (ms, want) in [(1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (0, "0")] {
            let wait = Duration::from_millis(ms);
            let mut headers = HeaderMap::new();
            let refused = Rejected::after(Policy::RateLimit, Reason::Exhausted, wait);
            name.write_refused(&mut headers, rate("5/s"), &refused);
            assert_eq!(headers[RETRY_AFTER], want, "{ms} ms");
            assert_eq!(headers[&RATE_LIMIT], format!(r#""n";r=0;t={want}"#));
        }
        let mut headers = HeaderMap::new();
        let never = Rejected::new(Policy::RateLimit, Reason::InsufficientCapacity);
        name.write_refused(&mut headers, rate("5/s"), &never);
        assert!(!headers.contains_key(RETRY_AFTER) && !headers.contains_key(&RATE_LIMIT));
        assert_eq!(headers[&RATE_LIMIT_POLICY], r#""n";q=5;w=1"#);
    }

    #[test]
    fn names_are_escaped_or_refused() {
        let name = PolicyName::new(r#"a "b" \c"#).expect("printable");
        assert_eq!(name.limit(1, Duration::ZERO), r#""a \"b\" \\c";r=1;t=0"#);
        for bad in ["", "é", "a\nb", "\u{7f}"] {
            assert!(PolicyName::new(bad).is_err(), "{bad:?}");
        }
    }
}
