//! Retries: which calls may be tried again, when, and how many in all.
//!
//! A retry turns a callee's hiccup into a slower answer instead of an error. The same retry, made
//! by every caller at the moment the callee is least able to bear it, turns a hiccup into an
//! outage. So three questions are kept apart: *may* this call be tried again (its method, its
//! result, whether its body can be replayed), *when* (backoff with jitter, or what the callee
//! asks), and *how many* tries all calls together may add (the [budget](budget::Budget)).

pub mod backoff;
pub mod budget;
mod config;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};

pub use self::config::{RetryConfig, is_idempotent};

/// How long the callee asks to be left alone: `Retry-After` of a 429 or 503, at most `max`.
///
/// Seconds or an HTTP date; a date in the past is zero, anything else is `None`.
/// Source: RFC 9110 §10.2.3; statuses as linkerd.
pub fn retry_after(
    status: StatusCode,
    headers: &HeaderMap,
    now: SystemTime,
    max: Duration,
) -> Option<Duration> {
    if status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::SERVICE_UNAVAILABLE {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(now)
            .unwrap_or(Duration::ZERO),
    };
    Some(wait.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hdr_2_retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let later = httpdate::fmt_http_date(now + Duration::from_secs(60));
        let earlier = httpdate::fmt_http_date(now - Duration::from_secs(60));
        let cases: &[(u16, &str, Option<u64>)] = &[
            (429, "120", Some(120)),
            (429, "0", Some(0)),
            (503, "7", Some(7)),
            (200, "7", None),
            (503, "3600", Some(300)),
            (503, &later, Some(60)),
            (503, &earlier, Some(0)),
            (503, "not-a-number", None),
        ];
        for (status, text, want) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("value"));
            let status = StatusCode::from_u16(*status).expect("status");
            let got = retry_after(status, &headers, now, Duration::from_secs(300));
            assert_eq!(got, want.map(Duration::from_secs), "{status} {text}");
        }
    }
}
