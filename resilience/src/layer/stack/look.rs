//! gRPC: the head of an answer is held for the verdict behind it.
//!
//! A callee that fails often says 200 in its head and its status in the trailers. Whoever is told of
//! the head at once cannot be given another try's answer any more. So where another try may follow,
//! or others are under way, the head is held until the first frame is there; see
//! [`grpc_trailers`](crate::retry::RetryConfig::grpc_trailers).

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Body;
use tokio::time::Instant;

use super::plan::Plan;
use crate::{
    classify::GrpcCode,
    config::Millis,
    layer::{
        BoxError, EitherBody, FixedBody,
        peek::{First, is_due, poll_first},
        slot::earlier,
    },
    outcome::{FailureClass, Outcome},
    retry::{Judgement, RetryConfig},
};

/// Whether, and for how long, a try's answer is held for its trailers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    retry: Option<&'a RetryConfig>,
    /// If no other try is under way.
    alone: Duration,
    /// If others are.
    racing: Duration,
    race: Option<&'a AtomicBool>,
}

impl<'a> Look<'a> {
    /// `again`: another try may follow this one.
    pub(super) fn of(plan: &'a Plan, again: bool) -> Self {
        let retry = plan.policy.retry.as_ref();
        let alone = retry.filter(|_| again).map(|retry| retry.grpc_trailers.0);
        let hedge = plan.policy.hedge.as_ref();
        Self {
            retry,
            alone: alone.unwrap_or_default(),
            racing: hedge.map_or(Duration::ZERO, |hedge| hedge.grpc_trailers.0),
            race: None,
        }
    }

    /// `race` tells whether others are under way.
    pub(super) fn among(self, race: &'a AtomicBool) -> Self {
        Self {
            race: Some(race),
            ..self
        }
    }

    /// How long `answer` is held; `None`: not at all.
    pub(super) fn holds<RB: Body>(&self, answer: &Response<RB>) -> Option<Duration> {
        let racing = self.race.is_some_and(|race| race.load(Ordering::Relaxed));
        let limit = if racing {
            self.racing.max(self.alone)
        } else {
            self.alone
        };
        is_due(answer, Millis(limit)).then_some(limit)
    }

    /// Holds `answer` until its first frame is there, or for `limit`, or until `until`. The verdict,
    /// if it has come.
    pub(super) async fn hold<RB>(
        self,
        answer: Response<RB>,
        limit: Duration,
        until: Option<Instant>,
    ) -> (Response<EitherBody<RB, FixedBody>>, Option<Judgement>)
    where
        RB: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        let (head, mut body) = answer.into_parts();
        let (mut first, mut ended) = (None, false);
        let read = poll_fn(|cx| {
            let (first, ended) = (&mut first, &mut ended);
            poll_first(&mut body, first, ended, Into::<BoxError>::into, cx)
        });
        match earlier(Instant::now().checked_add(limit), until) {
            // Too long: it goes to its caller as it is.
            Some(until) => drop(tokio::time::timeout_at(until, read).await),
            None => read.await,
        }
        let verdict = self.verdict(&First::of(first.as_deref()));
        let answer = Response::from_parts(head, EitherBody::begun(first, ended, body));
        (answer, verdict)
    }

    fn verdict(&self, first: &First<'_>) -> Option<Judgement> {
        let outcome = match (first, self.retry) {
            (First::Trailers(trailers), Some(retry)) => return retry.judge_trailers(trailers),
            (First::Trailers(trailers), None) => said(trailers)?,
            (First::Broken, Some(retry)) => {
                return Some(retry.judge_error(FailureClass::Reset, false));
            }
            (First::Broken, None) => Outcome::Failure(FailureClass::Reset),
            (First::Other, _) => return None,
        };
        Some(Judgement::last(outcome))
    }
}

fn said(trailers: &HeaderMap) -> Option<Outcome> {
    GrpcCode::find(trailers).map(GrpcCode::outcome)
}
