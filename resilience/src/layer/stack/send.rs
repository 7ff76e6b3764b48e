//! One try on its way: sent to its endpoint, cut off in time, or made to suffer on purpose.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
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

/// Sends the request, unless a fault is injected; resolves with the head of the answer, or with
/// the failure of a try whose time was up.
pub(super) fn send<'a, K, B, T>(
    plan: &Plan,
    transport: &'a T,
    key: &'a K,
    request: Request<ReplayBody<B>>,
    time: Time,
) -> impl Future<Output = Sent<T::Body, T::Error>> + use<'a, K, B, T>
where
    B: Body<Data = Bytes> + Unpin + Send,
    T: Transport<K, B>,
{
    let per_try = plan.policy.timeouts.backend_request;
    let per_try = per_try.and_then(|limit| time.now.checked_add(limit.0));
    let until = earlier(per_try, time.deadline);
    let faults = plan.faults.as_ref();
    let fault = faults.and_then(|faults| faults.decide(request.headers()));
    Sending {
        until,
        over: None,
        way: match fault {
            // Boxed, because it is rare, and would make every call's future larger.
            Some(fault) => Way::Suffers {
                sent: Box::pin(suffer(fault, transport, key, request)),
            },
            None => Way::Plain {
                sent: transport.send(key, request),
            },
        },
    }
}

pin_project! {
    /// A future of its own and not an `async fn`: that would hold its arguments twice, once as they
    /// came and once where they are awaited, and the transport's future is the largest there is.
    struct Sending<F, S> {
        until: Option<Instant>,
        // Only for an answer that keeps us waiting: a timer costs as much as a policy.
        #[pin]
        over: Option<Sleep>,
        #[pin]
        way: Way<F, S>,
    }
}

pin_project! {
    #[project = WayProj]
    enum Way<F, S> {
        Plain { #[pin] sent: F },
        Suffers { sent: Pin<Box<S>> },
    }
}

impl<F, S, RB, E> Future for Sending<F, S>
where
    F: Future<Output = Result<Response<RB>, E>>,
    S: Future<Output = Sent<RB, E>>,
{
    type Output = Sent<RB, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let sent = match this.way.project() {
            WayProj::Plain { sent } => sent.poll(cx).map(|result| match result {
                Ok(answer) => Ok(answer.map(EitherBody::own)),
                Err(error) => Err(Error::Service(error)),
            }),
            WayProj::Suffers { sent } => sent.as_mut().poll(cx),
        };
        if sent.is_ready() {
            return sent;
        }
        if let Some(until) = this.until.take() {
            this.over.set(Some(tokio::time::sleep_until(until)));
        }
        if let Some(over) = this.over.as_pin_mut()
            && over.poll(cx).is_ready()
        {
            let elapsed = Rejected::new(Policy::Deadline, Reason::Elapsed);
            return Poll::Ready(Err(elapsed.into()));
        }
        Poll::Pending
    }
}

/// A try that something happens to on purpose. Innermost, so that every policy sees it.
async fn suffer<K, B, T: Transport<K, B>>(
    fault: Fault,
    transport: &T,
    key: &K,
    request: Request<ReplayBody<B>>,
) -> Result<Response<EitherBody<T::Body, FixedBody>>, Error<T::Error>> {
    if let Some(delay) = fault.delay {
        tokio::time::sleep(delay).await;
    }
    let injected = Injected {
        delay: fault.delay.is_some(),
        abort: fault.abort.is_some(),
    };
    let mut answer = match fault.abort {
        Some(abort) => aborted(abort)?.map(EitherBody::other),
        None => transport
            .send(key, request)
            .await
            .map_err(Error::Service)?
            .map(EitherBody::own),
    };
    answer.extensions_mut().insert(injected);
    Ok(answer)
}
