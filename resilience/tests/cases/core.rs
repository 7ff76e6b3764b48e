//! The kinds that are states of one core.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use selvedge_resilience::{
    Outcome, Reason, Rng,
    adaptive::{AdaptiveLimit, Permit},
    balance::{BalanceConfig, Balancer, Member, OutlierConfig, Pick, PickContext},
    breaker::{CircuitBreaker, State},
    config::{BudgetSpec, Millis, Ratio, ShareSpec},
    rate_limit::RateLimit,
    retry::{budget::Budget, cost::CostBucket},
};

use super::{
    calls::{read_breaker, up},
    table::{self, Operator, Reading},
};

/// What a case found, by step.
#[derive(Default)]
pub(super) struct Found(pub(super) Vec<String>);

impl Found {
    pub(super) fn all(&mut self, texts: impl IntoIterator<Item = String>) {
        self.0.extend(texts);
    }

    pub(super) fn look<T: PartialEq + std::fmt::Debug>(
        &mut self,
        n: usize,
        what: &str,
        got: &T,
        want: &T,
    ) {
        if got != want {
            self.0
                .push(format!("step {n}, {what}: {got:?}, want {want:?}"));
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// A start before which calls may have begun. Ticks count from an hour before the first instant
/// that the process shows, so that must not be one of the future.
fn with_a_past() -> Instant {
    let now = Instant::now();
    let _shown = RateLimit::new("1/s".parse().expect("a rate")).status(now);
    now + HOUR
}

fn earlier(now: Instant, by: Duration) -> Instant {
    now.checked_sub(by).expect("there is a past")
}

pub(super) fn breaker(case: &table::Breaker) -> Vec<String> {
    let breaker = CircuitBreaker::new(case.config.clone()).expect("valid");
    let start = with_a_past();
    let mut found = Found(Vec::new());
    for (n, step) in case.steps.iter().enumerate() {
        let now = start + step.at.0.0;
        let began = earlier(now, step.took.0.0);
        if let Some(operator) = &step.operator {
            let obeyed = operate(&breaker, operator, now);
            found.look(n, "illegal", &!obeyed, &step.illegal);
        }
        for _ in 0..step.times {
            for ended in &step.ended {
                match breaker.try_acquire(began) {
                    Ok(permit) => permit.complete(ended.0, now),
                    Err(rejected) => found.0.push(format!("step {n}: {rejected}")),
                }
            }
        }
        if let Some(reason) = &step.denied {
            let denied = breaker.try_acquire(now).err();
            let denied = denied.map(|rejected| rejected.reason.as_str().to_owned());
            found.look(n, "denied", &denied.as_ref(), &Some(reason));
        }
        if let Some(want) = &step.read {
            let mut seen = Reading::default();
            read_breaker(&mut seen, &breaker.snapshot(now));
            let differ = want.differences(&seen);
            found
                .0
                .extend(differ.iter().map(|text| format!("step {n}, {text}")));
        }
    }
    found.0
}

/// Whether it could be done.
pub(super) fn operate(breaker: &CircuitBreaker, operator: &Operator, now: Instant) -> bool {
    match operator {
        Operator::ForceOpen => breaker.force_open(),
        Operator::Disable => breaker.disable(),
        Operator::MetricsOnly => breaker.metrics_only(),
        Operator::Reset => breaker.reset(),
        Operator::Open => return breaker.transition_to(State::Open, now).is_ok(),
        Operator::HalfOpen => return breaker.transition_to(State::HalfOpen, now).is_ok(),
        Operator::OpenFor(time) => breaker.open_for(time.0, now),
        Operator::OpenUntil(time) => breaker.open_until(now + time.0, now),
    }
    true
}

pub(super) fn partitions(case: &table::Partitions) -> Vec<String> {
    let limit = AdaptiveLimit::new(case.config.clone(), Rng::new(1)).expect("valid");
    let now = Instant::now();
    let mut held: BTreeMap<String, Vec<Permit>> = BTreeMap::new();
    let mut found = Found(Vec::new());
    for (n, step) in case.steps.iter().enumerate() {
        if let Some(config) = &step.config {
            limit.reconfigure(config.clone()).expect("valid");
        }
        if let Some(name) = &step.class {
            let class = limit.partition(name).expect("a class of the case");
            let mine = held.entry(name.clone()).or_default();
            mine.truncate(mine.len() - step.release as usize);
            let got: Vec<_> = (0..step.ask)
                .map_while(|_| class.try_acquire(now).ok())
                .collect();
            found.look(n, "admitted", &(got.len() as u32), &step.admitted);
            mine.extend(got);
        } else {
            held.clear();
        }
        for (name, want) in &step.shares {
            let class = limit.partition(name).expect("a class of the case");
            found.look(n, name, &class.share(), want);
        }
    }
    drop(held);
    found.look(case.steps.len(), "still held", &limit.in_flight(), &0);
    found.0
}

pub(super) fn budget(case: &table::Budget) -> Vec<String> {
    let mut found = Found(Vec::new());
    let budget = match (make_budget(case), &case.refused) {
        (Ok(budget), None) => budget,
        (Ok(_), Some(path)) => return vec![format!("is made, though {path} cannot work")],
        (Err(path), refused) => {
            found.look(0, "refused", &Some(&path), &refused.as_ref());
            return found.0;
        }
    };
    let start = Instant::now();
    for (n, step) in case.steps.iter().enumerate() {
        let now = start + step.at.0.0;
        (0..step.deposit).for_each(|_| budget.deposit(now));
        let taken = (0..step.take)
            .take_while(|_| budget.try_withdraw(now).is_ok())
            .count();
        found.look(n, "taken", &(taken as u32), &step.take);
        if step.then_empty {
            let left = budget.try_withdraw(now).is_ok();
            found.look(n, "one more", &left, &false);
        }
        if let Some(want) = step.balance {
            found.look(n, "balance", &budget.balance(now), &want);
        }
    }
    found.0
}

/// The budget, or the name of what cannot work.
pub(super) fn make_budget(case: &table::Budget) -> Result<Budget, String> {
    let no_cap = ShareSpec {
        ratio: Ratio::percent(0),
        min: u32::MAX,
    };
    let ratio = Ratio::new(case.ratio).ok_or("ratio")?;
    let min_per_second = u32::try_from(case.min_per_second).map_err(|_| "min_per_second")?;
    let spec = BudgetSpec {
        ratio,
        min_per_second,
    };
    let made = match case.reserve {
        Some(reserve) => Budget::with_reserve(ratio, reserve, no_cap, case.ttl),
        None => Budget::with(spec, no_cap, case.ttl),
    };
    made.map_err(|refused| refused.path)
}

pub(super) fn bucket(case: &table::Bucket) -> Vec<String> {
    let bucket = CostBucket::new(case.config).expect("valid");
    let mut last = None;
    let mut found = Found(Vec::new());
    for (n, step) in case.steps.iter().enumerate() {
        if step.ended.0 == Outcome::Success {
            bucket.succeeded(last.take());
        } else {
            last = bucket.try_take(step.ended.0).ok();
        }
        found.look(n, "tokens", &bucket.tokens(), &step.tokens);
    }
    found.0
}

pub(super) fn rate_limit(case: &table::RateLimit) -> Vec<String> {
    let limit = RateLimit::new(case.rate);
    let start = Instant::now();
    let mut found = Found(Vec::new());
    for (n, step) in case.steps.iter().enumerate() {
        let now = start + step.at.0.0;
        let ask = || limit.try_acquire_n(step.cells, now);
        let passed = (0..step.pass).take_while(|_| ask().is_ok()).count() as u32;
        found.look(n, "passed", &passed, &step.pass);
        if let Some(want) = step.wait {
            let wait = ask().err().and_then(|rejected| rejected.retry_after);
            found.look(n, "wait", &wait.map(Millis), &Some(want));
        }
        if step.never {
            let reason = ask().err().map(|rejected| rejected.reason);
            found.look(n, "never", &reason, &Some(Reason::InsufficientCapacity));
        }
        if let Some(want) = step.remaining {
            found.look(n, "remaining", &limit.status(now).remaining, &want);
        }
    }
    found.0
}

pub(super) fn outlier(case: &table::Outlier) -> Vec<String> {
    let config = BalanceConfig::default();
    let balancer = Balancer::new(config, case.config.clone(), Rng::new(1)).expect("valid");
    let start = Instant::now();
    balancer.set_members((0..case.endpoints).map(Member::new), start);
    let keys: Vec<u32> = (0..case.endpoints).collect();
    let mut found = Found(Vec::new());
    for (n, step) in case.steps.iter().enumerate() {
        let now = start + step.at.0.0;
        balancer.tick(now);
        for _ in 0..step.times {
            for ended in &step.ended {
                let whom = if step.all { &keys[..] } else { &keys[..1] };
                for key in whom {
                    match call(&balancer, &keys, *key, now) {
                        Some(pick) => {
                            pick.complete(ended.0, now);
                        }
                        None => found.0.push(format!("step {n}: {key} is not picked")),
                    }
                }
            }
        }
        balancer.tick(now);
        if let Some(want) = step.out_for {
            let status = balancer.status(now);
            let mine = status.iter().find(|e| e.key == 0).expect("a member");
            found.look(n, "out_for", &up(mine.ejected_for), &want);
        }
        if let Some(want) = step.picked {
            let picked = call(&balancer, &keys, 0, now).is_some();
            found.look(n, "picked", &picked, &want);
        }
        if let Some(want) = step.ejections {
            found.look(n, "ejections", &balancer.ejections().made, &want);
        }
    }
    found.0
}

/// A call to one endpoint, if the balancer lets it have one when all others have just failed it.
fn call(balancer: &Balancer<u32>, keys: &[u32], key: u32, now: Instant) -> Option<Pick<u32>> {
    let others: Vec<u32> = keys.iter().copied().filter(|&k| k != key).collect();
    let pick = balancer.pick(&PickContext::at(now).avoid(&others)).ok()?;
    (*pick.key() == key).then_some(pick)
}

pub(super) fn ewma(case: &table::Ewma) -> Vec<String> {
    let config = BalanceConfig {
        decay: case.decay,
        ..BalanceConfig::default()
    };
    let balancer = Balancer::new(config, OutlierConfig::default(), Rng::new(1)).expect("valid");
    let start = with_a_past();
    balancer.set_members([Member::new(0)], earlier(start, HOUR));
    let mut found = Found(Vec::new());
    for (n, (at, rtt, want)) in case.samples.iter().enumerate() {
        let now = start + Duration::from_secs(*at);
        let pick = balancer.pick(&PickContext::at(earlier(now, Duration::from_secs(*rtt))));
        pick.expect("a member").complete(Outcome::Success, now);
        let got = balancer.status(now)[0].cost.as_secs_f64();
        if (got - want).abs() > 1e-6 {
            found.0.push(format!("step {n}: cost {got}, want {want}"));
        }
    }
    if let Some(want) = case.newcomer_picks {
        let last = case.samples.last().map_or(0, |(at, ..)| *at);
        let now = start + Duration::from_secs(last);
        balancer.set_members([0, 1].map(Member::new), now);
        let open: Vec<_> = (0..50)
            .map(|_| balancer.pick(&PickContext::at(now)))
            .collect();
        let new = open
            .iter()
            .flatten()
            .filter(|pick| *pick.key() == 1)
            .count();
        found.look(
            case.samples.len(),
            "picks of the newcomer",
            &(new as u32),
            &want,
        );
    }
    found.0
}
