//! What may be coalesced, as it is written.

use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::config::{ByteSize, Millis, PolicyError, ensure};

/// One call for all who ask the same at the same time.
///
/// Only `GET` and `HEAD` without a body. Two requests are the same if method, scheme, host, path,
/// query and these headers are: `Authorization`, `Range`, everything conditional, the priority, and
/// the ones in `headers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CoalesceConfig {
    /// Headers in which the callee's answers differ, at most 32. An answer whose `Vary` names another
    /// one is not shared. Default `accept`, `accept-encoding`, `accept-language`, `origin`: what
    /// `Vary` names most.
    pub headers: Vec<String>,
    /// Whether requests with cookies are coalesced, if all their cookies are the same. Default
    /// false: a cookie is mostly a person.
    pub cookies: bool,
    /// Bytes of an answer's body that are kept to be shared, 1 byte to 16 MiB. A longer one is its
    /// leader's alone. Default "256KiB": a guess; more holds an answer back for longer, less shares
    /// fewer.
    pub body: ByteSize,
    /// How long an answer's body may take, from its head on, before it is its leader's alone; at
    /// least "1ms". Default "1s": a guess; nobody should wait for the end of a stream.
    pub gather: Millis,
    /// Keys under way at once, at least 1; more calls go by themselves. Default 1024: a guess.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub keys: u32,
    /// What becomes of followers when the call fails. Default "share".
    pub errors: OnError,
}

/// What becomes of followers when the call that they wait for fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnError {
    /// They fail with it: a callee that is failing is not asked once more for each of them.
    #[default]
    Share,
    /// One of them makes the call again, and the others wait for that one.
    Retry,
}

const HEADERS_MAX: usize = 32;
const BODY_MAX: u64 = 16 << 20;

impl Default for CoalesceConfig {
    fn default() -> Self {
        Self {
            headers: ["accept", "accept-encoding", "accept-language", "origin"]
                .map(str::to_owned)
                .to_vec(),
            cookies: false,
            body: ByteSize(256 << 10),
            gather: Millis::new(1_000),
            keys: 1024,
            errors: OnError::Share,
        }
    }
}

impl CoalesceConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let count = self.headers.len();
        let allowed = format!("at most {HEADERS_MAX} names");
        ensure(count <= HEADERS_MAX, "headers", count, &allowed)?;
        for name in &self.headers {
            let is_name = HeaderName::from_bytes(name.as_bytes()).is_ok();
            ensure(is_name, "headers", name, "names of headers")?;
            let cookie = name.eq_ignore_ascii_case("cookie");
            ensure(
                !cookie,
                "headers",
                name,
                "not \"cookie\", but cookies = true",
            )?;
        }
        let fits = (1..=BODY_MAX).contains(&self.body.0);
        ensure(fits, "body", self.body, "\"1B\" to \"16MiB\"")?;
        let gathers = !self.gather.0.is_zero();
        ensure(gathers, "gather", self.gather, "at least \"1ms\"")?;
        ensure(self.keys >= 1, "keys", self.keys, "at least 1")
    }
}
