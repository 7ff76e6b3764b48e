//! A response body that ends the call when it ends.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::{BoxError, CallGuard, Completes, coalesce::Front};
use crate::{
    classify::GrpcCode,
    outcome::{FailureClass, Outcome},
};

pin_project! {
    /// Completes the call's permits at its end, trailers, error or drop, whichever is first, and
    /// cuts a body that outlives the call's deadline.
    ///
    /// A body that is empty from the start completes at once: hyper never polls such a body.
    pub struct GuardedBody<B, G: Completes> {
        #[pin]
        inner: B,
        guard: Option<CallGuard<G>>,
        // What the head said; trailers may say otherwise.
        outcome: Outcome,
        deadline: Option<Instant>,
        // Only for a body that keeps us waiting: most arrive together with their head.
        timer: Option<Pin<Box<Sleep>>>,
        // What was read of it before it was handed on.
        front: Option<Box<Front<BodyError>>>,
    }

    impl<B, G: Completes> PinnedDrop for GuardedBody<B, G> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // Nobody reads the page that comes with a 503, least of all a fallback: what the head
            // said stands. A success that nobody waited for is none.
            if this.outcome.is_failure() || *this.outcome == Outcome::RateLimited {
                end(this.guard, *this.outcome);
            }
        }
    }
}

/// Why a guarded body broke off. The message must then be cut, never ended as if complete.
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyError {
    /// The call's deadline passed.
    Deadline,
    /// The body itself failed.
    Inner(BoxError),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline => f.write_str("the call's deadline passed before its body ended"),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Deadline => None,
            Self::Inner(error) => error.source(),
        }
    }
}

impl<B: Body, G: Completes> GuardedBody<B, G> {
    /// Guards `inner`; `outcome` is what the call comes to if its body ends well.
    pub fn new(
        inner: B,
        mut guard: CallGuard<G>,
        outcome: Outcome,
        deadline: Option<Instant>,
    ) -> Self {
        let guard = if inner.is_end_stream() {
            guard.complete(outcome, None);
            None
        } else {
            Some(guard)
        };
        Self {
            inner,
            guard,
            outcome,
            deadline,
            timer: None,
            front: None,
        }
    }
}

impl<B, G: Completes> GuardedBody<B, G> {
    /// Puts back what was read of it.
    pub(super) fn with_front(mut self, front: Front<BodyError>) -> Self {
        self.front = (!front.is_empty()).then(|| Box::new(front));
        self
    }

    /// A body that nothing depends on.
    pub(super) fn free(inner: B) -> Self {
        Self {
            inner,
            guard: None,
            outcome: Outcome::Ignored,
            deadline: None,
            timer: None,
            front: None,
        }
    }
}

fn end<G: Completes>(guard: &mut Option<CallGuard<G>>, outcome: Outcome) {
    if let Some(mut guard) = guard.take() {
        guard.complete(outcome, None);
    }
}

/// What `grpc-status` in trailers makes of a call; `None` without one.
fn grpc_outcome(trailers: &HeaderMap) -> Option<Outcome> {
    GrpcCode::find(trailers).map(GrpcCode::outcome)
}

impl<B, G> Body for GuardedBody<B, G>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    G: Completes,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut this = self.project();
        if let Some(front) = this.front
            && let Some(frame) = front.next()
        {
            if front.is_empty() {
                *this.front = None;
            }
            return Poll::Ready(Some(frame));
        }
        match this.inner.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(outcome) = frame.trailers_ref().and_then(grpc_outcome) {
                    *this.outcome = outcome;
                }
                // Data that keeps dripping must not outlive the deadline either.
                if this
                    .deadline
                    .is_some_and(|deadline| this.timer.is_some() && deadline <= Instant::now())
                {
                    end(this.guard, Outcome::Failure(FailureClass::Timeout));
                    return Poll::Ready(Some(Err(BodyError::Deadline)));
                }
                // Whoever knows the length does not ask again after the last byte: hyper drops a
                // body that says so, and a drop would be a cancellation.
                if this.inner.is_end_stream() {
                    end(this.guard, *this.outcome);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                end(this.guard, *this.outcome);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                end(this.guard, Outcome::Failure(FailureClass::Reset));
                Poll::Ready(Some(Err(BodyError::Inner(error.into()))))
            }
            Poll::Pending => {
                let Some(deadline) = *this.deadline else {
                    return Poll::Pending;
                };
                let timer = this
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                ready!(timer.as_mut().poll(cx));
                end(this.guard, Outcome::Failure(FailureClass::Timeout));
                Poll::Ready(Some(Err(BodyError::Deadline)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.front.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.inner.size_hint();
        match &self.front {
            Some(front) => front.hint(&rest),
            None => rest,
        }
    }
}

impl<B: fmt::Debug, G: Completes> fmt::Debug for GuardedBody<B, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedBody")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
