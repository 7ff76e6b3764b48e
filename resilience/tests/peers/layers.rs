//! What peers' layers do that these must not.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use selvedge_resilience::{
    breaker::CircuitBreaker,
    bulkhead::Bulkhead,
    coalesce::CoalesceConfig,
    layer::{
        BreakerLayer, BulkheadLayer, CoalesceLayer, Error, PolicyFuture, RateLimitLayer, Stack,
    },
    rate_limit::RateLimit,
};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::{breaker, ms};

type Answer = Result<Response<Full<Bytes>>, Infallible>;

/// Borrows, is no clone of anything and stays on its thread.
struct Borrows<'a>(&'a Cell<u32>);

impl Service<Request<()>> for Borrows<'_> {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Answer>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: Request<()>) -> Self::Future {
        self.0.set(self.0.get() + 1);
        ready(Ok(Response::new(Full::default())))
    }
}

#[tokio::test(start_paused = true)]
async fn tower_resilience_boxes_every_call_and_wants_services_that_are_clones() {
    let calls = Cell::new(0);
    let (circuit, slots) = (breaker("consecutive = 1"), Bulkhead::new(1));
    let mut service =
        BreakerLayer::new(circuit).layer(BulkheadLayer::new(slots).layer(Borrows(&calls)));
    let allocated = (0..20).map(|_| {
        let request = Request::new(());
        let counted = allocation_counter::measure(|| {
            let mut call = std::pin::pin!(service.call(request));
            let mut context = Context::from_waker(Waker::noop());
            assert!(call.as_mut().poll(&mut context).is_ready());
        });
        counted.count_total
    });
    assert_eq!(allocated.last(), Some(0));
    assert_eq!(calls.get(), 20);
    // And the future has a name.
    let mut service = BulkheadLayer::new(Bulkhead::new(1)).layer(Borrows(&calls));
    let named: PolicyFuture<Ready<Answer>, selvedge_resilience::bulkhead::Permit> =
        service.call(Request::new(()));
    drop(named);
}

#[tokio::test(start_paused = true)]
async fn tower_resilience_asks_the_clock_that_tests_cannot_pause() {
    let limit = RateLimit::new("1/s burst 1".parse().expect("a rate"));
    let service = RateLimitLayer::new(limit).layer(service_fn(|_: Request<()>| async {
        Answer::Ok(Response::default())
    }));
    let call = || service.clone().oneshot(Request::new(()));
    assert!(call().await.is_ok());
    assert!(call().await.is_err());
    tokio::time::advance(ms(1_000)).await;
    assert!(
        call().await.is_ok(),
        "a second has passed, though not on the wall"
    );
}

#[tokio::test(start_paused = true)]
async fn tower_resilience_coalescing_spins_while_it_waits() {
    let layer = CoalesceLayer::new(&CoalesceConfig::default()).expect("works");
    let mut service = layer.layer(service_fn(|_: Request<Empty<Bytes>>| async {
        tokio::time::sleep(ms(1_000)).await;
        Answer::Ok(Response::new(Full::from("one")))
    }));
    let get = || Request::get("http://h/").body(Empty::new()).expect("valid");
    let leader = tokio::spawn(service.call(get()));
    let polls = AtomicU32::new(0);
    let mut follower = std::pin::pin!(service.call(get()));
    let counted = std::future::poll_fn(|cx| {
        polls.fetch_add(1, Ordering::Relaxed);
        follower.as_mut().poll(cx)
    });
    let (answer, led) = tokio::join!(counted, leader);
    assert!(answer.is_ok() && led.expect("no panic").is_ok());
    // Once to begin to wait, once for the answer.
    assert_eq!(polls.into_inner(), 2);
}

#[tokio::test(start_paused = true)]
async fn linkerd_a_future_dropped_before_its_head_reports_nothing() {
    let circuit = breaker("consecutive = 1\nslow_after = \"1s\"");
    let service = BreakerLayer::new(circuit.clone()).layer(service_fn(|_: Request<()>| {
        std::future::pending::<Answer>()
    }));
    let cut = |after| tokio::time::timeout(after, service.clone().oneshot(Request::new(())));
    assert!(cut(ms(10)).await.is_err());
    assert_eq!(
        (circuit.calls().cancelled, circuit.calls().in_flight),
        (1, 0)
    );
    // And one that was dropped because it hangs is a hang.
    assert!(cut(ms(1_001)).await.is_err());
    assert_eq!(circuit.state().as_str(), "open");
}

/// Says that it has ended, and is never to be polled.
struct Ended;

impl Body for Ended {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("it has said that it has ended")
    }
    fn is_end_stream(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn hyper_never_polls_a_body_that_has_ended() {
    // HEAD, 204, 304, a length of zero: a permit that waits for the body's end would stay with an
    // answer that somebody keeps.
    let slots = Bulkhead::new(1);
    let service = BulkheadLayer::new(slots.clone()).layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Ended))
    }));
    let answer = service.oneshot(Request::new(())).await.expect("answer");
    assert_eq!(slots.in_flight(), 0);
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn tower_concurrency_limit_frees_its_slot_at_the_head() {
    // hyper-util PR #297, tower-http PR #447: the callee works until the body has ended.
    let policy = toml::from_str("bulkhead = 1").expect("a policy");
    let layer = Stack::layer(policy).expect("works");
    let service = layer.layer(service_fn(|_: Request<_>| async {
        Answer::Ok(Response::new(Full::from("body")))
    }));
    let request = || Request::new(Empty::<Bytes>::new());
    let answer = service.clone().oneshot(request()).await.expect("answer");
    let refused = service.clone().oneshot(request()).await;
    assert!(matches!(refused, Err(Error::Rejected(_))));
    assert_eq!(
        answer
            .into_body()
            .collect()
            .await
            .expect("whole")
            .to_bytes(),
        "body"
    );
    assert!(service.oneshot(request()).await.is_ok());
}

/// A core under a layer is the caller's, to be read and changed while it runs.
#[tokio::test(start_paused = true)]
async fn resilience4j_299_a_new_configuration_forgets_the_state() {
    let circuit: CircuitBreaker = breaker("consecutive = 2\nopen_for = \"60s\"");
    let service = BreakerLayer::new(circuit.clone()).layer(service_fn(|_: Request<()>| async {
        let answer = Response::builder().status(503);
        Answer::Ok(answer.body(Full::default()).expect("valid"))
    }));
    for _ in 0..2 {
        let answer = service.clone().oneshot(Request::new(())).await;
        drop(answer.expect("the callee's own"));
    }
    let config = toml::from_str("consecutive = 9\nopen_for = \"60s\"").expect("parses");
    circuit.reconfigure(config).expect("valid");
    let refused = service.oneshot(Request::new(())).await;
    assert!(matches!(refused, Err(Error::Rejected(_))), "still open");
}
