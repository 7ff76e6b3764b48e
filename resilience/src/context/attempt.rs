//! Which try of a call this is, so that a callee can tell a retry from a new call.
//!
//! A callee that is short of capacity should refuse retries first: their callers have waited
//! already and will come again. And a trace in which three spans look alike says nothing of why.
//!
//! | where | first try | second try |
//! |---|---|---|
//! | `x-envoy-attempt-count` | 1 | 2 |
//! | `grpc-previous-rpc-attempts` (gRPC only) | – | 1 |
//! | span attribute [`RESEND_COUNT`] | – | 1 |
//!
//! It belongs to one hop: what a caller says of its tries is not passed on.
//!
//! Source: Envoy router filter; gRFC A6; OpenTelemetry semantic conventions for HTTP clients.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::classify::is_grpc;

/// `x-envoy-attempt-count`.
pub static ENVOY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// `grpc-previous-rpc-attempts`.
pub static GRPC_PREVIOUS_ATTEMPTS: HeaderName =
    HeaderName::from_static("grpc-previous-rpc-attempts");
/// `x-envoy-is-timeout-retry`.
pub static ENVOY_IS_TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");
/// The span attribute of a try that is not the first.
pub const RESEND_COUNT: &str = "http.request.resend_count";

/// Which try of a call: 1 is the first. Also a request extension, for layers further in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptNumber(pub u32);

impl AttemptNumber {
    /// Tries before this one: the value of [`RESEND_COUNT`], where it is more than 0.
    pub const fn resend_count(self) -> u32 {
        self.0.saturating_sub(1)
    }

    /// What the caller says; `None` if it does not.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let number = |name: &HeaderName| -> Option<u32> {
            let text = headers.get(name)?.to_str().ok()?;
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| digits)
        };
        match number(&ENVOY_ATTEMPT_COUNT).filter(|&n| n > 0) {
            Some(count) => Some(Self(count)),
            None => number(&GRPC_PREVIOUS_ATTEMPTS).map(|n| Self(n.saturating_add(1))),
        }
    }

    /// Says it to the callee in place of what was there. `after_timeout`: the last try timed out.
    pub fn inject(self, headers: &mut HeaderMap, after_timeout: bool) {
        headers.insert(ENVOY_ATTEMPT_COUNT.clone(), self.0.into());
        headers.remove(&GRPC_PREVIOUS_ATTEMPTS);
        if is_grpc(headers) && self.0 > 1 {
            headers.insert(GRPC_PREVIOUS_ATTEMPTS.clone(), self.resend_count().into());
        }
        headers.remove(&ENVOY_IS_TIMEOUT_RETRY);
        if after_timeout {
            headers.insert(
                ENVOY_IS_TIMEOUT_RETRY.clone(),
                HeaderValue::from_static("true"),
            );
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_try_is_one_and_grpc_hears_of_those_before_it() {
        let mut headers = HeaderMap::new();
        let grpc = HeaderValue::from_static("application/grpc");
        headers.insert(http::header::CONTENT_TYPE, grpc);
        AttemptNumber(1).inject(&mut headers, false);
        assert_eq!(headers[&ENVOY_ATTEMPT_COUNT], "1");
        assert!(!headers.contains_key(&GRPC_PREVIOUS_ATTEMPTS));
        AttemptNumber(3).inject(&mut headers, true);
        assert_eq!(headers[&GRPC_PREVIOUS_ATTEMPTS], "2");
        assert_eq!(headers[&ENVOY_IS_TIMEOUT_RETRY], "true");
        assert_eq!(AttemptNumber::extract(&headers), Some(AttemptNumber(3)));
        headers.remove(&ENVOY_ATTEMPT_COUNT);
        assert_eq!(AttemptNumber::extract(&headers), Some(AttemptNumber(3)));
        headers.remove(http::header::CONTENT_TYPE);
        AttemptNumber(4).inject(&mut headers, false);
        assert!(!headers.contains_key(&GRPC_PREVIOUS_ATTEMPTS));
        assert!(!headers.contains_key(&ENVOY_IS_TIMEOUT_RETRY));
    }

    #[test]
    fn riddles_are_nothing() {
        for text in ["0", "", "-1", "+1", "two", "99999999999"] {
            let mut headers = HeaderMap::new();
            headers.insert(ENVOY_ATTEMPT_COUNT.clone(), text.parse().expect("value"));
            assert_eq!(AttemptNumber::extract(&headers), None, "{text}");
        }
        assert_eq!(AttemptNumber(0).resend_count(), 0);
    }
}
