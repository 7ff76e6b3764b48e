//! One call for all who ask the same at the same time, around any HTTP service.
//!
//! When something that everybody wants is not in a cache any more, everybody asks for it at once, and
//! a callee that answers one call easily falls over a thousand. The core knows who asks what and who
//! leads; but an answer over HTTP is a stream that can be read once, its length often unknown. So
//! the leader's answer is gathered up to a limit before anybody gets it, and whoever leads goes on
//! alone with an answer that is too long, too slow or not for everybody.

mod asked;
mod future;
mod gather;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version, request::Parts};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use self::{asked::by_rules, future::Step};
pub use self::{
    asked::{ByRules, CoalesceKey},
    future::CoalesceFuture,
};
pub(super) use self::{
    future::{Settled, settle},
    gather::{Front, Gather},
};
use super::{EitherBody, Error, FixedBody, GuardedBody, oneshot::Oneshot};
use crate::{
    coalesce::{CoalesceConfig, Coalescer, Joined, Key, KeyRules, Lead, OnError, Status},
    config::PolicyError,
    outcome::{Policy, Reason, Rejected},
};

/// An answer that many get.
#[derive(Debug, Clone)]
pub(super) struct SharedAnswer(Arc<Whole>);

#[derive(Debug)]
struct Whole {
    status: StatusCode,
    version: Version,
    headers: HeaderMap,
    body: FixedBody,
}

impl SharedAnswer {
    pub(super) fn new(head: &http::response::Parts, body: FixedBody) -> Self {
        Self(Arc::new(Whole {
            status: head.status,
            version: head.version,
            headers: head.headers.clone(),
            body,
        }))
    }

    /// For one of them.
    pub(super) fn response(&self) -> Response<FixedBody> {
        let mut answer = Response::new(self.0.body.clone());
        *answer.status_mut() = self.0.status;
        *answer.version_mut() = self.0.version;
        answer.headers_mut().clone_from(&self.0.headers);
        answer
    }
}

/// What followers get.
pub(super) type Answered = Result<SharedAnswer, Rejected>;

/// What followers of a call that has failed get.
pub(super) fn failed() -> Rejected {
    Rejected::new(Policy::Coalesce, Reason::LeaderFailed)
}

/// The calls under way with the rules for them.
#[derive(Debug, Clone)]
pub(super) struct Coalesce {
    pub(super) core: Coalescer<Answered>,
    pub(super) rules: KeyRules,
    pub(super) limit: usize,
    pub(super) gather: Duration,
    on_error: OnError,
}

impl Coalesce {
    pub(super) fn new(config: &CoalesceConfig) -> Result<Self, PolicyError> {
        Self::around(Coalescer::new(config.keys), config)
    }

    /// The same calls under other rules. Keys of before and after differ where the rules do.
    pub(super) fn with(&self, config: &CoalesceConfig) -> Result<Self, PolicyError> {
        let changed = Self::around(self.core.clone(), config)?;
        self.core.reconfigure(config.keys);
        Ok(changed)
    }

    fn around(core: Coalescer<Answered>, config: &CoalesceConfig) -> Result<Self, PolicyError> {
        Ok(Self {
            core,
            rules: KeyRules::new(config)?,
            limit: config.body.as_usize(),
            gather: config.gather.0,
            on_error: config.errors,
        })
    }

    /// What a request in parts shares a call under, as [`ByRules`] does.
    pub(super) fn key_of<B: Body>(&self, head: &Parts, body: &B) -> Option<Key> {
        by_rules((&head.method, &head.uri, &head.headers), body, &self.rules)
    }

    /// The call has failed: its followers do, or one of them makes it again.
    pub(super) fn fail(&self, lead: Lead<Answered>, why: Rejected) {
        match self.on_error {
            // A deadline is its caller's own; the others may have more time.
            OnError::Share if why.policy != Policy::Deadline => lead.share(Err(why)),
            OnError::Share | OnError::Retry => drop(lead),
        }
    }

    /// Whether the answer with this head may be for everybody; decides about the lead if it is not.
    pub(super) fn judge(
        &self,
        lead: Lead<Answered>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Option<Lead<Answered>> {
        if self.on_error == OnError::Retry && status.is_server_error() {
            drop(lead);
            None
        } else if self.rules.may_share(status, headers) {
            Some(lead)
        } else {
            lead.release();
            None
        }
    }
}

/// Makes one call for all requests with the same key.
///
/// `GET` and `HEAD` without a body, keyed as [`KeyRules`] says, or as [`key`](Self::key) does. The
/// leader's answer is read up to [`CoalesceConfig::body`] bytes and [`CoalesceConfig::gather`] time;
/// if that is all of it, everybody gets the same bytes and trailers. An answer that is longer, slower,
/// or one person's alone goes on streaming to the leader, with what was read in front, and everybody
/// else makes a call of their own.
///
/// Followers get the head and body, not the extensions of the answer. They have no deadline here:
/// put [`TimeoutLayer`](super::TimeoutLayer) around it.
///
/// ```
/// use selvedge_resilience::{
///     coalesce::{CoalesceConfig, KeyRules},
///     layer::CoalesceLayer,
/// };
///
/// # type Body = http_body_util::Empty<bytes::Bytes>;
/// let config = CoalesceConfig::default();
/// // Answers differ by tenant, which is in the extensions and in no header.
/// #[derive(Clone)]
/// struct Tenant(u64);
/// let rules = KeyRules::new(&config)?;
/// let layer = CoalesceLayer::new(&config)?.key(move |request: &http::Request<Body>| {
///     let tenant = request.extensions().get::<Tenant>()?;
///     let asked = rules.key(request.method(), request.uri(), request.headers())?;
///     Some(asked.and(&tenant.0.to_le_bytes()))
/// });
/// # let _ = layer;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct CoalesceLayer<K = ByRules> {
    coalesce: Arc<ArcSwap<Coalesce>>,
    key: K,
}

impl CoalesceLayer {
    /// With no calls under way yet. Clones, and the services they make, share the calls.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: &CoalesceConfig) -> Result<Self, PolicyError> {
        let coalesce = Coalesce::new(config)?;
        Ok(Self {
            coalesce: Arc::new(ArcSwap::from_pointee(coalesce)),
            key: ByRules,
        })
    }
}

impl<K> CoalesceLayer<K> {
    /// What requests ask, in place of [`ByRules`]: a closure from a request to its [`Key`].
    ///
    /// Whoever says so answers for it: two requests with one key get one answer, whatever their
    /// methods, bodies and headers are, and if they act, they act once. What of the *answers* is for
    /// everybody stays as [`KeyRules::may_share`] says.
    #[must_use]
    pub fn key<L>(self, key: L) -> CoalesceLayer<L> {
        CoalesceLayer {
            coalesce: self.coalesce,
            key,
        }
    }

    /// Takes another configuration, for the services that were made already too. Calls under way go
    /// on by the one they began with, and who asks the same may still join them.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: &CoalesceConfig) -> Result<(), PolicyError> {
        let changed = self.coalesce.load().with(config)?;
        self.coalesce.store(Arc::new(changed));
        Ok(())
    }

    /// Counters and gauges now.
    pub fn status(&self) -> Status {
        self.coalesce.load().core.status()
    }
}

impl<K> fmt::Debug for CoalesceLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CoalesceLayer")
            .field(&self.coalesce.load())
            .finish()
    }
}

impl<K: Clone, S> Layer<S> for CoalesceLayer<K> {
    type Service = CoalesceService<S, K>;
    fn layer(&self, inner: S) -> CoalesceService<S, K> {
        CoalesceService {
            coalesce: Arc::clone(&self.coalesce),
            key: self.key.clone(),
            inner,
        }
    }
}

/// See [`CoalesceLayer`].
#[derive(Clone)]
pub struct CoalesceService<S, K = ByRules> {
    coalesce: Arc<ArcSwap<Coalesce>>,
    key: K,
    inner: S,
}

impl<S: fmt::Debug, K> fmt::Debug for CoalesceService<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoalesceService")
            .field("coalesce", &self.coalesce.load())
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// The body of an answer: the callee's own, with what was read of it in front, or a shared one.
pub type CoalescedBody<B> = EitherBody<GuardedBody<B, ()>, FixedBody>;

impl<S, K, B, RB> Service<Request<B>> for CoalesceService<S, K>
where
    K: CoalesceKey<B>,
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<super::BoxError>,
{
    type Response = Response<CoalescedBody<RB>>;
    type Error = Error<S::Error>;
    type Future = CoalesceFuture<S, B, RB, S::Future>;

    /// Always: a follower needs no service, and a slot held for it would starve its leader.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let coalesce = self.coalesce.load_full();
        let joined = match self.key.key(&request, &coalesce.rules) {
            Some(key) => coalesce.core.join(key),
            None => Joined::Alone,
        };
        let service = self.inner.clone();
        let (follow, lead) = match joined {
            Joined::Follow(follow) => (Some(follow), None),
            Joined::Lead(lead) => (None, Some(lead)),
            Joined::Alone => (None, None),
        };
        let step = match follow {
            Some(follow) => Step::Follows {
                follow,
                call: Some((service, request)),
            },
            None => Step::Calls {
                inner: Oneshot::new(service, request),
            },
        };
        CoalesceFuture {
            coalesce,
            lead,
            step,
        }
    }
}
