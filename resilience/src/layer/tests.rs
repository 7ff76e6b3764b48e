//! The stack and its layers over a scripted transport, in paused time.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    FailureClass, Outcome, Policy, Reason, TrafficPolicy, balance::Member, breaker::State,
    bulkhead::Bulkhead,
};

/// What a try comes to.
#[derive(Clone)]
enum Try {
    Answer(u16),
    Fails(Failure),
    /// Answers after so many milliseconds.
    Late(u64, u16),
    Hangs,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Failure {
    Refused,
    Reset,
    Caller,
}

impl TransportError for Failure {
    fn class(&self) -> FailureClass {
        match self {
            Self::Refused => FailureClass::Connect,
            Self::Reset | Self::Caller => FailureClass::Reset,
        }
    }
    fn is_callers_fault(&self) -> bool {
        *self == Self::Caller
    }
}

#[derive(Default)]
struct Script {
    tries: Mutex<VecDeque<Try>>,
    seen: Mutex<Vec<(u32, Bytes)>>,
}

impl Transport<u32, Full<Bytes>> for Script {
    type Body = Full<Bytes>;
    type Error = Failure;

    async fn send(
        &self,
        key: &u32,
        request: Request<ReplayBody<Full<Bytes>>>,
    ) -> Result<Response<Full<Bytes>>, Failure> {
        let next = self.tries.lock().pop_front().unwrap_or(Try::Answer(200));
        if !matches!(next, Try::Fails(Failure::Refused)) {
            let body = request
                .into_body()
                .collect()
                .await
                .expect("infallible")
                .to_bytes();
            self.seen.lock().push((*key, body));
        }
        match next {
            Try::Answer(status) => Ok(Response::builder()
                .status(status)
                .body(Full::from(format!("answer {status}")))
                .expect("valid")),
            Try::Late(ms, status) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(Response::builder()
                    .status(status)
                    .body(Full::from(format!("answer {status}")))
                    .expect("valid"))
            }
            Try::Fails(failure) => Err(failure),
            Try::Hangs => std::future::pending().await,
        }
    }
}

fn policy(text: &str) -> TrafficPolicy {
    toml::from_str(text).expect("parses")
}

fn stack(text: &str, members: u32) -> Stack<u32> {
    let stack = Stack::with_rng(policy(text), crate::Rng::new(9)).expect("valid");
    stack.set_members((0..members).map(Member::new));
    stack
}

fn script(tries: &[Try]) -> Script {
    Script {
        tries: Mutex::new(tries.iter().cloned().collect()),
        seen: Mutex::default(),
    }
}

fn retries(stack: &Stack<u32>) -> u64 {
    stack.status().budget.map_or(0, |budget| budget.made)
}

fn slots(stack: &Stack<u32>) -> Option<(u32, u32)> {
    let slots = stack.status().bulkhead;
    slots.map(|slots| (slots.in_flight, slots.limit))
}

fn request(method: Method, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri("/")
        .body(Full::new(body.into()))
        .expect("valid")
}

async fn status(
    stack: &Stack<u32>,
    script: &Script,
    method: Method,
    body: impl Into<Bytes>,
) -> Result<u16, Error<Failure>> {
    let answer = stack.call(script, request(method, body), ()).await?;
    let status = answer.status().as_u16();
    answer.into_body().collect().await.expect("body");
    Ok(status)
}

const RETRY: &str = r#"retry = { attempts = 3, codes = [500], budget = "100% min 10/s" }"#;

#[tokio::test(start_paused = true)]
async fn t2_retries_on_listed_statuses_and_the_last_answer_is_the_callees_own() {
    let (s, ok) = (stack(RETRY, 1), Try::Answer(200));
    let twice = script(&[Try::Answer(500), Try::Answer(500), ok]);
    assert_eq!(
        status(&s, &twice, Method::GET, "").await.expect("answer"),
        200
    );
    assert_eq!(twice.seen.lock().len(), 3);
    let always = script(&[const { Try::Answer(500) }; 9]);
    let answer = s
        .call(&always, request(Method::GET, ""), ())
        .await
        .expect("the callee's own");
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        answer.into_body().collect().await.expect("body").to_bytes(),
        "answer 500"
    );
    assert_eq!(always.seen.lock().len(), 4);
    let unlisted = script(&[Try::Answer(503)]);
    assert_eq!(
        status(&s, &unlisted, Method::GET, "")
            .await
            .expect("answer"),
        503
    );
    assert_eq!(unlisted.seen.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn t3_a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let s = stack(RETRY, 2);
    for _ in 0..20 {
        let one_dead = script(&[Try::Fails(Failure::Refused)]);
        assert_eq!(
            status(&s, &one_dead, Method::POST, "x")
                .await
                .expect("answer"),
            200
        );
    }
}

#[tokio::test(start_paused = true)]
async fn t4_what_may_have_been_processed_is_repeated_only_if_idempotent_and_replayable() {
    let s = stack(RETRY, 2);
    let reset = || script(&[Try::Fails(Failure::Reset)]);
    assert!(status(&s, &reset(), Method::POST, "x").await.is_err());
    assert_eq!(
        status(&s, &reset(), Method::PUT, "x")
            .await
            .expect("answer"),
        200
    );
    let opted_in = stack(
        &RETRY.replace("attempts", "non_idempotent = true, attempts"),
        2,
    );
    assert_eq!(
        status(&opted_in, &reset(), Method::POST, "x")
            .await
            .expect("answer"),
        200
    );

    let (fits, too_long) = (vec![7u8; 64 << 10], vec![7u8; (64 << 10) + 1]);
    let replayed = reset();
    assert_eq!(
        status(&s, &replayed, Method::PUT, fits.clone())
            .await
            .expect("answer"),
        200
    );
    assert!(
        replayed.seen.lock().iter().all(|(_, body)| *body == fits),
        "byte-identical"
    );
    assert_eq!(replayed.seen.lock().len(), 2);
    assert!(
        status(&s, &reset(), Method::PUT, too_long).await.is_err(),
        "final"
    );
}

#[tokio::test(start_paused = true)]
async fn t5_the_budget_bounds_what_retries_add() {
    let s = stack(
        r#"retry = { attempts = 3, codes = [503], budget = "20% min 3/s" }"#,
        3,
    );
    let failing = script(&vec![Try::Answer(503); 5000]);
    for _ in 0..1000 {
        assert_eq!(
            status(&s, &failing, Method::GET, "").await.expect("answer"),
            503
        );
    }
    let tries = failing.seen.lock().len();
    // The floor is 3/s for as long as it took (paused time: backoff alone) plus one window of it.
    assert!(
        (1200..=1300).contains(&tries),
        "{tries} tries for 1000 calls"
    );
}

#[tokio::test(start_paused = true)]
async fn t6_an_open_circuit_refuses_at_once_and_says_when_to_come_back() {
    let s = stack("breaker = { consecutive = 2 }", 1);
    let failing = script(&[const { Try::Answer(500) }; 2]);
    for _ in 0..2 {
        status(&s, &failing, Method::GET, "").await.expect("answer");
    }
    assert_eq!(s.breaker().expect("written").state(), State::Open);
    let error = status(&s, &failing, Method::GET, "")
        .await
        .expect_err("open");
    let rejected = error.rejected().expect("refused");
    assert_eq!(
        (rejected.policy, rejected.reason),
        (Policy::Breaker, Reason::Open)
    );
    assert!(rejected.retry_after.expect("says when") <= Duration::from_secs(5));
    assert_eq!(
        failing.seen.lock().len(),
        2,
        "no third try reached the callee"
    );
}

#[tokio::test(start_paused = true)]
async fn t1_a_hang_is_cut_at_the_try_and_at_the_total_and_counts_as_a_failure() {
    let s = stack(
        r#"timeouts = { request = "500ms", backendRequest = "200ms" }
           breaker = { consecutive = 3 }
           retry = { attempts = 5, backoff = "1ms", budget = "1000% min 10/s" }"#,
        1,
    );
    let start = tokio::time::Instant::now();
    let hanging = script(&[const { Try::Hangs }; 9]);
    let error = status(&s, &hanging, Method::GET, "")
        .await
        .expect_err("nobody answers");
    assert_eq!(error.rejected().expect("refused").policy, Policy::Deadline);
    assert_eq!(start.elapsed(), Duration::from_millis(500));
    assert_eq!(hanging.seen.lock().len(), 3);
    assert_eq!(s.breaker().expect("written").state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_callers_own_deadline_is_kept_and_an_expired_call_is_not_made() {
    let s = stack("", 1);
    let call = |ms: &str| {
        let mut request = request(Method::GET, "");
        request
            .headers_mut()
            .insert("grpc-timeout", ms.parse().expect("value"));
        request
    };
    let start = tokio::time::Instant::now();
    let hanging = script(&[Try::Hangs]);
    s.call(&hanging, call("100m"), ()).await.expect_err("late");
    assert_eq!(start.elapsed(), Duration::from_millis(100));
    let untouched = script(&[]);
    let error = s
        .call(&untouched, call("0m"), ())
        .await
        .expect_err("expired");
    assert_eq!(error.rejected().expect("refused").reason, Reason::Expired);
    assert!(untouched.seen.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_callers_broken_body_is_neither_retried_nor_held_against_the_endpoint() {
    let s = stack(&format!("{RETRY}\nbreaker = {{ consecutive = 1 }}"), 2);
    let broken = script(&[Try::Fails(Failure::Caller)]);
    assert!(status(&s, &broken, Method::PUT, "x").await.is_err());
    assert_eq!(broken.seen.lock().len(), 1);
    assert_eq!(s.breaker().expect("written").state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn permits_live_as_long_as_the_body_and_go_back_when_it_is_dropped() {
    let s = stack("bulkhead = 1", 1);
    let ok = script(&[]);
    let answer = s
        .call(&ok, request(Method::GET, ""), ())
        .await
        .expect("answer");
    let error = status(&s, &ok, Method::GET, "").await.expect_err("full");
    assert_eq!(error.rejected().expect("refused").policy, Policy::Bulkhead);
    drop(answer);
    assert!(status(&s, &ok, Method::GET, "").await.is_ok());
    assert_eq!(slots(&s), Some((0, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_body_of_known_length_ends_with_its_last_byte_and_not_with_its_drop() {
    let s = stack("bulkhead = 1", 1);
    let ok = script(&[]);
    let call = s.call(&ok, request(Method::GET, ""), ());
    let mut body = call.await.expect("answer").into_body();
    // As hyper does: read while it says that there is more, never ask after the end.
    while !http_body::Body::is_end_stream(&body) {
        body.frame().await.expect("a frame").expect("data");
    }
    drop(body);
    let endpoint = &s.status().endpoints[0];
    assert_eq!((endpoint.succeeded, endpoint.failed), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_policy_keeps_the_state() {
    let s = stack("breaker = { consecutive = 1 }", 1);
    status(&s, &script(&[Try::Answer(500)]), Method::GET, "")
        .await
        .expect("answer");
    s.reconfigure(policy("breaker = { consecutive = 9 }\nbulkhead = 3"))
        .expect("valid");
    assert_eq!(s.breaker().expect("written").state(), State::Open);
    assert!(s.reconfigure(policy("bulkhead = 0")).is_err());
    assert_eq!(
        s.policy().bulkhead.map(|b| b.max),
        Some(3),
        "a bad policy changes nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn hooks_see_every_try() {
    #[derive(Default)]
    struct Log(Vec<(u32, Option<Outcome>)>);
    impl Hook<u32> for Log {
        fn started(&mut self, attempt: Attempt<'_, u32>, _: &mut http::request::Parts) {
            self.0.push((attempt.number, None));
        }
        fn ended(&mut self, attempt: Attempt<'_, u32>, outcome: Outcome, _: tokio::time::Instant) {
            self.0.push((attempt.number, Some(outcome)));
        }
    }
    let mut log = Log::default();
    let once = script(&[Try::Fails(Failure::Refused)]);
    stack(RETRY, 2)
        .call(&once, request(Method::GET, ""), &mut log)
        .await
        .expect("answer");
    let refused = Outcome::Failure(FailureClass::Connect);
    let ok = Some(Outcome::Success);
    assert_eq!(log.0, [(1, None), (1, Some(refused)), (2, None), (2, ok)]);
}

#[tokio::test(start_paused = true)]
async fn layers_stack_around_any_service_and_clones_share_one_core() {
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let bulkhead = Bulkhead::new(1);
    let service = ServiceBuilder::new()
        .layer(BulkheadLayer::new(bulkhead.clone()))
        .layer(TimeoutLayer::new(Duration::from_secs(1)))
        .service(service_fn(move |_: Request<()>| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello"))) }
        }));
    // Ready, idle clones hold nothing.
    let mut idle = service.clone();
    idle.ready().await.expect("ready");
    let first = service
        .clone()
        .oneshot(Request::new(()))
        .await
        .expect("answer");
    let refused = service
        .clone()
        .oneshot(Request::new(()))
        .await
        .map_err(Error::flat);
    assert!(refused.expect_err("full").rejected().is_some());
    assert_eq!(
        first.into_body().collect().await.expect("body").to_bytes(),
        "hello"
    );
    assert_eq!(
        (bulkhead.in_flight(), calls.load(Ordering::Relaxed)),
        (0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_the_whole_stack_as_one_layer() {
    let layer = Stack::layer(policy(RETRY)).expect("valid");
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let client = layer.layer(service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
        let status = if count.fetch_add(1, Ordering::Relaxed) == 0 {
            500
        } else {
            200
        };
        async move {
            Ok::<_, BoxError>(
                Response::builder()
                    .status(status)
                    .body(Full::<Bytes>::from("x"))
                    .expect("valid"),
            )
        }
    }));
    let answer = client
        .oneshot(request(Method::GET, ""))
        .await
        .expect("answer");
    assert_eq!(
        (answer.status().as_u16(), calls.load(Ordering::Relaxed)),
        (200, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_outlives_the_deadline_is_cut_not_completed() {
    let drip = http_body_util::StreamBody::new(futures_util::stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Some((
            Ok::<_, BoxError>(http_body::Frame::data(Bytes::from_static(b"."))),
            n + 1,
        ))
    }));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    let body = GuardedBody::new(
        Box::pin(drip),
        CallGuard::new(()),
        Outcome::Success,
        Some(deadline),
    );
    let error = body.collect().await.expect_err("cut");
    assert!(matches!(error, BodyError::Deadline), "{error}");
    assert_eq!(tokio::time::Instant::now(), deadline);
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_with_a_queue_lets_a_call_wait_and_not_past_its_deadline() {
    let text = r#"
        timeouts = { request = "1s" }
        bulkhead = { max = 1, queue = { max = 1, wait = "300ms" } }
    "#;
    let s = stack(text, 1);
    let ok = script(&[]);
    let held = s.call(&ok, request(Method::GET, ""), ()).await;
    let held = held.expect("the first has the slot");
    let start = tokio::time::Instant::now();
    let late = status(&s, &ok, Method::GET, "").await.expect_err("no slot");
    assert_eq!(
        late.rejected().expect("refused").reason,
        Reason::QueueTimeout
    );
    assert_eq!(start.elapsed(), Duration::from_millis(300));
    let waits = status(&s, &ok, Method::GET, "");
    let frees = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(held);
    };
    let (waited, ()) = tokio::join!(waits, frees);
    assert_eq!(waited.expect("its turn came"), 200);
    let mut short = request(Method::GET, "");
    short
        .extensions_mut()
        .insert(RequestTimeout(Duration::from_millis(50)));
    let held = s.call(&ok, request(Method::GET, ""), ()).await;
    let start = tokio::time::Instant::now();
    assert!(s.call(&ok, short, ()).await.is_err());
    assert_eq!(start.elapsed(), Duration::from_millis(50));
    drop(held);
    assert_eq!(slots(&s), Some((0, 1)));
}

#[tokio::test(start_paused = true)]
async fn every_section_of_a_policy_is_enforced_and_one_that_leaves_is_not() {
    const OK: u16 = 200;
    let cases: [(&str, Policy); 4] = [
        ("bulkhead = 1", Policy::Bulkhead),
        (
            "concurrency = { initial = 1, min = 1 }",
            Policy::AdaptiveLimit,
        ),
        (r#"rate_limit = "1/h""#, Policy::RateLimit),
        ("breaker = { consecutive = 1 }", Policy::Breaker),
    ];
    for (text, policy_name) in cases {
        let s = stack(text, 1);
        let bad = script(&[Try::Answer(500)]);
        let held = s.call(&bad, request(Method::GET, ""), ()).await;
        let mut held = held.expect("the first is let through");
        if policy_name == Policy::Breaker {
            held.body_mut()
                .frame()
                .await
                .expect("a frame")
                .expect("data");
        }
        let refused = status(&s, &script(&[]), Method::GET, "").await;
        let refused = refused.expect_err(text);
        assert_eq!(
            refused.rejected().expect(text).policy,
            policy_name,
            "{text}"
        );
        s.reconfigure(TrafficPolicy::default()).expect("valid");
        let free = status(&s, &script(&[]), Method::GET, "").await;
        assert_eq!(free.expect(text), OK, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttle_keeps_back_what_would_be_refused() {
    let s = stack("throttle = {}", 1);
    let refusals = script(&[const { Try::Answer(503) }; 400]);
    let mut kept_back = 0;
    for _ in 0..400 {
        if status(&s, &refusals, Method::GET, "").await.is_err() {
            kept_back += 1;
        }
    }
    assert!((250..400).contains(&kept_back), "{kept_back}");
    assert!(s.status().throttle.expect("written") > 0.8);
}

#[tokio::test(start_paused = true)]
async fn what_hash_on_names_decides_the_endpoint() {
    let of = |name: &str, value: String| {
        let mut request = request(Method::GET, "");
        let name = http::HeaderName::try_from(name).expect("a name");
        request
            .headers_mut()
            .insert(name, value.try_into().expect("a value"));
        request
    };
    for (text, field, prefix) in [
        (r#"{ header = "x-user" }"#, "x-user", ""),
        (r#"{ cookie = "session" }"#, "cookie", "a=b; session="),
    ] {
        let text = format!(r#"balance = {{ policy = "maglev", hash_on = {text} }}"#);
        let s = stack(&text, 16);
        let mut used = std::collections::HashSet::new();
        for user in 0..32 {
            let ok = script(&[]);
            for _ in 0..3 {
                let answer = s.call(&ok, of(field, format!("{prefix}u{user}")), ()).await;
                answer
                    .expect("answer")
                    .into_body()
                    .collect()
                    .await
                    .expect("body");
            }
            let seen: Vec<u32> = ok.seen.lock().iter().map(|(key, _)| *key).collect();
            assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
            used.extend(seen);
        }
        assert!(used.len() > 8, "{used:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn faults_are_seen_by_every_policy_and_end_with_their_section() {
    let text = r#"
        fault = { abort = { status = 503, percentage = "100%" } }
        retry = { attempts = 2, codes = [503], budget = "100% min 10/s" }
        breaker = { consecutive = 3 }
    "#;
    let s = stack(text, 1);
    let untouched = script(&[]);
    let answer = s.call(&untouched, request(Method::GET, ""), ()).await;
    let answer = answer.expect("an injected answer");
    assert_eq!(answer.status(), 503);
    assert!(answer.extensions().get::<Injected>().expect("marked").abort);
    drop(answer);
    assert_eq!((untouched.seen.lock().len(), retries(&s)), (0, 2));
    assert_eq!(s.breaker().expect("written").state(), State::Open);
    let delayed = stack(
        r#"fault = { delay = { fixed = "2s", percentage = "100%" } }
           timeouts = { request = "5s", backendRequest = "1s" }"#,
        1,
    );
    let late = status(&delayed, &untouched, Method::GET, "").await;
    let late = late.expect_err("cut off in time");
    assert_eq!(late.rejected().expect("refused").policy, Policy::Deadline);
    delayed
        .reconfigure(TrafficPolicy::default())
        .expect("valid");
    let free = status(&delayed, &untouched, Method::GET, "").await;
    assert_eq!(free.expect("untouched"), 200);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_answers_where_nothing_else_does_and_says_so() {
    use crate::fallback::{Cause, DEGRADED};
    #[derive(Default)]
    struct Causes(Vec<Cause>);
    impl Hook<u32> for Causes {
        fn degraded(&mut self, cause: Cause) {
            self.0.push(cause);
        }
    }
    let text = r#"
        bulkhead = 1
        fallback = { answer = { status = 203, body = "[]" } }
    "#;
    let s = stack(text, 1);
    let cases = [
        (Try::Answer(503), "status", 203, "[]"),
        (Try::Fails(Failure::Reset), "failed", 203, "[]"),
        (Try::Answer(404), "", 404, "answer 404"),
    ];
    for (what, why, code, body) in cases {
        let mut causes = Causes::default();
        let answer = s
            .call(&script(&[what]), request(Method::GET, ""), &mut causes)
            .await;
        let answer = answer.expect("an answer");
        let mark = answer
            .headers()
            .get(&DEGRADED)
            .map(|v| v.to_str().expect("text"));
        assert_eq!((mark.unwrap_or(""), answer.status().as_u16()), (why, code));
        assert_eq!(causes.0.first().map_or("", |cause| cause.as_str()), why);
        let text = answer.into_body().collect().await.expect("body").to_bytes();
        assert_eq!(text, body);
    }
    let held = s.call(&script(&[]), request(Method::GET, ""), ()).await;
    let answer = s.call(&script(&[]), request(Method::GET, ""), ()).await;
    assert_eq!(answer.expect("an answer").headers()[&DEGRADED], "bulkhead");
    drop(held);
    assert_eq!(slots(&s), Some((0, 1)));
}

const HEDGED: &str = r#"
    bulkhead = 9
    hedge = { after = "50ms" }
    retry = { attempts = 1, codes = [500], backoff = "10ms..10ms", budget = "100% min 10/s" }
"#;

#[tokio::test(start_paused = true)]
async fn a_late_try_is_overtaken_and_cancelled() {
    let s = stack(HEDGED, 3);
    let late = script(&[Try::Late(5_000, 200), Try::Late(10, 200)]);
    let start = tokio::time::Instant::now();
    let got = status(&s, &late, Method::GET, "").await.expect("answer");
    assert_eq!((got, start.elapsed()), (200, Duration::from_millis(60)));
    let keys: Vec<u32> = late.seen.lock().iter().map(|(key, _)| *key).collect();
    assert!(keys.len() == 2 && keys[0] != keys[1], "{keys:?}");
    assert_eq!((slots(&s), retries(&s)), (Some((0, 9)), 1));
    let pending: u32 = s.status().endpoints.iter().map(|e| e.pending).sum();
    assert_eq!(pending, 0);
}

/// tower's hedge takes whatever comes first, an error too.
#[tokio::test(start_paused = true)]
async fn tower_hedge_first_error_wins_is_not_so_here() {
    let s = stack(HEDGED, 3);
    let tries = script(&[Try::Late(200, 200), Try::Answer(500)]);
    let start = tokio::time::Instant::now();
    let got = status(&s, &tries, Method::GET, "").await.expect("answer");
    assert_eq!((got, start.elapsed()), (200, Duration::from_millis(200)));
    // Both bad: the round is over, and the retry goes on.
    let tries = script(&[Try::Late(200, 500), Try::Late(20, 500), Try::Answer(200)]);
    let got = status(&s, &tries, Method::GET, "").await.expect("answer");
    assert_eq!((got, tries.seen.lock().len()), (200, 3));
    assert_eq!(slots(&s), Some((0, 9)));
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_hedged_is_not() {
    let no_budget = HEDGED.replace("100% min 10/s", "0%");
    for (name, text, method) in [
        ("a method that is not idempotent", HEDGED, Method::POST),
        ("an empty budget", no_budget.as_str(), Method::GET),
    ] {
        let s = stack(text, 3);
        let tries = script(&[Try::Late(300, 200)]);
        status(&s, &tries, method, "x").await.expect(name);
        assert_eq!(tries.seen.lock().len(), 1, "{name}");
    }
    let full = stack(&HEDGED.replace("bulkhead = 9", "bulkhead = 1"), 3);
    let tries = script(&[Try::Late(300, 200)]);
    status(&full, &tries, Method::GET, "")
        .await
        .expect("answer");
    assert_eq!((tries.seen.lock().len(), retries(&full)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_timer_tells_who_listens_what_goes_on() {
    use crate::events::EventKind::{RefusalsBegan, RefusalsEnded};
    let events = crate::events::Events::new();
    let heard = events.subscribe_to_changes(64);
    let text = r#"
        retry = { attempts = 1, codes = [500], budget = "0%", in_flight = "0% min 1" }
        bulkhead = 1
        outlier = { consecutive_5xx = 0 }
    "#;
    let stack: Stack<u32> = Stack::<u32>::builder(policy(text))
        .name("orders")
        .events(events)
        .label(u32::to_string)
        .build()
        .expect("valid");
    let told = || {
        stack.tick();
        let event = |event: crate::events::Event| (event.policy, event.kind);
        std::iter::from_fn(|| heard.next())
            .map(event)
            .collect::<Vec<_>>()
    };
    // Nobody is there.
    assert!(status(&stack, &script(&[]), Method::GET, "").await.is_err());
    let reason = Reason::NoEndpoint;
    assert_eq!(told(), [(Policy::Balancer, RefusalsBegan { reason })]);
    stack.set_members((0..2).map(Member::new));
    // The budget pays for nothing, and one call is all that may be under way.
    let failing = script(&[const { Try::Answer(500) }; 3]);
    for _ in 0..3 {
        let got = status(&stack, &failing, Method::GET, "").await;
        assert_eq!(got.expect("answer"), 500);
    }
    let slow = script(&[Try::Hangs]);
    let mut hangs = Box::pin(stack.call(&slow, request(Method::GET, ""), ()));
    let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(hangs.as_mut().poll(&mut nobody).is_pending());
    assert!(status(&stack, &script(&[]), Method::GET, "").await.is_err());
    drop(hangs);
    let began = |reason| RefusalsBegan { reason };
    assert_eq!(
        told(),
        [
            (Policy::Bulkhead, began(Reason::Full)),
            (Policy::RetryBudget, began(Reason::Exhausted)),
        ]
    );
    tokio::time::advance(Duration::from_secs(11)).await;
    let ended = |refused| RefusalsEnded { refused };
    assert_eq!(
        told(),
        [
            (Policy::Bulkhead, ended(1)),
            (Policy::RetryBudget, ended(3)),
            (Policy::Balancer, ended(1)),
        ]
    );
    assert_eq!(told(), []);
}
