//! A call, what it needs to be hedged, and which of its answers is the best so far.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tower_service::Service;

use super::{
    super::{BoxError, CallGuard, GuardedBody, ReplayBody, TransportError, replay::Replay},
    HedgeBody, HedgeHeld, now,
    racer::{Finished, Racer},
};
use crate::{
    context::{AttemptNumber, Deadline, deadline},
    hedge::{HedgeConfig, Race, Unsent},
    retry::budget::Logical,
};

/// A call, and what it needs to be hedged.
pub(super) struct Call<S, B, RB: Body, E> {
    pub(super) service: S,
    pub(super) config: Arc<HedgeConfig>,
    pub(super) race: Race,
    pub(super) logical: Logical,
    pub(super) head: Option<Parts>,
    pub(super) body: Replay<B>,
    pub(super) deadline: Option<Deadline>,
    pub(super) first: AttemptNumber,
    /// The best of the answers that were not good.
    pub(super) best: Option<Finished<RB, E>>,
}

impl<S, B, RB> Call<S, B, RB, S::Error>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    /// Sends the hedge that is due, if it can be sent.
    pub(super) fn hedge(&mut self, cx: &mut Context<'_>) -> Option<Racer<S::Future, RB>> {
        let now = now();
        if self
            .deadline
            .is_some_and(|deadline| deadline.has_passed(now))
        {
            self.race.expire();
            return None;
        }
        // Two tries must not read one body that is still being sent: only one would be woken.
        if !self.body.is_complete() {
            self.race.skip(Unsent::Body);
            return None;
        }
        let mut service = self.service.clone();
        if !matches!(service.poll_ready(cx), Poll::Ready(Ok(()))) {
            self.race.skip(Unsent::NotReady);
            return None;
        }
        let extra = self.race.send(&self.logical, now).ok()?;
        let mut head = if self.race.due().is_some() {
            self.head.clone()?
        } else {
            self.head.take()?
        };
        announce(
            &mut head,
            Some((self.first, self.race.sent())),
            &self.config,
        );
        if let Some(deadline) = self.deadline {
            deadline::inject(&mut head.headers, deadline.left(now));
        }
        let body = self.body.view()?;
        let future = service.call(Request::from_parts(head, body));
        Some(Racer::new(future, now, Some(extra)))
    }

    /// A try ended otherwise than well while others run: the better of it and those before it is
    /// kept.
    pub(super) fn failed(&mut self, mut finished: Finished<RB, S::Error>) {
        if finished.was_refused()
            && let Some(extra) = finished.extra.take()
        {
            extra.forgive();
        }
        match &self.best {
            Some(best) if best.rank() >= finished.rank() => {}
            _ => self.best = Some(finished),
        }
    }

    /// Hands the answer to the caller, and the call's place in the budget to its body.
    pub(super) fn finish(
        self,
        finished: Finished<RB, S::Error>,
    ) -> Result<Response<HedgeBody<RB>>, S::Error> {
        let Finished {
            result,
            outcome,
            extra,
            ..
        } = finished;
        let guard = CallGuard::new(HedgeHeld {
            _logical: self.logical,
            _extra: extra,
        });
        result.map(|response| response.map(|body| GuardedBody::new(body, guard, outcome, None)))
    }
}

/// Says in `head` which try this is: the caller's number, `hedges` later. Gives the first's.
pub(super) fn announce(
    head: &mut Parts,
    hedge: Option<(AttemptNumber, u32)>,
    config: &HedgeConfig,
) -> AttemptNumber {
    let said = head.extensions.get::<AttemptNumber>().copied();
    let number = match (hedge, said) {
        (Some((first, hedges)), _) => AttemptNumber(first.0.saturating_add(hedges)),
        // A retry further out has said it.
        (None, Some(said)) => return said,
        (None, None) => AttemptNumber(1),
    };
    if config.announce {
        number.inject(&mut head.headers, false);
    }
    number.announce(&mut head.extensions);
    number
}
