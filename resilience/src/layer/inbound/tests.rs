//! What a service takes on, in paused time.

use std::{convert::Infallible, fmt, sync::atomic::Ordering};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{Layer as _, Service, ServiceExt, service_fn};

use super::*;
use crate::{
    context::Deadline,
    events::{Event, EventKind},
};

fn inbound(text: &str) -> Inbound {
    Inbound::new(toml::from_str(text).expect(text)).expect(text)
}

type Answer = Response<Full<Bytes>>;

/// Answers after `ms`, with as many requests under way as there are.
fn handler(
    ms: u64,
) -> impl Service<Request<()>, Response = Answer, Error = Infallible, Future: Send> + Clone {
    service_fn(move |_: Request<()>| async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Ok(Response::new(Full::from("done")))
    })
}

async fn ask<S, RB>(service: S, request: Request<()>) -> (u16, Bytes, HeaderMap)
where
    S: Service<Request<()>, Response = Response<RB>, Error = Infallible>,
    RB: Body<Data = Bytes>,
    RB::Error: fmt::Debug,
{
    let answer = service.oneshot(request).await.expect("infallible");
    let (head, body) = answer.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    (head.status.as_u16(), body, head.headers)
}

#[tokio::test(start_paused = true)]
async fn every_section_refuses_by_its_name_and_says_when_to_come_back() {
    let cases = [
        ("rate_limit = { rate = \"1/h\" }", 429, "rate_limit"),
        ("bulkhead = 1", 503, "bulkhead"),
        (
            "concurrency = { initial = 1, min = 1 }",
            503,
            "adaptive_limit",
        ),
    ];
    for (text, status, policy) in cases {
        let service = InboundLayer::new(inbound(text)).layer(handler(50));
        let first = tokio::spawn(ask(service.clone(), Request::new(())));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (got, body, headers) = ask(service, Request::new(())).await;
        assert_eq!(got, status, "{text}");
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains(&format!(r#""policy":"{policy}""#)), "{text}");
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        if status == 429 {
            assert!(headers.contains_key("ratelimit-policy") && headers.contains_key(RETRY_AFTER));
        }
        assert_eq!(first.await.expect("no panic").0, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn who_speaks_grpc_is_refused_by_a_grpc_status() {
    let cases = [
        ("rate_limit = { rate = \"1/h\" }", "8", "rate_limit"),
        ("bulkhead = 1", "14", "bulkhead"),
        ("shed = {}", "4", "deadline"),
    ];
    let grpc = |kind: &str| {
        let mut request = Request::new(());
        let kind = kind.parse().expect("a type");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        request
    };
    for (text, code, policy) in cases {
        let service = InboundLayer::new(inbound(text)).layer(handler(50));
        let first = tokio::spawn(ask(service.clone(), grpc("application/grpc+proto")));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut late = grpc("application/grpc");
        let now = Instant::now().into_std();
        if policy == "deadline" {
            late.extensions_mut().insert(Deadline(now));
        }
        let (status, body, headers) = ask(service.clone(), late).await;
        assert_eq!((status, body.len()), (200, 0), "{text}");
        assert_eq!(headers[CONTENT_TYPE], "application/grpc", "{text}");
        assert_eq!(headers["grpc-status"], code, "{text}");
        let message = headers["grpc-message"].to_str().expect("text");
        assert!(
            message.starts_with(&format!("refused by {policy}")),
            "{message}"
        );
        assert_eq!(headers.contains_key("ratelimit-policy"), code == "8");
        // Its trailers are data: it reads HTTP's status.
        let mut web = grpc("application/grpc-web+proto");
        if policy == "deadline" {
            web.extensions_mut().insert(Deadline(now));
        }
        assert_ne!(ask(service, web).await.0, 200, "{text}");
        assert_eq!(first.await.expect("no panic").0, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_waited_in_and_what_nobody_waits_for_is_not_begun() {
    let inbound = inbound("bulkhead = { max = 1, queue = { max = 5, wait = \"1s\" } }");
    let service = InboundLayer::new(inbound.clone()).layer(handler(100));
    let all: Vec<_> = (0..3)
        .map(|_| tokio::spawn(ask(service.clone(), Request::new(()))))
        .collect();
    for one in all {
        assert_eq!(one.await.expect("no panic").0, 200);
    }
    let held = tokio::spawn(ask(service.clone(), Request::new(())));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut hurried = Request::new(());
    let soon = HeaderValue::from_static("20m");
    hurried.headers_mut().insert("grpc-timeout", soon);
    let start = Instant::now();
    assert_eq!(ask(service.clone(), hurried).await.0, 503);
    assert_eq!(start.elapsed(), Duration::from_millis(20));
    let mut expired = Request::new(());
    expired.extensions_mut().insert(Deadline(start.into_std()));
    assert_eq!(ask(service, expired).await.0, 504);
    assert_eq!(held.await.expect("no panic").0, 200);
    let slots = inbound.status().bulkhead.expect("written");
    assert_eq!(slots.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn callers_are_told_apart_as_written() {
    let with = |header: Option<&'static str>, source: Option<[u8; 4]>| {
        let mut request = Request::new(());
        if let Some(key) = header {
            let key = HeaderValue::from_static(key);
            request.headers_mut().insert("x-api-key", key);
        }
        if let Some(source) = source {
            request.extensions_mut().insert(IpAddr::from(source));
        }
        request
    };
    let by_header = "rate_limit = { rate = \"1/h\", by = { header = \"x-api-key\" } }";
    let service = InboundLayer::new(inbound(by_header)).layer(handler(0));
    for (key, want) in [
        (Some("a"), 200),
        (Some("b"), 200),
        (Some("a"), 429),
        (None, 200),
        (None, 429),
    ] {
        let got = ask(service.clone(), with(key, None)).await.0;
        assert_eq!(got, want, "{key:?}");
    }
    let by_source = InboundLayer::new(inbound("rate_limit = { rate = \"1/h\" }"));
    let service = by_source.layer(handler(0));
    for (source, want) in [
        ([1, 1, 1, 1], 200),
        ([2, 2, 2, 2], 200),
        ([1, 1, 1, 1], 429),
    ] {
        let got = ask(service.clone(), with(Some("a"), Some(source))).await.0;
        assert_eq!(got, want, "{source:?}");
    }
}

/// Three times what can be done: what matters is done, what does not is refused first.
#[tokio::test(start_paused = true)]
async fn under_overload_what_matters_least_goes_first() {
    let text = r#"
        shed = { target = "20ms", window = "200ms" }
        bulkhead = { max = 10, queue = { max = 1000, wait = "2s", order = "fifo" } }
    "#;
    let service = InboundLayer::new(inbound(text)).layer(handler(10));
    let done = Arc::new([const { std::sync::atomic::AtomicU32::new(0) }; 3]);
    let mut tasks = Vec::new();
    // 1,000 a second can be done; 3,000 come: 300 critical, 700 default, 2,000 batch.
    for n in 0..15_000u32 {
        let (level, word) = match n % 30 {
            0..3 => (0, "critical"),
            3..10 => (1, "default"),
            _ => (2, "batch"),
        };
        let mut request = Request::new(());
        let word = HeaderValue::from_static(word);
        request.headers_mut().insert("x-priority", word);
        let (service, done) = (service.clone(), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            if ask(service, request).await.0 == 200 {
                done[level].fetch_add(1, Ordering::Relaxed);
            }
        }));
        if n % 3 == 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let share = |level: usize, came: f64| f64::from(done[level].load(Ordering::Relaxed)) / came;
    let (critical, default, batch) = (share(0, 1_500.0), share(1, 3_500.0), share(2, 10_000.0));
    let all = critical * 1_500.0 + default * 3_500.0 + batch * 10_000.0;
    let shown = format!("{critical:.2} {default:.2} {batch:.2}, {all} in all");
    assert!(critical > 0.95 && default > batch * 3.0, "{shown}");
    assert!(all > 4_000.0, "goodput: {shown}");
}

#[tokio::test(start_paused = true)]
async fn another_configuration_keeps_what_stays() {
    let inbound = inbound("bulkhead = 1\nrate_limit = { rate = \"1/h\", by = \"all\" }");
    let service = InboundLayer::new(inbound.clone()).layer(handler(0));
    assert_eq!(ask(service.clone(), Request::new(())).await.0, 200);
    let config = toml::from_str("rate_limit = { rate = \"2/h\", by = \"all\" }").expect("parses");
    inbound.reconfigure(config).expect("valid");
    let bad = toml::from_str("bulkhead = 0").expect("parses");
    assert!(inbound.reconfigure(bad).is_err());
    let status = inbound.status();
    assert!(status.bulkhead.is_none(), "a bad one changes nothing");
    assert_eq!(status.rate_limit.expect("written").rejected, 0);
    let left: Vec<u16> = [
        ask(service.clone(), Request::new(())).await.0,
        ask(service, Request::new(())).await.0,
    ]
    .into();
    assert_eq!(left[1], 429, "{left:?}: its history stays");
    let rate = inbound.status().rate_limit.expect("written");
    assert_eq!((rate.rejected > 0, rate.keys.tracked), (true, 1));
}

#[tokio::test(start_paused = true)]
async fn a_timer_tells_who_listens_that_callers_are_refused() {
    let text = "shed = {}\nrate_limit = { rate = \"1/h\" }";
    let events = Events::new();
    let config: InboundConfig = toml::from_str(text).expect(text);
    let inbound = Inbound::with_events("orders", config, events.clone()).expect(text);
    let service = InboundLayer::new(inbound.clone()).layer(handler(0));
    for want in [200, 429, 429] {
        assert_eq!(ask(service.clone(), Request::new(())).await.0, want);
    }
    inbound.tick();
    let heard = events.subscribe_to_changes(8);
    let told = || {
        inbound.tick();
        let event = |event: Event| (event.name.to_string(), event.policy, event.kind);
        std::iter::from_fn(|| heard.next())
            .map(event)
            .collect::<Vec<_>>()
    };
    let all = |kind| ("orders".to_owned(), Policy::RateLimit, kind);
    let reason = Reason::Exhausted;
    assert_eq!(told(), [all(EventKind::RefusalsBegan { reason })]);
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(told(), [all(EventKind::RefusalsEnded { refused: 2 })]);
}

#[tokio::test(start_paused = true)]
async fn a_class_is_sure_of_its_share_by_priority_or_by_a_header() {
    let cases = [
        (
            "partitions = { batch = \"50%\", critical = \"50%\" }",
            ("x-priority", "batch", "critical"),
        ),
        (
            "partitions = { dull = \"50%\", gold = \"50%\" }, partition_by = { header = \"x-tenant\" }",
            ("x-tenant", "dull", "gold"),
        ),
    ];
    for (text, (name, loud, sure)) in cases {
        let text = format!("concurrency = {{ initial = 2, min = 2, max = 2, {text} }}");
        let service = InboundLayer::new(inbound(&text)).layer(handler(50));
        let of = |class| {
            Request::builder()
                .header(name, class)
                .body(())
                .expect("valid")
        };
        let mut under_way = Vec::new();
        for class in [loud, loud, sure] {
            under_way.push(tokio::spawn(ask(service.clone(), of(class))));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for class in [loud, sure, "nobody"] {
            let (status, ..) = ask(service.clone(), of(class)).await;
            assert_eq!(status, 503, "{text}: {class}");
        }
        for task in under_way {
            assert_eq!(task.await.expect("no panic").0, 200, "{text}");
        }
    }
    let config = toml::from_str("concurrency = { partitions = { gold = \"50%\" } }").expect("TOML");
    let error = Inbound::new(config).expect_err("no request has such a priority");
    let (path, value) = ("concurrency.partitions", "gold");
    assert_eq!((error.path.as_str(), error.value.as_str()), (path, value));
}
