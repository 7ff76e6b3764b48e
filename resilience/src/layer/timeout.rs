//! A deadline for a whole call, its body included, that travels with it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::{BoxError, CallGuard, Error, GuardedBody};
use crate::{
    context::deadline,
    outcome::{Outcome, Policy, Reason, Rejected},
};

/// Ends calls after a time, or earlier where the caller's deadline is earlier; tells the callee.
///
/// An expired call is not even begun. On the way in, a service sheds the work that nobody waits
/// for any more; on the way out, the callee learns how long it has.
#[derive(Debug, Clone, Copy)]
pub struct TimeoutLayer {
    total: Duration,
}

impl TimeoutLayer {
    /// At most `total`, from the call to the end of the answer's body.
    pub fn new(total: Duration) -> Self {
        Self { total }
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = TimeoutService<S>;
    fn layer(&self, inner: S) -> TimeoutService<S> {
        TimeoutService {
            inner,
            total: self.total,
        }
    }
}

/// See [`TimeoutLayer`].
#[derive(Debug, Clone)]
pub struct TimeoutService<S> {
    inner: S,
    total: Duration,
}

impl<S, B, RB> Service<Request<B>> for TimeoutService<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<GuardedBody<RB, ()>>;
    type Error = Error<S::Error>;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let left = deadline::extract(request.headers())
            .unwrap_or(Duration::MAX)
            .min(self.total);
        deadline::inject(request.headers_mut(), left);
        let deadline = Instant::now() + left;
        TimeoutFuture {
            inner: self.inner.call(request),
            sleep: tokio::time::sleep_until(deadline),
            deadline,
        }
    }
}

pin_project! {
    /// The answer's head, or a refusal when the time is up.
    #[derive(Debug)]
    pub struct TimeoutFuture<F> {
        #[pin]
        inner: F,
        #[pin]
        sleep: Sleep,
        deadline: Instant,
    }
}

impl<F, RB, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<GuardedBody<RB, ()>>, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(result) = this.inner.poll(cx) {
            let deadline = Some(*this.deadline);
            return Poll::Ready(match result {
                Ok(response) => Ok(response.map(|body| {
                    GuardedBody::new(body, CallGuard::new(()), Outcome::Success, deadline)
                })),
                Err(error) => Err(Error::Service(error)),
            });
        }
        match this.sleep.poll(cx) {
            Poll::Ready(()) => {
                Poll::Ready(Err(Rejected::new(Policy::Deadline, Reason::Elapsed).into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
