//! One policy around any HTTP service: the shape that breaker, bulkhead and rate limit share.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{BoxError, CallGuard, Completes, Error, GuardedBody};
use crate::{
    breaker::{self, CircuitBreaker},
    bulkhead::{self, Bulkhead},
    classify::outcome_of_head,
    outcome::{FailureClass, Outcome, Rejected},
    rate_limit::RateLimit,
};

/// A core that admits calls.
pub trait Admission: Clone {
    /// What an admitted call holds until it ends.
    type Permit: Completes;
    /// Admits a call at `now`, or refuses it.
    fn admit(&self, now: Instant) -> Result<Self::Permit, Rejected>;
}

impl Admission for CircuitBreaker {
    type Permit = breaker::Permit;
    fn admit(&self, now: Instant) -> Result<Self::Permit, Rejected> {
        self.try_acquire(now)
    }
}

impl Admission for Bulkhead {
    type Permit = bulkhead::Permit;
    fn admit(&self, _: Instant) -> Result<Self::Permit, Rejected> {
        self.try_acquire()
    }
}

impl Admission for RateLimit {
    type Permit = ();
    fn admit(&self, now: Instant) -> Result<(), Rejected> {
        self.try_acquire(now).map(|_begun| ())
    }
}

/// Refuses calls while the circuit is open.
pub type BreakerLayer = PolicyLayer<CircuitBreaker>;
/// Refuses calls while too many run.
pub type BulkheadLayer = PolicyLayer<Bulkhead>;
/// Refuses calls that come too fast.
pub type RateLimitLayer = PolicyLayer<RateLimit>;

/// Puts a core in front of a service. All services made by one layer share the core.
#[derive(Debug, Clone)]
pub struct PolicyLayer<A>(A);

impl<A> PolicyLayer<A> {
    /// Keep a clone of `core` to read its state or to change it while it runs.
    pub fn new(core: A) -> Self {
        Self(core)
    }
}

impl<A: Clone, S> Layer<S> for PolicyLayer<A> {
    type Service = PolicyService<A, S>;
    fn layer(&self, inner: S) -> Self::Service {
        PolicyService {
            core: self.0.clone(),
            inner,
        }
    }
}

/// See [`PolicyLayer`].
#[derive(Debug, Clone)]
pub struct PolicyService<A, S> {
    core: A,
    inner: S,
}

impl<A, S, B, RB> Service<Request<B>> for PolicyService<A, S>
where
    A: Admission,
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<GuardedBody<RB, A::Permit>>;
    type Error = Error<S::Error>;
    type Future = PolicyFuture<S::Future, A::Permit>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let now = tokio::time::Instant::now().into_std();
        PolicyFuture::new(self.core.admit(now), || self.inner.call(request))
    }
}

pin_project! {
    /// The answer, or the refusal.
    #[derive(Debug)]
    pub struct PolicyFuture<F, G: Completes> {
        #[pin]
        inner: Option<F>,
        guard: Option<CallGuard<G>>,
        rejected: Option<Rejected>,
    }
}

impl<F, G: Completes> PolicyFuture<F, G> {
    /// Makes the call if it was admitted.
    pub(super) fn new(admitted: Result<G, Rejected>, call: impl FnOnce() -> F) -> Self {
        match admitted {
            Ok(permit) => {
                // First the guard: a service that panics in `call` still gives the permit back.
                let guard = CallGuard::new(permit);
                Self {
                    inner: Some(call()),
                    guard: Some(guard),
                    rejected: None,
                }
            }
            Err(rejected) => Self {
                inner: None,
                guard: None,
                rejected: Some(rejected),
            },
        }
    }
}

impl<F, G, RB, E> Future for PolicyFuture<F, G>
where
    F: Future<Output = Result<Response<RB>, E>>,
    G: Completes,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<GuardedBody<RB, G>>, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(rejected) = *this.rejected {
            return Poll::Ready(Err(rejected.into()));
        }
        let inner = this
            .inner
            .as_pin_mut()
            .expect("an admitted call has a future");
        let result = std::task::ready!(inner.poll(cx));
        let mut guard = this
            .guard
            .take()
            .expect("a future is not polled after it is ready");
        Poll::Ready(match result {
            Ok(response) => {
                let outcome = classify(&response);
                Ok(response.map(|body| GuardedBody::new(body, guard, outcome, None)))
            }
            Err(error) => {
                guard.complete(Outcome::Failure(FailureClass::Other), None);
                Err(Error::Service(error))
            }
        })
    }
}

/// What the head of an answer says of the callee; see [`outcome_of_head`].
pub(super) fn classify<B>(response: &Response<B>) -> Outcome {
    outcome_of_head(response.status(), response.headers())
}
