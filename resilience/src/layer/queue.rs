//! A limit before which a bounded number of calls may wait.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    BoxError, CallGuard, Completes, Error, GuardedBody,
    policy_layer::{AnyFailure, CompletionPoint, Ending, Judge},
};
use crate::{
    bulkhead::{Entry, Queued, Waiter},
    outcome::Rejected,
};

/// Puts a [`Bulkhead`](crate::bulkhead::Bulkhead) or an
/// [`AdaptiveLimit`](crate::adaptive::AdaptiveLimit) with its queue in front of a service.
///
/// The wait is inside the response future: `poll_ready` never waits for a slot, so an idle clone
/// that was polled ready holds none, and a call that waits holds no readiness of the service below
/// (it readies a clone of it once it has its slot). Dropping the future at any point leaves the
/// queue, or passes the slot on.
#[derive(Debug, Clone)]
pub struct QueueLayer<C, J = AnyFailure> {
    core: C,
    ending: Ending<J>,
}

impl<C> QueueLayer<C> {
    /// Keep a clone of `core` to read its state or to change it while it runs.
    pub fn new(core: C) -> Self {
        Self {
            core,
            ending: Ending::default(),
        }
    }
}

impl<C, J> QueueLayer<C, J> {
    /// When a call counts as over; by default with its body.
    #[must_use]
    pub fn complete_at(mut self, at: CompletionPoint) -> Self {
        self.ending.at = at;
        self
    }

    /// What the errors of the service below mean; see
    /// [`PolicyLayer::judge`](super::PolicyLayer::judge).
    #[must_use]
    pub fn judge<K>(self, judge: K) -> QueueLayer<C, K> {
        QueueLayer {
            core: self.core,
            ending: Ending {
                at: self.ending.at,
                judge,
            },
        }
    }
}

impl<C: Clone, J: Clone, S> Layer<S> for QueueLayer<C, J> {
    type Service = QueueService<C, S, J>;
    fn layer(&self, inner: S) -> Self::Service {
        QueueService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`QueueLayer`].
#[derive(Debug, Clone)]
pub struct QueueService<C, S, J = AnyFailure> {
    layer: QueueLayer<C, J>,
    inner: S,
}

impl<C, S, J, B, RB> Service<Request<B>> for QueueService<C, S, J>
where
    C: Queued,
    C::Permit: Completes,
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    J: Judge<S::Error> + Clone,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<GuardedBody<RB, C::Permit>>;
    type Error = Error<S::Error>;
    type Future = QueueFuture<C, S, B, S::Future, J>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = match self.layer.core.acquire(Instant::now().into_std()) {
            Ok(Entry::Admitted(permit)) => {
                // First the guard: a service that panics in `call` still gives the permit back.
                let guard = Some(CallGuard::new(permit));
                State::Calling {
                    inner: self.inner.call(request),
                    guard,
                }
            }
            Ok(Entry::Waits(waiter)) => State::Waiting {
                timer: waiter
                    .deadline()
                    .map(|at| tokio::time::sleep_until(Instant::from_std(at))),
                waiter: Some(waiter),
                // Not the readied one: what waits must not keep others from what is ready.
                call: Some((self.inner.clone(), request)),
            },
            Err(rejected) => State::Refused { rejected },
        };
        QueueFuture {
            state,
            ending: self.layer.ending.clone(),
        }
    }
}

pin_project! {
    /// The answer, or the refusal, after a wait.
    pub struct QueueFuture<C: Queued, S, B, F, J>
    where
        C::Permit: Completes,
    {
        #[pin]
        state: State<C, S, B, F>,
        ending: Ending<J>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<C: Queued, S, B, F>
    where
        C::Permit: Completes,
    {
        Waiting {
            #[pin]
            timer: Option<Sleep>,
            waiter: Option<Waiter<C>>,
            call: Option<(S, Request<B>)>,
        },
        Readying {
            guard: Option<CallGuard<C::Permit>>,
            call: Option<(S, Request<B>)>,
        },
        Calling {
            #[pin]
            inner: F,
            guard: Option<CallGuard<C::Permit>>,
        },
        Refused { rejected: Rejected },
    }
}

const NOT_AGAIN: &str = "a future is not polled after it is ready";

impl<C, S, B, J, RB> Future for QueueFuture<C, S, B, S::Future, J>
where
    C: Queued,
    C::Permit: Completes,
    S: Service<Request<B>, Response = Response<RB>>,
    J: Judge<S::Error>,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<GuardedBody<RB, C::Permit>>, Error<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Waiting {
                    timer,
                    waiter,
                    call,
                } => match ready!(poll_waiter(timer, waiter, cx)) {
                    Ok(permit) => State::Readying {
                        guard: Some(CallGuard::new(permit)),
                        call: call.take(),
                    },
                    Err(rejected) => State::Refused { rejected },
                },
                StateProj::Readying { guard, call } => {
                    let (service, _) = call.as_mut().expect(NOT_AGAIN);
                    let readied = ready!(service.poll_ready(cx));
                    let (mut service, request) = call.take().expect(NOT_AGAIN);
                    let guard = guard.take();
                    if let Err(error) = readied {
                        let guard = guard.expect(NOT_AGAIN);
                        return Poll::Ready(this.ending.end(Err(error), guard));
                    }
                    State::Calling {
                        inner: service.call(request),
                        guard,
                    }
                }
                StateProj::Calling { inner, guard } => {
                    let result = ready!(inner.poll(cx));
                    let guard = guard.take().expect(NOT_AGAIN);
                    return Poll::Ready(this.ending.end(result, guard));
                }
                StateProj::Refused { rejected } => return Poll::Ready(Err((*rejected).into())),
            };
            this.state.set(next);
        }
    }
}

/// The permit, or that there will be none.
fn poll_waiter<C: Queued>(
    timer: Pin<&mut Option<Sleep>>,
    slot: &mut Option<Waiter<C>>,
    cx: &mut Context<'_>,
) -> Poll<Result<C::Permit, Rejected>> {
    let waiter = slot.as_mut().expect(NOT_AGAIN);
    let now = || Instant::now().into_std();
    if let Poll::Ready(result) = waiter.poll(cx.waker(), now()) {
        *slot = None;
        return Poll::Ready(result);
    }
    match timer.as_pin_mut() {
        Some(timer) => ready!(timer.poll(cx)),
        None => return Poll::Pending,
    }
    Poll::Ready(slot.take().expect(NOT_AGAIN).expire(now()))
}

impl<C: Queued, S, B, F, J> fmt::Debug for QueueFuture<C, S, B, F, J>
where
    C::Permit: Completes,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting { .. } => "waiting",
            State::Readying { .. } => "readying",
            State::Calling { .. } => "calling",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("QueueFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[path = "queue_tests.rs"]
mod tests;
