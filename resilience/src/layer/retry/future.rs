//! One try after the other, until an answer is the last.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response, header::RETRY_AFTER};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::{
    super::{
        BoxError, Error, PeekedBody, ReplayBody, TransportError,
        peek::{First, Peeking},
        wall_for,
    },
    RetryBody,
    call::Call,
};
use crate::{
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    retry::Judgement,
};

pin_project! {
    /// The answer of the last try, or its error.
    pub struct RetryFuture<S, B, RB>
    where
        S: Service<Request<ReplayBody<B>>>,
        RB: Body,
    {
        #[pin]
        pub(super) state: State<S::Future, RB>,
        pub(super) call: Option<Call<S, B>>,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F, RB: Body> {
        /// A try is under way.
        Sending {
            #[pin]
            future: F,
        },
        /// The head is there, with this judgement; its body's first word is waited for.
        Peeking {
            #[pin]
            peeking: Peeking<RB>,
            judgement: Judgement,
        },
        /// Between two tries.
        Waiting {
            #[pin]
            sleep: Sleep,
        },
        /// The service is not ready for the next try.
        Readying {
            #[pin]
            until: Option<Sleep>,
        },
        /// The call was not even begun.
        Refused { rejected: Rejected },
    }
}

impl<S, B, RB> Future for RetryFuture<S, B, RB>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    type Output = Result<Response<RetryBody<RB>>, Error<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let call = this.call.as_mut().expect("not polled after it is ready");
            let (result, judgement) = match this.state.as_mut().project() {
                StateProj::Refused { rejected } => {
                    let rejected = *rejected;
                    *this.call = None;
                    return Poll::Ready(Err(rejected.into()));
                }
                StateProj::Waiting { sleep } => {
                    ready!(sleep.poll(cx));
                    let until = call.deadline.map(|deadline| sleep_until(deadline.0));
                    this.state.set(State::Readying { until });
                    continue;
                }
                StateProj::Readying { until } => match call.service.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        let future = call.send();
                        this.state.set(State::Sending { future });
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        let result = call.finish(Err(error), Outcome::Cancelled);
                        *this.call = None;
                        return Poll::Ready(result);
                    }
                    Poll::Pending => {
                        let Some(until) = until.as_pin_mut() else {
                            return Poll::Pending;
                        };
                        ready!(until.poll(cx));
                        call.forgive();
                        *this.call = None;
                        let late = Rejected::new(Policy::Deadline, Reason::Elapsed);
                        return Poll::Ready(Err(late.into()));
                    }
                },
                StateProj::Sending { future } => match ready!(future.poll(cx)) {
                    Ok(response) => {
                        let judgement = call.plan().config.judge_head(
                            response.status(),
                            response.headers(),
                            wall_for(response.headers(), &RETRY_AFTER),
                        );
                        let peek = call.should_peek(&response);
                        if peek {
                            let patience = call.plan().config.grpc_trailers;
                            let peeking = Peeking::new(response, patience);
                            this.state.set(State::Peeking { peeking, judgement });
                            continue;
                        }
                        (Ok(response.map(PeekedBody::new)), judgement)
                    }
                    Err(error) => {
                        let judgement = call.judge_error(&error);
                        (Err(error), judgement)
                    }
                },
                StateProj::Peeking { peeking, judgement } => {
                    let response = ready!(peeking.poll(true, cx));
                    let config = &call.plan().config;
                    let judgement = match response.body().first() {
                        First::Trailers(trailers) => {
                            config.judge_trailers(trailers).unwrap_or(*judgement)
                        }
                        First::Broken => config.judge_error(FailureClass::Reset, false),
                        First::Other => *judgement,
                    };
                    (Ok(response), judgement)
                }
            };
            let Some(wait) = call.next(&judgement, cx) else {
                let result = call.finish(result, judgement.outcome);
                *this.call = None;
                return Poll::Ready(result);
            };
            drop(result);
            // Replacing the state drops what the try held further in, before the wait.
            this.state.set(if wait.is_zero() {
                let until = call.deadline.map(|deadline| sleep_until(deadline.0));
                State::Readying { until }
            } else {
                let sleep = tokio::time::sleep(wait);
                State::Waiting { sleep }
            });
        }
    }
}

fn sleep_until(instant: std::time::Instant) -> Sleep {
    tokio::time::sleep_until(Instant::from_std(instant))
}

impl<S, B, RB> fmt::Debug for RetryFuture<S, B, RB>
where
    S: Service<Request<ReplayBody<B>>>,
    RB: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
