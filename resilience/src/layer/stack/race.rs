//! A try with its hedges: the first good answer wins, the others are cancelled.
//!
//! A hedge is a try like any other: every policy is asked for it, its endpoint is another one if
//! there is one, and what it takes comes from the budget that retries use. But it never waits for a
//! slot, because the try that it is to overtake goes on meanwhile.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, request::Parts};
use http_body::Body;
use tokio::time::{Instant, Sleep};

use super::{
    Attempt, Hook, Stack,
    attempt::{Time, copy, judge},
    held::Entry,
    look::Look,
    plan::Plan,
    send::{Sent, Told, send},
};
use crate::{
    balance::Key,
    context::{AttemptNumber, deadline},
    fault::Fault,
    hedge::{Race, Unsent},
    layer::{Patience, ReplayBody, Transport, replay::Replay},
    retry::{
        Judgement, RetryConfig,
        budget::{Extra, Logical},
    },
};

/// The try of a round that counts: the one that won, or the last to fail.
pub(super) struct Round<K: Key, RB, E> {
    pub entry: Entry<K>,
    pub result: Sent<RB, E>,
    pub judgement: Judgement,
    /// What a hedge has paid.
    pub extra: Option<Extra>,
    /// Tries that were made in it.
    pub tries: u32,
}

/// What a round is made of.
pub(super) struct Start<'a, K: Key, B, T> {
    pub plan: &'a Plan,
    pub transport: &'a T,
    pub retry: Option<&'a RetryConfig>,
    pub head: &'a mut Parts,
    pub body: &'a mut Replay<B>,
    pub failed: &'a [K],
    pub logical: &'a Logical,
    pub race: Race,
    /// The number of the first try.
    pub number: u32,
    pub look: Look<'a>,
    pub time: Time,
}

/// A try under way.
struct Lane<K: Key, F> {
    entry: Entry<K>,
    number: u32,
    began: Instant,
    extra: Option<Extra>,
    sent: Pin<Box<F>>,
}

/// What comes next.
enum Event<R> {
    Ended(usize, R),
    HedgeDue,
}

/// Polls every lane, then the clock.
fn poll<K: Key, F: Future>(
    lanes: &mut [Lane<K, F>],
    due: Option<&mut Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<Event<F::Output>> {
    for (n, lane) in lanes.iter_mut().enumerate() {
        if let Poll::Ready(result) = lane.sent.as_mut().poll(cx) {
            return Poll::Ready(Event::Ended(n, result));
        }
    }
    match due {
        Some(due) => due.as_mut().poll(cx).map(|()| Event::HedgeDue),
        None => Poll::Pending,
    }
}

impl<K: Key> Stack<K> {
    /// Runs a round whose first try has been admitted.
    pub(super) async fn race<B, T, H>(
        &self,
        mut start: Start<'_, K, B, T>,
        (entry, fault): (Entry<K>, Option<Fault>),
        request: Request<ReplayBody<B>>,
        hook: &mut H,
    ) -> Round<K, T::Body, T::Error>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let (plan, transport) = (start.plan, start.transport);
        // Others are under way: a verdict that is still to come is worth waiting for.
        let racing = AtomicBool::new(false);
        let look = start.look.among(&racing);
        let send = |fault, key: K, request, time| {
            send_to(plan, fault, transport, key, request, (time, look))
        };
        let mut lanes = vec![Lane {
            sent: Box::pin(send(fault, entry.key().clone(), request, start.time)),
            entry,
            number: start.number,
            began: start.time.now,
            extra: None,
        }];
        let timer = |race: &Race| {
            let due = race.due().map(Instant::from_std);
            due.map(|due| Box::pin(tokio::time::sleep_until(due)))
        };
        let mut due = timer(&start.race);
        loop {
            let event = poll_fn(|cx| poll(&mut lanes, due.as_mut(), cx)).await;
            let now = Instant::now();
            match event {
                Event::HedgeDue => {
                    start.time.now = now;
                    let mut avoid = start.failed.to_vec();
                    avoid.extend(lanes.iter().map(|lane| lane.entry.key().clone()));
                    if let Some((entry, request, number, extra)) =
                        self.hedge(&mut start, &avoid, hook).await
                    {
                        let fault = plan.fault(request.headers());
                        let key = entry.key().clone();
                        lanes.push(Lane {
                            sent: Box::pin(send(fault, key, request, start.time)),
                            entry,
                            number,
                            began: now,
                            extra: Some(extra),
                        });
                    }
                    racing.store(lanes.len() > 1, Ordering::Relaxed);
                    due = timer(&start.race);
                }
                Event::Ended(n, (result, verdict)) => {
                    let mut lane = lanes.swap_remove(n);
                    racing.store(lanes.len() > 1, Ordering::Relaxed);
                    let judgement = verdict.unwrap_or_else(|| judge(&result, start.retry));
                    let (began, ended) = (lane.began.into_std(), now.into_std());
                    start.race.ended(judgement.outcome, began, ended);
                    let (number, began) = (lane.number, lane.began);
                    let key = lane.entry.key();
                    hook.ended(Attempt { number, key, began }, judgement.outcome, now);
                    if !judgement.is_good() && !lanes.is_empty() {
                        // Another one may still come out better.
                        lane.entry.end(judgement, now);
                        continue;
                    }
                    if judgement.is_good() && lane.extra.is_some() {
                        start.race.won();
                    }
                    for other in &lanes {
                        start.race.cancelled(other.began.into_std(), ended);
                    }
                    return Round {
                        entry: lane.entry,
                        result,
                        judgement,
                        extra: lane.extra,
                        tries: 1 + start.race.sent(),
                    };
                }
            }
        }
    }

    /// The hedge that is due, if every policy lets it pass at once.
    async fn hedge<B, T, H>(
        &self,
        start: &mut Start<'_, K, B, T>,
        avoid: &[K],
        hook: &mut H,
    ) -> Option<(Entry<K>, Request<ReplayBody<B>>, u32, Extra)>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        // Two that read one stream would wake each other up for nothing, or not at all.
        if !start.body.is_complete() {
            start.race.skip(Unsent::Body);
            return None;
        }
        let view = start.body.view()?;
        let now = start.time.now;
        let extra = start.race.send(start.logical, now.into_std()).ok()?;
        let mut entry = Entry::new();
        let (asks, time) = ((&*start.head, avoid), &mut start.time);
        let asked = self.admit(start.plan, asks, time, Patience::None, entry.begin());
        if asked.await.is_err() {
            extra.forgive();
            start.race.skip(Unsent::NotReady);
            return None;
        }
        let mut parts = copy(start.head);
        let number = start.number + start.race.sent();
        let said = AttemptNumber(number);
        let hedge = start.plan.policy.hedge.as_ref();
        if hedge.is_some_and(|hedge| hedge.announce) {
            said.inject(&mut parts.headers, false);
        }
        said.announce(&mut parts.extensions);
        let attempt = Attempt {
            number,
            key: entry.key(),
            began: now,
        };
        hook.started(attempt, &mut parts);
        if let Some(deadline) = start.time.deadline {
            let left = deadline.saturating_duration_since(now);
            deadline::inject(&mut parts.headers, left);
        }
        Some((entry, Request::from_parts(parts, view), number, extra))
    }
}

/// [`send`] with a key of its own, so that lanes can be of one type.
async fn send_to<K, B, T>(
    plan: &Plan,
    fault: Option<Fault>,
    transport: &T,
    key: K,
    request: Request<ReplayBody<B>>,
    time: (Time, Look<'_>),
) -> Told<T::Body, T::Error>
where
    B: Body<Data = Bytes> + Unpin + Send,
    T: Transport<K, B>,
{
    send(plan, fault, transport, &key, request, time).await
}
