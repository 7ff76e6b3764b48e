//! What a request asks.

use http::Request;
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
        if !request.body().is_end_stream() {
            return None;
        }
        rules.key(request.method(), request.uri(), request.headers())
    }
}
