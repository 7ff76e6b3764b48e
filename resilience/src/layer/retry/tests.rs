//! Retries over scripted callees, in paused time.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use http::{HeaderMap, HeaderValue, Method};
use http_body_util::{BodyExt, Full, StreamBody};
use parking_lot::Mutex;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    breaker::CircuitBreaker,
    bulkhead::Bulkhead,
    context::Deadline,
    layer::BulkheadLayer,
    retry::{Idempotent, budget::InFlight},
    sync::AtomicU64,
};

type Frames = Vec<Result<http_body::Frame<Bytes>, Infallible>>;
type Reply =
    StreamBody<futures_util::stream::Iter<std::vec::IntoIter<<Frames as IntoIterator>::Item>>>;

fn reply(status: u16, frames: Frames) -> Response<Reply> {
    let body = StreamBody::new(futures_util::stream::iter(frames));
    Response::builder()
        .status(status)
        .body(body)
        .expect("valid")
}

fn plain(status: u16) -> Response<Reply> {
    reply(
        status,
        vec![Ok(http_body::Frame::data(Bytes::from_static(b"x")))],
    )
}

fn verdict(code: &'static str) -> http_body::Frame<Bytes> {
    http_body::Frame::trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(code),
    )]))
}

fn grpc(frames: Frames) -> Response<Reply> {
    let mut answer = reply(200, frames);
    let grpc = HeaderValue::from_static("application/grpc");
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, grpc);
    answer
}

fn trailers(code: &'static str) -> Response<Reply> {
    grpc(vec![Ok(verdict(code))])
}

type Seen = Vec<(AttemptNumber, Bytes)>;
type Service1 =
    tower::util::BoxCloneService<Request<ReplayBody<Full<Bytes>>>, Response<Reply>, Infallible>;

/// A callee that answers from a list and keeps what it was sent.
#[derive(Clone, Default)]
struct Callee {
    replies: Arc<Mutex<VecDeque<Response<Reply>>>>,
    seen: Arc<Mutex<Seen>>,
}

impl Callee {
    fn new(replies: impl IntoIterator<Item = Response<Reply>>) -> Self {
        Self {
            replies: Arc::new(Mutex::new(replies.into_iter().collect())),
            seen: Arc::default(),
        }
    }

    fn tries(&self) -> usize {
        self.seen.lock().len()
    }

    fn service(&self) -> Service1 {
        let me = self.clone();
        Service1::new(service_fn(
            move |request: Request<ReplayBody<Full<Bytes>>>| {
                let me = me.clone();
                async move {
                    let number = AttemptNumber::of(request.extensions());
                    let body = request.into_body().collect().await.expect("infallible");
                    me.seen.lock().push((number, body.to_bytes()));
                    let next = me.replies.lock().pop_front();
                    Ok(next.unwrap_or_else(|| plain(200)))
                }
            },
        ))
    }
}

fn layer(text: &str) -> RetryLayer {
    let config: RetryConfig = toml::from_str(text).expect(text);
    let budget = config.new_budget().expect("valid");
    RetryLayer::with_budget(config, budget, Rng::new(7)).expect("valid")
}

const THREE: &str = r#"
    attempts = 3
    codes = [503]
    backoff = "10ms..40ms"
    budget = "100% min 10/s"
"#;

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
async fn a_call_is_tried_until_it_is_good_and_each_try_knows_its_number_and_body() {
    let callee = Callee::new([plain(503), plain(503)]);
    let retry = layer(THREE);
    let request = Request::put("/")
        .body(Full::from("all of it"))
        .expect("valid");
    assert_eq!(status(retry.layer(callee.service()), request).await, 200);
    let seen = callee.seen.lock();
    for (n, (number, body)) in (1..).zip(&*seen) {
        assert_eq!((number.0, &body[..]), (n, &b"all of it"[..]));
    }
    let stats = retry.stats();
    assert_eq!((seen.len(), stats.retries, stats.recovered), (3, 2, 1));
    assert_eq!(retry.budget().in_flight(), InFlight::default());
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_tried_again_is_not() {
    let post = || Request::post("/").body(Full::from("x")).expect("valid");
    let mut marked = post();
    marked.extensions_mut().insert(Idempotent(true));
    let long = Request::put("/")
        .body(Full::from(vec![0; 70_000]))
        .expect("valid");
    let cases = [
        ("a status that is not listed", get(), 500, 1),
        ("a method that is not idempotent", post(), 503, 1),
        ("the same, marked as harmless", marked, 503, 4),
        ("a body that is too long to keep", long, 503, 1),
    ];
    for (name, request, code, tries) in cases {
        let callee = Callee::new((0..9).map(|_| plain(code)));
        let answer = status(layer(THREE).layer(callee.service()), request).await;
        assert_eq!((answer, callee.tries()), (code, tries), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_leaves_the_callees_own_answer() {
    let retry = layer("attempts = 3\ncodes = [503]\nbudget = \"0%\"");
    let callee = Callee::new([plain(503)]);
    assert_eq!(status(retry.layer(callee.service()), get()).await, 503);
    assert_eq!((callee.tries(), retry.stats().exhausted), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn no_wait_outlasts_the_deadline() {
    let retry = layer(
        &THREE
            .replace("10ms..40ms", "2s..4s")
            .replace("attempts = 3", "attempts = 3\njitter = \"none\""),
    );
    let callee = Callee::new((0..9).map(|_| plain(503)));
    let mut request = get();
    let start = Instant::now();
    let deadline = Deadline::after(start.into_std(), Duration::from_secs(3)).expect("soon");
    request.extensions_mut().insert(deadline);
    assert_eq!(status(retry.layer(callee.service()), request).await, 503);
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!((callee.tries(), retry.stats().out_of_time), (2, 1));
    let mut late = get();
    late.extensions_mut().insert(Deadline(start.into_std()));
    let refused = retry.layer(callee.service()).oneshot(late).await;
    let refused = refused
        .expect_err("expired")
        .rejected()
        .expect("refused")
        .reason;
    assert_eq!(refused, Reason::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_in_the_trailers_counts() {
    let retry = layer("attempts = 2\nbudget = \"100% min 10/s\"");
    let callee = Callee::new([trailers("14"), trailers("0")]);
    let service = retry.layer(callee.service());
    let answer = service.oneshot(get()).await.expect("an answer");
    let all = answer.into_body().collect().await.expect("a body");
    assert_eq!(all.trailers().expect("trailers")["grpc-status"], "0");
    assert_eq!((callee.tries(), retry.stats().recovered), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_a_policy_further_in_refuses_is_not_tried_again_and_costs_nothing() {
    let retry = layer(THREE);
    let full = Bulkhead::new(0);
    let service = ServiceBuilder::new()
        .layer(retry.clone())
        .layer(BulkheadLayer::new(full.clone()))
        .service(Callee::default().service());
    let refused = service.oneshot(get()).await.expect_err("full");
    assert!(
        matches!(refused, Error::Service(Error::Rejected(_))),
        "{refused:?}"
    );
    assert_eq!((full.rejected(), retry.stats().retries), (1, 0));
    // A circuit that opens between two tries: the retry that met it is forgiven.
    let breaker = CircuitBreaker::new(toml::from_str("consecutive = 1").expect("valid"));
    let breaker = breaker.expect("valid");
    let before = retry.budget().balance(Instant::now().into_std());
    let service = ServiceBuilder::new()
        .layer(retry.clone())
        .layer(crate::layer::BreakerLayer::new(breaker))
        .service(Callee::new([plain(503)]).service());
    let refused = service.oneshot(get()).await;
    assert!(refused.is_err());
    let after = retry.budget().balance(Instant::now().into_std());
    assert!(after >= before, "{after} < {before}");
}

#[tokio::test(start_paused = true)]
async fn methods_are_told_apart() {
    for (method, tries) in [
        (Method::DELETE, 4),
        (Method::PATCH, 1),
        (Method::CONNECT, 1),
    ] {
        let callee = Callee::new((0..9).map(|_| plain(503)));
        let mut request = get();
        *request.method_mut() = method.clone();
        status(layer(THREE).layer(callee.service()), request).await;
        assert_eq!(callee.tries(), tries, "{method}");
    }
}

/// Ready as often as `times` says, and not as a clone of one that is.
struct Touchy<S> {
    inner: S,
    ready: bool,
    times: Arc<AtomicU64>,
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
        let take = |left: u64| left.checked_sub(1);
        let taken = || {
            self.times
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        };
        if !self.ready && taken().is_err() {
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

/// tower's retry holds its caller's answer back until the service is ready again, however long that
/// takes. Here readiness is asked for before the answer is given up, and again after the wait; it is
/// not held meanwhile.
#[tokio::test(start_paused = true)]
async fn tower_retry_waits_for_readiness_ours_takes_the_answer_at_hand() {
    // For the first try; asked before the wait; for the second try.
    for (times, want, tries, overflow) in [(1, 503, 1, 1), (3, 200, 2, 0)] {
        let (retry, callee) = (layer(THREE), Callee::new([plain(503)]));
        let inner = Touchy {
            inner: callee.service(),
            ready: false,
            times: Arc::new(AtomicU64::new(times)),
        };
        assert_eq!(status(retry.layer(inner), get()).await, want);
        assert_eq!((callee.tries(), retry.stats().overflow), (tries, overflow));
        assert_eq!(retry.budget().counts().withdrawn, tries as u64 - 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_after_the_wait_is_waited_for_until_the_deadline() {
    let (retry, callee) = (layer(THREE), Callee::new([plain(503)]));
    let before = retry.budget().balance(Instant::now().into_std());
    let inner = Touchy {
        inner: callee.service(),
        ready: false,
        times: Arc::new(AtomicU64::new(2)),
    };
    let (mut request, start) = (get(), Instant::now());
    let deadline = Deadline::after(start.into_std(), Duration::from_secs(1)).expect("soon");
    request.extensions_mut().insert(deadline);
    let late = retry.layer(inner).oneshot(request).await;
    let reason = late.expect_err("late").rejected().expect("refused").reason;
    assert_eq!(
        (reason, start.elapsed()),
        (Reason::Elapsed, Duration::from_secs(1))
    );
    let after = retry.budget().balance(Instant::now().into_std());
    assert_eq!(after, before + 1, "what was not made costs nothing");
    assert_eq!(retry.budget().in_flight(), InFlight::default());
}

#[tokio::test(start_paused = true)]
async fn the_callee_s_word_on_when_to_come_again_is_kept() {
    let told = |status, name: &'static str, value: &'static str| {
        let mut answer = plain(status);
        let name = http::HeaderName::from_static(name);
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
        answer
    };
    let post = || Request::post("/").body(Full::from("x")).expect("valid");
    let cases = [
        (
            "in two seconds",
            get(),
            told(503, "retry-after", "2"),
            Some(2_000..2_041),
        ),
        (
            "longer than it is waited for",
            get(),
            told(503, "retry-after", "60"),
            Some(5_000..5_041),
        ),
        ("at once", get(), told(503, "retry-after", "0"), Some(0..1)),
        (
            "a nack is harmless",
            post(),
            told(503, "finagle-http-nack", "true"),
            Some(0..1),
        ),
        (
            "so is a pushback",
            post(),
            told(503, "grpc-retry-pushback-ms", "700"),
            Some(700..701),
        ),
        (
            "never (HDR-2)",
            get(),
            told(503, "grpc-retry-pushback-ms", "-1"),
            None,
        ),
        (
            "not this one",
            get(),
            told(503, "finagle-http-nonretryable-nack", "true"),
            None,
        ),
    ];
    for (name, request, answer, waits) in cases {
        let (retry, callee) = (layer(THREE), Callee::new([answer]));
        let start = Instant::now();
        let got = status(retry.layer(callee.service()), request).await;
        let took = start.elapsed().as_millis();
        match waits {
            Some(range) => {
                assert_eq!((got, callee.tries()), (200, 2), "{name}");
                assert!(range.contains(&took), "{name}: {took} ms");
            }
            None => assert_eq!((got, callee.tries()), (503, 1), "{name}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cost_bucket_pays_besides_the_budget_and_successes_fill_it() {
    let retry = layer(&format!("{THREE}\ncost = {{ tokens = 10, retry = 5 }}"));
    let callee = Callee::new((0..4).map(|_| plain(503)));
    // Two retries of four empty the bucket.
    assert_eq!(status(retry.layer(callee.service()), get()).await, 503);
    assert_eq!((callee.tries(), retry.stats().exhausted), (3, 1));
    let spent = retry.budget().counts().withdrawn;
    assert_eq!(
        spent, 2,
        "what the bucket refused is not taken from the budget"
    );
    // The one that is left of the list, and its retry, which nothing pays for yet.
    assert_eq!(status(retry.layer(callee.service()), get()).await, 503);
    for _ in 0..5 {
        status(retry.layer(callee.service()), get()).await;
    }
    *callee.replies.lock() = VecDeque::from([plain(503)]);
    assert_eq!(status(retry.layer(callee.service()), get()).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_cost_bucket_comes_grows_and_goes_with_the_configuration() {
    let config = |cost: &str| toml::from_str::<RetryConfig>(&format!("{THREE}\n{cost}"));
    let retry = layer(THREE);
    let broken = async || {
        let callee = Callee::new((0..9).map(|_| plain(503)));
        assert_eq!(status(retry.layer(callee.service()), get()).await, 503);
        callee.tries()
    };
    assert_eq!(broken().await, 4, "none is written");
    for (cost, tries) in [
        ("cost = { tokens = 10, retry = 5 }", 3),
        ("cost = { tokens = 15, retry = 5 }", 2),
        ("", 4),
        ("cost = { tokens = 10, retry = 5 }", 3),
    ] {
        retry.reconfigure(config(cost).expect(cost)).expect(cost);
        assert_eq!(broken().await, tries, "{cost:?}");
    }
}

/// Envoy #17629 and linkerd2 #7701 try again by heads only, where a gRPC failure that follows an
/// empty body is a success.
#[tokio::test(start_paused = true)]
async fn envoy_17629_grpc_trailers_are_heard_and_a_silent_stream_is_not_held_for_ever() {
    let silent = service_fn(|_: Request<ReplayBody<Full<Bytes>>>| async {
        let silence =
            futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
        let answer = Response::builder().header("content-type", "application/grpc");
        let body = StreamBody::new(Box::pin(silence));
        Ok::<_, Infallible>(answer.body(body).expect("valid"))
    });
    let start = Instant::now();
    let answer = layer("attempts = 2").layer(silent).oneshot(get()).await;
    assert!(answer.is_ok());
    assert_eq!(start.elapsed(), Duration::from_secs(1), "`grpc_trailers`");
    // One that has begun to answer is committed, whatever its trailers say.
    let data = http_body::Frame::data(Bytes::from_static(b"x"));
    let begun = grpc(vec![Ok(data), Ok(verdict("14"))]);
    let callee = Callee::new([begun]);
    assert_eq!(
        status(layer("attempts = 2").layer(callee.service()), get()).await,
        200
    );
    assert_eq!(callee.tries(), 1);
}
