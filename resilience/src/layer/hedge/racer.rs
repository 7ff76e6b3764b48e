//! One try of a race, and what it came to.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::super::{PeekedBody, TransportError, peek::First};
use crate::{
    classify::{GrpcCode, awaits_grpc_trailers, outcome_of_head},
    outcome::{FailureClass, Outcome, Policy},
    retry::budget::Extra,
};

pin_project! {
    /// One try under way.
    pub(super) struct Racer<F, RB: Body> {
        #[pin]
        pub(super) state: State<F, RB>,
        pub(super) began: Instant,
        pub(super) extra: Option<Extra>,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F, RB: Body> {
        Sending {
            #[pin]
            future: F,
        },
        /// The head is there, but its verdict is not.
        Peeking {
            response: Option<Response<PeekedBody<RB>>>,
            #[pin]
            sleep: Sleep,
        },
    }
}

impl<F, RB: Body> Racer<F, RB> {
    pub(super) fn new(future: F, began: Instant, extra: Option<Extra>) -> Self {
        Self {
            state: State::Sending { future },
            began,
            extra,
        }
    }
}

impl<F, RB, E> Racer<F, RB>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body<Data = Bytes> + Unpin,
    E: TransportError,
{
    /// `racing`: others run, so a verdict that is still to come is worth waiting for.
    pub(super) fn poll(
        self: Pin<&mut Self>,
        racing: bool,
        trailers: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<Finished<RB, E>> {
        let mut this = self.project();
        loop {
            let (result, outcome) = match this.state.as_mut().project() {
                StateProj::Sending { future } => match ready!(future.poll(cx)) {
                    Ok(response) => {
                        let (status, headers) = (response.status(), response.headers());
                        let outcome = outcome_of_head(status, headers);
                        let peek = racing
                            && !trailers.is_zero()
                            && awaits_grpc_trailers(status, headers)
                            && !response.body().is_end_stream();
                        let response = response.map(PeekedBody::new);
                        if peek {
                            this.state.set(State::Peeking {
                                response: Some(response),
                                sleep: tokio::time::sleep(trailers),
                            });
                            continue;
                        }
                        (Ok(response), outcome)
                    }
                    Err(error) => {
                        let outcome = outcome_of_error(&error);
                        (Err(error), outcome)
                    }
                },
                StateProj::Peeking { response, sleep } => {
                    let body = response.as_mut().expect("taken once").body_mut();
                    let outcome = match body.poll_peek(cx) {
                        Poll::Ready(First::Trailers(trailers)) => {
                            GrpcCode::find(trailers).map_or(Outcome::Success, GrpcCode::outcome)
                        }
                        Poll::Ready(First::Broken) => Outcome::Failure(FailureClass::Reset),
                        Poll::Ready(First::Other) => Outcome::Success,
                        Poll::Pending => {
                            if racing {
                                ready!(sleep.poll(cx));
                            }
                            Outcome::Success
                        }
                    };
                    (Ok(response.take().expect("there above")), outcome)
                }
            };
            return Poll::Ready(Finished {
                result,
                outcome,
                began: *this.began,
                extra: this.extra.take(),
            });
        }
    }
}

fn outcome_of_error<E: TransportError>(error: &E) -> Outcome {
    match error.rejected() {
        Some(rejected) if rejected.policy == Policy::Deadline => {
            Outcome::Failure(FailureClass::Timeout)
        }
        Some(_) => Outcome::Cancelled,
        None if error.is_callers_fault() => Outcome::Cancelled,
        None => Outcome::Failure(error.class()),
    }
}

/// What a try came to.
pub(super) struct Finished<RB: Body, E> {
    pub(super) result: Result<Response<PeekedBody<RB>>, E>,
    pub(super) outcome: Outcome,
    pub(super) began: Instant,
    pub(super) extra: Option<Extra>,
}

impl<RB: Body, E: TransportError> Finished<RB, E> {
    pub(super) fn is_good(&self) -> bool {
        self.result.is_ok() && matches!(self.outcome, Outcome::Success | Outcome::Ignored)
    }

    /// Whether a policy further in refused the try: the callee never saw it.
    pub(super) fn was_refused(&self) -> bool {
        let rejected = self.result.as_ref().err().and_then(E::rejected);
        rejected.is_some_and(|rejected| rejected.policy != Policy::Deadline)
    }

    /// Of two that are not good: the callee's own words before an error, that before a refusal of
    /// ours.
    pub(super) fn rank(&self) -> u8 {
        match &self.result {
            Ok(_) => 2,
            Err(_) if self.was_refused() => 0,
            Err(_) => 1,
        }
    }
}
