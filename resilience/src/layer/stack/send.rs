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

use super::{attempt::Time, plan::Plan};
use crate::{
    fault::Fault,
    layer::{
        EitherBody, Error, FixedBody, Injected, ReplayBody, Transport, fault::aborted,
        slot::earlier,
    },
    outcome::{Policy, Reason, Rejected},
};

/// A try's result.
pub(super) type Sent<RB, E> = Result<Response<EitherBody<RB, FixedBody>>, Error<E>>;

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
    time: Time,
) -> Sent<T::Body, T::Error>
where
    B: Body<Data = Bytes> + Unpin + Send,
    T: Transport<K, B>,
{
    let until = plan.until(time);
    let mut over = pin!(None);
    let mut sent = pin!(suffer(fault, transport, key, request));
    let result = poll_fn(|cx| poll_until(sent.as_mut(), over.as_mut(), until, cx)).await;
    result.map_err(Error::flat)
}

/// A try that something may happen to on purpose. Innermost, so that every policy sees it.
async fn suffer<K, B, T: Transport<K, B>>(
    fault: Option<Fault>,
    transport: &T,
    key: &K,
    request: Request<ReplayBody<B>>,
) -> Result<Response<EitherBody<T::Body, FixedBody>>, Error<T::Error>> {
    let own = async |request| {
        let answer = transport.send(key, request).await;
        let answer = answer.map_err(Error::Service)?;
        Ok(answer.map(EitherBody::own))
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
