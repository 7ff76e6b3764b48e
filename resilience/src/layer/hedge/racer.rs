//! One try of a race, and what it came to.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::super::{
    PeekedBody, TransportError,
    peek::{self, First, Peeking},
};
use crate::{
    classify::{GrpcCode, outcome_of_head},
    config::Millis,
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
            #[pin]
            peeking: Peeking<RB>,
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
        trailers: Millis,
        cx: &mut Context<'_>,
    ) -> Poll<Finished<RB, E>> {
        let mut this = self.project();
        loop {
            let (result, outcome) = match this.state.as_mut().project() {
                StateProj::Sending { future } => match ready!(future.poll(cx)) {
                    Ok(response) => {
                        let (status, headers) = (response.status(), response.headers());
                        let outcome = outcome_of_head(status, headers);
                        if racing && peek::is_due(&response, trailers) {
                            let peeking = Peeking::new(response, trailers);
                            this.state.set(State::Peeking { peeking });
                            continue;
                        }
                        (Ok(response.map(PeekedBody::new)), outcome)
                    }
                    Err(error) => {
                        let outcome = outcome_of_error(&error);
                        (Err(error), outcome)
                    }
                },
                StateProj::Peeking { peeking } => {
                    let response = ready!(peeking.poll(racing, cx));
                    let outcome = match response.body().first() {
                        First::Trailers(trailers) => {
                            GrpcCode::find(trailers).map_or(Outcome::Success, GrpcCode::outcome)
                        }
                        First::Broken => Outcome::Failure(FailureClass::Reset),
                        First::Other => Outcome::Success,
                    };
                    (Ok(response), outcome)
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
