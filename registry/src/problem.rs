//! What an HTTP client is told when it gets no answer: RFC 9457 problem documents.
//!
//! A status alone does not say who refused, nor whether to come back. Every refusal of a gateway,
//! a sidecar or a registry server has a stable `type` that machines can match, a sentence for
//! people, and names the policy that refused.

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// `application/problem+json`.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// One refusal or failure, as the client sees it. Never holds what only an operator may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable name for the kind of problem: `urn:selvedge:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This very problem in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The request it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The policy that refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

impl Problem {
    /// A problem of the kind `code` (lower case, dashes).
    pub fn new(status: StatusCode, code: &str, title: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:selvedge:problem:{code}"),
            title: title.into(),
            status: status.as_u16(),
            detail: None,
            instance: None,
            policy: None,
        }
    }

    /// Adds a sentence about this very problem.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The document. Strings always serialise.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}
