//! One call: as many tries as its policy, its budget and its time allow.

use std::{future::poll_fn, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::time::Instant;

use super::{
    Answer, Attempt, Hook, RequestTimeout, Stack,
    attempt::{Time, copy, judge},
    held::Entry,
    look::Look,
    plan::Plan,
    race::Start,
    retries::Retries,
    send::{Sent, Told, poll_until, send},
};
use crate::{
    TrafficPolicy,
    balance::Key,
    classify::outcome_of_head,
    context::{Deadline, deadline},
    fallback::{Cause, FallbackConfig},
    fault::Fault,
    hedge::Race,
    layer::{
        BoxError, EitherBody, Error, Fixed, FixedBody, GuardedBody, Patience, ReplayBody,
        Transport,
        commands::{Command, Event},
        fallback::mark,
        replay::Replay,
    },
    outcome::{Policy, Reason, Rejected},
    retry::Judgement,
};

impl<K: Key> Stack<K> {
    /// Makes one call.
    ///
    /// Resolves with the head of the answer: the callee's own, also where it is an error that no
    /// retry could better. The call's permits live in the answer's body.
    ///
    /// Cancel-safe: dropping the future cancels the try under way and gives everything back.
    ///
    /// # Errors
    /// [`Error::Rejected`] if a policy refused the call or its time was up; [`Error::Service`] with
    /// the last try's error otherwise.
    pub fn call<B, T, H>(
        &self,
        transport: &T,
        request: Request<B>,
        mut hook: H,
    ) -> impl Future<Output = Result<Answer<K, T::Body>, Error<T::Error>>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        // Taken apart before the future begins, and kept where it is from there on: an async fn
        // would move it into place first, and moving it costs as much as a policy.
        let (head, body) = request.into_parts();
        let mut head = Head(Some(head));
        async move {
            let plan = self.0.plan.lend();
            let (command, now) = (self.0.commands.begin(), Instant::now());
            let mut took = Took::default();
            let result = match total_deadline(&plan.policy, head.get(), now) {
                Ok(deadline) => {
                    let time = Time { now, deadline };
                    if let Some(asked) = plan.asked(head.get(), &body) {
                        // Boxed, so that who does not coalesce does not pay for it.
                        let (request, look) = ((&mut head, body), (&mut hook, &mut took));
                        let all = self.coalesced(&plan, asked, transport, request, time, look);
                        Box::pin(all).await
                    } else {
                        let request = (&mut head, body);
                        let mut way = UnderWay::begin(&plan, request, time, &mut took);
                        self.tried(&plan, transport, &mut way, &mut hook).await
                    }
                }
                Err(rejected) => Err(rejected.into()),
            };
            if let Some(command) = &command {
                let judge = |answer: &Answer<K, T::Body>| {
                    outcome_of_head(answer.status(), answer.headers())
                };
                command.ended(Event::of(&result, judge), took.time());
            }
            if let (Some(config), Some(instead)) = (&plan.policy.fallback, &plan.instead) {
                return degrade(result, config, instead, &mut hook, command.as_ref());
            }
            result
        }
    }

    /// The call without its fallback.
    pub(super) async fn tried<B, T, H>(
        &self,
        plan: &Plan,
        transport: &T,
        way: &mut UnderWay<'_, K, B>,
        hook: &mut H,
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        loop {
            let race = way.retries.race(way.time);
            let head = way.head.get();
            let (time, held) = (&mut way.time, way.entry.begin());
            let admitted = self.admit(plan, (head, &way.failed), time, Patience::Queue, held);
            if let Err(rejected) = admitted.await {
                way.entry.refused();
                // Nothing was sent: it costs nothing, and asking again at once is no use.
                way.retries.forgive();
                return Err(rejected.into());
            }
            let fault = plan.fault(&way.head.get().headers);
            let wait = if race.is_some() || fault.is_some() {
                // Boxed, because it is rare, and would make every call's future larger.
                let slow = self.slowly(plan, transport, way, (race, fault), &mut *hook);
                let (result, judgement) = Box::pin(slow).await;
                match way.next(&judgement, self) {
                    Some(wait) => wait,
                    None => return way.finish(result, judgement, |body| body),
                }
            } else {
                let until = plan.until(way.time);
                // Made and awaited where it stands: it is the largest future that there is.
                let result = {
                    let request = way.depart(false, hook);
                    let mut sent = pin!(transport.send(way.entry.key(), request));
                    let mut over = pin!(None);
                    poll_fn(|cx| poll_until(sent.as_mut(), over.as_mut(), until, cx)).await
                };
                let judgement = judge(&result, way.retries.config);
                if let Some(limit) = way.holds(plan, &result) {
                    // Boxed, because only gRPC's answers that say nothing yet are held.
                    let held = (way.look(plan), limit, way.time.deadline);
                    let (result, verdict) = Box::pin(hold(result, held)).await;
                    let judgement = verdict.unwrap_or(judgement);
                    way.tried(judgement, hook);
                    match way.next(&judgement, self) {
                        Some(wait) => wait,
                        None => return way.finish(result, judgement, |body| body),
                    }
                } else {
                    way.tried(judgement, hook);
                    match way.next(&judgement, self) {
                        Some(wait) => wait,
                        None => return way.finish(result, judgement, EitherBody::own),
                    }
                }
            };
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                way.time.now = Instant::now();
            }
        }
    }

    /// A try that hedges may follow, or that something happens to on purpose.
    async fn slowly<B, T, H>(
        &self,
        plan: &Plan,
        transport: &T,
        way: &mut UnderWay<'_, K, B>,
        (race, fault): (Option<Race>, Option<Fault>),
        hook: &mut H,
    ) -> (Sent<T::Body, T::Error>, Judgement)
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let request = way.depart(race.is_some(), hook);
        let (Some(race), Some(logical)) = (race, &way.retries.logical) else {
            let how = (way.time, way.look(plan));
            let sent = send(plan, fault, transport, way.entry.key(), request, how);
            let (result, verdict) = sent.await;
            let judgement = verdict.unwrap_or_else(|| judge(&result, way.retries.config));
            way.tried(judgement, hook);
            return (result, judgement);
        };
        let start = Start {
            look: way.look(plan),
            plan,
            transport,
            retry: way.retries.config,
            head: way.head.get_mut(),
            body: &mut way.body,
            failed: &way.failed,
            logical,
            race,
            number: way.retries.number(),
            time: way.time,
        };
        let entry = std::mem::replace(&mut way.entry, Entry::new());
        let round = self.race(start, (entry, fault), request, hook).await;
        way.entry = round.entry;
        way.retries.hedged(round.tries, round.extra);
        way.clock();
        (round.result, round.judgement)
    }
}

/// Holds an answer for its trailers. The verdict, if it has come.
async fn hold<RB, E>(
    result: Result<Response<RB>, Error<E>>,
    (look, limit, until): (Look<'_>, Duration, Option<Instant>),
) -> Told<RB, E>
where
    RB: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    match result {
        Ok(answer) => {
            let (answer, verdict) = look.hold(answer, limit, until).await;
            (Ok(answer), verdict)
        }
        Err(error) => (Err(error), None),
    }
}

/// The head of a call's request. It is large, and stays where it is until its last try takes it.
pub(super) struct Head(Option<Parts>);

impl Head {
    const GONE: &str = "nothing comes after the last try";

    pub(super) fn get(&self) -> &Parts {
        self.0.as_ref().expect(Self::GONE)
    }

    fn get_mut(&mut self) -> &mut Parts {
        self.0.as_mut().expect(Self::GONE)
    }

    fn take(&mut self) -> Parts {
        self.0.take().expect(Self::GONE)
    }
}

/// A call between its tries.
///
/// Apart from the future that makes them, which is as large as all that it holds across an await
/// and is moved about with it.
pub(super) struct UnderWay<'a, K: Key, B> {
    head: &'a mut Head,
    body: Replay<B>,
    retries: Retries<'a>,
    /// The try under way.
    entry: Entry<K>,
    /// Where it failed, for the next try to go elsewhere.
    failed: Vec<K>,
    time: Time,
    took: &'a mut Took,
}

/// When the last try began and ended. Most calls are not asked how long that was.
#[derive(Default)]
pub(super) struct Took(Option<(Instant, Instant)>);

impl Took {
    pub(super) fn new(began: Instant, ended: Instant) -> Self {
        Self(Some((began, ended)))
    }

    fn time(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |(began, ended)| {
            ended.saturating_duration_since(began)
        })
    }
}

impl<'a, K: Key, B: Body<Data = Bytes> + Unpin> UnderWay<'a, K, B> {
    pub(super) fn begin(
        plan: &'a Plan,
        (head, body): (&'a mut Head, B),
        time: Time,
        took: &'a mut Took,
    ) -> Self {
        let retries = Retries::new(plan, head.get(), time.now);
        Self {
            body: Replay::new(body, retries.replay()),
            head,
            retries,
            entry: Entry::new(),
            failed: Vec::new(),
            time,
            took,
        }
    }

    /// The request of a try that every policy has let through. `race`: hedges may follow it.
    fn depart<H: Hook<K>>(&mut self, race: bool, hook: &mut H) -> Request<ReplayBody<B>> {
        let body = self.body.view().expect("checked before each retry");
        let mut head = if race || !self.retries.is_last() {
            copy(self.head.get_mut())
        } else {
            self.head.take()
        };
        let began = self.time.now;
        self.retries.announce(&mut head);
        hook.started(self.attempt(began), &mut head);
        if let Some(deadline) = self.time.deadline {
            let left = deadline.saturating_duration_since(began);
            deadline::inject(&mut head.headers, left);
        }
        Request::from_parts(head, body)
    }

    /// Whether an answer is held for its trailers. Not while the request is still sent: its caller may
    /// wait for the head before it sends more.
    fn look(&self, plan: &'a Plan) -> Look<'a> {
        let again = !self.retries.is_last() && self.body.is_complete();
        Look::of(plan, again)
    }

    /// How long the answer of the try under way is held for its trailers.
    fn holds<RB: Body, E>(
        &self,
        plan: &'a Plan,
        result: &Result<Response<RB>, Error<E>>,
    ) -> Option<Duration> {
        let answer = result.as_ref().ok()?;
        self.retries.config?;
        self.look(plan).holds(answer)
    }

    /// The try that is about to begin, or under way.
    fn attempt(&self, began: Instant) -> Attempt<'_, K> {
        Attempt {
            number: self.retries.number(),
            key: self.entry.key(),
            began,
        }
    }

    /// Looks at the clock: the try under way has ended.
    fn clock(&mut self) -> Instant {
        let began = std::mem::replace(&mut self.time.now, Instant::now());
        *self.took = Took::new(began, self.time.now);
        began
    }

    /// The try under way has come to `judgement`.
    fn tried<H: Hook<K>>(&mut self, judgement: Judgement, hook: &mut H) {
        let began = self.clock();
        hook.ended(self.attempt(began), judgement.outcome, self.time.now);
    }

    /// How long to wait before the next try, which is paid for; `None`: there is none.
    fn next(&mut self, judgement: &Judgement, stack: &Stack<K>) -> Option<Duration> {
        if !judgement.worth_a_retry {
            return None;
        }
        let (body, failed) = (&self.body, &self.failed);
        // Two endpoints: the next try goes to another one.
        let elsewhere = || stack.0.balancer.len() > failed.len() + 1;
        let replayable = || body.can_replay();
        let rng = &stack.0.rng;
        let wait = self
            .retries
            .next(judgement, replayable, elsewhere, self.time, rng)?;
        self.failed.push(self.entry.key().clone());
        self.entry.end(*judgement, self.time.now);
        Some(wait)
    }

    /// Hands the permits to the answer's body, or ends the call with its error.
    fn finish<A, RB, E>(
        &mut self,
        result: Result<Response<A>, Error<E>>,
        judgement: Judgement,
        body: impl FnOnce(A) -> EitherBody<RB, FixedBody>,
    ) -> Result<Answer<K, RB>, Error<E>>
    where
        A: Body,
        RB: Body<Data = Bytes>,
        RB::Error: Into<BoxError>,
    {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                self.entry.end(judgement, self.time.now);
                return Err(error);
            }
        };
        let outcome = judgement.outcome;
        let is_empty = response.body().is_end_stream();
        // What a callee asks for is in its head, and should be heard before its body ends.
        let asks = outcome.is_failure() && judgement.after.is_some();
        if asks || is_empty {
            self.entry.end(judgement, self.time.now);
        }
        let mut paid = self.retries.take_paid();
        if is_empty {
            // Nothing is left to hold, and to hand it on is not free.
            paid.end(outcome);
            return Ok(response.map(|own| GuardedBody::free(body(own))));
        }
        let (guard, deadline) = (self.entry.hand_on(paid), self.time.deadline);
        Ok(response.map(|own| GuardedBody::new(body(own), guard, outcome, deadline)))
    }
}

/// The fallback's answer, where there would be none.
fn degrade<K, RB, E, H: Hook<K>>(
    result: Result<Answer<K, RB>, Error<E>>,
    config: &FallbackConfig,
    instead: &Fixed,
    hook: &mut H,
    command: Option<&Command<'_>>,
) -> Result<Answer<K, RB>, Error<E>> {
    let cause = match &result {
        Ok(answer) => Cause::Status(answer.status()),
        Err(Error::Rejected(rejected)) if rejected.policy == Policy::Coalesce => Cause::Failed,
        Err(Error::Rejected(rejected)) => Cause::Rejected(*rejected),
        Err(Error::Service(_)) => Cause::Failed,
    };
    if !config.applies(cause) {
        return result;
    }
    hook.degraded(cause);
    if let Some(command) = command {
        command.fell_back();
    }
    let mut answer = instead.response();
    mark(&mut answer, cause);
    Ok(answer.map(|body| GuardedBody::free(EitherBody::other(body))))
}

/// When the call must be over: the request's or the policy's word, or the caller's deadline,
/// whichever is earlier.
fn total_deadline(
    policy: &TrafficPolicy,
    head: &Parts,
    now: Instant,
) -> Result<Option<Instant>, Rejected> {
    let total = match head.extensions.get::<RequestTimeout>() {
        Some(own) => (!own.0.is_zero()).then_some(own.0),
        None => policy.timeouts.total(),
    };
    let caller = match head.extensions.get::<Deadline>() {
        // Read on arrival; what the service itself took is off already.
        Some(deadline) => Some(deadline.left(now.into_std())),
        None => deadline::extract(&head.headers),
    };
    let left = match (total, caller) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
    match left {
        Some(left) if left.is_zero() => Err(Rejected::new(Policy::Deadline, Reason::Expired)),
        // Further than the clock goes is for ever.
        Some(left) => Ok(now.checked_add(left)),
        None => Ok(None),
    }
}
