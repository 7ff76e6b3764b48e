//! Which try of a call this is, so that a callee can tell a retry from a new call.
//!
//! A callee that is short of capacity should refuse retries first: their callers have waited
//! already and will come again. And a trace in which three spans look alike says nothing of why.
//!
//! | where | first try | second try |
//! |---|---|---|
//! | `x-envoy-attempt-count` | – | 2 |
//! | `grpc-previous-rpc-attempts` (gRPC only) | – | 1 |
//! | span attribute [`RESEND_COUNT`] | – | 1 |
//!
//! A first try says nothing, as gRPC's do: nearly all tries are first ones, and would pay for a
//! header that tells nobody anything. Where Envoy's count is read, 1 and none are the same.
//!
//! It belongs to one hop: what a caller says of its tries is not passed on, by a first try neither.
//!
//! Source: Envoy router filter, which counts from 1 where it is told to count; gRFC A6; OpenTelemetry
//! semantic conventions for HTTP clients.

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

use super::digits::number;
use crate::classify::is_grpc_type;

/// `x-envoy-attempt-count`.
pub static ENVOY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// `grpc-previous-rpc-attempts`.
pub static GRPC_PREVIOUS_ATTEMPTS: HeaderName =
    HeaderName::from_static("grpc-previous-rpc-attempts");
/// `x-envoy-is-timeout-retry`.
pub static ENVOY_IS_TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");
/// The span attribute of a try that is not the first.
pub const RESEND_COUNT: &str = "http.request.resend_count";

/// Which try of a call: 1 is the first. Also a request extension, for layers further in; see
/// [`of`](Self::of).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptNumber(pub u32);

impl AttemptNumber {
    /// Tries before this one: the value of [`RESEND_COUNT`], where it is more than 0.
    pub const fn resend_count(self) -> u32 {
        self.0.saturating_sub(1)
    }

    /// What the caller says; `None` if it does not, as of a first try.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let read = |name: &HeaderName| -> Option<u32> {
            let text = headers.get(name)?.to_str().ok()?;
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| digits)
        };
        match read(&ENVOY_ATTEMPT_COUNT).filter(|&n| n > 0) {
            Some(count) => Some(Self(count)),
            None => read(&GRPC_PREVIOUS_ATTEMPTS).map(|n| Self(n.saturating_add(1))),
        }
    }

    /// Which try of a call a request with these extensions is: those of a first try need not say.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or(Self(1))
    }

    /// Says it to layers further in.
    pub fn announce(self, extensions: &mut Extensions) {
        // One that is there already is another layer's, further out. Where none is, a first try
        // says nothing: an extension costs two allocations.
        if self.0 > 1 || extensions.get::<Self>().is_some() {
            extensions.insert(self);
        }
    }

    /// Says it to the callee in place of what was there; of a first try it only removes that.
    /// `after_timeout`: the last try timed out.
    pub fn inject(self, headers: &mut HeaderMap, after_timeout: bool) {
        let (mut grpc, mut count, mut previous, mut late) = (false, false, false, false);
        // One pass over what there is: look-ups for what there mostly is not cost more.
        for (name, value) in &*headers {
            grpc |= *name == CONTENT_TYPE && is_grpc_type(value);
            count |= *name == ENVOY_ATTEMPT_COUNT;
            previous |= *name == GRPC_PREVIOUS_ATTEMPTS;
            late |= *name == ENVOY_IS_TIMEOUT_RETRY;
        }
        let again = self.0 > 1;
        // Nearly all tries: nothing to say, and nothing to take back.
        if !(again || count || previous || late) {
            return;
        }
        let mut set = |name: &HeaderName, value: Option<HeaderValue>, was_there: bool| match value {
            Some(value) => drop(headers.insert(name.clone(), value)),
            None if was_there => drop(headers.remove(name)),
            None => {}
        };
        let told = again.then(|| number(self.0.into()));
        set(&ENVOY_ATTEMPT_COUNT, told, count);
        let told = (again && grpc).then(|| number(self.resend_count().into()));
        set(&GRPC_PREVIOUS_ATTEMPTS, told, previous);
        let told = after_timeout.then(|| HeaderValue::from_static("true"));
        set(&ENVOY_IS_TIMEOUT_RETRY, told, late);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_first_try_says_nothing_and_grpc_hears_of_those_before() {
        let mut headers = HeaderMap::new();
        let grpc = HeaderValue::from_static("application/grpc");
        headers.insert(http::header::CONTENT_TYPE, grpc);
        AttemptNumber(1).inject(&mut headers, false);
        assert_eq!((headers.len(), AttemptNumber::extract(&headers)), (1, None));
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
        assert_eq!(headers[&ENVOY_ATTEMPT_COUNT], "4");
    }

    #[test]
    fn a_first_try_does_not_pass_on_what_our_caller_said_of_its_own() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        AttemptNumber(3).inject(&mut headers, true);
        assert_eq!(headers.len(), 4);
        AttemptNumber(1).inject(&mut headers, false);
        assert_eq!(headers.len(), 1, "{headers:?}");
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
