//! Refusals, and what the caller is told of them.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use super::super::FixedBody;
use crate::{
    classify::{GRPC_STATUS, is_grpc},
    config::Rate,
    outcome::{Policy, Rejected},
    rate_limit::headers::PolicyName,
};

/// A request that is not taken on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Refused {
    /// Who refused, why, and when to come back.
    pub rejected: Rejected,
    /// The rate that was exceeded, if it was one.
    pub rate: Option<Rate>,
}

impl From<Rejected> for Refused {
    fn from(rejected: Rejected) -> Self {
        Self {
            rejected,
            rate: None,
        }
    }
}

impl Refused {
    /// Writes `RateLimit`, `RateLimit-Policy` and `Retry-After`, as far as they are known.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(rate) = self.rate {
            return rate_name().write_refused(headers, rate, &self.rejected);
        }
        if let Some(after) = self.rejected.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
    }

    /// 429 for a rate, 504 for a deadline, else 503.
    pub fn status(&self) -> StatusCode {
        match self.rejected.policy {
            Policy::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            Policy::Deadline => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn rate_name() -> PolicyName {
    PolicyName::new("inbound").expect("printable")
}

fn whole_seconds(time: Duration) -> u64 {
    (time.as_millis().div_ceil(1_000) as u64).max(1)
}

/// What the caller reads: gRPC's own words if it speaks gRPC, else a problem document.
pub(super) fn answer(refused: &Refused, asked: &HeaderMap) -> Response<FixedBody> {
    let mut answer = if is_grpc(asked) {
        grpc_status(&refused.rejected)
    } else {
        problem(refused)
    };
    refused.write(answer.headers_mut());
    answer
}

/// A gRPC client reads trailers; without a body they are the head ("trailers only"). Anything but
/// 200 would be `UNAVAILABLE` or `UNKNOWN` to it, and the reason lost.
fn grpc_status(rejected: &Rejected) -> Response<FixedBody> {
    let mut answer = Response::new(FixedBody::default());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let code = HeaderValue::from(rejected.grpc_code().number());
    headers.insert(GRPC_STATUS.clone(), code);
    if let Ok(message) = HeaderValue::try_from(rejected.to_string()) {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    answer
}

/// RFC 9457. Its words are ours, so nothing in them needs an escape.
fn problem(refused: &Refused) -> Response<FixedBody> {
    let (status, rejected) = (refused.status(), &refused.rejected);
    let policy = rejected.policy.as_str();
    let text = format!(
        r#"{{"type":"urn:selvedge:problem:{}","title":"{rejected}","status":{},"policy":"{policy}"}}"#,
        policy.replace('_', "-"),
        status.as_u16(),
    );
    let mut answer = Response::new(FixedBody::from(Bytes::from(text)));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("application/problem+json");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
