//! What a caller of the stack may look on with, and say about one call.

use std::time::Duration;

use http::request::Parts;

use crate::{fallback::Cause, outcome::Outcome};

/// One try, as a [`Hook`] sees it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Attempt<'a, K> {
    /// 1 for the first.
    pub number: u32,
    /// Where it goes.
    pub key: &'a K,
    /// When it began.
    pub began: tokio::time::Instant,
}

/// Looks on while a call is made: for spans, metrics, the access log. `()` looks away.
pub trait Hook<K> {
    /// A try begins; `head` is what the endpoint will see and may be added to.
    fn started(&mut self, attempt: Attempt<'_, K>, head: &mut Parts) {
        let _ = (attempt, head);
    }
    /// A try has its answer's head, or failed, at `now`.
    fn ended(&mut self, attempt: Attempt<'_, K>, outcome: Outcome, now: tokio::time::Instant) {
        let _ = (attempt, outcome, now);
    }
    /// The answer is that of another's call, which asked the same.
    fn coalesced(&mut self) {}
    /// The policy's fallback answers, because of `cause`.
    fn degraded(&mut self, cause: Cause) {
        let _ = cause;
    }
}

impl<K> Hook<K> for () {}

impl<K, H: Hook<K>> Hook<K> for &mut H {
    fn started(&mut self, attempt: Attempt<'_, K>, head: &mut Parts) {
        (**self).started(attempt, head);
    }
    fn ended(&mut self, attempt: Attempt<'_, K>, outcome: Outcome, now: tokio::time::Instant) {
        (**self).ended(attempt, outcome, now);
    }
    fn coalesced(&mut self) {
        (**self).coalesced();
    }
    fn degraded(&mut self, cause: Cause) {
        (**self).degraded(cause);
    }
}

/// A request's own time for all its tries, instead of its policy's; zero is for ever.
///
/// Put into the request's extensions by whoever knows better than the policy: a route of a gateway,
/// a caller for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTimeout(pub Duration);

/// What `ring_hash` and `maglev` place a request by, instead of what the policy's `hash_on` finds in
/// it. Put into the request's extensions; make it with [`stable_hash`](crate::balance::stable_hash).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub u64);
