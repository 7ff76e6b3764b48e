//! What a caller is told that is not served: who refused, why, and when to come back.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use selvedge_resilience::{Policy, Rejected};

/// An answer of our own.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    /// Which policy, if one did.
    pub(crate) rejected: Option<Rejected>,
    headers: HeaderMap,
    body: String,
}

impl Refusal {
    /// A policy refused.
    pub(crate) fn by(rejected: Rejected) -> Self {
        let status = match rejected.policy {
            Policy::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Policy::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let (policy, reason) = (rejected.policy.as_str(), rejected.reason.as_str());
        let mut refusal = Self::new(
            status,
            &format!(r#","policy":"{policy}","reason":"{reason}""#),
        );
        refusal.rejected = Some(rejected);
        if let Some(wait) = rejected.retry_after {
            // Whole seconds, rounded up, and one at least: nobody is invited too early.
            let seconds = wait.as_millis().div_ceil(1_000).max(1);
            let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
            refusal
                .headers
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        refusal
    }

    /// Nobody refused: something went wrong.
    pub(crate) fn because(status: StatusCode) -> Self {
        Self::new(status, "")
    }

    fn new(status: StatusCode, members: &str) -> Self {
        let title = status.canonical_reason().unwrap_or("refused");
        let code = status.as_u16();
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, json);
        Self {
            status,
            rejected: None,
            headers,
            // Nothing in it comes from a caller, so nothing needs to be escaped.
            body: format!(r#"{{"title":"{title}","status":{code}{members}}}"#),
        }
    }

    /// With what a limit says of itself.
    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Answers before anything was sent to an upstream. The connection can be used again.
    pub(crate) async fn answer(self, session: &mut Session) -> Result<()> {
        let bodiless = session.req_header().method == Method::HEAD;
        let (head, body) = self.into_parts()?;
        session
            .write_response_header(Box::new(head), bodiless)
            .await?;
        if !bodiless {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }

    /// Answers in place of an upstream; does nothing if part of an answer has gone out already.
    pub(crate) async fn answer_error(self, session: &mut Session) -> Result<()> {
        let (head, body) = self.into_parts()?;
        session.as_mut().write_error_response(head, body).await
    }

    fn into_parts(self) -> Result<(ResponseHeader, Bytes)> {
        let mut head = ResponseHeader::build(self.status, Some(self.headers.len() + 1))?;
        for (name, value) in &self.headers {
            head.append_header(name, value)?;
        }
        head.insert_header(CONTENT_LENGTH, self.body.len())?;
        Ok((head, Bytes::from(self.body)))
    }
}

impl From<Rejected> for Refusal {
    fn from(rejected: Rejected) -> Self {
        Self::by(rejected)
    }
}
