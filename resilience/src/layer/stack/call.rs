//! One call: as many tries as its policy, its budget and its time allow.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::time::Instant;

use super::{
    Answer, Attempt, Hook, RequestTimeout, Stack,
    attempt::{Time, judge},
    held::{Admitted, Paid},
    plan::Plan,
    race::Start,
};
use crate::{
    TrafficPolicy,
    balance::Key,
    context::{Deadline, deadline},
    fallback::{Cause, FallbackConfig},
    hedge::{Hedge, Race},
    layer::{
        BoxError, EitherBody, Error, Fixed, FixedBody, GuardedBody, Patience, Transport,
        fallback::mark, replay::Replay,
    },
    outcome::{Policy, Reason, Rejected},
    retry::{
        Judgement, RetryConfig, Safety, Tries,
        budget::{Extra, Logical},
    },
    rng::Rng,
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
    pub async fn call<B, T, H>(
        &self,
        transport: &T,
        request: Request<B>,
        mut hook: H,
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let plan = self.0.plan.load_full();
        let result = self.tried(&plan, transport, request, &mut hook).await;
        match (&plan.policy.fallback, &plan.instead) {
            (Some(config), Some(instead)) => degrade(result, config, instead, &mut hook),
            _ => result,
        }
    }

    /// The call without its fallback.
    async fn tried<B, T, H>(
        &self,
        plan: &Plan,
        transport: &T,
        request: Request<B>,
        hook: &mut H,
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let start = Instant::now();
        let deadline = total_deadline(&plan.policy, &request, start)?;
        let mut time = Time {
            now: start,
            deadline,
        };
        let (head, body) = request.into_parts();
        let mut retries = Retries::new(plan, &head, start);
        let mut body = Replay::new(body, retries.replay());
        let mut head = Some(head);
        let mut failed: Vec<K> = Vec::new();
        loop {
            let race = retries.race(time);
            let mut parts = match &head {
                Some(kept) if race.is_some() || !retries.is_last() => copy(kept),
                _ => head.take().expect("only the last try takes the head"),
            };
            let view = body.view().expect("checked before each retry");
            let admitted = self.admit(plan, &parts, &failed, &mut time, Patience::Queue);
            let mut call = match admitted.await {
                Ok(call) => call,
                Err(rejected) => {
                    // Nothing was sent: it costs nothing, and asking again at once is no use.
                    retries.forgive();
                    return Err(rejected.into());
                }
            };
            let (number, began) = (retries.number(), time.now);
            let attempt = |key| Attempt { number, key, began };
            hook.started(attempt(call.key()), &mut parts);
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(began);
                deadline::inject(&mut parts.headers, left);
            }
            let request = Request::from_parts(parts, view);
            let (result, judgement);
            if let (Some(race), Some(logical)) = (race, &retries.logical) {
                let start = Start {
                    plan,
                    transport,
                    retry: retries.config,
                    head: head.as_ref().expect("kept for hedges"),
                    body: &mut body,
                    failed: &failed,
                    logical,
                    race,
                    number,
                    time,
                };
                // Boxed, so that who does not hedge does not pay for it.
                let round = Box::pin(self.race(start, call, request, hook)).await;
                (call, result, judgement) = (round.call, round.result, round.judgement);
                retries.hedged(round.tries, round.extra);
                time.now = Instant::now();
            } else {
                result = self.send(plan, transport, call.key(), request, time).await;
                judgement = judge(&result, retries.config);
                time.now = Instant::now();
                hook.ended(attempt(call.key()), judgement.outcome, time.now);
            }
            // Two endpoints: the next try goes to another one.
            let elsewhere = || self.0.balancer.len() > failed.len() + 1;
            let wait = retries.next(
                &judgement,
                || body.can_replay(),
                elsewhere,
                time,
                &self.0.rng,
            );
            let Some(wait) = wait else {
                return finish(call, result, judgement, deadline, retries.into_paid());
            };
            failed.push(call.key().clone());
            call.end(judgement);
            drop(result);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                time.now = Instant::now();
            }
        }
    }
}

/// The fallback's answer, where there would be none.
fn degrade<K, RB, E, H: Hook<K>>(
    result: Result<Answer<K, RB>, Error<E>>,
    config: &FallbackConfig,
    instead: &Fixed,
    hook: &mut H,
) -> Result<Answer<K, RB>, Error<E>> {
    let cause = match &result {
        Ok(answer) => Cause::Status(answer.status()),
        Err(Error::Rejected(rejected)) => Cause::Rejected(*rejected),
        Err(Error::Service(_)) => Cause::Failed,
    };
    if !config.applies(cause) {
        return result;
    }
    hook.degraded(cause);
    let mut answer = instead.response();
    mark(&mut answer, cause);
    Ok(answer.map(|body| GuardedBody::free(EitherBody::other(body))))
}

/// Hands the permits to the answer's body, or ends the call with its error.
fn finish<K: Key, RB, E>(
    mut call: Admitted<K>,
    result: Result<Response<EitherBody<RB, FixedBody>>, Error<E>>,
    judgement: Judgement,
    deadline: Option<Instant>,
    paid: Paid,
) -> Result<Answer<K, RB>, Error<E>>
where
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    match result {
        Ok(response) => {
            // What a callee asks for is in its head, and should be heard before its body ends.
            if judgement.outcome.is_failure() && judgement.after.is_some() {
                call.end(judgement);
            }
            let guard = call.into_guard(paid);
            let outcome = judgement.outcome;
            Ok(response.map(|body| GuardedBody::new(body, guard, outcome, deadline)))
        }
        Err(error) => {
            call.end(judgement);
            Err(error)
        }
    }
}

/// The retries of one call: what they may be, and what they hold of the budget.
struct Retries<'a> {
    config: Option<&'a RetryConfig>,
    hedge: Option<&'a Hedge>,
    hedge_safety: Safety,
    tries: Option<Tries>,
    logical: Option<Logical>,
    extra: Option<Extra>,
    /// Hedges sent so far, over all rounds.
    hedges: u32,
    replay: usize,
}

impl<'a> Retries<'a> {
    fn new(plan: &'a Plan, head: &Parts, now: Instant) -> Self {
        let policy = &plan.policy;
        let config = policy.retry.as_ref().filter(|retry| retry.attempts > 0);
        let hedge = plan.hedge.as_ref().zip(policy.hedge.as_ref());
        let hedge_safety = hedge.map_or(Safety::Never, |(_, hedge)| {
            hedge.safety(&head.method, &head.headers, &head.extensions)
        });
        let budget = plan.budget.as_ref();
        let budget = budget.filter(|_| config.is_some() || hedge.is_some());
        let kept = config.map_or(0, |retry| retry.replay.as_usize());
        let kept_for_hedge = hedge
            .filter(|_| hedge_safety == Safety::Always)
            .map_or(0, |(_, hedge)| hedge.replay.as_usize());
        Self {
            config,
            hedge: hedge.map(|(core, _)| core),
            hedge_safety,
            tries: config.map(|retry| {
                let safety = retry.safety(&head.method, &head.headers, &head.extensions);
                Tries::new(retry, safety)
            }),
            logical: budget.map(|budget| budget.begin(now.into_std())),
            extra: None,
            hedges: 0,
            replay: kept.max(kept_for_hedge),
        }
    }

    /// Bytes of the request's body to keep.
    fn replay(&self) -> usize {
        self.replay
    }

    /// The number of the next try.
    fn number(&self) -> u32 {
        self.hedges + self.tries.as_ref().map_or(1, Tries::made)
    }

    /// The race of the round that begins, if there are hedges for this call.
    fn race(&self, time: Time) -> Option<Race> {
        let hedge = self.hedge.filter(|_| self.hedge_safety == Safety::Always)?;
        let deadline = time.deadline.map(Instant::into_std);
        Some(hedge.begin(self.hedge_safety, time.now.into_std(), deadline))
    }

    /// A round has ended with the try that paid `extra`, if it was a hedge.
    fn hedged(&mut self, tries: u32, extra: Option<Extra>) {
        self.hedges += tries - 1;
        if extra.is_some() {
            self.extra = extra;
        }
    }

    /// Whether the try under way cannot be followed by another one.
    fn is_last(&self) -> bool {
        match (&self.tries, self.config) {
            (Some(tries), Some(config)) => !tries.may_continue(config),
            _ => true,
        }
    }

    /// How long to wait before the next try, which is paid for; `None`: there is none.
    fn next(
        &mut self,
        judgement: &Judgement,
        replayable: impl FnOnce() -> bool,
        elsewhere: impl FnOnce() -> bool,
        time: Time,
        rng: &Rng,
    ) -> Option<Duration> {
        let (config, tries) = (self.config?, self.tries.as_mut()?);
        if !judgement.worth_a_retry {
            return None;
        }
        let now = time.now.into_std();
        let deadline = time.deadline.map(Instant::into_std);
        let next = tries.next(
            config,
            judgement,
            replayable(),
            elsewhere(),
            (now, deadline),
            rng,
        );
        let wait = next.ok()?;
        // The last retry is over; its place is this one's.
        self.extra = None;
        self.extra = Some(self.logical.as_ref()?.try_extra(now).ok()?);
        tries.count();
        Some(wait)
    }

    /// The try that was paid for was not made.
    fn forgive(self) {
        if let Some(extra) = self.extra {
            extra.forgive();
        }
    }

    fn into_paid(self) -> Paid {
        (self.logical, self.extra)
    }
}

/// When the call must be over: the request's or the policy's word, or the caller's deadline,
/// whichever is earlier.
fn total_deadline<B>(
    policy: &TrafficPolicy,
    request: &Request<B>,
    now: Instant,
) -> Result<Option<Instant>, Rejected> {
    let total = match request.extensions().get::<RequestTimeout>() {
        Some(own) => (!own.0.is_zero()).then_some(own.0),
        None => policy.timeouts.total(),
    };
    let own = request.extensions().get::<Deadline>();
    let caller = match own {
        // Read on arrival; what the service itself took is off already.
        Some(deadline) => Some(deadline.left(now.into_std())),
        None => deadline::extract(request.headers()),
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

/// The head for a try that may not be the last. Extensions stay behind: a connection's upgrade can
/// be handed on only once, with the try that keeps the head itself.
pub(super) fn copy(head: &Parts) -> Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    if let Some(hash) = head.extensions.get::<super::HashKey>() {
        copy.extensions.insert(*hash);
    }
    copy
}
