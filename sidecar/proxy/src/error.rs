//! From "there is no answer" to the answer that says so.
//!
//! One table for both proxies. A client's fault is a 4xx, never a 5xx; a refusal names the policy
//! that refused, says when to come back where that is known, and is told to gRPC clients in their
//! own way.
//!
//! # Source
//! RFC 9457 (problem documents), RFC 9209 (`Proxy-Status`), gRPC's HTTP mapping.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use selvedge_registry::problem::{CONTENT_TYPE, Problem};
use selvedge_resilience::{
    FailureClass, Policy, Reason, Rejected,
    layer::{Error, Refused},
};

use crate::{body::ResponseBody, door::Refusal, exchange::Exchange, upstream::UpstreamError};

/// An answer that we give ourselves.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: &'static str,
    title: String,
    policy: Option<Policy>,
    retry_after: Option<Duration>,
    /// RFC 9209's word for it.
    proxy_error: &'static str,
    /// Envoy's response flag, for the access log.
    flag: &'static str,
    /// Whether what else comes on the connection cannot be trusted.
    close: bool,
    /// What else a caller over its rate is told.
    rate: Option<Refused>,
}

/// Where nothing is there to take the request, when to look again: a registry's news take less.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Failure {
    /// A request that ended at the door.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        let not_found = refusal.status == StatusCode::NOT_FOUND;
        Self {
            status: refusal.status,
            code: refusal.reason,
            title: refusal.title.into_owned(),
            policy: None,
            retry_after: refusal.retry_after,
            proxy_error: if not_found {
                "destination_not_found"
            } else {
                "http_request_error"
            },
            flag: if not_found { "NR" } else { "DPE" },
            close: refusal.status.is_client_error() && !not_found,
            rate: None,
        }
    }

    /// A body that is longer than its listener allows.
    pub(crate) fn too_large() -> Self {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let title = "the request's body is longer than is allowed";
        Self::refused(Refusal::new(status, "body-too-large", title))
    }

    /// A call that has no answer.
    pub(crate) fn of(error: &Error<UpstreamError>, too_large: bool) -> Self {
        match error {
            Error::Rejected(rejected) => Self::rejected(rejected),
            Error::Service(error) if error.client && too_large => Self::too_large(),
            Error::Service(error) if error.client => {
                let title = "the request's body broke off or is not well formed";
                let status = StatusCode::BAD_REQUEST;
                Self::refused(Refusal::new(status, "body", title))
            }
            Error::Service(error) => Self::upstream(error.class, error.what),
            other => Self::upstream(FailureClass::Other, &other.to_string()),
        }
    }

    /// A request that its service does not take on.
    pub(crate) fn not_taken_on(refused: Refused) -> Self {
        Self {
            rate: refused.rate.is_some().then_some(refused),
            ..Self::rejected(&refused.rejected)
        }
    }

    fn rejected(rejected: &Rejected) -> Self {
        let (status, proxy_error) = match (rejected.policy, rejected.reason) {
            (Policy::Deadline, Reason::Elapsed) => {
                (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout")
            }
            (Policy::Deadline, _) => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
            (Policy::RateLimit, _) => (StatusCode::TOO_MANY_REQUESTS, "http_request_denied"),
            // Looks as what it plays.
            (Policy::Fault | Policy::Coalesce, _) => {
                (StatusCode::BAD_GATEWAY, "connection_terminated")
            }
            (Policy::Balancer, _) => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached"),
        };
        let comes_back = !matches!(
            status,
            StatusCode::GATEWAY_TIMEOUT | StatusCode::BAD_GATEWAY
        );
        Self {
            status,
            code: code(rejected),
            title: title(rejected),
            policy: Some(rejected.policy),
            retry_after: rejected.retry_after.or(comes_back.then_some(LOOK_AGAIN)),
            proxy_error,
            flag: rejected.flag(),
            close: false,
            rate: None,
        }
    }

    fn upstream(class: FailureClass, what: &str) -> Self {
        let (status, code, proxy_error, flag) = match class {
            FailureClass::Connect => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream-unreachable",
                "connection_refused",
                "UF",
            ),
            FailureClass::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "upstream-timeout",
                "http_response_timeout",
                "UT",
            ),
            FailureClass::Protocol => (
                StatusCode::BAD_GATEWAY,
                "upstream-protocol",
                "http_protocol_error",
                "UPE",
            ),
            _ => (
                StatusCode::BAD_GATEWAY,
                "upstream-reset",
                "connection_terminated",
                "UC",
            ),
        };
        let unreachable = class == FailureClass::Connect;
        Self {
            status,
            code,
            title: what.to_owned(),
            policy: None,
            retry_after: unreachable.then_some(LOOK_AGAIN),
            proxy_error,
            flag,
            close: false,
            rate: None,
        }
    }

    /// The answer; `node` is who gives it.
    pub(crate) fn response(
        self,
        node: &'static str,
        head: Head,
        mut exchange: Box<Exchange>,
    ) -> Response<ResponseBody> {
        exchange.status = self.status;
        exchange.flag = self.flag;
        let mut headers = HeaderMap::with_capacity(8);
        let proxy_status = format!("{node}; error={}", self.proxy_error);
        if let Ok(value) = HeaderValue::try_from(proxy_status) {
            headers.insert("proxy-status", value);
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        if let Some(refused) = &self.rate {
            refused.write(&mut headers);
        }
        if let Some(id) = &exchange.request_id {
            headers.insert(crate::headers::REQUEST_ID.clone(), id.clone());
        }
        if self.close && head.http1 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let (status, text) = if head.grpc {
            (self.grpc(&mut headers), Bytes::new())
        } else {
            (self.status, self.problem(&mut headers, &exchange))
        };
        let mut response = Response::new(ResponseBody::local(text, exchange));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    fn problem(&self, headers: &mut HeaderMap, exchange: &Exchange) -> Bytes {
        let mut problem = Problem::new(self.status, self.code, self.title.as_str());
        problem.policy = self.policy.map(|policy| policy.as_str().to_owned());
        let id = exchange.request_id.as_ref().and_then(|id| id.to_str().ok());
        problem.instance = id.map(str::to_owned);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        problem.to_json().into()
    }

    /// A gRPC client reads trailers; without a body they are the head ("trailers only").
    fn grpc(&self, headers: &mut HeaderMap) -> StatusCode {
        let code = match self.status.as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 | 405 => 12,
            413 | 429 | 431 => 8,
            502 | 503 => 14,
            504 => 4,
            _ => 2,
        };
        headers.insert("grpc-status", HeaderValue::from(code));
        if let Ok(title) = HeaderValue::from_str(&self.title) {
            headers.insert("grpc-message", title);
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        StatusCode::OK
    }
}

/// What of a request decides how a failure is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    grpc: bool,
    http1: bool,
}

impl Head {
    pub(crate) fn of(head: &Parts) -> Self {
        let http1 = head.version != http::Version::HTTP_2;
        let grpc = !http1
            && head
                .headers
                .get(header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        Self { grpc, http1 }
    }
}

/// `Retry-After` has whole seconds; less than one would be "at once".
fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1_000).max(1) as u64
}

fn code(rejected: &Rejected) -> &'static str {
    match rejected.policy {
        Policy::Deadline => "deadline",
        Policy::RateLimit => "rate-limit",
        Policy::Breaker => "circuit-open",
        Policy::Bulkhead => "bulkhead-full",
        Policy::Balancer => "no-endpoint",
        Policy::RetryBudget => "retry-budget",
        Policy::Throttle => "throttled",
        Policy::Shed => "shed",
        Policy::Fault => "fault-injected",
        Policy::Coalesce => "coalesced-call-failed",
        _ => "overloaded",
    }
}

fn title(rejected: &Rejected) -> String {
    let title = match (rejected.policy, rejected.reason) {
        (Policy::Deadline, Reason::Elapsed) => "the service did not answer in time",
        (Policy::Deadline, _) => "the caller's deadline had passed already",
        (Policy::RateLimit, _) => "more requests came than the rate limit allows",
        (Policy::Breaker, _) => "the service failed too often, its circuit is open",
        (Policy::Bulkhead, _) => "as many requests are under way as may be",
        (Policy::Coalesce, _) => "the call that was made for all who asked this has failed",
        (Policy::Balancer, _) => "no endpoint of the service is there to take the request",
        _ => return rejected.to_string(),
    };
    title.to_owned()
}
