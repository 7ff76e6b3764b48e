//! One policy around any HTTP service: the shape that breaker, bulkhead and rate limit share.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    BoxError, CallGuard, Completes, Error, GuardedBody, Moment, TransportError, gate::Gate,
};
use crate::{
    adaptive::{self, AdaptiveLimit},
    breaker::{self, CircuitBreaker},
    bulkhead::{self, Bulkhead},
    classify::outcome_of_head,
    outcome::{FailureClass, Outcome, Reason, Rejected},
    rate_limit::RateLimit,
};

/// A core that admits calls.
pub trait Admission: Clone {
    /// What an admitted call holds until it ends.
    type Permit: Completes;
    /// Admits a call that begins at `now`, or refuses it.
    fn admit(&self, now: &mut Moment) -> Result<Self::Permit, Rejected>;
}

impl Admission for CircuitBreaker {
    type Permit = breaker::Permit;
    fn admit(&self, now: &mut Moment) -> Result<Self::Permit, Rejected> {
        self.try_acquire(now.instant())
    }
}

impl Admission for Bulkhead {
    type Permit = bulkhead::Permit;
    fn admit(&self, _: &mut Moment) -> Result<Self::Permit, Rejected> {
        self.try_acquire()
    }
}

impl Admission for AdaptiveLimit {
    type Permit = adaptive::Permit;
    fn admit(&self, now: &mut Moment) -> Result<Self::Permit, Rejected> {
        self.try_acquire(now.instant())
    }
}

impl Admission for adaptive::Partition {
    type Permit = adaptive::Permit;
    fn admit(&self, now: &mut Moment) -> Result<Self::Permit, Rejected> {
        self.try_acquire(now.instant())
    }
}

impl Admission for RateLimit {
    type Permit = ();
    fn admit(&self, now: &mut Moment) -> Result<(), Rejected> {
        self.try_acquire(now.instant()).map(|_begun| ())
    }
}

/// Refuses calls while the circuit is open.
pub type BreakerLayer = PolicyLayer<CircuitBreaker>;
/// Refuses calls while too many run; [`QueueLayer`](super::QueueLayer) lets some wait.
pub type BulkheadLayer = PolicyLayer<Bulkhead>;
/// Refuses calls beyond a limit that finds itself; [`QueueLayer`](super::QueueLayer) lets some wait.
pub type AdaptiveLayer = PolicyLayer<AdaptiveLimit>;

/// When a call counts as over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CompletionPoint {
    /// When the head of its answer is there: for bodies that stream for hours.
    Headers,
    /// When its body has ended. Default: a callee works until then.
    #[default]
    Body,
}

/// What an error of the service below says of the callee. Closures are judges.
pub trait Judge<E> {
    /// What the call came to.
    fn judge(&self, error: &E) -> Outcome;
}

impl<E, F: Fn(&E) -> Outcome> Judge<E> for F {
    fn judge(&self, error: &E) -> Outcome {
        self(error)
    }
}

/// Takes every error for a failure of no known kind: the judge of a service whose errors say
/// nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnyFailure;

impl<E> Judge<E> for AnyFailure {
    fn judge(&self, _: &E) -> Outcome {
        Outcome::Failure(FailureClass::Other)
    }
}

/// Judges errors of this module's layers by their parts: a deadline that passed is a timeout, a
/// refusal by a policy further in never reached the callee, an error of a transport has its class.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByClass;

impl<E: TransportError> Judge<Error<E>> for ByClass {
    fn judge(&self, error: &Error<E>) -> Outcome {
        match error {
            Error::Rejected(Rejected {
                reason: Reason::Elapsed,
                ..
            }) => Outcome::Failure(FailureClass::Timeout),
            Error::Rejected(_) => Outcome::Cancelled,
            Error::Service(error) if error.is_callers_fault() => Outcome::Cancelled,
            Error::Service(error) => Outcome::Failure(error.class()),
        }
    }
}

/// How calls end: when, and as what.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ending<J> {
    pub(super) at: CompletionPoint,
    pub(super) judge: J,
}

impl<J> Ending<J> {
    /// Hands the permit to the answer's body, or ends the call here.
    pub(super) fn end<RB, E, G>(
        &self,
        result: Result<Response<RB>, E>,
        mut guard: CallGuard<G>,
    ) -> Result<Response<GuardedBody<RB, G>>, Error<E>>
    where
        RB: Body<Data = Bytes>,
        G: Completes,
        J: Judge<E>,
    {
        match result {
            Ok(response) => {
                let outcome = classify(&response);
                if self.at == CompletionPoint::Headers {
                    guard.complete(outcome, None);
                }
                Ok(response.map(|body| GuardedBody::new(body, guard, outcome, None)))
            }
            Err(error) => {
                guard.complete(self.judge.judge(&error), None);
                Err(Error::Service(error))
            }
        }
    }
}

/// Puts a core in front of a service. All services made by one layer share the core.
#[derive(Debug, Clone)]
pub struct PolicyLayer<A, J = AnyFailure> {
    core: A,
    ending: Ending<J>,
}

impl<A> PolicyLayer<A> {
    /// Keep a clone of `core` to read its state or to change it while it runs.
    pub fn new(core: A) -> Self {
        Self {
            core,
            ending: Ending::default(),
        }
    }
}

impl<A, J> PolicyLayer<A, J> {
    /// When a call counts as over; by default with its body.
    #[must_use]
    pub fn complete_at(mut self, at: CompletionPoint) -> Self {
        self.ending.at = at;
        self
    }

    /// What the errors of the service below mean: [`ByClass`], or a closure.
    #[must_use]
    pub fn judge<K>(self, judge: K) -> PolicyLayer<A, K> {
        PolicyLayer {
            core: self.core,
            ending: Ending {
                at: self.ending.at,
                judge,
            },
        }
    }
}

impl<A: Clone, J: Clone, S> Layer<S> for PolicyLayer<A, J> {
    type Service = PolicyService<A, S, J>;
    fn layer(&self, inner: S) -> Self::Service {
        PolicyService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`PolicyLayer`].
#[derive(Debug, Clone)]
pub struct PolicyService<A, S, J = AnyFailure> {
    layer: PolicyLayer<A, J>,
    inner: S,
}

impl<A, S, J, B, RB> Service<Request<B>> for PolicyService<A, S, J>
where
    A: Admission,
    S: Service<Request<B>, Response = Response<RB>>,
    J: Judge<S::Error> + Clone,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<GuardedBody<RB, A::Permit>>;
    type Error = Error<S::Error>;
    type Future = PolicyFuture<S::Future, A::Permit, J>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let admitted = self.layer.core.admit(&mut Moment::now());
        PolicyFuture::ending(admitted, self.layer.ending.clone(), || {
            self.inner.call(request)
        })
    }
}

pin_project! {
    /// The answer, or the refusal.
    #[derive(Debug)]
    pub struct PolicyFuture<F, G: Completes, J = AnyFailure> {
        #[pin]
        gate: Gate<F>,
        guard: Option<CallGuard<G>>,
        ending: Ending<J>,
    }
}

impl<F, G: Completes> PolicyFuture<F, G> {
    /// Makes the call if it was admitted.
    pub(super) fn new(admitted: Result<G, Rejected>, call: impl FnOnce() -> F) -> Self {
        Self::ending(admitted, Ending::default(), call)
    }
}

impl<F, G: Completes, J> PolicyFuture<F, G, J> {
    fn ending(admitted: Result<G, Rejected>, ending: Ending<J>, call: impl FnOnce() -> F) -> Self {
        // First the guard: a service that panics in `call` still gives the permit back.
        let (gate, guard) = Gate::new(admitted.map(CallGuard::new), call);
        Self {
            gate,
            guard,
            ending,
        }
    }
}

impl<F, G, J, RB, E> Future for PolicyFuture<F, G, J>
where
    F: Future<Output = Result<Response<RB>, E>>,
    G: Completes,
    J: Judge<E>,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<GuardedBody<RB, G>>, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.gate.admitted()?.poll(cx));
        let guard = this
            .guard
            .take()
            .expect("a future is not polled after it is ready");
        Poll::Ready(this.ending.end(result, guard))
    }
}

/// What the head of an answer says of the callee; see [`outcome_of_head`].
pub(super) fn classify<B>(response: &Response<B>) -> Outcome {
    outcome_of_head(response.status(), response.headers())
}
