//! The closed path of a core allocates nothing, and what a call through the stack allocates is
//! known.
//!
//! Counted by an allocator that counts for each thread, so tests that run beside these do not
//! matter. Each call is made a few times before: what a core allocates once is not its path.

use std::time::{Duration, Instant};

use allocation_counter::measure;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Empty;
use selvedge_resilience::{
    Outcome, Rng, TrafficPolicy,
    adaptive::{AdaptiveConfig, AdaptiveLimit},
    balance::{BalanceConfig, BalancePolicy, Balancer, Member, OutlierConfig, PickContext},
    breaker::{BreakerConfig, CircuitBreaker},
    bulkhead::Bulkhead,
    context::Priority,
    keyed::KeyedConfig,
    layer::{ReplayBody, Stack, Transport},
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

struct Noop;

impl Transport<u32, Empty<Bytes>> for Noop {
    type Body = Empty<Bytes>;
    type Error = std::convert::Infallible;
    async fn send(
        &self,
        _: &u32,
        _: Request<ReplayBody<Empty<Bytes>>>,
    ) -> Result<Response<Empty<Bytes>>, std::convert::Infallible> {
        Ok(Response::new(Empty::new()))
    }
}

/// What a call costs beyond what its request and answer are made of. More than this is a change that
/// somebody should know about.
#[tokio::test(start_paused = true)]
async fn a_call_of_the_stack() {
    let cases = [
        (r#"timeouts = { request = "0s" }"#, 0),
        (r#"timeouts = { request = "2s" }"#, 1),
        (
            r#"timeouts = { request = "2s" }
            breaker = {}
            bulkhead = 200
            rate_limit = "1000000000/s""#,
            1,
        ),
        // The head is copied, so that it can be sent again.
        (
            r#"timeouts = { request = "2s" }
            retry = { attempts = 2, budget = "20% min 3/s" }
            breaker = {}
            bulkhead = 200
            rate_limit = "1000000000/s""#,
            5,
        ),
    ];
    for (policy, most) in cases {
        let policy: TrafficPolicy = toml::from_str(policy).expect("a policy");
        let stack = Stack::<u32>::new(policy.clone()).expect("valid");
        stack.set_members((0..10).map(Member::new));
        let mut counts = Vec::new();
        for _ in 0..20 {
            let mut request = Request::get("http://orders/1")
                .body(Empty::new())
                .expect("valid");
            request
                .headers_mut()
                .insert(header::HOST, "orders".parse().expect("valid"));
            request.headers_mut().reserve(8);
            let mut call = std::pin::pin!(stack.call(&Noop, request, ()));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let counted = measure(|| {
                assert!(call.as_mut().poll(&mut context).is_ready());
            });
            counts.push(counted.count_total);
        }
        let usual = counts[10..].iter().max().copied().unwrap_or_default();
        assert!(usual <= most, "{policy:?}: {counts:?}");
    }
}
