//! Defects of peers, each as what must not happen here, through the public items alone. Those that
//! need the inside of a core are tests beside it; `src/peers.md` has the table of all.

mod layers;
mod page;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use selvedge_resilience::{
    FailureClass, Outcome, Reason, Rng,
    adaptive::{AdaptiveConfig, AdaptiveLimit},
    balance::{BalanceConfig, Balancer, Member, OutlierConfig, PickContext},
    breaker::{BreakerConfig, CircuitBreaker, State},
    config::{BackoffRange, Millis, Ratio, ShareSpec},
    rate_limit::RateLimit,
    retry::{
        backoff::{Backoff, Jitter},
        budget::Budget,
    },
};

const FAILED: Outcome = Outcome::Failure(FailureClass::ServerError);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn breaker(text: &str) -> CircuitBreaker {
    let config: BreakerConfig = toml::from_str(text).expect(text);
    CircuitBreaker::new(config).expect(text)
}

fn call(breaker: &CircuitBreaker, outcome: Outcome, now: Instant) {
    let permit = breaker.try_acquire(now).expect("admitted");
    permit.complete(outcome, now);
}

#[test]
fn tower_rate_limit_window_lets_two_bursts_through() {
    // Five in the last moment of tower's window and five in the first of the next: ten at once.
    let limit = RateLimit::new("5/s".parse().expect("a rate"));
    let start = Instant::now();
    let pass = |at| {
        let all = (0..10).filter(|_| limit.try_acquire(start + ms(at)).is_ok());
        all.count()
    };
    assert_eq!(pass(990), 5);
    assert_eq!(pass(1_010), 0);
    assert_eq!(pass(1_190), 1);
}

/// Two threads that want the same last tokens.
fn contend(what: impl Fn() -> bool + Sync) -> u32 {
    let got = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    got.fetch_add(u32::from(what()), Ordering::Relaxed);
                }
            });
        }
    });
    got.into_inner()
}

#[test]
fn tower_budget_checks_then_subtracts() {
    let share = ShareSpec {
        ratio: Ratio::percent(0),
        min: u32::MAX,
    };
    let budget = Budget::with_reserve(Ratio::percent(100), 1_000, share, Millis::new(10_000));
    let (budget, now) = (budget.expect("valid"), Instant::now());
    assert_eq!(contend(|| budget.try_withdraw(now).is_ok()), 1_000);
    assert_eq!(budget.balance(now), 0);
}

#[test]
fn envoy_gradient_adds_without_compare_and_overshoots() {
    let config = AdaptiveConfig {
        initial: 20,
        min: 20,
        max: 20,
        ..AdaptiveConfig::default()
    };
    let limit = AdaptiveLimit::new(config, Rng::new(1)).expect("valid");
    let (now, held) = (Instant::now(), AtomicU32::new(0));
    contend(|| {
        // Six each: together they want fewer than there are, or more, as they meet.
        let permits: Vec<_> = (0..12).map_while(|_| limit.try_acquire(now).ok()).collect();
        let together =
            held.fetch_add(permits.len() as u32, Ordering::SeqCst) + permits.len() as u32;
        assert!(together <= 20, "{together}");
        held.fetch_sub(permits.len() as u32, Ordering::SeqCst);
        true
    });
    assert_eq!(limit.in_flight(), 0);
}

#[test]
fn tower_peak_ewma_counts_clones_as_pending() {
    // Its load is `Arc::strong_count`, so whoever keeps a handle is a call that never ends.
    let (config, now) = (BalanceConfig::default(), Instant::now());
    let balancer = Balancer::new(config, OutlierConfig::default(), Rng::new(1)).expect("valid");
    balancer.set_members([0, 1].map(Member::new), now);
    let _handles = [0; 50].map(|_| balancer.clone());
    let first = balancer.pick(&PickContext::at(now)).expect("a member");
    let pending = || -> u32 { balancer.status(now).iter().map(|e| e.pending).sum() };
    assert_eq!(pending(), 1);
    first.complete(Outcome::Success, now + ms(1));
    assert_eq!(pending(), 0);
}

/// A permit from before the trip, and the circuit half-open now.
fn straggler(breaker: &CircuitBreaker, now: Instant) -> selvedge_resilience::breaker::Permit {
    let late = breaker.try_acquire(now).expect("closed");
    call(breaker, FAILED, now);
    assert_eq!(breaker.state(), State::Open);
    drop(breaker.try_acquire(now + ms(1_001)).expect("half-open"));
    assert_eq!(breaker.state(), State::HalfOpen);
    late
}

#[test]
fn tower_resilience_late_closed_era_result_counts_as_a_probe() {
    for outcome in [Outcome::Success, FAILED] {
        let breaker = breaker("consecutive = 1\nprobes = 1\nopen_for = \"1s\"");
        let now = Instant::now();
        let late = straggler(&breaker, now);
        late.complete(outcome, now + ms(1_002));
        assert_eq!(breaker.state(), State::HalfOpen, "{outcome:?}");
        assert_eq!(breaker.calls().stale, 1);
    }
}

#[test]
fn failsafe_has_no_cancel() {
    // A call that is given up must be counted, and a probe that is must not hold its place.
    let breaker = breaker("consecutive = 1\nprobes = 1\nopen_for = \"1s\"");
    let now = Instant::now();
    drop(breaker.try_acquire(now).expect("closed"));
    assert_eq!(breaker.calls().cancelled, 1);
    call(&breaker, FAILED, now);
    let half = now + ms(1_001);
    let probe = breaker.try_acquire(half).expect("a probe");
    let refused = breaker.try_acquire(half).expect_err("one probe");
    assert_eq!(refused.reason, Reason::ProbesTaken);
    drop(probe);
    call(&breaker, Outcome::Success, half);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn resilience4j_lock_free_window_ignores_the_test_clock() {
    // Theirs asks the system's clock; here no wall time passes at all.
    let breaker = breaker("over = \"5s\"\nbuckets = 5\nmode = \"metrics_only\"\nmin_requests = 1");
    let now = Instant::now();
    (0..9).for_each(|_| call(&breaker, FAILED, now));
    assert_eq!(breaker.snapshot(now).window.failed, 9);
    let later = now + Duration::from_secs(3_600);
    assert_eq!(breaker.snapshot(later).window.failed, 0);
    call(&breaker, Outcome::Success, later);
    assert_eq!(breaker.snapshot(later).window.total, 1);
}

#[test]
fn hystrix_health_is_half_a_second_old() {
    // Its rate is computed every 500 ms; ours at each result, at the very instant.
    let breaker = breaker("failure_rate = \"50%\"\nmin_requests = 20\nover = \"10s\"");
    let now = Instant::now();
    (0..19).for_each(|_| call(&breaker, FAILED, now));
    assert_eq!(breaker.state(), State::Closed);
    call(&breaker, FAILED, now);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn sentinel_leap_array_loses_samples_while_a_bucket_is_reset() {
    // Whoever finds its bucket being reset waits or writes into the old one; here both threads cross
    // fifty bucket ends together and every result is there.
    let breaker = breaker("over = \"60s\"\nbuckets = 60\nmode = \"metrics_only\"");
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..50_000).for_each(|n| call(&breaker, FAILED, start + ms(n))));
        }
    });
    let seen = breaker.snapshot(start + ms(50_000)).window;
    assert_eq!((seen.total, seen.failed), (100_000, 100_000));
}

#[test]
fn finagle_exponential_jittered_compounds_the_random_value() {
    // Theirs doubles what was drawn, so one small draw makes all that follow small. Ours draws each
    // anew: the mean of the fifth wait is half of its ceiling whatever came before.
    let range: BackoffRange = "10ms..10s".parse().expect("a range");
    let (rng, mut sum) = (Rng::new(3), Duration::ZERO);
    let runs = 4_000_u32;
    for _ in 0..runs {
        let mut backoff = Backoff::new(range, Jitter::Full);
        let waits: Vec<_> = (0..5).map(|_| backoff.next_wait(&rng)).collect();
        sum += waits[4];
    }
    let mean = (sum / runs).as_secs_f64();
    assert!((mean - 0.080).abs() < 0.004, "{mean}");
}
