//! The closed path of a core allocates nothing, and what a call through the stack allocates is
//! known.
//!
//! Counted by an allocator that counts for each thread, so tests that run beside these do not
//! matter. Each call is made a few times before: what a core allocates once is not its path.

use std::time::{Duration, Instant};

use allocation_counter::measure;
use selvedge_resilience::{
    Outcome, Rng,
    adaptive::{AdaptiveConfig, AdaptiveLimit},
    balance::{BalanceConfig, BalancePolicy, Balancer, Member, OutlierConfig, PickContext},
    breaker::{BreakerConfig, CircuitBreaker},
    bulkhead::Bulkhead,
    context::Priority,
    keyed::KeyedConfig,
    rate_limit::{KeyedRateLimit, KeyedRateLimitConfig, RateLimit},
    retry::budget::Budget,
    shed::{ShedConfig, Shedder},
    throttle::{Throttle, ThrottleConfig},
};

/// A thousand calls, a millisecond apart, so that windows move on meanwhile.
fn allocates_nothing(name: &str, start: Instant, mut call: impl FnMut(Instant)) {
    let at = |n: u64| start + Duration::from_millis(n);
    (0..10).for_each(|n| call(at(n)));
    let counted = measure(|| (10..1_010).for_each(|n| call(at(n))));
    assert_eq!(counted.count_total, 0, "{name}: {counted:?}");
}

#[test]
fn what_counts_counts() {
    let counted = measure(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn the_closed_path_of_no_core_allocates() {
    let now = Instant::now();
    for over in ["10s", "100 calls", "fading 100 calls"] {
        let config = BreakerConfig {
            over: over.parse().expect("a window"),
            ..BreakerConfig::default()
        };
        let breaker = CircuitBreaker::new(config).expect("valid");
        allocates_nothing(over, now, |now| {
            let permit = breaker.try_acquire(now).expect("closed");
            permit.complete(Outcome::Success, now + Duration::from_millis(1));
        });
    }
    let bulkhead = Bulkhead::new(10);
    allocates_nothing("bulkhead", now, |_| {
        drop(bulkhead.try_acquire().expect("room"));
    });
    let limit = AdaptiveLimit::new(AdaptiveConfig::default(), Rng::new(1)).expect("valid");
    allocates_nothing("adaptive", now, |now| {
        let permit = limit.try_acquire(now).expect("room");
        permit.complete(Outcome::Success, now + Duration::from_millis(1));
    });
    let rate = RateLimit::new("1000000/s".parse().expect("a rate"));
    allocates_nothing("rate_limit", now, |now| {
        rate.try_acquire(now).expect("conforms");
    });
    let config = KeyedRateLimitConfig {
        rate: "1000000/s".parse().expect("a rate"),
        keys: KeyedConfig::default(),
    };
    let keyed = KeyedRateLimit::<u64>::new(config).expect("valid");
    let mut n = 0;
    allocates_nothing("rate_limit of a known key", now, |now| {
        n += 1;
        keyed.try_acquire(&(n % 8), now).expect("conforms");
    });
    let throttle = Throttle::new(ThrottleConfig::default(), Rng::new(1)).expect("valid");
    allocates_nothing("throttle", now, |now| {
        let permit = throttle.try_acquire(now).expect("accepted");
        permit.complete(Outcome::Success, now);
    });
    let shedder = Shedder::new(ShedConfig::default()).expect("valid");
    allocates_nothing("shed", now, |now| {
        shedder
            .admit(Priority::DEFAULT, now)
            .expect("no queue")
            .begun(now);
    });
    let budget = Budget::new("100% min 3/s".parse().expect("a budget")).expect("valid");
    allocates_nothing("budget of a call and its retry", now, |now| {
        let call = budget.begin(now);
        drop(call.try_extra(now).expect("paid"));
    });
}

#[test]
fn no_pick_allocates() {
    let now = Instant::now();
    for policy in [
        BalancePolicy::PeakEwma,
        BalancePolicy::LeastRequest,
        BalancePolicy::RoundRobin,
        BalancePolicy::Random,
        BalancePolicy::RingHash,
        BalancePolicy::Maglev,
    ] {
        let config = BalanceConfig {
            policy,
            ..BalanceConfig::default()
        };
        let balancer = Balancer::new(config, OutlierConfig::default(), Rng::new(1)).expect("valid");
        balancer.set_members((0..100).map(Member::<u32>::new), now);
        let mut n = 0_u64;
        allocates_nothing(&format!("{policy:?}"), now, |now| {
            n += 1;
            let mut context = PickContext::at(now);
            context.hash = Some(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let pick = balancer.pick(&context).expect("members");
            pick.complete(Outcome::Success, now + Duration::from_millis(1));
        });
    }
}
