//! What an answer says: how the callee fared, and what it thinks of another try.
//!
//! HTTP says it in the status; gRPC says 200 and puts its verdict in the head of an answer without
//! a body or in the trailers after it. Other meshes add words of their own: "not processed, send
//! it elsewhere", "refused on purpose, do not come back". A caller that does not understand them
//! retries into a rate limit, or gives up on what would have been safe to repeat.
//!
//! # Source
//! RFC 9110; gRPC status codes and gRFC A6 (pushback); Finagle `HttpNackFilter`; Envoy router and
//! rate limit filters (`x-envoy-ratelimited`, `x-envoy-overloaded`).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER};
use serde::{Deserialize, Serialize};

use crate::outcome::{FailureClass, Outcome};

/// `grpc-status`.
pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `grpc-retry-pushback-ms`.
pub static GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// `x-envoy-ratelimited`: a proxy refused it by a rate limit.
pub static ENVOY_RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// `x-envoy-overloaded`: a proxy refused it because the callee is overloaded.
pub static ENVOY_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
/// `finagle-http-nack`: not processed; try elsewhere.
pub static NACK: HeaderName = HeaderName::from_static("finagle-http-nack");
/// `finagle-http-nonretryable-nack`: not processed; do not try again.
pub static NONRETRYABLE_NACK: HeaderName =
    HeaderName::from_static("finagle-http-nonretryable-nack");

/// A gRPC status code, written as gRPC writes it: `"UNAVAILABLE"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "gRPC's own names say what they mean")]
pub enum GrpcCode {
    Ok,
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl GrpcCode {
    const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code that `headers` (a head without a body, or trailers) carry.
    ///
    /// A number that gRPC does not know is [`Unknown`](Self::Unknown), as gRPC says; text is none.
    pub fn find(headers: &HeaderMap) -> Option<Self> {
        let number: u32 = headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()?;
        Some(*Self::ALL.get(number as usize).unwrap_or(&Self::Unknown))
    }

    /// Its number on the wire.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The code in the head of a gRPC answer without a body, which has no trailers to carry it.
    pub(crate) fn of_head(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        if status == StatusCode::OK {
            Self::find(headers)
        } else {
            None
        }
    }

    /// What a call with this code came to.
    ///
    /// `RESOURCE_EXHAUSTED` is "less, please"; codes that a caller provokes say nothing of the
    /// callee's health.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Ok => Outcome::Success,
            Self::ResourceExhausted => Outcome::RateLimited,
            Self::DeadlineExceeded => Outcome::Failure(FailureClass::Timeout),
            Self::Unknown
            | Self::Unimplemented
            | Self::Internal
            | Self::Unavailable
            | Self::DataLoss => Outcome::Failure(FailureClass::ServerError),
            _ => Outcome::Ignored,
        }
    }
}

/// What the head of an answer says of the callee: 5xx is its failure (but 501 and 505, which a
/// caller provokes), 429 is "less, please", other 4xx are the caller's affair.
pub fn outcome_of_head(status: StatusCode, headers: &HeaderMap) -> Outcome {
    outcome_of(status, GrpcCode::of_head(status, headers))
}

/// The same, of a head that has been read: see [`GrpcCode::of_head`].
pub(crate) fn outcome_of(status: StatusCode, code: Option<GrpcCode>) -> Outcome {
    match status.as_u16() {
        200 => code.map_or(Outcome::Success, GrpcCode::outcome),
        429 => Outcome::RateLimited,
        501 | 505 | 400..=499 => Outcome::Ignored,
        502..=504 => Outcome::Failure(FailureClass::Gateway),
        500..=599 => Outcome::Failure(FailureClass::ServerError),
        _ => Outcome::Success,
    }
}

/// Whether the head is that of a gRPC answer whose status is still to come, in its trailers.
pub fn awaits_grpc_trailers(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::OK && is_grpc(headers) && !headers.contains_key(&GRPC_STATUS)
}

/// Whether `headers` are those of a gRPC message, not gRPC-Web's (whose trailers are data).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(http::header::CONTENT_TYPE);
    value.is_some_and(is_grpc_type)
}

/// Whether a `Content-Type` is gRPC's.
pub(crate) fn is_grpc_type(value: &HeaderValue) -> bool {
    let rest = value.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What the callee thinks of another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Advice {
    /// It does not say.
    #[default]
    None,
    /// Do not try again.
    Stop,
    /// Nothing was processed; trying again, best elsewhere, is safe whatever the method.
    Nack,
    /// Try again after that long: the callee's own wish, whatever the status.
    Pushback(Duration),
}

/// Reads what a head or trailers say about another try. `status` is that of the head.
///
/// A "do not" wins over everything else that is said.
pub fn advice(status: StatusCode, headers: &HeaderMap) -> Advice {
    if headers.is_empty() {
        return Advice::None;
    }
    let has = |name: &HeaderName| headers.contains_key(name);
    let unavailable = status == StatusCode::SERVICE_UNAVAILABLE;
    if has(&ENVOY_RATELIMITED) || has(&ENVOY_OVERLOADED) || unavailable && has(&NONRETRYABLE_NACK) {
        return Advice::Stop;
    }
    match headers.get(&GRPC_PUSHBACK) {
        Some(value) => pushback(value.as_bytes()),
        None if unavailable && has(&NACK) => Advice::Nack,
        None => Advice::None,
    }
}

/// A signed 32-bit number of milliseconds; negative or unreadable is "do not".
fn pushback(value: &[u8]) -> Advice {
    let ms = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse::<i32>().ok());
    match ms.map(u64::try_from) {
        Some(Ok(ms)) => Advice::Pushback(Duration::from_millis(ms)),
        _ => Advice::Stop,
    }
}

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
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More seconds than 64 bits hold are "very long", not "nothing".
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text)
            .ok()?
            .duration_since(now)
            .unwrap_or(Duration::ZERO)
    };
    Some(wait.min(max))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'static str, &'a str)];

    fn headers(pairs: Pairs<'_>) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_static(name);
                (name, value.parse().expect("header value"))
            })
            .collect()
    }

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
            (500, "7", None),
            (503, "3600", Some(300)),
            (503, "99999999999999999999999", Some(300)),
            (503, &later, Some(60)),
            (503, &earlier, Some(0)),
            (503, "not-a-number", None),
            (503, "+5", None),
            (503, "-5", None),
            (503, "", None),
        ];
        for (status, text, want) in cases {
            let head = headers(&[("retry-after", text)]);
            let status = StatusCode::from_u16(*status).expect("status");
            let got = retry_after(status, &head, now, Duration::from_secs(300));
            assert_eq!(got, want.map(Duration::from_secs), "{status} {text}");
        }
    }

    #[test]
    fn hdr_2_what_the_callee_says_of_another_try() {
        let ms = |ms| Advice::Pushback(Duration::from_millis(ms));
        let cases: &[(u16, Pairs<'_>, Advice)] = &[
            (200, &[], Advice::None),
            (200, &[("grpc-retry-pushback-ms", "0")], ms(0)),
            (200, &[("grpc-retry-pushback-ms", "1500")], ms(1500)),
            (200, &[("grpc-retry-pushback-ms", "-1")], Advice::Stop),
            (200, &[("grpc-retry-pushback-ms", "soon")], Advice::Stop),
            (
                200,
                &[("grpc-retry-pushback-ms", "2147483648")],
                Advice::Stop,
            ),
            (503, &[("finagle-http-nack", "true")], Advice::Nack),
            (500, &[("finagle-http-nack", "true")], Advice::None),
            (
                503,
                &[("finagle-http-nonretryable-nack", "true")],
                Advice::Stop,
            ),
            (429, &[("x-envoy-ratelimited", "true")], Advice::Stop),
            (503, &[("x-envoy-overloaded", "true")], Advice::Stop),
            (
                503,
                &[
                    ("finagle-http-nack", "true"),
                    ("x-envoy-ratelimited", "true"),
                ],
                Advice::Stop,
            ),
        ];
        for (status, pairs, want) in cases {
            let status = StatusCode::from_u16(*status).expect("status");
            assert_eq!(advice(status, &headers(pairs)), *want, "{status} {pairs:?}");
        }
    }

    #[test]
    fn a_grpc_status_is_read_where_grpc_puts_it() {
        let cases: &[(&str, Option<GrpcCode>)] = &[
            ("0", Some(GrpcCode::Ok)),
            ("14", Some(GrpcCode::Unavailable)),
            ("16", Some(GrpcCode::Unauthenticated)),
            ("17", Some(GrpcCode::Unknown)),
            ("99999", Some(GrpcCode::Unknown)),
            ("-1", None),
            ("UNAVAILABLE", None),
        ];
        for (text, want) in cases {
            assert_eq!(
                GrpcCode::find(&headers(&[("grpc-status", text)])),
                *want,
                "{text}"
            );
        }
        let head = |pairs| outcome_of_head(StatusCode::OK, &headers(pairs));
        let failed = Outcome::Failure(FailureClass::ServerError);
        assert_eq!(head(&[("grpc-status", "14")]), failed);
        assert_eq!(head(&[("grpc-status", "8")]), Outcome::RateLimited);
        assert_eq!(head(&[("grpc-status", "5")]), Outcome::Ignored);
        assert_eq!(head(&[]), Outcome::Success);
    }

    #[test]
    fn only_a_grpc_head_without_a_status_awaits_trailers() {
        let cases: &[(u16, Pairs<'_>, bool)] = &[
            (200, &[("content-type", "application/grpc")], true),
            (200, &[("content-type", "application/grpc+proto")], true),
            (200, &[("content-type", "application/grpc;x=y")], true),
            (200, &[("content-type", "application/grpc-web")], false),
            (200, &[("content-type", "application/json")], false),
            (503, &[("content-type", "application/grpc")], false),
            (
                200,
                &[("content-type", "application/grpc"), ("grpc-status", "0")],
                false,
            ),
        ];
        for (status, pairs, want) in cases {
            let status = StatusCode::from_u16(*status).expect("status");
            let got = awaits_grpc_trailers(status, &headers(pairs));
            assert_eq!(got, *want, "{status} {pairs:?}");
        }
    }

    #[test]
    fn codes_are_written_as_grpc_writes_them() {
        #[derive(Serialize, Deserialize)]
        struct Doc {
            codes: Vec<GrpcCode>,
        }
        let text = r#"codes = ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]"#;
        let doc: Doc = toml::from_str(text).expect("parses");
        let want = [GrpcCode::Unavailable, GrpcCode::ResourceExhausted];
        assert_eq!(doc.codes, want);
        assert_eq!(toml::to_string(&doc).expect("prints").trim(), text);
    }
}
