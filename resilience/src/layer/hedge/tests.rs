//! Hedges over scripted callees, in paused time.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use parking_lot::Mutex;
use tower::{Layer as _, ServiceBuilder, ServiceExt, util::BoxCloneService};

use super::*;
use crate::{
    Reason,
    bulkhead::Bulkhead,
    config::Millis,
    context::{Deadline, deadline},
    layer::{BulkheadLayer, Error, RetryLayer, TimeoutLayer},
    outcome::{Policy, Rejected},
    retry::budget::InFlight,
    retry::{Idempotent, RetryConfig},
};

type Frames = Vec<Result<Frame<Bytes>, Infallible>>;
type Reply = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;
type Sent<B> = Request<ReplayBody<B>>;

const HANG: u64 = 1_000_000;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn reply(status: u16, frames: Frames) -> Response<Reply> {
    let body = StreamBody::new(stream::iter(frames));
    let answer = Response::builder().status(status);
    answer.body(body).expect("valid")
}

fn plain(status: u16) -> Response<Reply> {
    reply(status, vec![Ok(Frame::data(Bytes::from_static(b"x")))])
}

fn grpc(frame: Frame<Bytes>) -> Response<Reply> {
    let mut answer = reply(200, vec![Ok(frame)]);
    let grpc = HeaderValue::from_static("application/grpc");
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, grpc);
    answer
}

fn trailers(code: &'static str) -> Frame<Bytes> {
    let name = HeaderName::from_static("grpc-status");
    Frame::trailers(HeaderMap::from_iter([(
        name,
        HeaderValue::from_static(code),
    )]))
}

/// A try: how long it takes and what it comes to.
type Try = (u64, Result<Response<Reply>, BoxError>);

fn ok(after: u64, status: u16) -> Try {
    (after, Ok(plain(status)))
}

/// A callee that answers from a list, then with 200 at once, and keeps what it was sent.
#[derive(Clone, Default)]
struct Callee {
    tries: Arc<Mutex<VecDeque<Try>>>,
    seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    under_way: Arc<AtomicUsize>,
}

struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Client<B> = BoxCloneService<Sent<B>, Response<Reply>, BoxError>;

impl Callee {
    fn new(tries: impl IntoIterator<Item = Try>) -> Self {
        Self {
            tries: Arc::new(Mutex::new(tries.into_iter().collect())),
            ..Self::default()
        }
    }

    fn seen(&self) -> usize {
        self.seen.lock().len()
    }

    fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    fn service<B>(&self) -> Client<B>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: std::fmt::Debug,
    {
        let me = self.clone();
        Client::new(tower::service_fn(move |request: Sent<B>| {
            let me = me.clone();
            async move {
                let _under_way = UnderWay::new(&me.under_way);
                let next = me.tries.lock().pop_front();
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("infallible").to_bytes();
                me.seen.lock().push((head.headers, body));
                let (after, result) = next.unwrap_or_else(|| ok(0, 200));
                tokio::time::sleep(ms(after)).await;
                result
            }
        }))
    }
}

fn layer(text: &str) -> HedgeLayer {
    let hedge = Hedge::new(toml::from_str(text).expect(text)).expect(text);
    let budget = Budget::new("100% min 10/s".parse().expect("spec")).expect("valid");
    HedgeLayer::new(hedge, budget)
}

const AFTER_50: &str = "after = \"50ms\"";

fn get() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

async fn status<S, RB>(service: S, request: Request<Full<Bytes>>) -> u16
where
    S: Service<Request<Full<Bytes>>, Response = Response<RB>>,
    S::Error: std::fmt::Debug,
    RB: Body<Data = Bytes>,
    RB::Error: std::fmt::Debug,
{
    let answer = service.oneshot(request).await.expect("an answer");
    let status = answer.status().as_u16();
    answer.into_body().collect().await.expect("a body");
    status
}

#[tokio::test(start_paused = true)]
async fn a_late_try_is_overtaken_and_gives_back_what_it_held() {
    let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(HANG, 200), ok(7, 201)]));
    let bulkhead = Bulkhead::new(9);
    let service = ServiceBuilder::new()
        .layer(hedge.clone())
        .layer(BulkheadLayer::new(bulkhead.clone()))
        .map_err(BoxError::from)
        .service(callee.service());
    let start = tokio::time::Instant::now();
    let mut call = Box::pin(service.oneshot(get()));
    let answer = (&mut call).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), start.elapsed()), (201, ms(57)));
    // The future is still there; the loser is not. The winner's slot is its body's.
    assert_eq!((callee.under_way(), bulkhead.status().in_flight), (0, 1));
    assert_eq!(hedge.budget.in_flight(), InFlight { calls: 1, extra: 1 });
    answer.into_body().collect().await.expect("a body");
    assert_eq!(bulkhead.status().in_flight, 0);
    assert_eq!(hedge.budget.in_flight(), InFlight::default());
    let stats = hedge.hedge.stats();
    assert_eq!((stats.sent, stats.won, stats.wasted), (1, 1, 0));
    drop(call);
}

#[tokio::test(start_paused = true)]
async fn a_first_try_that_wins_after_all_takes_the_hedge_s_place_back() {
    let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(60, 200), ok(HANG, 200)]));
    let answer = hedge.layer(callee.service()).oneshot(get()).await;
    let answer = answer.expect("an answer");
    assert_eq!((callee.seen(), callee.under_way()), (2, 0));
    assert_eq!(
        hedge.budget.in_flight(),
        InFlight { calls: 1, extra: 0 },
        "the hedge is over"
    );
    drop(answer);
    assert_eq!(hedge.hedge.stats().wasted, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_time_is_not_hedged() {
    let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(49, 200)]));
    assert_eq!(status(hedge.layer(callee.service()), get()).await, 200);
    assert_eq!((callee.seen(), hedge.hedge.stats().sent), (1, 0));
}

/// tower 0.5.3's hedge resolves with the first *result*: a hedge that is refused at once fails a
/// call whose first try would have come out well.
#[tokio::test(start_paused = true)]
async fn tower_hedge_first_error_wins_ours_waits_for_a_good_answer() {
    let refused = || (0, Err(BoxError::from("refused")));
    let cases = [
        ("an error first", [ok(90, 200), refused()], 200, 90),
        ("a failure first", [ok(90, 200), ok(1, 503)], 200, 90),
        (
            "the caller's fault is an answer",
            [ok(90, 200), ok(1, 404)],
            404,
            51,
        ),
        ("the first fails late", [ok(60, 503), ok(70, 200)], 200, 120),
        (
            "both fail: the callee's words",
            [ok(70, 503), refused()],
            503,
            70,
        ),
        (
            "both fail: the first words",
            [ok(90, 503), ok(1, 500)],
            500,
            90,
        ),
        ("a refused rate is none", [ok(90, 200), ok(1, 429)], 200, 90),
    ];
    for (name, tries, want, after) in cases {
        let (hedge, callee) = (layer(AFTER_50), Callee::new(tries));
        let start = tokio::time::Instant::now();
        let got = status(hedge.layer(callee.service()), get()).await;
        assert_eq!((got, start.elapsed()), (want, ms(after)), "{name}");
        assert_eq!((callee.seen(), callee.under_way()), (2, 0), "{name}");
        assert_eq!(hedge.budget.in_flight(), InFlight::default(), "{name}");
    }
}

/// tower 0.5.3's hedge has no budget: when the callee slows down for everybody, it doubles the load.
#[tokio::test(start_paused = true)]
async fn tower_hedge_has_no_budget_ours_is_the_retries() {
    let hedge = Hedge::new(toml::from_str(AFTER_50).expect("parses")).expect("valid");
    let share = "10% min 1".parse().expect("share");
    let spec = "100% min 10/s".parse().expect("spec");
    let budget = Budget::with(spec, share, Millis::new(10_000)).expect("valid");
    let layer = HedgeLayer::new(hedge.clone(), budget.clone());
    let callee = Callee::new((0..300).map(|_| ok(HANG, 200)));
    let calls: Vec<_> = (0..100)
        .map(|_| tokio::spawn(layer.layer(callee.service()).oneshot(get())))
        .collect();
    tokio::time::sleep(ms(1_000)).await;
    assert_eq!(callee.seen(), 110, "a tenth of those under way");
    let stats = hedge.stats();
    assert_eq!((stats.sent, stats.exhausted), (10, 90));
    for call in calls {
        call.abort();
        assert!(call.await.is_err());
    }
    assert_eq!(
        (callee.under_way(), budget.in_flight()),
        (0, InFlight::default())
    );
    assert_eq!(hedge.stats().wasted, 10);
}

/// How many tries are made of a call whose first takes 100 ms.
async fn tries_of(request: Request<Full<Bytes>>) -> usize {
    let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(100, 200), ok(10, 200)]));
    assert_eq!(status(hedge.layer(callee.service()), request).await, 200);
    assert_eq!(hedge.budget.in_flight(), InFlight::default());
    callee.seen()
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_hedged_is_not() {
    let request = |method: &str, length: usize| {
        let body = Full::from(vec![0; length]);
        Request::builder().method(method).body(body).expect("valid")
    };
    let marked = |mut request: Request<Full<Bytes>>, says| {
        request.extensions_mut().insert(Idempotent(says));
        request
    };
    let mut upgrade = get();
    let websocket = HeaderValue::from_static("websocket");
    upgrade
        .headers_mut()
        .insert(http::header::UPGRADE, websocket);
    let cases = [
        ("a GET", get(), true),
        ("a PUT with its body", request("PUT", 60_000), true),
        ("a POST", request("POST", 1), false),
        (
            "a POST marked as harmless",
            marked(request("POST", 1), true),
            true,
        ),
        ("a GET marked as not", marked(get(), false), false),
        ("a body too long to keep", request("PUT", 70_000), false),
        ("a tunnel", request("CONNECT", 0), false),
        ("an upgrade", upgrade, false),
    ];
    for (name, request, hedged) in cases {
        assert_eq!(tries_of(request).await, 1 + usize::from(hedged), "{name}");
    }
    for (left, hedged) in [(20, false), (50, false), (51, true)] {
        let mut request = get();
        let deadline = Deadline::after(now(), ms(left)).expect("soon");
        request.extensions_mut().insert(deadline);
        assert_eq!(
            tries_of(request).await,
            1 + usize::from(hedged),
            "{left} ms left"
        );
    }
    let all = layer("after = \"50ms\"\nnon_idempotent = true");
    let callee = Callee::new([ok(100, 200)]);
    status(all.layer(callee.service()), request("POST", 1)).await;
    assert_eq!(callee.seen(), 2, "the policy says so");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_still_being_sent_is_not_sent_twice() {
    let slow = || {
        let chunks = stream::iter([60, 10]).then(|after| async move {
            tokio::time::sleep(ms(after)).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
        });
        let body = StreamBody::new(Box::pin(chunks));
        Request::put("/").body(body).expect("valid")
    };
    let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(9, 200)]));
    let answer = hedge.layer(callee.service()).oneshot(slow()).await;
    assert_eq!(answer.expect("an answer").status(), 200);
    assert_eq!(
        (callee.seen(), hedge.hedge.stats().body_not_replayable),
        (1, 1)
    );
    // Sent by the time that the hedge is due.
    let (hedge, callee) = (layer("after = \"90ms\""), Callee::new([ok(HANG, 200)]));
    let answer = hedge.layer(callee.service()).oneshot(slow()).await;
    assert_eq!(answer.expect("an answer").status(), 200);
    let seen = callee.seen.lock();
    assert!(seen.len() == 2 && seen.iter().all(|(_, body)| body == "xx"));
}

/// Ready once for each time that it is polled, and not as a clone.
struct Touchy<S> {
    inner: S,
    ready: bool,
    /// How often more it will be ready.
    times: Arc<AtomicUsize>,
}

impl<S: Clone> Clone for Touchy<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            ready: false,
            times: Arc::clone(&self.times),
        }
    }
}

impl<R, S: Service<R>> Service<R> for Touchy<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let left = |n: usize| n.checked_sub(1);
        let times = &self.times;
        if !self.ready
            && times
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_err()
        {
            return Poll::Pending;
        }
        self.ready = true;
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        assert!(mem::take(&mut self.ready), "called without being ready");
        self.inner.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn each_try_is_made_by_a_service_readied_for_it_and_none_waits_to_be() {
    for (times, seen, overflow) in [(2, 2, 0), (1, 1, 1)] {
        let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(100, 200)]));
        let inner = Touchy {
            inner: callee.service(),
            ready: false,
            times: Arc::new(AtomicUsize::new(times)),
        };
        assert_eq!(status(hedge.layer(inner), get()).await, 200);
        let stats = hedge.hedge.stats();
        assert_eq!((callee.seen(), stats.overflow), (seen, overflow));
        assert_eq!(
            hedge.budget.counts().withdrawn,
            stats.sent,
            "paid for what was sent"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_a_policy_further_in_refuses_costs_nothing_and_decides_nothing() {
    let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(100, 503)]));
    let service = ServiceBuilder::new()
        .layer(hedge.clone())
        .layer(BulkheadLayer::new(Bulkhead::new(1)))
        .service(callee.service());
    let before = hedge.budget.balance(now());
    assert_eq!(status(service, get()).await, 503);
    // The call's own deposit is all that has changed.
    assert_eq!(hedge.budget.balance(now()), before + 1);
    assert_eq!((callee.seen(), hedge.hedge.stats().sent), (1, 1));
    // Both refused: the refusal is the answer.
    let none = ServiceBuilder::new()
        .layer(hedge.clone())
        .layer(BulkheadLayer::new(Bulkhead::new(0)))
        .service(callee.service());
    let refused = none.oneshot(get()).await.expect_err("full");
    let full = refused.rejected().map(|rejected| rejected.reason);
    assert_eq!(full, Some(Reason::Full));
}

#[tokio::test(start_paused = true)]
async fn a_verdict_in_the_trailers_decides_a_race() {
    let data = || Frame::data(Bytes::from_static(b"x"));
    let cases = [
        ("fails in its trailers", trailers("14"), 90),
        ("does not", trailers("0"), 51),
        ("has begun to answer", data(), 51),
    ];
    for (name, frame, after) in cases {
        let (hedge, callee) = (
            layer(AFTER_50),
            Callee::new([(90, Ok(grpc(trailers("0")))), (1, Ok(grpc(frame)))]),
        );
        let start = tokio::time::Instant::now();
        let answer = hedge.layer(callee.service()).oneshot(get()).await;
        assert_eq!(start.elapsed(), ms(after), "{name}");
        answer
            .expect("an answer")
            .into_body()
            .collect()
            .await
            .expect("a body");
        assert_eq!(hedge.budget.in_flight(), InFlight::default(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_is_not_held_for_ever_nor_for_nobody() {
    // Heads of gRPC streams that say nothing for a long time.
    let silent = |after: u64| {
        tower::service_fn(move |_: Sent<Full<Bytes>>| async move {
            tokio::time::sleep(ms(after)).await;
            let silence = stream::pending::<Result<Frame<Bytes>, Infallible>>().boxed();
            let answer = Response::builder().header("content-type", "application/grpc");
            Ok::<_, Infallible>(answer.body(StreamBody::new(silence)).expect("valid"))
        })
    };
    let cases = [("alone", 20, 20), ("while two race", 60, 60 + 1_000)];
    for (name, after, want) in cases {
        let start = tokio::time::Instant::now();
        let answer = layer(AFTER_50).layer(silent(after)).oneshot(get()).await;
        assert!(answer.is_ok());
        assert_eq!(start.elapsed(), ms(want), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_says_which_try_it_is_and_how_long_it_has() {
    let (hedge, callee) = (
        layer("after = \"50ms\"\nmax = 2"),
        Callee::new([ok(HANG, 200), ok(HANG, 200)]),
    );
    let mut request = Request::put("/")
        .body(Full::from("all of it"))
        .expect("valid");
    let left = HeaderValue::from_static("900");
    request
        .headers_mut()
        .insert(deadline::EXPECTED_TIMEOUT_MS.clone(), left);
    assert_eq!(status(hedge.layer(callee.service()), request).await, 200);
    let seen = callee.seen.lock();
    let said: Vec<_> = seen
        .iter()
        .map(|(headers, body)| {
            assert_eq!(body, "all of it");
            let text = |name: &HeaderName| Some(headers.get(name)?.to_str().expect("text"));
            let text = |name| text(name).unwrap_or("-").to_owned();
            (
                text(&crate::context::attempt::ENVOY_ATTEMPT_COUNT),
                text(&deadline::EXPECTED_TIMEOUT_MS),
            )
        })
        .collect();
    let want = [("-", "900"), ("2", "850"), ("3", "800")];
    assert_eq!(said, want.map(|(n, left)| (n.to_owned(), left.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn hedges_and_retries_of_one_call_deposit_once() {
    let config: RetryConfig =
        toml::from_str("attempts = 2\nbackoff = \"1ms..1ms\"").expect("valid");
    for hedge_outside in [true, false] {
        let budget = Budget::new("100% min 10/s".parse().expect("spec")).expect("valid");
        let rng = crate::Rng::new(7);
        let retry = RetryLayer::with_budget(config.clone(), budget.clone(), rng).expect("valid");
        let hedge = Hedge::new(toml::from_str(AFTER_50).expect("parses")).expect("valid");
        let hedge = HedgeLayer::new(hedge, budget.clone());
        // A retry, then a hedge of it; or a hedge, then a retry.
        let callee = Callee::new([ok(1, 503), ok(HANG, 200), ok(1, 200)]);
        let inner = callee.service::<ReplayBody<Full<Bytes>>>();
        let got = if hedge_outside {
            let service = ServiceBuilder::new().layer(hedge).layer(retry);
            status(service.service(inner), get()).await
        } else {
            let service = ServiceBuilder::new().layer(retry).layer(hedge);
            status(service.service(inner), get()).await
        };
        assert_eq!((got, callee.seen()), (200, 3), "{hedge_outside}");
        // 100 of the floor, one deposit, a retry and a hedge.
        assert_eq!(budget.balance(now()), 100 + 1 - 2, "{hedge_outside}");
        assert_eq!(budget.in_flight(), InFlight::default());
    }
}

/// Most tries take 10 to 60 ms, eight of a hundred hang: the 90th percentile is a little below 60 ms.
/// Were the losers forgotten, it would be that of those that do not hang, and more than the tenth
/// that it promises would be hedged.
#[tokio::test(start_paused = true)]
async fn the_delay_is_learnt_and_does_not_shrink_with_every_hedge() {
    const CALLS: u64 = 3_000;
    let hedge = layer("after = \"p90\"\nwindow = \"10s\"");
    let rng = Arc::new(crate::Rng::new(3));
    let callee = tower::service_fn(move |_: Sent<Full<Bytes>>| {
        let takes = match rng.below(100) {
            0..8 => HANG,
            _ => 10 + rng.below(50),
        };
        async move {
            tokio::time::sleep(ms(takes)).await;
            Ok::<_, Infallible>(plain(200))
        }
    });
    for _ in 0..CALLS {
        let call = status(hedge.layer(callee.clone()), get());
        // Those that hang before anything is known, until their callers give up.
        drop(tokio::time::timeout(ms(1_000), call).await);
    }
    let stats = hedge.hedge.stats();
    let delay = hedge.hedge.delay(now()).expect("known");
    assert!(delay >= ms(54) && delay <= ms(66), "{delay:?}");
    let share = stats.sent * 1_000 / CALLS;
    assert!((70..=110).contains(&share), "{share} of 1000: {stats:?}");
    assert_eq!(stats.sent, stats.won + stats.wasted);
}

#[tokio::test(start_paused = true)]
async fn a_hang_that_a_timeout_cuts_short_is_recorded() {
    let (hedge, callee) = (layer(AFTER_50), Callee::new([ok(HANG, 200), ok(HANG, 200)]));
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(ms(400)))
        .layer(hedge.clone())
        .service(callee.service());
    let late = service.oneshot(get()).await.expect_err("too late");
    let rejected = Rejected::new(Policy::Deadline, Reason::Elapsed);
    assert!(
        matches!(late, Error::Rejected(got) if got == rejected),
        "{late:?}"
    );
    let longest = hedge.hedge.quantile(1.0, now()).expect("recorded");
    assert!(longest >= ms(400), "{longest:?}");
    assert_eq!(
        (callee.under_way(), hedge.budget.in_flight()),
        (0, InFlight::default())
    );
}
