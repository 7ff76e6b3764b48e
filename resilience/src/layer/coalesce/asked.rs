//! What a request asks.

use http::{HeaderMap, Method, Request, Uri};
use http_body::Body;

use crate::coalesce::{Key, KeyRules};

/// What a request asks: equal keys, equal questions. Closures from a request to a key are one.
pub trait CoalesceKey<B> {
    /// `None`: the request goes by itself. `rules` are those of the layer's configuration.
    fn key(&self, request: &Request<B>, rules: &KeyRules) -> Option<Key>;
}

impl<B, F: Fn(&Request<B>) -> Option<Key>> CoalesceKey<B> for F {
    fn key(&self, request: &Request<B>, _: &KeyRules) -> Option<Key> {
        self(request)
    }
}

/// `GET` and `HEAD` without a body, as [`KeyRules`] says.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByRules;

impl<B: Body> CoalesceKey<B> for ByRules {
    fn key(&self, request: &Request<B>, rules: &KeyRules) -> Option<Key> {
        let head = (request.method(), request.uri(), request.headers());
        by_rules(head, request.body(), rules)
    }
}

/// The same of a request in parts.
pub(super) fn by_rules<B: Body>(
    (method, uri, headers): (&Method, &Uri, &HeaderMap),
    body: &B,
    rules: &KeyRules,
) -> Option<Key> {
    if !body.is_end_stream() {
        return None;
    }
    rules.key(method, uri, headers)
}
