//! Retries around any HTTP service, on a budget.
//!
//! # What it holds to
//! - Each try is made by a service that was polled ready for it, and not while it waits: a slot held
//!   through a backoff is a slot that another call starves for.
//! - The answer at hand is given up only when a retry is certain: its result is worth one, repeating
//!   the call is harmless, the body can be had again, the wait ends before the deadline, the service
//!   is ready for another call *now*, and the budget pays.
//! - The answer that is given up is dropped before the wait, so that what it holds further in (a
//!   bulkhead's slot, a connection) is not waited for by its own retry.
//! - What a policy further in refused (an open circuit, a full bulkhead) is not tried again, and the
//!   retry that met it costs nothing.
//! - gRPC: the head of an answer is held for [`grpc_trailers`](crate::retry::RetryConfig) where its
//!   request has been sent to its end, so that a verdict in the trailers of an empty answer counts.
//!
//! # What it does not do
//! It has no timeout: put a [`TimeoutLayer`](super::TimeoutLayer) outside for the whole call and
//! another inside for each try. It does not retry what came after data, nor tunnels and upgrades.

mod call;
mod future;
mod plan;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use self::{
    call::Call,
    future::State,
    plan::{Begun, Current, Plan},
};
pub use self::{
    future::RetryFuture,
    plan::{RetryHeld, RetryStats},
};
use super::{
    BoxError, Error, GuardedBody, PeekedBody, ReplayBody, TransportError, deadline::deadline_of,
    replay::Replay,
};
use crate::{
    config::PolicyError,
    context::AttemptNumber,
    outcome::{Policy, Reason, Rejected},
    retry::{
        RetryConfig, Tries,
        budget::{Budget, Counted},
    },
    rng::Rng,
    sync::Ordering,
};

/// Tries calls again. All services made by one layer share its budget.
///
/// The service underneath takes a [`ReplayBody`] around the caller's body; its error says what kind
/// of failure it was ([`TransportError`]: `BoxError` does).
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Request, Response, StatusCode};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// use selvedge_resilience::{layer::{ReplayBody, RetryLayer}, retry::RetryConfig};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let retry = RetryLayer::new(RetryConfig::default())?;
/// # let flaky = std::sync::atomic::AtomicBool::new(true);
/// # let client = service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
/// #     let status = if flaky.swap(false, std::sync::atomic::Ordering::Relaxed) { 503 } else { 200 };
/// #     async move { Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::default()).unwrap()) }
/// # });
/// # let client = std::sync::Arc::new(tokio::sync::Mutex::new(client));
/// # let client = service_fn(move |request| { let client = client.clone(); async move { client.lock().await.call(request).await } });
/// # use tower::Service;
/// // `client` answers 503 once, then 200.
/// let answer = retry.layer(client).oneshot(Request::get("/").body(Full::default())?).await?;
/// assert_eq!(answer.status(), StatusCode::OK);
/// assert_eq!(retry.stats().retries, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RetryLayer(Arc<Current>);

impl RetryLayer {
    /// With a budget of its own, as `config` describes it.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: RetryConfig) -> Result<Self, PolicyError> {
        let budget = config.new_budget()?;
        Current::new(config, budget, false, Rng::from_entropy()).map(Self)
    }

    /// With a budget that others (a [`HedgeLayer`](super::HedgeLayer)) share, and a source of
    /// chance that a test can replay.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_budget(config: RetryConfig, budget: Budget, rng: Rng) -> Result<Self, PolicyError> {
        Current::new(config, budget, true, rng).map(Self)
    }

    /// The budget, to share it or to read it.
    pub fn budget(&self) -> &Budget {
        self.0.core.lent.store(true, Ordering::Relaxed);
        &self.0.core.budget
    }

    /// Counters so far.
    pub fn stats(&self) -> RetryStats {
        self.0.core.stats()
    }

    /// Takes a new configuration for the calls that begin from now on; the budget keeps its
    /// balance, and the cost bucket what was spent.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: RetryConfig) -> Result<(), PolicyError> {
        self.0.reconfigure(config)
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;
    fn layer(&self, inner: S) -> RetryService<S> {
        RetryService {
            current: Arc::clone(&self.0),
            inner,
        }
    }
}

/// See [`RetryLayer`].
#[derive(Debug, Clone)]
pub struct RetryService<S> {
    current: Arc<Current>,
    inner: S,
}

/// An answer's body: it holds the call's place in the budget until it ends.
pub type RetryBody<RB> = GuardedBody<PeekedBody<RB>, RetryHeld>;

impl<S, B, RB> Service<Request<B>> for RetryService<S>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    type Response = Response<RetryBody<RB>>;
    type Error = Error<S::Error>;
    type Future = RetryFuture<S, B, RB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let mut service = mem::replace(&mut self.inner, clone);
        let (mut head, body) = request.into_parts();
        let now = Instant::now().into_std();
        let plan = self.current.plan.lend();
        let begun = Begun::new(plan, &head.extensions, now);
        let Plan { config, core, .. } = &*begun.plan;
        if core.lent.load(Ordering::Relaxed) {
            // A hedge further in may be of this call.
            head.extensions.insert(Counted(core.budget.clone()));
        }
        let deadline = deadline_of(&head.extensions, &head.headers, now);
        let safety = config.safety(&head.method, &head.headers, &head.extensions);
        let tries = Tries::new(config, safety);
        let may_continue = tries.may_continue(config);
        let limit = if may_continue {
            config.replay.as_usize()
        } else {
            0
        };
        let mut body = Replay::new(body, limit);
        let kept = may_continue.then(|| head.clone());
        let state = if deadline.is_some_and(|deadline| deadline.has_passed(now)) {
            State::Refused {
                rejected: Rejected::new(Policy::Deadline, Reason::Expired),
            }
        } else {
            config.announce(AttemptNumber(1), false, &mut head);
            let view = body.view().expect("the first view of a body");
            // The service was polled ready by our caller, who has written the deadline too.
            State::Sending {
                future: service.call(Request::from_parts(head, view)),
            }
        };
        // Put together where it stands, and not a piece earlier: it is large.
        RetryFuture {
            state,
            call: Some(Call {
                begun: Some(begun),
                service,
                tries,
                extra: None,
                paid: None,
                head: kept,
                body,
                deadline,
                after_timeout: false,
            }),
        }
    }
}
