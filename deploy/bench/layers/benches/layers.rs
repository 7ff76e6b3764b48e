//! Nanoseconds per call of our layers and of their peers, each over a service that does nothing.
//!
//! Every layer is set so that it lets the call through: the figure is the price of the good path,
//! which every request pays.
//!
//! - `one`: one thread calls.
//! - `two`: two threads call clones that share state, each on a runtime of its own; the time per
//!   call as each thread sees it.
//!
//! Each service is driven in the same way: readied, then called, with the same HTTP request, whose
//! making and dropping is in `baseline`. Subtract it.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    num::NonZeroU32,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use failsafe::CircuitBreaker as _;
use governor::{Quota, RateLimiter};
use http::{Request, Response};
use http_body_util::Empty;
use selvedge_resilience as ours;
use selvedge_resilience::layer as our_layers;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_resilience::{
    bulkhead::BulkheadLayer,
    circuitbreaker::CircuitBreakerLayer,
    ratelimiter::{RateLimiterLayer, WindowType},
    retry::RetryLayer,
    timelimiter::TimeLimiterLayer,
};

const BILLION: u32 = 1_000_000_000;
const SECOND: Duration = Duration::from_secs(1);

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().expect("a runtime")
}

/// `n` calls in one `block_on`, so that entering the runtime is not measured.
fn drive<R, S: Service<R>>(service: &mut S, n: u64, request: impl Fn(u64) -> R) -> Duration {
    runtime().block_on(async {
        let start = Instant::now();
        for x in 0..n {
            if let Ok(ready) = service.ready().await {
                black_box(ready.call(black_box(request(x))).await.is_ok());
            }
        }
        start.elapsed()
    })
}

/// `work(n)` on two threads that start together; their mean.
fn twice(n: u64, work: impl Fn(u64) -> Duration + Sync) -> Duration {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let run = || {
            barrier.wait();
            work(n)
        };
        let other = scope.spawn(run);
        (run() + other.join().expect("no panic")) / 2
    })
}

fn one<R, S: Service<R>>(
    c: &mut Criterion,
    name: &str,
    mut service: S,
    request: impl Fn(u64) -> R + Copy,
) {
    // A refusal must not be what is measured.
    runtime().block_on(async {
        let ready = service.ready().await.ok().expect("ready");
        assert!(ready.call(request(1)).await.is_ok(), "{name} refused");
    });
    c.bench_function(&format!("{name}/one"), |b| {
        b.iter_custom(|n| drive(&mut service, n, request));
    });
}

fn both<R, S>(c: &mut Criterion, name: &str, service: S, request: impl Fn(u64) -> R + Copy + Sync)
where
    S: Service<R> + Clone + Sync,
{
    one(c, name, service.clone(), request);
    c.bench_function(&format!("{name}/two"), |b| {
        b.iter_custom(|n| twice(n, |n| drive(&mut service.clone(), n, request)));
    });
}

type Body = Empty<Bytes>;

fn request(_: u64) -> Request<Body> {
    Request::new(Empty::new())
}

fn noop<B>(_: Request<B>) -> Ready<Result<Response<Body>, Infallible>> {
    ready(Ok(Response::new(Empty::new())))
}

// ---- ours -------------------------------------------------------------------------------------

fn our_own(c: &mut Criterion) {
    let base = || service_fn(noop::<Body>);
    both(c, "baseline", base(), request);
    let core = ours::breaker::CircuitBreaker::new(Default::default()).expect("valid");
    let layer = our_layers::BreakerLayer::new(core);
    both(c, "selvedge/breaker", layer.layer(base()), request);
    let layer = our_layers::BulkheadLayer::new(ours::bulkhead::Bulkhead::new(1_000));
    both(c, "selvedge/bulkhead", layer.layer(base()), request);
    let rate = ours::rate_limit::RateLimit::new("1000000000/s".parse().expect("a rate"));
    let layer = our_layers::RateLimitLayer::new(rate);
    both(c, "selvedge/rate_limit", layer.layer(base()), request);
    let layer = our_layers::TimeoutLayer::new(SECOND);
    both(c, "selvedge/timeout", layer.layer(base()), request);
    let layer = our_layers::RetryLayer::new(Default::default()).expect("valid");
    let base = || service_fn(noop::<our_layers::ReplayBody<Body>>);
    both(c, "selvedge/retry", layer.layer(base()), request);
    let policy = toml::from_str(
        r#"
        timeouts = { request = "2s" }
        retry = { attempts = 2, budget = "20% min 3/s" }
        breaker = {}
        bulkhead = 1000
        rate_limit = "1000000000/s"
        "#,
    );
    let timers = runtime();
    let _inside = timers.enter();
    let layer = our_layers::Stack::layer(policy.expect("a policy")).expect("valid");
    let name = "selvedge/stack(deadline+retry+breaker+bulkhead+rate_limit+balancer)";
    both(c, name, layer.layer(base()), request);
}

fn our_cores(c: &mut Criterion) {
    let now = Instant::now();
    let mut core = |name: &str, call: &(dyn Fn(u64) + Sync)| {
        let calls = |n: u64| {
            let start = Instant::now();
            (0..n).for_each(call);
            start.elapsed()
        };
        c.bench_function(&format!("{name}/one"), |b| b.iter_custom(calls));
        c.bench_function(&format!("{name}/two"), |b| {
            b.iter_custom(|n| twice(n, calls));
        });
    };
    // With the clock, as governor and failsafe read it themselves.
    let rate = ours::rate_limit::RateLimit::new("1000000000/s".parse().expect("a rate"));
    core("selvedge/rate_limit_core", &|_| {
        black_box(rate.try_acquire(black_box(now)).is_ok());
    });
    core("selvedge/rate_limit_core_and_clock", &|_| {
        black_box(rate.try_acquire(Instant::now()).is_ok());
    });
    let keyed = ours::rate_limit::KeyedRateLimitConfig {
        rate: "1000000000/s".parse().expect("a rate"),
        keys: Default::default(),
    };
    let keyed = ours::rate_limit::KeyedRateLimit::<u64>::new(keyed).expect("valid");
    core("selvedge/rate_limit_1024_keys_and_clock", &|n| {
        black_box(keyed.try_acquire(&(n % 1024), Instant::now()).is_ok());
    });
    let breaker = ours::breaker::CircuitBreaker::new(Default::default()).expect("valid");
    core("selvedge/breaker_core", &|_| {
        let permit = breaker.try_acquire(black_box(now)).expect("closed");
        permit.complete(ours::Outcome::Success, black_box(now));
    });
    core("selvedge/breaker_core_and_clock_twice", &|_| {
        let permit = breaker.try_acquire(Instant::now()).expect("closed");
        permit.complete(ours::Outcome::Success, Instant::now());
    });
}

// ---- the peers --------------------------------------------------------------------------------

#[derive(Clone)]
struct NeverRetry;

impl<Res, E> tower::retry::Policy<Request<Body>, Res, E> for NeverRetry {
    type Future = Ready<()>;
    fn retry(&mut self, _: &mut Request<Body>, _: &mut Result<Res, E>) -> Option<Ready<()>> {
        None
    }
    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

fn towers(c: &mut Criterion) {
    let base = || service_fn(noop::<Body>);
    let builder = ServiceBuilder::new;
    both(
        c,
        "tower/timeout",
        builder().timeout(SECOND).service(base()),
        request,
    );
    let limit = builder().concurrency_limit(1_000).service(base());
    both(c, "tower/concurrency_limit", limit, request);
    both(
        c,
        "tower/retry",
        builder().retry(NeverRetry).service(base()),
        request,
    );
    // Not Clone: to share it takes a Buffer. It asks for a timer when it is made.
    let timers = runtime();
    let _inside = timers.enter();
    let limit = builder().rate_limit(u64::MAX, SECOND).service(base());
    one(c, "tower/rate_limit", limit, request);
    let stack = builder()
        .load_shed()
        .concurrency_limit(1_000)
        .timeout(SECOND)
        .retry(NeverRetry)
        .service(base());
    both(
        c,
        "tower/stack(load_shed+limit+timeout+retry)",
        stack,
        request,
    );
}

fn tower_resiliences(c: &mut Criterion) {
    let base = || service_fn(noop::<Body>);
    let breaker = CircuitBreakerLayer::builder()
        .failure_rate_threshold(0.5)
        .sliding_window_size(100)
        .build()
        .expect("a breaker");
    both(
        c,
        "tower-resilience/breaker",
        breaker.layer_fn(base()),
        request,
    );
    let bulkhead = BulkheadLayer::builder()
        .max_concurrent_calls(1_000)
        .reject_when_full()
        .build()
        .expect("a bulkhead");
    let bulkhead = ServiceBuilder::new().layer(bulkhead).service(base());
    both(c, "tower-resilience/bulkhead", bulkhead, request);
    let retry = RetryLayer::<Request<Body>, Response<Body>, _>::builder()
        .max_attempts(3)
        .exponential_backoff(Duration::from_millis(10))
        .build();
    let retry = ServiceBuilder::new().layer(retry).service(base());
    both(c, "tower-resilience/retry", retry, request);
    for (name, window) in [
        ("tower-resilience/rate_limit_fixed", WindowType::Fixed),
        (
            "tower-resilience/rate_limit_sliding",
            WindowType::SlidingCounter,
        ),
    ] {
        let limiter = RateLimiterLayer::builder()
            .limit_for_period(BILLION as usize)
            .refresh_period(SECOND)
            .window_type(window)
            .timeout_duration(Duration::ZERO)
            .build()
            .expect("a limiter");
        let limiter = ServiceBuilder::new().layer(limiter).service(base());
        both(c, name, limiter, request);
    }
    let time = TimeLimiterLayer::builder()
        .timeout_duration(SECOND)
        .cancel_running_future(true)
        .build();
    let time = ServiceBuilder::new().layer(time).service(base());
    both(c, "tower-resilience/timeout", time, request);
}

fn plain_calls(c: &mut Criterion) {
    let mut plain = |name: &str, call: &(dyn Fn(u64) + Sync)| {
        let calls = |n: u64| {
            let start = Instant::now();
            (0..n).for_each(call);
            start.elapsed()
        };
        c.bench_function(&format!("{name}/one"), |b| b.iter_custom(calls));
        c.bench_function(&format!("{name}/two"), |b| {
            b.iter_custom(|n| twice(n, calls));
        });
    };
    let quota = Quota::per_second(NonZeroU32::new(BILLION).expect("not 0"));
    let limiter = Arc::new(RateLimiter::direct(quota));
    plain("governor/check", &|_| {
        black_box(limiter.check().is_ok());
    });
    let keyed = RateLimiter::keyed(quota);
    plain("governor/check_key_1024", &|n| {
        black_box(keyed.check_key(&(n % 1024)).is_ok());
    });
    let breaker = failsafe::Config::new().build();
    plain("failsafe/call", &|x| {
        black_box(breaker.call(|| Ok::<_, ()>(black_box(x))).is_ok());
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
        .sample_size(15);
    targets = our_own, our_cores, towers, tower_resiliences, plain_calls
}
criterion_main!(benches);
