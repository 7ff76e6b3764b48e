//! Deadlines on the wire: how much time a callee has left.
//!
//! Clocks differ, so what travels is the time that remains, not the time at which it ends. Read
//! are gRPC's `grpc-timeout` and Envoy's `x-envoy-expected-rq-timeout-ms`, so that meshed services
//! behind other proxies keep their deadlines; written are the same two, so that callees need to
//! know nothing of us. The shorter one counts.
//!
//! Source: gRPC over HTTP/2 (1 to 8 digits and a unit); Envoy router filter.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// `grpc-timeout`.
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// `x-envoy-expected-rq-timeout-ms`.
pub static EXPECTED_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// The time that the caller of `headers` still has; `None` if it did not say.
pub fn extract(headers: &HeaderMap) -> Option<Duration> {
    if headers.is_empty() {
        return None;
    }
    let grpc = headers
        .get(&GRPC_TIMEOUT)
        .and_then(|v| parse_grpc(v.as_bytes()));
    let envoy = headers
        .get(&EXPECTED_TIMEOUT_MS)
        .and_then(|v| v.to_str().ok()?.parse().ok())
        // 0 is "no deadline" in Envoy's word.
        .filter(|&ms: &u64| ms > 0)
        .map(Duration::from_millis);
    match (grpc, envoy) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Tells the callee that it has `left`; a caller's `grpc-timeout` is replaced, never added.
pub fn inject(headers: &mut HeaderMap, left: Duration) {
    // At least a millisecond: zero would mean "for ever".
    let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    headers.insert(EXPECTED_TIMEOUT_MS.clone(), HeaderValue::from(ms));
    if headers.contains_key(&GRPC_TIMEOUT) {
        headers.insert(GRPC_TIMEOUT.clone(), format_grpc(ms));
    }
}

/// Reads `grpc-timeout`: 1 to 8 digits and `H M S m u n`; parts of a millisecond round up.
pub fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let ms = match unit {
        b'H' => n * 3_600_000,
        b'M' => n * 60_000,
        b'S' => n * 1_000,
        b'm' => n,
        b'u' => n.div_ceil(1_000),
        b'n' => n.div_ceil(1_000_000),
        _ => return None,
    };
    Some(Duration::from_millis(ms))
}

fn format_grpc(ms: u64) -> HeaderValue {
    let text = match ms {
        0..=99_999_999 => format!("{ms}m"),
        _ => format!("{}S", (ms / 1000).min(99_999_999)),
    };
    HeaderValue::try_from(text).expect("digits and a letter are a header value")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn hdr_1_grpc_timeout() {
        let cases: &[(&str, Option<u64>)] = &[
            ("5S", Some(5_000)),
            ("1500u", Some(2)),
            ("1n", Some(1)),
            ("1H", Some(3_600_000)),
            ("100m", Some(100)),
            ("123456789m", None),
            ("1.5S", None),
            ("10", None),
            ("S", None),
            ("-1S", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(
                parse_grpc(text.as_bytes()),
                want.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn the_shorter_deadline_counts_and_is_passed_on() {
        let mut headers = HeaderMap::new();
        assert_eq!(extract(&headers), None);
        headers.insert(GRPC_TIMEOUT.clone(), HeaderValue::from_static("5S"));
        headers.insert(EXPECTED_TIMEOUT_MS.clone(), HeaderValue::from_static("200"));
        assert_eq!(extract(&headers), Some(Duration::from_millis(200)));
        headers.insert(EXPECTED_TIMEOUT_MS.clone(), HeaderValue::from_static("0"));
        assert_eq!(extract(&headers), Some(Duration::from_secs(5)));
        inject(&mut headers, Duration::from_micros(150));
        assert_eq!(
            extract(&headers),
            Some(Duration::from_millis(1)),
            "never for ever"
        );
        inject(&mut headers, Duration::from_secs(1_000_000));
        assert_eq!(headers[&GRPC_TIMEOUT], "1000000S");
    }
}
