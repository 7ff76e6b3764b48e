//! Nanoseconds per call of each layer, and of the whole outbound stack, over a service that answers
//! at once.
//!
//! The peers are measured in the same way by `deploy/bench/layers`. `baseline` is the bare service,
//! driven alike: subtract it.
//!
//! - `one`: one thread calls; `two`: two threads call clones that share state, each on a runtime of
//!   its own.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    reason = "a bench reads the clock, and criterion's macros write no docs"
)]

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::Empty;
use selvedge_resilience::{
    Rng, TrafficPolicy,
    adaptive::{AdaptiveConfig, AdaptiveLimit},
    balance::Member,
    breaker::{BreakerConfig, CircuitBreaker},
    bulkhead::Bulkhead,
    coalesce::CoalesceConfig,
    layer::{
        AdaptiveLayer, BreakerLayer, BulkheadLayer, CoalesceLayer, RateLimitLayer, ReplayBody,
        RetryLayer, Stack, TimeoutLayer, Transport,
    },
    rate_limit::RateLimit,
    retry::RetryConfig,
};
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = Empty<Bytes>;

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().expect("a runtime")
}

fn request() -> Request<Body> {
    Request::new(Empty::new())
}

/// `n` calls in one `block_on`, so that entering the runtime is not measured.
fn drive(n: u64, mut call: impl AsyncFnMut() -> bool) -> Duration {
    runtime().block_on(async {
        assert!(call().await, "a refusal is not what is to be measured");
        let start = Instant::now();
        for _ in 0..n {
            black_box(call().await);
        }
        start.elapsed()
    })
}

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

fn both(c: &mut Criterion, name: &str, work: impl Fn(u64) -> Duration + Sync) {
    c.bench_function(&format!("layer/{name}/one"), |b| b.iter_custom(&work));
    c.bench_function(&format!("layer/{name}/two"), |b| {
        b.iter_custom(|n| twice(n, &work));
    });
}

/// A service around the one that does nothing.
fn service<S>(c: &mut Criterion, name: &str, service: S)
where
    S: Service<Request<Body>> + Clone + Sync,
{
    both(c, name, |n| {
        let mut service = service.clone();
        drive(n, async || match service.ready().await {
            Ok(ready) => ready.call(black_box(request())).await.is_ok(),
            Err(_) => false,
        })
    });
}

fn noop<B>(_: Request<B>) -> Ready<Result<Response<Body>, Infallible>> {
    ready(Ok(Response::new(Empty::new())))
}

fn layers(c: &mut Criterion) {
    let base = || service_fn(noop::<Body>);
    service(c, "baseline", base());
    let breaker = CircuitBreaker::new(BreakerConfig::default()).expect("valid");
    service(c, "breaker", BreakerLayer::new(breaker).layer(base()));
    service(
        c,
        "bulkhead",
        BulkheadLayer::new(Bulkhead::new(1_000)).layer(base()),
    );
    let limit = AdaptiveLimit::new(AdaptiveConfig::default(), Rng::new(1)).expect("valid");
    service(c, "adaptive", AdaptiveLayer::new(limit).layer(base()));
    let rate = RateLimit::new("1000000000/s".parse().expect("a rate"));
    service(c, "rate_limit", RateLimitLayer::new(rate).layer(base()));
    service(
        c,
        "timeout",
        TimeoutLayer::new(Duration::from_secs(1)).layer(base()),
    );
    let retry = RetryLayer::new(RetryConfig::default()).expect("valid");
    service(
        c,
        "retry",
        retry.layer(service_fn(noop::<ReplayBody<Body>>)),
    );
    // A question that has a key: without a host there is none.
    let uri = http::Uri::from_static("http://orders/1");
    let aim = move |mut request: Request<Body>| {
        *request.uri_mut() = uri.clone();
        request
    };
    let aimed = base().map_request(aim.clone());
    service(c, "baseline_with_uri", aimed);
    let coalesce = CoalesceLayer::new(&CoalesceConfig::default()).expect("valid");
    service(c, "coalesce", coalesce.layer(base()).map_request(aim));
}

#[derive(Clone, Copy)]
struct Noop;

impl Transport<u32, Body> for Noop {
    type Body = Body;
    type Error = Infallible;
    fn send(
        &self,
        _: &u32,
        request: Request<ReplayBody<Body>>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send {
        black_box(request);
        ready(Ok(Response::new(Empty::new())))
    }
}

/// Sections are added one by one, so that the table tells what each costs.
const STACKS: &[(&str, &str)] = &[
    ("stack_of_nothing", r#"timeouts = { request = "0s" }"#),
    ("stack_deadline", r#"timeouts = { request = "2s" }"#),
    (
        "stack_retry",
        r#"timeouts = { request = "2s" }
        retry = { attempts = 2, budget = "20% min 3/s" }"#,
    ),
    (
        "stack_breaker",
        r#"timeouts = { request = "2s" }
        retry = { attempts = 2, budget = "20% min 3/s" }
        breaker = {}"#,
    ),
    (
        "stack_bulkhead",
        r#"timeouts = { request = "2s" }
        retry = { attempts = 2, budget = "20% min 3/s" }
        breaker = {}
        bulkhead = 200"#,
    ),
    (
        "stack_whole",
        r#"timeouts = { request = "2s" }
        retry = { attempts = 2, budget = "20% min 3/s" }
        breaker = {}
        bulkhead = 200
        rate_limit = "1000000000/s""#,
    ),
    (
        "stack_whole_and_try_timeout",
        r#"timeouts = { request = "2s", backendRequest = "500ms" }
        retry = { attempts = 2, budget = "20% min 3/s" }
        breaker = {}
        bulkhead = 200
        rate_limit = "1000000000/s""#,
    ),
];

fn stacks(c: &mut Criterion) {
    for (name, policy) in STACKS {
        let policy: TrafficPolicy = toml::from_str(policy).expect("a policy");
        let stack = runtime().block_on(async { Stack::new(policy).expect("valid") });
        runtime().block_on(async { stack.set_members((0..10).map(Member::new)) });
        both(c, name, |n| {
            drive(n, async || {
                stack.call(&Noop, black_box(request()), ()).await.is_ok()
            })
        });
    }
    let policy: TrafficPolicy = toml::from_str(STACKS[5].1).expect("a policy");
    let layer = runtime().block_on(async { Stack::layer(policy).expect("valid") });
    let whole = layer.layer(service_fn(noop::<ReplayBody<Body>>));
    service(c, "stack_whole_as_a_layer", whole);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
        .sample_size(15);
    targets = layers, stacks
}
criterion_main!(benches);
