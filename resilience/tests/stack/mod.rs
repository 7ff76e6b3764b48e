//! What a policy says of tries, a stack does: callees are told which one it is, and verdicts behind
//! a head are heard before another one is ruled out.

use std::{
    collections::VecDeque,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use selvedge_resilience::{
    TrafficPolicy,
    layer::{BoxError, ReplayBody, ServiceTransport, Stack},
};
use tokio::time::{Instant, Sleep, sleep};
use tower::service_fn;

type Asked = Request<ReplayBody<Empty<Bytes>>>;

/// What comes after the head, and how many milliseconds after what was before it.
#[derive(Debug, Clone, Copy)]
enum Says {
    Data(u64, &'static str),
    Status(u64, &'static str),
    Breaks(u64),
}

/// At one try: how long until the head, and what comes then.
type Try = (u64, &'static [Says]);

struct Script {
    says: VecDeque<Says>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(&next) = self.says.front() else {
            return Poll::Ready(None);
        };
        let (Says::Data(ms, _) | Says::Status(ms, _) | Says::Breaks(ms)) = next;
        let wait = self
            .wait
            .get_or_insert_with(|| Box::pin(sleep(Duration::from_millis(ms))));
        ready!(wait.as_mut().poll(cx));
        (self.wait, _) = (None, self.says.pop_front());
        Poll::Ready(Some(match next {
            Says::Data(_, text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
            Says::Status(_, code) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(code));
                Ok(Frame::trailers(trailers))
            }
            Says::Breaks(_) => Err("broken off".into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.says.is_empty()
    }
}

/// What came of a call.
#[derive(Debug, PartialEq)]
struct Came {
    /// When the head was there.
    head: u64,
    text: String,
    /// The status of the trailers, or how the body broke.
    status: Option<String>,
    /// What each try said of itself.
    tries: Vec<HeaderMap>,
}

/// One gRPC call through the stack of `policy`, whose callee does that at each try.
async fn call(policy: &str, tries: &'static [Try], said: &[(&'static str, &str)]) -> Came {
    let policy: TrafficPolicy = toml::from_str(policy).expect(policy);
    let stack = Stack::<u8>::new(policy).expect("valid");
    stack.set_members([1, 2, 3].map(selvedge_resilience::balance::Member::new));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let callee = service_fn(move |request: Asked| {
        let mut seen = seen.lock().expect("no panic");
        let (ms, says) = tries[seen.len().min(tries.len() - 1)];
        seen.push(request.headers().clone());
        async move {
            sleep(Duration::from_millis(ms)).await;
            let body = Script {
                says: says.iter().copied().collect(),
                wait: None,
            };
            let answer = Response::builder().header("content-type", "application/grpc");
            Ok::<_, BoxError>(answer.body(body).expect("valid"))
        }
    });
    let transport = ServiceTransport::new(callee, |_: &u8, _: &mut Asked| ());
    let mut request = Request::post("/prices").header("content-type", "application/grpc");
    for (name, value) in said {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::new()).expect("valid");
    let began = Instant::now();
    let answer = stack.call(&transport, request, ()).await.expect("answers");
    let head = began.elapsed().as_millis() as u64;
    let (mut body, mut text, mut status) = (answer.into_body(), String::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => text += std::str::from_utf8(&data).expect("text"),
            Ok(Err(frame)) => {
                let trailers = frame.into_trailers().expect("no data");
                status = Some(trailers["grpc-status"].to_str().expect("text").to_owned());
            }
            Err(error) => {
                status = Some(error.to_string());
                break;
            }
        }
    }
    let tries = asked.lock().expect("no panic").clone();
    Came {
        head,
        text,
        status,
        tries,
    }
}

const RETRY: &str = r#"retry = { attempts = 2, backoff = "0s", jitter = "none", non_idempotent = true, budget = "100% min 10/s" }"#;

/// Name, policy, what the callee does, tries, when the head is there, text, status.
type Row = (
    &'static str,
    String,
    &'static [Try],
    usize,
    u64,
    &'static str,
    &'static str,
);

#[tokio::test(start_paused = true)]
async fn a_verdict_in_trailers_is_heard_before_another_try_is_ruled_out() {
    const UNAVAILABLE: Try = (1, &[Says::Status(1, "14")]);
    const GOOD: Try = (
        1,
        &[Says::Data(1, "a"), Says::Data(1, "b"), Says::Status(1, "0")],
    );
    let patient = RETRY.replace("attempts", "grpc_trailers = \"10s\", attempts");
    let never = RETRY.replace("attempts", "grpc_trailers = \"0s\", attempts");
    let none = String::new();
    let cases: &[Row] = &[
        (
            "a failure, then a good one",
            RETRY.into(),
            &[UNAVAILABLE, GOOD],
            2,
            4,
            "ab",
            "0",
        ),
        (
            "failures only",
            RETRY.into(),
            &[UNAVAILABLE],
            3,
            5,
            "",
            "14",
        ),
        (
            "not to be tried again",
            RETRY.into(),
            &[(1, &[Says::Status(1, "3")])],
            1,
            2,
            "",
            "3",
        ),
        (
            "without a word",
            RETRY.into(),
            &[(1, &[Says::Breaks(1)]), GOOD],
            2,
            4,
            "ab",
            "0",
        ),
        (
            "data, then a failure",
            RETRY.into(),
            &[(1, &[Says::Data(1, "a"), Says::Status(1, "14")])],
            1,
            2,
            "a",
            "14",
        ),
        (
            "nothing for long",
            RETRY.into(),
            &[(1, &[Says::Data(5_000, "a"), Says::Status(1, "0")])],
            1,
            1_001,
            "a",
            "0",
        ),
        (
            "a failure after long",
            RETRY.into(),
            &[(1, &[Says::Status(5_000, "14")])],
            1,
            1_001,
            "",
            "14",
        ),
        (
            "who has the time",
            patient,
            &[(1, &[Says::Status(5_000, "14")]), GOOD],
            2,
            5_003,
            "ab",
            "0",
        ),
        ("who does not wait", never, &[UNAVAILABLE], 1, 1, "", "14"),
        ("no retries", none, &[UNAVAILABLE], 1, 1, "", "14"),
    ];
    for (name, policy, tries, made, head, text, status) in cases {
        let came = call(policy, tries, &[]).await;
        assert_eq!(came.tries.len(), *made, "{name}");
        let found = (came.head, came.text.as_str(), came.status.as_deref());
        assert_eq!(found, (*head, *text, Some(*status)), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_race_the_good_verdict_wins() {
    let hedge = r#"hedge = { after = "10ms", non_idempotent = true }"#;
    // The first has its head just when the second is sent, and fails behind it.
    let tries: &[Try] = &[
        (11, &[Says::Status(20, "14")]),
        (5, &[Says::Data(30, "b"), Says::Status(1, "0")]),
    ];
    let came = call(hedge, tries, &[]).await;
    assert_eq!(
        (came.text.as_str(), came.status.as_deref()),
        ("b", Some("0"))
    );
    assert_eq!((came.tries.len(), came.head), (2, 45));

    let hasty = hedge.replace("after", "grpc_trailers = \"0s\", after");
    let came = call(&hasty, tries, &[]).await;
    assert_eq!(
        (came.text.as_str(), came.status.as_deref()),
        ("", Some("14"))
    );
    assert_eq!((came.tries.len(), came.head), (2, 11));
}

#[tokio::test(start_paused = true)]
async fn callees_are_told_which_try_it_is() {
    const FAILS: &[Try] = &[(1, &[Says::Status(1, "14")])];
    let count = |came: &Came, name: &str| -> Vec<Option<String>> {
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        came.tries
            .iter()
            .map(|head| head.get(name).map(text))
            .collect()
    };
    let some = |text: &str| Some(text.to_owned());

    let came = call(RETRY, FAILS, &[]).await;
    let envoy = "x-envoy-attempt-count";
    assert_eq!(count(&came, envoy), [None, some("2"), some("3")]);
    let grpc = "grpc-previous-rpc-attempts";
    assert_eq!(count(&came, grpc), [None, some("1"), some("2")]);

    // What a caller says of its own tries is not passed on.
    let said = [(envoy, "7"), (grpc, "6")];
    let came = call(RETRY, FAILS, &said).await;
    assert_eq!(count(&came, envoy), [None, some("2"), some("3")]);
    assert_eq!(count(&came, grpc), [None, some("1"), some("2")]);

    let silent = RETRY.replace("attempts", "announce = false, attempts");
    let came = call(&silent, FAILS, &[]).await;
    assert_eq!(count(&came, envoy), [None, None, None]);

    let late = format!("{RETRY}\ntimeouts = {{ backendRequest = \"20ms\" }}");
    let came = call(&late, &[(500, &[]), (1, &[Says::Status(1, "14")])], &[]).await;
    let timeout = "x-envoy-is-timeout-retry";
    assert_eq!(count(&came, timeout), [None, some("true"), None]);

    let hedge = r#"hedge = { after = "10ms", non_idempotent = true }"#;
    let slow: &[Try] = &[(50, &[Says::Status(1, "0")])];
    let came = call(hedge, slow, &[]).await;
    assert_eq!(count(&came, envoy), [None, some("2")]);
    let silent = hedge.replace("after", "announce = false, after");
    let came = call(&silent, slow, &[]).await;
    assert_eq!(count(&came, envoy), [None, None]);
}

/// In a service that passes calls on: who asked it decides, as at the proxies.
#[tokio::test]
async fn the_callers_address_decides_where_its_calls_go() {
    let text = r#"balance = { policy = "maglev", hash_on = "source" }"#;
    let stack = Stack::<u8>::new(toml::from_str(text).expect("a policy")).expect("valid");
    stack.set_members((0..10).map(selvedge_resilience::balance::Member::new));
    let went = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&went);
    let callee =
        service_fn(async |_: Asked| Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new())));
    let transport = ServiceTransport::new(callee, move |key: &u8, _: &mut Asked| {
        seen.lock().expect("no panic").push(*key);
    });
    let mut places = Vec::new();
    for last in 0..16_u8 {
        // The same address, as IPv4 and as it is written in IPv6.
        let v4 = Ipv4Addr::new(10, 0, 0, last);
        for source in [IpAddr::V4(v4), IpAddr::V6(v4.to_ipv6_mapped())].repeat(4) {
            let mut request = Request::new(Empty::<Bytes>::new());
            request.extensions_mut().insert(source);
            drop(stack.call(&transport, request, ()).await.expect("answers"));
        }
        let mut went = std::mem::take(&mut *went.lock().expect("no panic"));
        went.dedup();
        assert_eq!(went.len(), 1, "{v4} went to {went:?}");
        places.extend(went);
    }
    places.sort_unstable();
    places.dedup();
    assert!(places.len() > 3, "all go to {places:?}");
}
