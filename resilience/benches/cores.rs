//! Nanoseconds that a policy core costs a call that it lets through.
//!
//! - `one`: one thread calls.
//! - `two`: two threads share one core; the time per call as each of them sees it. Equal to `one`:
//!   no contention. It needs two processors that do nothing else.
//!
//! `now` is read once and handed in: reading the clock is the adapter's and is not in the figures.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    reason = "a bench reads the clock, and criterion's macros write no docs"
)]

use std::{
    hint::black_box,
    sync::Barrier,
    task::Waker,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use selvedge_resilience::{
    Outcome, Rng,
    adaptive::{AdaptiveConfig, AdaptiveLimit},
    balance::{BalanceConfig, BalancePolicy, Balancer, Member, OutlierConfig, PickContext},
    breaker::{BreakerConfig, CircuitBreaker, Window},
    bulkhead::Bulkhead,
    coalesce::{Coalescer, Joined, Key},
    context::Priority,
    fault::{FaultConfig, Faults},
    keyed::KeyedConfig,
    rate_limit::{KeyedRateLimit, KeyedRateLimitConfig, RateLimit},
    retry::{
        backoff::{Backoff, Jitter},
        budget::Budget,
    },
    shed::{ShedConfig, Shedder},
    throttle::{Throttle, ThrottleConfig},
};

/// `n` calls, and how long they took.
fn time(n: u64, mut call: impl FnMut(u64)) -> Duration {
    let start = Instant::now();
    (0..n).for_each(&mut call);
    start.elapsed()
}

/// The same on two threads that start together; their mean.
fn twice(n: u64, call: impl Fn(u64) + Sync) -> Duration {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let run = || {
            barrier.wait();
            time(n, &call)
        };
        let other = scope.spawn(run);
        (run() + other.join().expect("no panic")) / 2
    })
}

fn both(c: &mut Criterion, name: &str, call: impl Fn(u64) + Sync) {
    c.bench_function(&format!("core/{name}/one"), |b| {
        b.iter_custom(|n| time(n, &call));
    });
    c.bench_function(&format!("core/{name}/two"), |b| {
        b.iter_custom(|n| twice(n, &call));
    });
}

/// Never refuses: a cell each nanosecond.
const EVER: &str = "1000000000/s";

fn admission(c: &mut Criterion) {
    let now = Instant::now();
    both(c, "nothing", |n| {
        black_box(n);
    });

    for (name, over) in [
        ("time", "10s"),
        ("count", "100 calls"),
        ("fading", "fading 100 calls"),
    ] {
        let over: Window = over.parse().expect("a window");
        let config = BreakerConfig {
            over,
            ..BreakerConfig::default()
        };
        let breaker = CircuitBreaker::new(config).expect("valid");
        both(c, &format!("breaker_{name}"), |_| {
            let permit = breaker.try_acquire(black_box(now)).expect("closed");
            permit.complete(Outcome::Success, black_box(now));
        });
    }

    let bulkhead = Bulkhead::new(1_000);
    both(c, "bulkhead", |_| {
        drop(black_box(bulkhead.try_acquire()));
    });

    let limit = AdaptiveLimit::new(AdaptiveConfig::default(), Rng::new(1)).expect("valid");
    let later = now + Duration::from_millis(10);
    both(c, "adaptive", |_| {
        let permit = limit.try_acquire(black_box(now)).expect("room");
        permit.complete(Outcome::Success, black_box(later));
    });

    let rate = RateLimit::new(EVER.parse().expect("a rate"));
    both(c, "rate_limit", |_| {
        black_box(rate.try_acquire(black_box(now)).is_ok());
    });

    assert_eq!(
        rate.rejected(),
        0,
        "a refusal is not what is to be measured"
    );

    let config = KeyedRateLimitConfig {
        rate: EVER.parse().expect("a rate"),
        keys: KeyedConfig::default(),
    };
    let keyed = KeyedRateLimit::<u64>::new(config).expect("valid");
    both(c, "rate_limit_1024_keys", |n| {
        black_box(keyed.try_acquire(&(n % 1024), black_box(now)).is_ok());
    });

    let throttle = Throttle::new(ThrottleConfig::default(), Rng::new(1)).expect("valid");
    both(c, "throttle", |_| {
        let permit = throttle.try_acquire(black_box(now)).expect("accepted");
        permit.complete(Outcome::Success, black_box(now));
    });

    let shedder = Shedder::new(ShedConfig::default()).expect("valid");
    both(c, "shed", |_| {
        let ticket = shedder.admit(black_box(Priority::DEFAULT), black_box(now));
        ticket.expect("no queue").begun(black_box(now));
    });

    let budget = Budget::new("20% min 3/s".parse().expect("a budget")).expect("valid");
    both(c, "budget_of_a_call", |_| {
        drop(black_box(budget.begin(black_box(now))));
    });

    let range = "25ms..250ms".parse().expect("a range");
    let rng = Rng::new(1);
    both(c, "backoff", |_| {
        let mut backoff = Backoff::new(black_box(range), Jitter::Full);
        black_box(backoff.next_wait(&rng));
    });

    let faults = Faults::new(&FaultConfig::default(), Rng::new(1)).expect("valid");
    let headers = http::HeaderMap::new();
    both(c, "fault_none", |_| {
        black_box(faults.decide(black_box(&headers)));
    });
}

/// Whoever asks alone makes the call; with somebody who asks the same, one call answers both.
fn coalescing(c: &mut Criterion) {
    let keys: Vec<Key> = (0..1_024_u64)
        .map(|n| Key::new(format!("GET http://orders/{n}").into_bytes()))
        .collect();
    let key = |n: u64| keys[(n % 1_024) as usize].clone();
    let coalescer = Coalescer::<u64>::new(4_096);
    both(c, "coalesce_alone", |n| {
        // The other thread may ask the same just then.
        if let Joined::Lead(lead) = coalescer.join(key(n)) {
            lead.share(black_box(n));
        }
    });
    let coalescer = Coalescer::<u64>::new(4_096);
    both(c, "coalesce_with_a_follower", |n| {
        if let (Joined::Lead(lead), Joined::Follow(mut follow)) =
            (coalescer.join(key(n)), coalescer.join(key(n)))
        {
            lead.share(black_box(n));
            black_box(follow.poll(Waker::noop()).is_ready());
        }
    });
}

fn picks(c: &mut Criterion) {
    let now = Instant::now();
    let policies = [
        ("peak_ewma", BalancePolicy::PeakEwma),
        ("least_request", BalancePolicy::LeastRequest),
        ("round_robin", BalancePolicy::RoundRobin),
        ("random", BalancePolicy::Random),
        ("ring_hash", BalancePolicy::RingHash),
        ("maglev", BalancePolicy::Maglev),
    ];
    for (name, policy) in policies {
        for members in [10, 1_000] {
            let config = BalanceConfig {
                policy,
                ..BalanceConfig::default()
            };
            let balancer = Balancer::new(config, OutlierConfig::default(), Rng::new(1));
            let balancer = balancer.expect("valid");
            balancer.set_members((0..members).map(Member::<u32>::new), now);
            let call = |n: u64| {
                let mut context = PickContext::at(black_box(now));
                context.hash = Some(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                balancer.pick(&context).expect("members")
            };
            both(c, &format!("pick_{name}_of_{members}"), |n| drop(call(n)));
            both(c, &format!("pick_and_complete_{name}_of_{members}"), |n| {
                black_box(call(n).complete(Outcome::Success, black_box(now)));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
        .sample_size(15);
    targets = admission, coalescing, picks
}
criterion_main!(benches);
