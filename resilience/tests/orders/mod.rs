//! Layers by hand: what the page of `layer` says of a wrong order, seen beside the right one.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use selvedge_resilience::{
    breaker::{BreakerConfig, CircuitBreaker},
    bulkhead::Bulkhead,
    fallback::FallbackConfig,
    fault::{FaultConfig, Faults},
    layer::{
        BreakerLayer, BulkheadLayer, Error, FallbackLayer, FaultLayer, RetryLayer, TimeoutLayer,
    },
    retry::RetryConfig,
};
use tokio::time::Instant;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
    toml::from_str(text).expect(text)
}

fn retry() -> RetryLayer {
    let config: RetryConfig = read(
        "attempts = 2\nbackoff = \"50ms..50ms\"\njitter = \"none\"\nbudget = \"100% min 100/s\"",
    );
    RetryLayer::new(config).expect("valid")
}

fn breaker(text: &str) -> CircuitBreaker {
    CircuitBreaker::new(read::<BreakerConfig>(text)).expect("valid")
}

/// Says `status` to each try, and counts them.
fn says<B>(
    status: u16,
    tries: &Arc<AtomicU32>,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone
{
    let tries = Arc::clone(tries);
    service_fn(move |_: Request<B>| {
        tries.fetch_add(1, Ordering::Relaxed);
        let answer = Response::builder().status(status).body(Full::default());
        std::future::ready(Ok(answer.expect("a status")))
    })
}

/// Answers nobody.
fn hangs<B>()
-> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone
{
    service_fn(|_: Request<B>| std::future::pending())
}

fn asked() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

#[tokio::test(start_paused = true)]
async fn a_breaker_outside_a_retry_sees_one_failure_of_three() {
    let tries = Arc::default();
    let inside = breaker("consecutive = 100");
    let service = ServiceBuilder::new()
        .map_err(Error::flat)
        .layer(retry())
        .layer(BreakerLayer::new(inside.clone()))
        .service(says(503, &tries));
    let answer = service.oneshot(asked()).await.expect("an answer");
    answer.into_body().collect().await.expect("a body");
    assert_eq!(inside.calls().failures(), 3);

    let outside = breaker("consecutive = 100");
    let service = ServiceBuilder::new()
        .layer(BreakerLayer::new(outside.clone()))
        .layer(retry())
        .service(says(503, &tries));
    let answer = service.oneshot(asked()).await.expect("an answer");
    answer.into_body().collect().await.expect("a body");
    assert_eq!(outside.calls().failures(), 1);
    assert_eq!(tries.load(Ordering::Relaxed), 6);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_inside_a_timeout_never_hears_of_a_hang() {
    let outside = breaker("consecutive = 100");
    let service = ServiceBuilder::new()
        .layer(BreakerLayer::new(outside.clone()))
        .layer(TimeoutLayer::new(ms(100)))
        .service(hangs());
    let late = service.oneshot(asked()).await;
    assert!(late.is_err());
    assert_eq!(outside.calls().failures(), 1);

    let inside = breaker("consecutive = 100");
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(ms(100)))
        .layer(BreakerLayer::new(inside.clone()))
        .service(hangs());
    let late = service.oneshot(asked()).await;
    assert!(late.is_err());
    let calls = inside.calls();
    assert_eq!((calls.failures(), calls.cancelled), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_outside_a_retry_is_full_of_those_who_wait() {
    for (is_outside, want) in [(true, 1), (false, 0)] {
        let (slots, tries) = (Bulkhead::new(9), Arc::default());
        let call = async {
            let bulkhead = BulkheadLayer::new(slots.clone());
            if is_outside {
                let service = ServiceBuilder::new().layer(bulkhead).layer(retry());
                let answer = service.service(says(503, &tries)).oneshot(asked()).await;
                assert!(answer.is_ok());
            } else {
                let service = ServiceBuilder::new().layer(retry()).layer(bulkhead);
                let answer = service.service(says(503, &tries)).oneshot(asked()).await;
                assert!(answer.is_ok());
            }
        };
        let between_two_tries = async {
            tokio::time::sleep(ms(25)).await;
            slots.in_flight()
        };
        let ((), held) = tokio::join!(call, between_two_tries);
        assert_eq!(held, want, "outside: {is_outside}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_total_deadline_inside_a_retry_bounds_no_call() {
    let began = Instant::now();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(ms(100)))
        .layer(retry())
        .service(hangs());
    assert!(service.oneshot(asked()).await.is_err());
    assert_eq!(began.elapsed(), ms(100));

    let tries = Arc::default();
    let began = Instant::now();
    let service = ServiceBuilder::new()
        .layer(retry())
        .layer(TimeoutLayer::new(ms(100)))
        .service(says(503, &tries));
    assert_eq!(
        service.oneshot(asked()).await.expect("an answer").status(),
        503
    );
    assert_eq!(
        began.elapsed(),
        ms(100),
        "two waits of 50 ms, and none of them its own"
    );
    assert_eq!(tries.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_inside_a_retry_hides_what_might_have_been_answered() {
    let fallback = || {
        let config: FallbackConfig =
            read("statuses = [503]\nanswer = { status = 200, body = \"old\" }");
        FallbackLayer::fixed(config).expect("valid")
    };
    let tries = Arc::default();
    let service = ServiceBuilder::new()
        .layer(fallback())
        .layer(retry())
        .service(says(503, &tries));
    assert_eq!(
        service.oneshot(asked()).await.expect("an answer").status(),
        200
    );
    assert_eq!(tries.swap(0, Ordering::Relaxed), 3, "it is the last resort");

    let service = ServiceBuilder::new()
        .layer(retry())
        .layer(fallback())
        .service(says(503, &tries));
    assert_eq!(
        service.oneshot(asked()).await.expect("an answer").status(),
        200
    );
    assert_eq!(tries.load(Ordering::Relaxed), 1, "it is the first");
}

#[tokio::test(start_paused = true)]
async fn faults_outside_a_policy_do_not_test_it() {
    let faults = || {
        let config: FaultConfig = read("abort = { status = 503, percentage = \"100%\" }");
        FaultLayer::new(Faults::new(&config, selvedge_resilience::Rng::new(1)).expect("valid"))
    };
    let tries = Arc::default();
    let (inside, outside) = (breaker("consecutive = 100"), breaker("consecutive = 100"));
    let service = ServiceBuilder::new()
        .layer(BreakerLayer::new(inside.clone()))
        .layer(faults())
        .service(says(200, &tries));
    let answer = service.oneshot(asked()).await.expect("an answer");
    drop(answer);
    assert_eq!(inside.calls().failures(), 1);

    let service = ServiceBuilder::new()
        .layer(faults())
        .layer(BreakerLayer::new(outside.clone()))
        .service(says(200, &tries));
    drop(service.oneshot(asked()).await.expect("an answer"));
    assert_eq!(outside.calls().admitted(), 0);
}
