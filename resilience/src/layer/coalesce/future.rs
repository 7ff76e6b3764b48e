//! One request's way: it follows another's call, or makes the call and gathers its answer for all.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    super::{BoxError, EitherBody, Error, FixedBody, GuardedBody, oneshot::Oneshot},
    Answered, Coalesce, CoalescedBody, SharedAnswer, failed,
    gather::{Front, Gather, Gathered},
};
use crate::coalesce::{Follow, Lead, Turn};

pin_project! {
    /// Waits for another's answer, or makes the call.
    pub struct CoalesceFuture<S, B, RB, F> {
        pub(super) coalesce: Arc<Coalesce>,
        pub(super) lead: Option<Lead<Answered>>,
        #[pin]
        pub(super) step: Step<S, B, RB, F>,
    }
}

pin_project! {
    #[project = StepProj]
    pub(super) enum Step<S, B, RB, F> {
        Follows { follow: Follow<Answered>, call: Option<(S, Request<B>)> },
        Calls { #[pin] inner: Oneshot<S, Request<B>, F> },
        Gathers { head: Option<http::response::Parts>, gather: Gather<GuardedBody<RB, ()>> },
    }
}

impl<S, B, RB> Future for CoalesceFuture<S, B, RB, S::Future>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    type Output = Result<Response<CoalescedBody<RB>>, Error<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.step.as_mut().project() {
                StepProj::Follows { follow, call } => {
                    match ready!(follow.poll(cx.waker())) {
                        Turn::Answer(Ok(shared)) => {
                            return Poll::Ready(Ok(shared.response().map(EitherBody::other)));
                        }
                        Turn::Answer(Err(rejected)) => return Poll::Ready(Err(rejected.into())),
                        Turn::Broken => return Poll::Ready(Err(failed().into())),
                        Turn::Lead(lead) => *this.lead = Some(lead),
                        Turn::Alone => {}
                    }
                    let (service, request) = call.take().expect("it follows only once");
                    Step::Calls {
                        inner: Oneshot::new(service, request),
                    }
                }
                StepProj::Calls { inner } => {
                    let answer = match ready!(holding(this.lead, || inner.poll(cx))) {
                        Ok(answer) => answer.map(GuardedBody::free),
                        Err(error) => {
                            if let Some(lead) = this.lead.take() {
                                this.coalesce.fail(lead, failed());
                            }
                            return Poll::Ready(Err(Error::Service(error)));
                        }
                    };
                    let lead = this.lead.take();
                    *this.lead = lead.and_then(|lead| {
                        this.coalesce.judge(lead, answer.status(), answer.headers())
                    });
                    if this.lead.is_none() {
                        return Poll::Ready(Ok(answer.map(EitherBody::own)));
                    }
                    let (head, body) = answer.into_parts();
                    let Coalesce { limit, gather, .. } = **this.coalesce;
                    Step::Gathers {
                        head: Some(head),
                        gather: Gather::new(body, limit, gather),
                    }
                }
                StepProj::Gathers { head, gather } => {
                    let gathered = ready!(holding(this.lead, || Pin::new(gather).poll(cx)));
                    let head = head.take().expect("it gathers only once");
                    let lead = this.lead.take().expect("who gathers has the lead");
                    let answer = settle(this.coalesce, lead, head, gathered);
                    return Poll::Ready(Ok(answer.map(|body| match body {
                        Settled::Shared(body) => EitherBody::other(body),
                        Settled::Own(front, body) => EitherBody::own(body.with_front(front)),
                    })));
                }
            };
            this.step.set(next);
        }
    }
}

/// Polls with the lead on the stack: a service that panics ends the flight while it unwinds. In the
/// future the lead would be dropped by whoever caught the panic, and pass on.
fn holding<T>(lead: &mut Option<Lead<Answered>>, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
    let held = lead.take();
    let polled = poll();
    *lead = held;
    polled
}

/// The leader's body.
pub(in crate::layer) enum Settled<B: Body> {
    Shared(FixedBody),
    Own(Front<B::Error>, B),
}

/// Gives everybody what was gathered, and the leader its answer.
pub(in crate::layer) fn settle<B: Body>(
    coalesce: &Coalesce,
    lead: Lead<Answered>,
    head: http::response::Parts,
    gathered: Gathered<B>,
) -> Response<Settled<B>> {
    let body = match gathered {
        Gathered::Whole(data, trailers) => {
            let body = FixedBody::from(data).with_trailers(trailers);
            lead.share(Ok(SharedAnswer::new(&head, body.clone())));
            Settled::Shared(body)
        }
        Gathered::Part(front, rest) => {
            lead.release();
            Settled::Own(front, rest)
        }
        Gathered::Broken(front, rest) => {
            coalesce.fail(lead, failed());
            Settled::Own(front, rest)
        }
    };
    Response::from_parts(head, body)
}

impl<S, B, RB, F> fmt::Debug for CoalesceFuture<S, B, RB, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoalesceFuture")
    }
}
