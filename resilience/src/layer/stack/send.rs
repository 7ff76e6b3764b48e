//! One try on its way: sent to its endpoint, cut off in time, or made to suffer on purpose.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::time::{Instant, Sleep};

use super::{attempt::Time, look::Look, plan::Plan};
use crate::{
    fault::Fault,
    layer::{
        EitherBody, Error, FixedBody, Injected, ReplayBody, Transport, fault::aborted,
        slot::earlier,
    },
    outcome::{Policy, Reason, Rejected},
    retry::Judgement,
};

/// A try's result.
pub(super) type Sent<RB, E> = Result<Response<EitherBody<RB, FixedBody>>, Error<E>>;
/// The same, with the verdict of its trailers if the answer was held for them.
pub(super) type Told<RB, E> = (Sent<RB, E>, Option<Judgement>);

impl Plan {
    /// What is to happen to this request on purpose.
    pub(super) fn fault(&self, headers: &HeaderMap) -> Option<Fault> {
        self.faults.as_ref()?.decide(headers)
    }

    /// When a try that begins at `now` must have the head of its answer.
    pub(super) fn until(&self, time: Time) -> Option<Instant> {
        let per_try = self.policy.timeouts.backend_request;
        let per_try = per_try.and_then(|limit| time.now.checked_add(limit.0));
        earlier(per_try, time.deadline)
    }
}

/// Polls a try that is over at `until`; `over` is its timer, set once the answer keeps us waiting:
/// a timer costs as much as a policy.
pub(super) fn poll_until<F, RB, E>(
    sent: Pin<&mut F>,
    mut over: Pin<&mut Option<Sleep>>,
    until: Option<Instant>,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RB>, Error<E>>>
where
    F: Future<Output = Result<Response<RB>, E>>,
{
    if let Poll::Ready(result) = sent.poll(cx) {
        return Poll::Ready(result.map_err(Error::Service));
    }
    let Some(until) = until else {
        return Poll::Pending;
    };
    if over.is_none() {
        over.set(Some(tokio::time::sleep_until(until)));
    }
    if let Some(over) = over.as_pin_mut()
        && over.poll(cx).is_ready()
    {
        let elapsed = Rejected::new(Policy::Deadline, Reason::Elapsed);
        return Poll::Ready(Err(elapsed.into()));
    }
    Poll::Pending
}

/// Sends a try that may be one of several, or that something happens to on purpose.
pub(super) async fn send<K, B, T>(
    plan: &Plan,
    fault: Option<Fault>,
    transport: &T,
    key: &K,
    request: Request<ReplayBody<B>>,
    (time, look): (Time, Look<'_>),
) -> Told<T::Body, T::Error>
where
    B: Body<Data = Bytes> + Unpin + Send,
    T: Transport<K, B>,
{
    let until = plan.until(time);
    let mut over = pin!(None);
    let mut verdict = None;
    let result = {
        let look = (look, until, &mut verdict);
        let mut sent = pin!(suffer(fault, transport, key, request, look));
        poll_fn(|cx| poll_until(sent.as_mut(), over.as_mut(), until, cx)).await
    };
    (result.map_err(Error::flat), verdict)
}

/// A try that something may happen to on purpose. Innermost, so that every policy sees it.
async fn suffer<K, B, T: Transport<K, B>>(
    fault: Option<Fault>,
    transport: &T,
    key: &K,
    request: Request<ReplayBody<B>>,
    (look, until, verdict): (Look<'_>, Option<Instant>, &mut Option<Judgement>),
) -> Result<Response<EitherBody<T::Body, FixedBody>>, Error<T::Error>> {
    let mut own = async |request| {
        let answer = transport.send(key, request).await;
        let answer = answer.map_err(Error::Service)?;
        let Some(limit) = look.holds(&answer) else {
            return Ok(answer.map(EitherBody::own));
        };
        // Not beyond the try's own time: it is over when its head is there, and that is.
        let (answer, said) = look.hold(answer, limit, until).await;
        *verdict = said;
        Ok(answer)
    };
    let Some(fault) = fault else {
        return own(request).await;
    };
    if let Some(delay) = fault.delay {
        tokio::time::sleep(delay).await;
    }
    let mut answer = match fault.abort {
        Some(abort) => aborted(abort)?.map(EitherBody::other),
        None => own(request).await?,
    };
    answer.extensions_mut().insert(Injected {
        delay: fault.delay.is_some(),
        abort: fault.abort.is_some(),
    });
    Ok(answer)
}
