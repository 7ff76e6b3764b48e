//! What each core shows, from its own status.

use std::time::Instant;

use super::Emitter;
use crate::{
    adaptive::AdaptiveLimit,
    balance::{Balancer, Key},
    breaker::{CLASSES, CircuitBreaker, State},
    bulkhead::Bulkhead,
    coalesce::Coalescer,
    fault::Faults,
    hedge::Hedge,
    keyed::KeyedStats,
    outcome::{Outcome, Policy, Reason},
    rate_limit::RateLimit,
    retry::{budget::Budget, cost::CostBucket},
    shed::Shedder,
    throttle::Throttle,
};

pub(crate) fn breaker(core: &CircuitBreaker, now: Instant, emit: &mut Emitter<'_, '_>) {
    let snapshot = core.snapshot(now);
    let calls = snapshot.calls;
    emit.policy = Policy::Breaker.as_str();
    for state in State::ALL {
        let is = if state == snapshot.state { 1.0 } else { 0.0 };
        emit.gauge("selvedge.breaker.state", is, &[("state", state.as_str())]);
    }
    for made in core.transitions() {
        let ends = [
            ("from", made.from.as_str()),
            ("to", made.to.as_str()),
            ("cause", made.cause.as_str()),
        ];
        emit.counter("selvedge.breaker.transitions", made.count, &ends);
    }
    let failures = CLASSES
        .into_iter()
        .map(|class| (Outcome::Failure(class), calls.failed_with(class)));
    let outcomes = [
        (Outcome::Success, calls.success),
        (Outcome::RateLimited, calls.rate_limited),
        (Outcome::Ignored, calls.ignored),
        (Outcome::Cancelled, calls.cancelled),
    ];
    for (outcome, count) in outcomes.into_iter().chain(failures) {
        let outcome = [("outcome", outcome.as_str())];
        emit.counter("selvedge.breaker.calls", count, &outcome);
    }
    let refused = [
        (Reason::Open, calls.rejected_open),
        (Reason::ForcedOpen, calls.rejected_forced),
        (Reason::ProbesTaken, calls.rejected_probes),
    ];
    emit.reasons("selvedge.breaker.rejected", refused);
    emit.counter("selvedge.breaker.slow", calls.slow, &[]);
    emit.counter("selvedge.breaker.stale", calls.stale, &[]);
    emit.counter("selvedge.breaker.exceeded", calls.exceeded, &[]);
    emit.gauge("selvedge.breaker.inflight", calls.in_flight as f64, &[]);
    let ratios = [
        ("selvedge.breaker.failure.ratio", snapshot.failure_ratio),
        ("selvedge.breaker.slow.ratio", snapshot.slow_ratio),
    ];
    for (metric, ratio) in ratios {
        if let Some(ratio) = ratio {
            emit.gauge(metric, ratio, &[]);
        }
    }
    let left = snapshot.open_for.as_secs_f64();
    emit.gauge("selvedge.breaker.open.remaining", left, &[]);
    let generation = snapshot.generation as f64;
    emit.gauge("selvedge.policy.config.generation", generation, &[]);
}

pub(crate) fn throttle(core: &Throttle, now: Instant, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::Throttle.as_str();
    let probability = core.probability(now);
    emit.gauge("selvedge.throttle.probability", probability, &[]);
    let refused = [(Reason::Throttled, core.rejected())];
    emit.reasons("selvedge.throttle.refused", refused);
}

/// Slots of a bulkhead or of a limit that finds itself, and who waits for one.
struct Slots {
    in_flight: u32,
    limit: u32,
    waiting: u32,
    refused: [u64; 3],
}

impl Slots {
    fn emit(&self, emit: &mut Emitter<'_, '_>) {
        emit.gauge("selvedge.limit.inflight", self.in_flight.into(), &[]);
        emit.gauge("selvedge.limit.limit", self.limit.into(), &[]);
        emit.gauge("selvedge.limit.waiting", self.waiting.into(), &[]);
        let reasons = [Reason::Full, Reason::QueueFull, Reason::QueueTimeout];
        emit.reasons(
            "selvedge.limit.refused",
            reasons.into_iter().zip(self.refused),
        );
    }
}

pub(crate) fn bulkhead(core: &Bulkhead, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::Bulkhead.as_str();
    let status = core.status();
    Slots {
        in_flight: status.in_flight,
        limit: status.limit,
        waiting: status.waiting,
        refused: [status.full, status.queue_full, status.queue_timeout],
    }
    .emit(emit);
}

pub(crate) fn adaptive(core: &AdaptiveLimit, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::AdaptiveLimit.as_str();
    let status = core.status();
    Slots {
        in_flight: status.in_flight,
        limit: status.limit,
        waiting: status.waiting,
        refused: [status.full, status.queue_full, status.queue_timeout],
    }
    .emit(emit);
    emit.counter("selvedge.adaptive.dropped", status.dropped, &[]);
    emit.counter("selvedge.adaptive.stale", status.stale, &[]);
    emit.counter("selvedge.adaptive.windows", status.windows, &[]);
}

pub(crate) fn rate_limit(core: &RateLimit, now: Instant, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::RateLimit.as_str();
    let left = core.status(now).remaining;
    emit.gauge("selvedge.rate_limit.remaining", left.into(), &[]);
    emit.counter("selvedge.rate_limit.refused", core.rejected(), &[]);
}

/// A rate for each caller: what is left is a number for each of them, and so not shown.
pub(crate) fn keyed_rate(refused: u64, keys: KeyedStats, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::RateLimit.as_str();
    emit.counter("selvedge.rate_limit.refused", refused, &[]);
    emit.gauge("selvedge.keyed.tracked", keys.tracked.into(), &[]);
    emit.gauge("selvedge.keyed.capacity", keys.capacity.into(), &[]);
    for (metric, count) in [
        ("selvedge.keyed.inserted", keys.inserted),
        ("selvedge.keyed.expired", keys.expired),
        ("selvedge.keyed.evicted", keys.evicted),
        ("selvedge.keyed.removed", keys.removed),
        ("selvedge.keyed.untracked", keys.untracked),
    ] {
        emit.counter(metric, count, &[]);
    }
}

pub(crate) fn budget(core: &Budget, now: Instant, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::RetryBudget.as_str();
    let (counts, in_flight) = (core.counts(), core.in_flight());
    let balance = core.balance(now) as f64;
    emit.gauge("selvedge.retry.budget.balance", balance, &[]);
    for (kind, n) in [("call", in_flight.calls), ("extra", in_flight.extra)] {
        emit.gauge(
            "selvedge.retry.budget.inflight",
            n.into(),
            &[("kind", kind)],
        );
    }
    let metric = "selvedge.retry.budget.withdrawn";
    emit.counter(metric, counts.withdrawn, &[]);
    let refused = [
        (Reason::Exhausted, counts.exhausted),
        (Reason::Full, counts.capped),
    ];
    emit.reasons("selvedge.retry.budget.refused", refused);
}

pub(crate) fn cost(core: &CostBucket, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::RetryBudget.as_str();
    emit.gauge("selvedge.retry.cost.tokens", core.tokens().into(), &[]);
    let refused = [(Reason::Exhausted, core.rejected())];
    emit.reasons("selvedge.retry.cost.refused", refused);
}

pub(crate) fn coalesce<T: Clone>(core: &Coalescer<T>, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::Coalesce.as_str();
    let status = core.status();
    let (keys, waiting) = (status.in_flight as f64, status.waiting as f64);
    emit.gauge("selvedge.coalesce.inflight", keys, &[]);
    emit.gauge("selvedge.coalesce.waiting", waiting, &[]);
    emit.counter("selvedge.coalesce.leaders", status.led, &[]);
    emit.counter("selvedge.coalesce.followers", status.followed, &[]);
    emit.counter("selvedge.coalesce.full", status.full, &[]);
    for (end, count) in [
        ("answered", status.answered),
        ("promoted", status.promoted),
        ("released", status.released),
        ("broken", status.broken),
    ] {
        emit.counter("selvedge.coalesce.ended", count, &[("end", end)]);
    }
}

pub(crate) fn hedge(core: &Hedge, emit: &mut Emitter<'_, '_>) {
    emit.policy = "hedge";
    let stats = core.stats();
    emit.counter("selvedge.hedge.sent", stats.sent, &[]);
    emit.counter("selvedge.hedge.won", stats.won, &[]);
    emit.counter("selvedge.hedge.wasted", stats.wasted, &[]);
    for (reason, count) in [
        (Reason::Exhausted.as_str(), stats.exhausted),
        ("overflow", stats.overflow),
        ("body_not_replayable", stats.body_not_replayable),
    ] {
        emit.counter("selvedge.hedge.unsent", count, &[("reason", reason)]);
    }
}

pub(crate) fn faults(core: &Faults, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::Fault.as_str();
    let status = core.status();
    emit.gauge("selvedge.fault.active", status.active.into(), &[]);
    for (kind, count) in [("delay", status.delayed), ("abort", status.aborted)] {
        emit.counter("selvedge.fault.injected", count, &[("kind", kind)]);
    }
    emit.counter("selvedge.fault.overflow", status.overflow, &[]);
}

pub(crate) fn shed(core: &Shedder, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::Shed.as_str();
    let status = core.status();
    emit.gauge("selvedge.shed.waiting", status.waiting.into(), &[]);
    // Nothing is shed: the first priority that is would be the one after the last.
    let first = status.cursor.map_or(1 << 16, |first| u32::from(first.0));
    emit.gauge("selvedge.shed.cursor", first.into(), &[]);
    let refused = [(Reason::Overloaded, status.rejected)];
    emit.reasons("selvedge.shed.refused", refused);
    emit.counter("selvedge.shed.overloaded", status.overloaded, &[]);
}

pub(crate) fn balancer<K: Key>(core: &Balancer<K>, emit: &mut Emitter<'_, '_>) {
    emit.policy = Policy::Balancer.as_str();
    emit.gauge("selvedge.balancer.endpoints", core.len() as f64, &[]);
    emit.counter("selvedge.balancer.picks", core.picks(), &[]);
    emit.gauge("selvedge.outlier.ejected", core.ejected().into(), &[]);
    for (cause, count) in core.ejections_by_cause() {
        let cause = [("cause", cause.as_str())];
        emit.counter("selvedge.outlier.ejections", count, &cause);
    }
    let not_allowed = core.ejections().not_allowed;
    emit.counter("selvedge.outlier.overflow", not_allowed, &[]);
}
