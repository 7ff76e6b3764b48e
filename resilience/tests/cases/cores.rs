//! Calls driven through the cores by hand: plain instants, no runtime, no layer.
//!
//! This is what a host does that is no Tower service. Events happen in the order of their times;
//! at equal times in the order in which the calls began.

use std::{
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, Method, StatusCode};
use selvedge_resilience::{
    FailureClass, Outcome, Policy, Reason, Rejected, Rng, TrafficPolicy,
    adaptive::{self, AdaptiveLimit, Partition, PartitionBy},
    balance::{Balancer, Member, Pick, PickContext},
    breaker::{self, CircuitBreaker},
    bulkhead::{self, Bulkhead, Entry, Queued, Waiter},
    classify::{self, GrpcCode},
    coalesce::Follow,
    context::{Priority, deadline},
    rate_limit::RateLimit,
    retry::{
        Judgement, RetryConfig, RetryContext, Tries,
        budget::{Budget, Extra, Logical},
        cost::{Cost, CostBucket},
    },
    throttle::{self, Throttle},
};

use super::{
    calls::{Seen, check, judge, leaks, read_breaker, read_coalesce, refusal},
    coalesced::{Coalesce, Gathering, Led, Told},
    table::{Answer, Calls, Fault, Reading, Step, Want},
};

pub(super) fn run(case: &Calls) -> Vec<String> {
    check(case);
    let policy = &case.policy;
    assert!(
        policy.hedge.is_none() && policy.fault.is_none() && policy.fallback.is_none(),
        "{}: this driver makes no hedges, faults and fallbacks yet",
        case.name
    );
    let start = Instant::now();
    let mut world = World {
        cores: Cores::new(&case.policy, start),
        running: Vec::new(),
        now: start,
    };
    let mut found = Vec::new();
    for (n, step) in case.steps.iter().enumerate() {
        world.pass_until(start + step.at.0.0);
        if let Some(policy) = &step.policy {
            world.cores.change(policy, world.now);
        }
        if let Some(label) = &step.ends {
            world.end_body(label);
        }
        if let Some(label) = &step.drop {
            world.drop_call(label);
        }
        if step.call.is_some() {
            for _ in 0..step.times {
                world.begin(n, step);
                world.settle();
            }
        }
        if let Some(want) = &step.read {
            let seen = world.cores.read(world.now);
            let differ = want.differences(&seen);
            found.extend(differ.iter().map(|text| format!("step {n}, {text}")));
        }
    }
    let end = world.now + Duration::from_secs(7 * 86_400);
    world.pass_until(end);
    for call in &world.running {
        found.extend(judge(call.n, call.step, &call.seen));
    }
    found.extend(leaks(&world.cores.read(world.now)));
    found
}

// ---- the policies -----------------------------------------------------------------------------

pub(super) struct Cores {
    pub(super) policy: TrafficPolicy,
    pub(super) coalesce: Option<Rc<Coalesce>>,
    throttle: Option<Throttle>,
    breaker: Option<CircuitBreaker>,
    bulkhead: Option<Bulkhead>,
    concurrency: Option<AdaptiveLimit>,
    rate: Option<RateLimit>,
    budget: Option<Budget>,
    cost: Option<CostBucket>,
    balancer: Balancer<u32>,
    rng: Rng,
}

impl Cores {
    fn new(policy: &TrafficPolicy, now: Instant) -> Self {
        let (balance, outlier) = (policy.balance.clone(), policy.outlier.clone());
        let balancer = Balancer::new(balance, outlier, Rng::new(1)).expect("valid");
        balancer.set_members([Member::new(0)], now);
        let mut cores = Self {
            policy: TrafficPolicy::default(),
            coalesce: None,
            throttle: None,
            breaker: None,
            bulkhead: None,
            concurrency: None,
            rate: None,
            budget: None,
            cost: None,
            balancer,
            rng: Rng::new(1),
        };
        cores.change(policy, now);
        cores
    }

    /// What is written keeps its state, or begins; what is not, ends.
    fn change(&mut self, policy: &TrafficPolicy, now: Instant) {
        let config = policy.coalesce.as_ref();
        self.coalesce =
            config.map(|config| Rc::new(Coalesce::new(config, self.coalesce.as_deref())));
        keep(
            &mut self.throttle,
            policy.throttle.as_ref(),
            |c| Throttle::new(c.clone(), Rng::new(1)).expect("valid"),
            |core, c| core.reconfigure(c.clone()).expect("valid"),
        );
        keep(
            &mut self.breaker,
            policy.breaker.as_ref(),
            |c| CircuitBreaker::new(c.clone()).expect("valid"),
            |core, c| core.reconfigure(c.clone()).expect("valid"),
        );
        keep(
            &mut self.bulkhead,
            policy.bulkhead.as_ref(),
            |c| Bulkhead::with_config(c).expect("valid"),
            |core, c| core.reconfigure_with(c).expect("valid"),
        );
        keep(
            &mut self.concurrency,
            policy.concurrency.as_ref(),
            |c| AdaptiveLimit::new(c.clone(), Rng::new(1)).expect("valid"),
            |core, c| core.reconfigure(c.clone()).expect("valid"),
        );
        keep(
            &mut self.rate,
            policy.rate_limit.as_ref(),
            |rate| RateLimit::new(*rate),
            |core, rate| core.reconfigure(*rate, now),
        );
        keep(
            &mut self.budget,
            policy.retry.as_ref(),
            |c| c.new_budget().expect("valid"),
            |core, c| core.reconfigure(c.budget, c.in_flight).expect("valid"),
        );
        keep(
            &mut self.cost,
            policy.retry.as_ref().and_then(|retry| retry.cost.as_ref()),
            |c| CostBucket::new(*c).expect("valid"),
            |core, c| core.reconfigure(*c).expect("valid"),
        );
        let (balance, outlier) = (policy.balance.clone(), policy.outlier.clone());
        self.balancer
            .reconfigure(balance, outlier, now)
            .expect("valid");
        self.policy = policy.clone();
    }

    fn read(&self, now: Instant) -> Reading {
        let mut reading = Reading::default();
        if let Some(breaker) = &self.breaker {
            read_breaker(&mut reading, &breaker.snapshot(now));
        }
        if let Some(status) = self.bulkhead.as_ref().map(Bulkhead::status) {
            reading.in_flight = Some(status.in_flight);
            reading.waiting = Some(status.waiting);
        }
        if let Some(status) = self.concurrency.as_ref().map(AdaptiveLimit::status) {
            reading.limit = Some(status.limit);
            reading.adaptive_in_flight = Some(status.in_flight);
        }
        if let Some(budget) = &self.budget {
            let counts = budget.counts();
            reading.retries = Some(counts.withdrawn);
            let unpaid = self.cost.as_ref().map_or(0, CostBucket::rejected);
            reading.retries_refused = Some(counts.exhausted + counts.capped + unpaid);
            reading.balance = Some(budget.balance(now));
        }
        if let Some(coalesce) = &self.coalesce {
            read_coalesce(&mut reading, &coalesce.core.status());
        }
        reading.remaining = self.rate.as_ref().map(|core| core.status(now).remaining);
        reading.throttle = self.throttle.as_ref().map(|core| core.probability(now));
        let endpoints = self.balancer.status(now);
        reading.pending = Some(endpoints.iter().map(|e| e.pending).sum());
        reading
    }
}

fn keep<C, T>(
    core: &mut Option<C>,
    section: Option<&T>,
    new: impl FnOnce(&T) -> C,
    change: impl FnOnce(&C, &T),
) {
    match (section, &*core) {
        (None, _) => *core = None,
        (Some(config), Some(core)) => change(core, config),
        (Some(config), None) => *core = Some(new(config)),
    }
}

// ---- the calls --------------------------------------------------------------------------------

/// What a try holds.
#[derive(Default)]
struct Held {
    throttle: Option<throttle::Permit>,
    breaker: Option<breaker::Permit>,
    bulkhead: Option<bulkhead::Permit>,
    concurrency: Option<adaptive::Permit>,
    pick: Option<Pick<u32>>,
}

impl Held {
    fn complete(self, outcome: Outcome, now: Instant, after: Option<Duration>) {
        if let Some(permit) = self.throttle {
            permit.complete(outcome, now);
        }
        if let Some(permit) = self.breaker {
            permit.complete_with(outcome, now, after);
        }
        if let Some(permit) = self.concurrency {
            permit.complete(outcome, now);
        }
        if let Some(pick) = self.pick {
            pick.complete(outcome, now);
        }
    }
}

pub(super) enum State {
    /// For the answer of another call.
    Follows(Follow<Told>, Rc<Coalesce>),
    WaitsForSlot(Waiter<Bulkhead>),
    WaitsForLimit(Waiter<AdaptiveLimit>),
    /// Until the callee acts, and until it is cut off.
    Sent(Answer, Option<Instant>, Option<Instant>),
    Backoff(Instant),
    /// The body is held open, and its leader waits until it can be shared.
    Gathers(Gathering),
    /// The body is held open.
    Open(Outcome),
    Over,
}

pub(super) struct Call<'a> {
    n: usize,
    pub(super) step: &'a Step,
    pub(super) began: Instant,
    pub(super) deadline: Option<Instant>,
    tries: Option<Tries>,
    logical: Option<Logical>,
    extra: Option<Extra>,
    paid: Option<Cost>,
    /// Of a call that may be tried again.
    bucket: Option<CostBucket>,
    held: Held,
    /// Others may wait for this call.
    pub(super) lead: Option<Led>,
    pub(super) state: State,
    pub(super) seen: Seen,
}

struct World<'a> {
    cores: Cores,
    running: Vec<Call<'a>>,
    now: Instant,
}

impl<'a> World<'a> {
    fn begin(&mut self, n: usize, step: &'a Step) {
        let (now, policy) = (self.now, &self.cores.policy);
        let headers = header_map(&step.headers);
        let mut call = Call {
            n,
            step,
            began: now,
            deadline: None,
            tries: None,
            logical: None,
            extra: None,
            paid: None,
            bucket: None,
            held: Held::default(),
            lead: None,
            state: State::Over,
            seen: Seen::default(),
        };
        let total = policy.timeouts.total();
        let left = [total, deadline::extract(&headers)]
            .into_iter()
            .flatten()
            .min();
        if left.is_some_and(|left| left.is_zero()) {
            call.refuse(&Rejected::new(Policy::Deadline, Reason::Expired), now);
            self.running.push(call);
            return;
        }
        call.deadline = left.map(|left| now + left);
        call.join(&self.cores, now);
        self.running.push(call);
    }

    /// Lets everything happen that is due up to `until`.
    fn pass_until(&mut self, until: Instant) {
        loop {
            self.settle();
            let next = self.running.iter().filter_map(Call::due).min();
            match next.filter(|next| *next <= until) {
                Some(next) => {
                    self.now = self.now.max(next);
                    self.act();
                }
                None => break,
            }
        }
        self.now = until;
        self.settle();
    }

    /// Lets everything happen that is due now.
    fn settle(&mut self) {
        while self.act() {}
    }

    fn act(&mut self) -> bool {
        let (now, cores) = (self.now, &self.cores);
        let mut any = false;
        for call in &mut self.running {
            any |= call.poll(cores, now);
        }
        any
    }

    fn labelled(&mut self, label: &str) -> &mut Call<'a> {
        let mut calls = self.running.iter_mut();
        calls
            .find(|call| call.step.label.as_deref() == Some(label))
            .unwrap_or_else(|| panic!("no call is called {label:?}"))
    }

    fn end_body(&mut self, label: &str) {
        let now = self.now;
        let call = self.labelled(label);
        match std::mem::replace(&mut call.state, State::Over) {
            State::Gathers(gathering) => call.gathered(gathering, now),
            State::Open(outcome) => call.end(outcome, now, None),
            _ => panic!("the body of {label:?} is not open"),
        }
        self.settle();
    }

    fn drop_call(&mut self, label: &str) {
        let now = self.now;
        let call = self.labelled(label);
        let outcome = match call.state {
            // Nobody reads the page of a 503: what its head said stands.
            State::Open(said) if said.is_failure() || said == Outcome::RateLimited => said,
            _ => Outcome::Cancelled,
        };
        call.end(outcome, now, None);
        self.settle();
    }
}

impl Call<'_> {
    /// Makes the call: its first try.
    pub(super) fn make(&mut self, cores: &Cores, now: Instant) {
        let retry = cores.policy.retry.as_ref();
        if let Some(retry) = retry.filter(|retry| retry.attempts > 0) {
            let headers = header_map(&self.step.headers);
            let safety = retry.safety(&method(self.step), &headers, &http::Extensions::new());
            self.tries = Some(Tries::new(retry, safety));
            self.logical = cores.budget.as_ref().map(|budget| budget.begin(now));
            self.bucket.clone_from(&cores.cost);
        }
        self.attempt(cores, now);
    }

    /// When something happens to it by itself.
    fn due(&self) -> Option<Instant> {
        match &self.state {
            State::WaitsForSlot(waiter) => earlier(waiter.deadline(), self.deadline),
            State::WaitsForLimit(waiter) => earlier(waiter.deadline(), self.deadline),
            State::Sent(_, acts, cut) => earlier(*acts, *cut),
            State::Gathers(gathering) => earlier(Some(gathering.until), self.deadline),
            State::Backoff(until) => Some(*until),
            State::Follows(..) | State::Open(_) => self.deadline,
            State::Over => None,
        }
    }

    /// Does what is due; false if nothing is.
    fn poll(&mut self, cores: &Cores, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        match std::mem::replace(&mut self.state, State::Over) {
            State::Follows(mut follow, under) => match follow.poll(Waker::noop()) {
                Poll::Ready(turn) => self.turn(turn, &under, cores, now),
                Poll::Pending if due => {
                    drop(follow);
                    self.refuse(&Rejected::new(Policy::Deadline, Reason::Elapsed), now);
                }
                Poll::Pending => return self.stay(State::Follows(follow, under)),
            },
            State::Gathers(gathering) if due => self.not_gathered(gathering, now),
            State::WaitsForSlot(mut waiter) => match poll(&mut waiter, now) {
                Poll::Ready(result) => self.has_slot(cores, result, now),
                Poll::Pending if due => self.has_slot(cores, waiter.expire(now), now),
                Poll::Pending => return self.stay(State::WaitsForSlot(waiter)),
            },
            State::WaitsForLimit(mut waiter) => match poll(&mut waiter, now) {
                Poll::Ready(result) => self.has_limit(cores, result, now),
                Poll::Pending if due => self.has_limit(cores, waiter.expire(now), now),
                Poll::Pending => return self.stay(State::WaitsForLimit(waiter)),
            },
            State::Sent(answer, acts, _) if due => {
                let acted = acts.is_some_and(|acts| acts <= now);
                self.answered(cores, &answer, acted, now);
            }
            State::Backoff(_) if due => self.attempt(cores, now),
            State::Open(_) if due => {
                self.seen.broke = Some("deadline".to_owned());
                self.end(Outcome::Failure(FailureClass::Timeout), now, None);
            }
            same => return self.stay(same),
        }
        true
    }

    fn stay(&mut self, state: State) -> bool {
        self.state = state;
        false
    }

    /// Asks the policies in their order.
    fn attempt(&mut self, cores: &Cores, now: Instant) {
        if let Some(core) = &cores.throttle {
            match core.try_acquire(now) {
                Ok(permit) => self.held.throttle = Some(permit),
                Err(rejected) => return self.refuse(&rejected, now),
            }
        }
        if let Some(core) = &cores.breaker {
            match core.try_acquire(now) {
                Ok(permit) => self.held.breaker = Some(permit),
                Err(rejected) => return self.refuse(&rejected, now),
            }
        }
        match cores.bulkhead.as_ref().map(|core| core.acquire(now)) {
            None => self.ask_limit(cores, now),
            Some(Ok(Entry::Admitted(permit))) => self.has_slot(cores, Ok(permit), now),
            Some(Ok(Entry::Waits(waiter))) => self.state = State::WaitsForSlot(waiter),
            Some(Err(rejected)) => self.refuse(&rejected, now),
        }
    }

    fn has_slot(&mut self, cores: &Cores, slot: Result<bulkhead::Permit, Rejected>, now: Instant) {
        match slot {
            Ok(permit) => {
                self.held.bulkhead = Some(permit);
                self.ask_limit(cores, now);
            }
            Err(rejected) => self.refuse(&rejected, now),
        }
    }

    fn ask_limit(&mut self, cores: &Cores, now: Instant) {
        let limit = cores.concurrency.as_ref();
        if let Some(class) = limit.and_then(|limit| self.class(cores, limit)) {
            return self.has_limit(cores, class.try_acquire(now), now);
        }
        match limit.map(|core| core.acquire(now)) {
            None => self.send(cores, now),
            Some(Ok(Entry::Admitted(permit))) => self.has_limit(cores, Ok(permit), now),
            Some(Ok(Entry::Waits(waiter))) => self.state = State::WaitsForLimit(waiter),
            Some(Err(rejected)) => self.refuse(&rejected, now),
        }
    }

    /// The class of the limit that the call says it is of.
    fn class(&self, cores: &Cores, limit: &AdaptiveLimit) -> Option<Partition> {
        let headers = header_map(&self.step.headers);
        match &cores.policy.concurrency.as_ref()?.partition_by {
            PartitionBy::Priority => limit.partition(Priority::extract(&headers).class()),
            PartitionBy::Header(name) => limit.partition(headers.get(name)?.to_str().ok()?),
            other => panic!("no driver knows {other:?}"),
        }
    }

    fn has_limit(&mut self, cores: &Cores, slot: Result<adaptive::Permit, Rejected>, now: Instant) {
        match slot {
            Ok(permit) => {
                self.held.concurrency = Some(permit);
                self.send(cores, now);
            }
            Err(rejected) => self.refuse(&rejected, now),
        }
    }

    fn send(&mut self, cores: &Cores, now: Instant) {
        if let Some(Err(rejected)) = cores.rate.as_ref().map(|core| core.try_acquire(now)) {
            return self.refuse(&rejected, now);
        }
        match cores.balancer.pick(&PickContext::at(now)) {
            Ok(pick) => self.held.pick = Some(pick),
            Err(rejected) => return self.refuse(&rejected, now),
        }
        let script = self.step.call.as_ref().expect("it is a call");
        let answer = script.nth(self.seen.tries as usize).answer();
        self.seen.tries += 1;
        let acts = (answer.fault != Some(Fault::Hang)).then(|| now + answer.took.0.0);
        let per_try = cores.policy.timeouts.backend_request;
        let cut = earlier(per_try.map(|limit| now + limit.0), self.deadline);
        self.state = State::Sent(answer, acts, cut);
    }

    /// A try has its answer, or (not `acted`) was cut off.
    fn answered(&mut self, cores: &Cores, answer: &Answer, acted: bool, now: Instant) {
        let retry = self.tries.as_ref().and(cores.policy.retry.as_ref());
        let again = retry.filter(|retry| {
            let tries = self.tries.as_ref();
            tries.is_some_and(|tries| tries.may_continue(retry)) && !retry.grpc_trailers.0.is_zero()
        });
        let behind = again.and_then(|retry| judge_trailers(retry, answer, acted));
        let judgement = behind.unwrap_or_else(|| judge_try(retry, answer, acted));
        if let Some(wait) = self.next(cores, retry, &judgement, now) {
            let failed = judgement.outcome.is_failure();
            let after = judgement.after.filter(|_| failed);
            std::mem::take(&mut self.held).complete(judgement.outcome, now, after);
            self.state = State::Backoff(now + wait);
            return;
        }
        let took = now - self.began;
        let elapsed = Rejected::new(Policy::Deadline, Reason::Elapsed);
        let want = match (acted, answer.status, answer.fault) {
            (false, ..) => refusal(&elapsed),
            (true, _, Some(Fault::Panic)) => Want::Failure("panic".to_owned()),
            (true, Some(status), _) => Want::Status(status),
            (true, None, fault) => {
                let class = fault.and_then(Fault::class).expect("it acted");
                Want::Failure(class.as_str().to_owned())
            }
        };
        let is_answer = matches!(want, Want::Status(_));
        if !is_answer {
            self.failed_for_all(answer, (!acted).then_some(&elapsed));
        }
        self.seen.head = Some((want, took));
        let outcome = judgement.outcome;
        let heard = outcome.is_failure() && judgement.after.is_some();
        if !is_answer || heard {
            std::mem::take(&mut self.held).complete(
                outcome,
                now,
                judgement.after.filter(|_| outcome.is_failure()),
            );
        }
        if !is_answer {
            return self.end(outcome, now, None);
        }
        self.seen.text.clone_from(&answer.text);
        let trailers = GrpcCode::find(&header_map(&answer.trailers));
        let outcome = trailers.map_or(outcome, GrpcCode::outcome);
        if !self.for_all(answer, outcome, now) {
            self.state = State::Open(outcome);
            if !answer.held {
                self.end(outcome, now, None);
            }
        }
    }

    /// How long to wait before another try that is worth it and paid for.
    fn next(
        &mut self,
        cores: &Cores,
        retry: Option<&RetryConfig>,
        judgement: &Judgement,
        now: Instant,
    ) -> Option<Duration> {
        let (retry, tries) = (retry?, self.tries.as_mut()?);
        let context = RetryContext::at(now).deadline(self.deadline);
        let wait = tries
            .next_wait(retry, judgement, &context, &cores.rng)
            .ok()?;
        self.extra = None;
        let extra = self.logical.as_ref()?.try_extra(now).ok()?;
        if let Some(bucket) = &cores.cost {
            let Ok(cost) = bucket.try_take(judgement.outcome) else {
                extra.forgive();
                return None;
            };
            self.paid = Some(cost);
        }
        self.extra = Some(extra);
        tries.count();
        Some(wait)
    }

    /// Nothing was sent: what was taken goes back, and a retry that was paid for is forgiven.
    pub(super) fn refuse(&mut self, rejected: &Rejected, now: Instant) {
        if let Some(extra) = self.extra.take() {
            extra.forgive();
        }
        if let (Some(bucket), Some(cost)) = (&self.bucket, self.paid.take()) {
            bucket.give_back(cost);
        }
        if let Some(led) = self.lead.take() {
            led.fail(*rejected);
        }
        self.seen.head = Some((refusal(rejected), now - self.began));
        self.seen.retry_after = rejected.retry_after;
        self.end(Outcome::Cancelled, now, None);
    }

    pub(super) fn end(&mut self, outcome: Outcome, now: Instant, after: Option<Duration>) {
        std::mem::take(&mut self.held).complete(outcome, now, after);
        if let (Some(bucket), Outcome::Success) = (&self.bucket, outcome) {
            bucket.succeeded(self.paid.take());
        }
        (self.logical, self.extra, self.lead) = (None, None, None);
        self.state = State::Over;
        self.seen.over = true;
    }
}

pub(super) fn method(step: &Step) -> Method {
    let method = step.method.as_deref().unwrap_or("GET");
    method.parse().expect("a method")
}

fn judge_try(retry: Option<&RetryConfig>, answer: &Answer, acted: bool) -> Judgement {
    let failure = match (acted, answer.fault) {
        (true, Some(Fault::Panic)) => return Judgement::last(Outcome::Cancelled),
        (false, _) => Some(FailureClass::Timeout),
        (true, fault) => fault.and_then(Fault::class),
    };
    if let Some(class) = failure {
        return retry.map_or(Judgement::last(Outcome::Failure(class)), |retry| {
            retry.judge_error(class, class == FailureClass::Connect)
        });
    }
    let status = StatusCode::from_u16(answer.status.expect("no fault")).expect("a status");
    let headers = header_map(&answer.headers);
    let wall = SystemTime::now();
    if let Some(retry) = retry {
        return retry.judge_head(status, &headers, wall);
    }
    let mut last = Judgement::last(classify::outcome_of_head(status, &headers));
    last.after = classify::retry_after(status, &headers, wall, Duration::from_secs(5));
    last
}

/// The verdict behind a gRPC answer that says nothing else.
fn judge_trailers(retry: &RetryConfig, answer: &Answer, acted: bool) -> Option<Judgement> {
    let status = StatusCode::from_u16(answer.status?).expect("a status");
    let awaited = classify::awaits_grpc_trailers(status, &header_map(&answer.headers));
    let silent = answer.text.is_empty() && !answer.held && !answer.trailers.is_empty();
    let trailers = header_map(&answer.trailers);
    (acted && awaited && silent).then(|| retry.judge_trailers(&trailers))?
}

fn poll<C: Queued>(waiter: &mut Waiter<C>, now: Instant) -> Poll<Result<C::Permit, Rejected>> {
    waiter.poll(Waker::noop(), now)
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    [a, b].into_iter().flatten().min()
}

pub(super) fn header_map(pairs: &std::collections::BTreeMap<String, String>) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a header's name");
            (name, value.parse().expect("a header's value"))
        })
        .collect()
}
