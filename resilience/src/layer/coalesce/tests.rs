use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use tower::{Layer, Service, service_fn};

use super::*;
use crate::layer::{BoxError, Stack};

type Frames = Vec<Result<Frame<Bytes>, BoxError>>;
type TestBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;
type Answers = Box<dyn Fn(u32) -> Result<Response<TestBody>, BoxError> + Send + Sync>;
type Called = BoxFuture<'static, Result<Response<TestBody>, BoxError>>;

fn body(frames: Frames) -> TestBody {
    let frames = stream::iter(frames).then(|frame| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        frame
    });
    BodyExt::boxed_unsync(StreamBody::new(Box::pin(frames)))
}

#[expect(clippy::unnecessary_wraps, reason = "an item of `Frames`")]
fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn config(text: &str) -> CoalesceConfig {
    toml::from_str(text).expect("parses")
}

/// Counts its calls; each takes 100 ms to its head, then answers as `answer` says for its number.
fn callee(
    answer: impl Fn(u32) -> Result<Response<TestBody>, BoxError> + Send + Sync + 'static,
) -> (
    Arc<AtomicU32>,
    impl Service<
        Request<Empty<Bytes>>,
        Response = Response<TestBody>,
        Error = BoxError,
        Future = Called,
    > + Clone,
) {
    let (calls, answer) = (Arc::new(AtomicU32::new(0)), Arc::new(answer));
    let counted = Arc::clone(&calls);
    let service = service_fn(move |_: Request<Empty<Bytes>>| {
        let number = counted.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = Arc::clone(&answer);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer(number)
        }
        .boxed()
    });
    (calls, service)
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("http://h/a")
        .body(Empty::new())
        .expect("valid")
}

fn many<S>(
    service: &S,
    count: usize,
) -> impl Future<Output = Vec<Result<S::Response, S::Error>>> + use<S>
where
    S: Service<Request<Empty<Bytes>>> + Clone,
{
    let calls = (0..count).map(|_| service.clone().call(get()));
    futures_util::future::join_all(calls)
}

async fn text<B: Body<Data = Bytes>>(answer: Response<B>) -> (Bytes, Option<HeaderMap>)
where
    B::Error: std::fmt::Debug,
{
    let whole = answer.into_body().collect().await.expect("whole");
    let trailers = whole.trailers().cloned();
    (whole.to_bytes(), trailers)
}

#[tokio::test(start_paused = true)]
async fn one_call_answers_all_with_head_body_and_trailers() {
    let (calls, service) = callee(|_| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "5".parse().expect("value"));
        let frames = vec![data("he"), data("llo"), Ok(Frame::trailers(trailers))];
        let answer = Response::builder().status(203).header("x-from", "callee");
        Ok(answer.body(body(frames)).expect("valid"))
    });
    let layer = CoalesceLayer::new(&CoalesceConfig::default()).expect("works");
    let answers = many(&layer.layer(service), 20).await;
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    for answer in answers {
        let answer = answer.expect("answers");
        assert_eq!(answer.status(), 203);
        assert_eq!(answer.headers()["x-from"], "callee");
        // Announcing its length would lose the trailers over HTTP/1.
        assert_eq!(answer.body().size_hint().exact(), None);
        let (text, trailers) = text(answer).await;
        assert_eq!(text, "hello");
        assert_eq!(trailers.expect("trailers")["x-sum"], "5");
    }
    let status = layer.status();
    assert_eq!((status.led, status.answered, status.in_flight), (1, 19, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_all_streams_to_its_leader_and_the_others_ask_themselves() {
    let slow = |_| {
        let frames = stream::iter([data("tick"), data("tock")]).then(|frame| async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            frame
        });
        Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(
            Box::pin(frames),
        ))))
    };
    let long = |_| {
        Ok(Response::new(body(vec![
            data("0123"),
            data("4567"),
            data("89"),
        ])))
    };
    let session = |_| {
        let answer = Response::builder().header("set-cookie", "s=1");
        Ok(answer.body(body(vec![data("0123456789")])).expect("valid"))
    };
    let known = |_| {
        let whole = http_body_util::Full::new(Bytes::from_static(b"0123456789"));
        Ok(Response::new(whole.map_err(|e| match e {}).boxed_unsync()))
    };
    let cases: [(&str, Answers, &str); 4] = [
        ("longer than the limit", Box::new(long), "0123456789"),
        ("says that it is longer", Box::new(known), "0123456789"),
        ("slower than it may be", Box::new(slow), "ticktock"),
        ("one person's", Box::new(session), "0123456789"),
    ];
    for (name, answer, want) in cases {
        let (calls, service) = callee(answer);
        let layer = CoalesceLayer::new(&config(r#"body = "9B""#)).expect("works");
        let answers = many(&layer.layer(service), 3).await;
        assert_eq!(calls.load(Ordering::Relaxed), 3, "{name}");
        for answer in answers {
            let (text, _) = text(answer.expect("answers")).await;
            assert_eq!(text, want, "{name}");
        }
        assert_eq!(layer.status().released, 2, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_goes_away_is_followed_by_the_next_also_while_it_gathers() {
    for gone_after in [50, 105] {
        let (calls, service) = callee(|_| Ok(Response::new(body(vec![data("a"), data("b")]))));
        let layer = CoalesceLayer::new(&CoalesceConfig::default()).expect("works");
        let mut service = layer.layer(service);
        let leader = service.call(get());
        let followers = tokio::spawn(many(&service, 5));
        tokio::task::yield_now().await;
        let gone = tokio::time::timeout(Duration::from_millis(gone_after), leader).await;
        assert!(gone.is_err(), "it went away before it had its answer");
        for answer in followers.await.expect("no panic") {
            assert_eq!(text(answer.expect("answers")).await.0, "ab");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        assert_eq!(layer.status().promoted, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_shared_or_followers_try_again() {
    let fails = |number| match number {
        1 => Err(BoxError::from("broken")),
        2 => {
            let answer = Response::builder().status(503);
            Ok(answer.body(body(vec![])).expect("valid"))
        }
        3 => Ok(Response::new(body(vec![data("part"), Err("cut".into())]))),
        _ => Ok(Response::new(body(vec![data("good")]))),
    };
    let (calls, service) = callee(fails);
    let layer = CoalesceLayer::new(&config(r#"errors = "share""#)).expect("works");
    let answers = many(&layer.layer(service), 4).await;
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    let mut refused = 0;
    for answer in answers {
        match answer {
            Err(Error::Service(_)) => {}
            Err(Error::Rejected(rejected)) => {
                assert_eq!(rejected, failed());
                refused += 1;
            }
            other => panic!("{:?}", other.map(|answer| answer.status())),
        }
    }
    assert_eq!(refused, 3);

    let (calls, service) = callee(fails);
    let layer = CoalesceLayer::new(&config(r#"errors = "retry""#)).expect("works");
    let answers = many(&layer.layer(service), 6).await;
    assert_eq!(calls.load(Ordering::Relaxed), 4);
    let mut good = 0;
    for answer in answers {
        if let Ok(answer) = answer
            && answer.status() == 200
        {
            good += u32::from(answer.into_body().collect().await.is_ok());
        }
    }
    assert_eq!(good, 3, "one saw the error, one the 503, one the cut body");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_is_not_called_again_for_each_follower() {
    let (calls, service) = callee(|_| panic!("on purpose"));
    let layer = CoalesceLayer::new(&CoalesceConfig::default()).expect("works");
    let mut service = layer.layer(service);
    let calls_of: Vec<_> = (0..4).map(|_| tokio::spawn(service.call(get()))).collect();
    let (mut panicked, mut refused) = (0, 0);
    for call in calls_of {
        match call.await {
            Err(error) if error.is_panic() => panicked += 1,
            Ok(Err(Error::Rejected(rejected))) if rejected == failed() => refused += 1,
            other => panic!("{:?}", other.map(|answer| answer.map(|a| a.status()))),
        }
    }
    assert_eq!((panicked, refused), (1, 3));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!(layer.status().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn in_the_stack_followers_make_no_try_and_keep_their_own_deadline() {
    let policy: crate::TrafficPolicy = toml::from_str(
        "coalesce = {}
        retry = { attempts = 1 }
        bulkhead = 1",
    )
    .expect("parses");
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let client = service_fn(move |_: Request<_>| {
        counted.fetch_add(1, Ordering::Relaxed);
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let whole = http_body_util::Full::new(Bytes::from_static(b"one"));
            Ok::<_, Infallible>(Response::new(whole))
        }
    });
    let layer = Stack::layer(policy).expect("works");
    let mut service = layer.layer(client);
    let hasty = {
        let mut request = get();
        let timeout = crate::layer::RequestTimeout(Duration::from_millis(30));
        request.extensions_mut().insert(timeout);
        request
    };
    // The bulkhead has one slot: whoever makes a try of its own is refused.
    let (all, hasty) = tokio::join!(many(&service.clone(), 10), service.call(hasty));
    for answer in all {
        assert_eq!(text(answer.expect("answers")).await.0, "one");
    }
    let rejected = *hasty.expect_err("no time").rejected().expect("a deadline");
    assert_eq!(rejected, Rejected::new(Policy::Deadline, Reason::Elapsed));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    let status = layer.stack().status().coalesce.expect("there is one");
    assert_eq!((status.led, status.answered, status.waiting), (1, 9, 0));
}

#[tokio::test(start_paused = true)]
async fn in_the_stack_a_hasty_leader_does_not_fail_those_who_have_more_time() {
    let policy: crate::TrafficPolicy = toml::from_str("coalesce = {}").expect("parses");
    let client = service_fn(move |_: Request<_>| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let whole = http_body_util::Full::new(Bytes::from_static(b"one"));
        Ok::<_, Infallible>(Response::new(whole))
    });
    let mut service = Stack::layer(policy).expect("works").layer(client);
    let mut hasty = get();
    let timeout = crate::layer::RequestTimeout(Duration::from_millis(30));
    hasty.extensions_mut().insert(timeout);
    let (hasty, all) = tokio::join!(service.call(hasty), many(&service.clone(), 3));
    assert!(hasty.is_err());
    for answer in all {
        assert_eq!(text(answer.expect("answers")).await.0, "one");
    }
}

/// The service below panics, and somebody catches that outside, as tower-http's `CatchPanic` does:
/// the future is dropped when nothing unwinds any more.
#[tokio::test(start_paused = true)]
async fn a_panic_that_is_caught_outside_ends_the_flight_too() {
    use std::panic::AssertUnwindSafe;
    let (calls, service) = callee(|_| panic!("on purpose"));
    let layer = CoalesceLayer::new(&CoalesceConfig::default()).expect("works");
    let mut service = layer.layer(service);
    let all = (0..4).map(|_| AssertUnwindSafe(service.call(get())).catch_unwind());
    let ends = futures_util::future::join_all(all).await;
    let panicked = ends.iter().filter(|end| end.is_err()).count();
    assert_eq!((panicked, calls.load(Ordering::Relaxed)), (1, 1));
    assert_eq!((layer.status().broken, layer.status().in_flight), (3, 0));

    // Also while the body is gathered.
    let panics = service_fn(|_: Request<Empty<Bytes>>| async {
        let frames = stream::iter([0]).then(|_| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            panic!("on purpose")
        });
        let frames = frames.map(|()| data("never"));
        Ok::<_, BoxError>(Response::new(StreamBody::new(Box::pin(frames))))
    });
    let mut service = layer.layer(panics);
    let all = (0..4).map(|_| AssertUnwindSafe(service.call(get())).catch_unwind());
    let ends = futures_util::future::join_all(all).await;
    assert_eq!(ends.iter().filter(|end| end.is_err()).count(), 1);
    assert_eq!((layer.status().broken, layer.status().in_flight), (6, 0));
}

#[tokio::test(start_paused = true)]
async fn a_service_may_say_itself_what_is_the_same() {
    let (calls, service) = callee(|_| Ok(Response::new(body(vec![data("one")]))));
    // A query that is sent as a POST, told apart by what it asks.
    let layer = CoalesceLayer::new(&CoalesceConfig::default())
        .expect("works")
        .key(|request: &Request<Empty<Bytes>>| {
            let asked = request.headers().get("x-query-hash")?;
            Some(Key::new(asked.as_bytes()))
        });
    let service = layer.layer(service);
    let ask = |hash: Option<&'static str>| {
        let mut request = Request::post("http://h/graphql")
            .body(Empty::new())
            .expect("valid");
        if let Some(hash) = hash {
            let hash = hash.parse().expect("a value");
            request.headers_mut().insert("x-query-hash", hash);
        }
        service.clone().call(request)
    };
    let all = ["a", "a", "b", "a"].map(|hash| ask(Some(hash)));
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(text(answer.expect("answers")).await.0, "one");
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    // Without a key each goes by itself.
    futures_util::future::join_all([ask(None), ask(None)]).await;
    assert_eq!(calls.load(Ordering::Relaxed), 4);
    assert_eq!((layer.status().led, layer.status().answered), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn another_configuration_reaches_services_that_are_there() {
    let (calls, service) = callee(|_| Ok(Response::new(body(vec![data("0123456789")]))));
    let layer = CoalesceLayer::new(&CoalesceConfig::default()).expect("works");
    let service = layer.layer(service);
    let under_way = many(&service, 2);
    layer.reconfigure(&config(r#"body = "4B""#)).expect("works");
    assert!(layer.reconfigure(&config("keys = 0")).is_err());
    // Joins the call that began before, and shares what that one may.
    let joins = many(&service, 1);
    let (both, one) = tokio::join!(under_way, joins);
    assert_eq!(
        (both.len() + one.len(), calls.load(Ordering::Relaxed)),
        (3, 1)
    );
    many(&service, 2).await;
    assert_eq!(calls.load(Ordering::Relaxed), 3, "too long now");
}
