//! A call that others may be making already.

use std::future::poll_fn;

use bytes::Bytes;
use http::request::Parts;
use http_body::Body;
use tokio::time::Instant;

use super::{
    Answer, Hook, Stack,
    attempt::Time,
    call::{Head, Took, UnderWay},
    plan::Plan,
};
use crate::{
    balance::Key,
    coalesce::{self, Joined, Lead, Turn},
    layer::{
        EitherBody, Error, GuardedBody, Transport, TransportError,
        coalesce::{Answered, Coalesce, Gather, Settled, failed, settle},
    },
    outcome::{Policy, Reason, Rejected},
};

impl Plan {
    /// What this request shares a call under, if it may.
    pub(super) fn asked<B: Body>(
        &self,
        head: &Parts,
        body: &B,
    ) -> Option<(&Coalesce, coalesce::Key)> {
        let coalesce = self.coalesce.as_ref()?;
        Some((coalesce, coalesce.key_of(head, body)?))
    }
}

impl<K: Key> Stack<K> {
    /// Waits for the answer of the call that is made, or makes it. Cancel-safe: a lead that is
    /// dropped passes to who waits.
    pub(super) async fn coalesced<B, T, H>(
        &self,
        plan: &Plan,
        (coalesce, key): (&Coalesce, coalesce::Key),
        transport: &T,
        request: (&mut Head, B),
        mut time: Time,
        (hook, took): (&mut H, &mut Took),
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let lead = match coalesce.core.join(key) {
            Joined::Lead(lead) => Some(lead),
            Joined::Alone => None,
            Joined::Follow(mut follow) => {
                let turn = poll_fn(|cx| follow.poll(cx.waker()));
                let turn = match time.deadline {
                    Some(deadline) => tokio::time::timeout_at(deadline, turn).await.ok(),
                    None => Some(turn.await),
                };
                let began = std::mem::replace(&mut time.now, Instant::now());
                *took = Took::new(began, time.now);
                match turn {
                    None => return Err(Rejected::new(Policy::Deadline, Reason::Elapsed).into()),
                    Some(Turn::Answer(Ok(shared))) => {
                        hook.coalesced();
                        let answer = shared.response();
                        return Ok(answer.map(|body| GuardedBody::free(EitherBody::other(body))));
                    }
                    Some(Turn::Answer(Err(rejected))) => return Err(rejected.into()),
                    Some(Turn::Broken) => return Err(failed().into()),
                    Some(Turn::Lead(lead)) => Some(lead),
                    Some(Turn::Alone) => None,
                }
            }
        };
        let mut way = UnderWay::begin(plan, request, time, took);
        let result = self.tried(plan, transport, &mut way, hook).await;
        match lead {
            Some(lead) => for_all(coalesce, lead, result).await,
            None => result,
        }
    }
}

/// Gives the leader's result to everybody whom it concerns.
async fn for_all<K: Key, RB, E>(
    coalesce: &Coalesce,
    lead: Lead<Answered>,
    result: Result<Answer<K, RB>, Error<E>>,
) -> Result<Answer<K, RB>, Error<E>>
where
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<crate::layer::BoxError>,
    E: TransportError,
{
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => {
            match &error {
                Error::Rejected(rejected) => coalesce.fail(lead, *rejected),
                // Its own body broke: nobody else's business.
                Error::Service(error) if error.is_callers_fault() => drop(lead),
                Error::Service(_) => coalesce.fail(lead, failed()),
            }
            return Err(error);
        }
    };
    let Some(lead) = coalesce.judge(lead, answer.status(), answer.headers()) else {
        return Ok(answer);
    };
    let (head, body) = answer.into_parts();
    let gathered = Gather::new(body, coalesce.limit, coalesce.gather).await;
    Ok(
        settle(coalesce, lead, head, gathered).map(|body| match body {
            Settled::Shared(body) => GuardedBody::free(EitherBody::other(body)),
            Settled::Own(front, body) => body.with_front(front),
        }),
    )
}
