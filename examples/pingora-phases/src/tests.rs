//! The proxy as it runs, between real sockets.

mod backend;

use std::{net::SocketAddr, thread::JoinHandle, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use selvedge_resilience::{
    breaker::State,
    bulkhead::BulkheadConfig,
    config::{BackoffRange, BudgetSpec, Millis, Ratio},
    retry::{RetryConfig, budget::InFlight},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::Instant,
};

use self::backend::Backend;
use super::*;

/// A proxy that runs until this is dropped.
struct Running {
    addr: SocketAddr,
    proxy: Proxy,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: watch::Sender<bool>,
    server: Option<JoinHandle<std::io::Result<()>>>,
}

struct Told(watch::Receiver<bool>);

#[async_trait]
impl ShutdownSignalWatch for Told {
    async fn recv(&self) -> ShutdownSignal {
        drop(self.0.clone().wait_for(|stop| *stop).await);
        ShutdownSignal::FastShutdown
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let ended = self.server.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
        }
    }
}

/// Policies that a test can reach the ends of.
fn policies() -> Policies {
    let ordinary = Policies::default();
    Policies {
        retry: RetryConfig {
            backoff: BackoffRange {
                base: Duration::from_millis(1),
                max: Duration::from_millis(2),
            },
            budget: BudgetSpec {
                ratio: Ratio::percent(100),
                min_per_second: 100,
            },
            ..ordinary.retry
        },
        rate_limit: "1000/s".parse().expect("a rate"),
        ..ordinary
    }
}

fn start(policies: Policies, endpoints: impl IntoIterator<Item = SocketAddr>) -> Running {
    let route = Route {
        prefix: "/".to_owned(),
        endpoints: endpoints.into_iter().collect(),
    };
    let proxy = Proxy::new(policies, vec![route]).expect("valid policies");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("bound");
    let (stop, told) = watch::channel(false);
    let server = std::thread::spawn({
        let proxy = proxy.clone();
        move || server::run(&proxy, listener, Box::new(Told(told)))
    });
    Running {
        addr,
        proxy,
        client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
        stop,
        server: Some(server),
    }
}

impl Running {
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Response<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.addr))
            .body(Full::new(body))
            .expect("a valid request");
        let answer = self.client.request(request).await.expect("an answer");
        let (head, body) = answer.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Response::from_parts(head, body)
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    fn upstream(&self) -> &policies::Upstream {
        &self.proxy.upstreams[0]
    }

    /// Waits until nothing is under way, and checks every account.
    async fn settled(&self) {
        let upstream = self.upstream();
        let door = &self.proxy.door;
        for _ in 0..500 {
            if door.bulkhead.in_flight() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(door.bulkhead.in_flight(), 0, "places");
        assert_eq!(door.shedder.status().waiting, 0, "tickets");
        assert_eq!(
            upstream.budget.in_flight(),
            InFlight::default(),
            "calls and retries"
        );
        let calls = upstream.breaker.calls();
        assert_eq!(calls.admitted(), calls.completed() + calls.cancelled);
        let pending = upstream.balancer.status(Instant::now().into_std());
        assert!(pending.iter().all(|it| it.pending == 0), "{pending:?}");
    }
}

fn text(answer: &Response<Bytes>) -> String {
    String::from_utf8_lossy(answer.body()).into_owned()
}

fn header(answer: &Response<Bytes>, name: &str) -> Option<String> {
    let value = answer.headers().get(name)?;
    Some(value.to_str().expect("text").to_owned())
}

#[tokio::test]
async fn a_failing_upstream_opens_the_breaker_which_says_when_to_come_back() {
    let backend = Backend::start().await;
    let running = start(policies(), [backend.addr]);
    let min_requests = running.proxy.policies.breaker.min_requests;
    for _ in 0..min_requests {
        let answer = running.get("/broken").await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(text(&answer), "broken", "the callee's own answer");
    }
    // The last answer may have reached us before its end was seen to.
    running.settled().await;
    assert_eq!(running.upstream().breaker.state(), State::Open);
    let refused = running.get("/ok").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        text(&refused).contains(r#""policy":"breaker","reason":"open""#),
        "{refused:?}"
    );
    let after = header(&refused, "retry-after").expect("known");
    let open_for = running.proxy.policies.breaker.open_for.0.as_secs();
    assert!((1..=open_for).contains(&after.parse().expect("seconds")));
    assert_eq!(backend.requests(), min_requests, "not asked again");
    running.settled().await;
}

#[tokio::test]
async fn a_get_is_tried_again_and_a_post_is_not() {
    let backend = Backend::start().await;
    let running = start(policies(), [backend.addr]);
    let answer = running.get("/flaky").await;
    assert_eq!((answer.status(), backend.requests()), (StatusCode::OK, 2));
    let attempts: Vec<_> = backend.asked().iter().map(attempt).collect();
    assert_eq!(attempts, ["-", "2"], "the callee is told of a retry");
    let parents = backend.asked();
    assert_eq!(parents[0].headers.get_all("traceparent").iter().count(), 1);

    let posted = running
        .send(Method::POST, "/flaky", Bytes::from("order"))
        .await;
    assert_eq!(posted.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((text(&posted).as_str(), backend.requests()), ("not now", 3));

    // The same where there is no answer at all: what was sent may have been done.
    let posted = running
        .send(Method::POST, "/reset", Bytes::from("order"))
        .await;
    assert_eq!(posted.status(), StatusCode::OK, "the fourth");
    let posted = running
        .send(Method::POST, "/reset", Bytes::from("order"))
        .await;
    assert_eq!(posted.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(backend.requests(), 5);
    assert_eq!(running.get("/ok").await.status(), StatusCode::OK);
    let answer = running.get("/reset").await;
    assert_eq!((answer.status(), backend.requests()), (StatusCode::OK, 8));
    running.settled().await;
}

fn attempt(asked: &backend::Asked) -> String {
    let told = asked.headers.get("x-envoy-attempt-count");
    let told = told.map(|number| number.to_str().expect("a number"));
    told.unwrap_or("-").to_owned()
}

#[tokio::test]
async fn what_was_never_sent_is_tried_elsewhere_whatever_the_method() {
    let backend = Backend::start().await;
    let gone = Backend::start().await;
    let dead = gone.addr;
    drop(gone);
    let running = start(policies(), [dead, backend.addr]);
    for _ in 0..10 {
        let body = Bytes::from("order");
        let posted = running.send(Method::POST, "/ok", body).await;
        assert_eq!(posted.status(), StatusCode::OK);
    }
    let asked = backend.asked();
    assert_eq!(asked.len(), 10);
    assert!(asked.iter().all(|it| it.body == "order"));
    assert!(
        running.upstream().budget.counts().withdrawn > 0,
        "on the budget"
    );
    running.settled().await;
}

#[tokio::test]
async fn a_body_is_sent_again_as_long_as_pingora_has_kept_it() {
    let backend = Backend::start().await;
    let running = start(policies(), [backend.addr]);
    let short = Bytes::from(vec![b'x'; 10 << 10]);
    let answer = running.send(Method::PUT, "/flaky", short.clone()).await;
    assert_eq!((answer.status(), backend.requests()), (StatusCode::OK, 2));
    assert!(
        backend.asked().iter().all(|it| it.body == short),
        "the same"
    );

    let long = Bytes::from(vec![b'x'; 100 << 10]);
    let answer = running.send(Method::PUT, "/flaky", long.clone()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(backend.requests(), 3, "final");
    running.settled().await;
}

#[tokio::test]
async fn the_last_answer_is_the_callees_own_and_an_empty_budget_makes_the_first_the_last() {
    let backend = Backend::start().await;
    let running = start(policies(), [backend.addr]);
    let answer = running.get("/down").await;
    assert_eq!(
        (text(&answer).as_str(), backend.requests()),
        ("my own words", 3)
    );
    running.settled().await;

    let mut poor = policies();
    poor.retry.budget.min_per_second = 0;
    poor.retry.budget.ratio = Ratio::percent(1);
    let running = start(poor, [backend.addr]);
    let answer = running.get("/down").await;
    assert_eq!(
        (text(&answer).as_str(), backend.requests()),
        ("my own words", 4)
    );
    assert_eq!(running.upstream().budget.counts().exhausted, 1);
    running.settled().await;
}

#[tokio::test]
async fn who_asks_for_too_much_gets_429_and_is_told_of_the_limit() {
    let backend = Backend::start().await;
    let mut strict = policies();
    strict.rate_limit = "2/h".parse().expect("a rate");
    let running = start(strict, [backend.addr]);
    for _ in 0..2 {
        assert_eq!(running.get("/ok").await.status(), StatusCode::OK);
    }
    let refused = running.get("/ok").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let policy = header(&refused, "ratelimit-policy");
    assert_eq!(policy.as_deref(), Some(r#""caller";q=2;w=3600"#));
    let after = header(&refused, "retry-after").expect("known");
    let seconds: u64 = after.parse().expect("seconds");
    assert!((1..=1_800).contains(&seconds), "{after}");
    let limit = header(&refused, "ratelimit").expect("said");
    assert_eq!(limit, format!(r#""caller";r=0;t={after}"#));
    assert!(text(&refused).contains(r#""policy":"rate_limit""#));
    assert_eq!(backend.requests(), 2);
    running.settled().await;
}

#[tokio::test]
async fn a_full_bulkhead_refuses_and_its_queue_waits_no_longer_than_it_may() {
    let backend = Backend::start().await;
    let mut narrow = policies();
    narrow.bulkhead = BulkheadConfig {
        max: 1,
        ..narrow.bulkhead
    };
    narrow.rate_limit = "1000/h".parse().expect("a rate");
    narrow.timeouts.request = Millis::new(1_000);
    let running = start(narrow, [backend.addr]);
    let (slow, refused) = tokio::join!(running.get("/slow"), async {
        while backend.requests() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.get("/ok").await
    });
    assert_eq!(slow.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let why = r#""policy":"bulkhead","reason":"queue_timeout""#;
    assert!(text(&refused).contains(why), "{refused:?}");
    let caller = std::net::IpAddr::from([127, 0, 0, 1]);
    let left = running
        .proxy
        .door
        .rates
        .status(&caller, Instant::now().into_std());
    assert_eq!(left.remaining, 999, "the refused one cost nothing");
    running.settled().await;
}

#[tokio::test]
async fn a_hang_ends_with_the_deadline_and_counts_as_a_failure() {
    let backend = Backend::start().await;
    let mut hasty = policies();
    hasty.timeouts.request = Millis::new(600);
    hasty.timeouts.backend_request = Some(Millis::new(200));
    let running = start(hasty, [backend.addr]);
    let began = Instant::now();
    let answer = running.get("/slow").await;
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(
        backend.requests() > 1,
        "a try that hangs is followed by another"
    );
    running.settled().await;
    let calls = running.upstream().breaker.calls();
    assert_eq!(calls.failures(), u64::from(backend.requests()), "{calls:?}");
}

#[tokio::test]
async fn a_caller_says_for_how_long_it_waits() {
    let backend = Backend::start().await;
    let running = start(policies(), [backend.addr]);
    let ask = async |left: &str| {
        let request = Request::get(format!("http://{}/slow", running.addr))
            .header("x-envoy-expected-rq-timeout-ms", left)
            .body(Full::default())
            .expect("valid");
        running.client.request(request).await.expect("an answer")
    };
    let began = Instant::now();
    assert_eq!(ask("300").await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(began.elapsed() < Duration::from_secs(2));
    let told = backend.asked()[0].headers["x-envoy-expected-rq-timeout-ms"].clone();
    let told: u64 = told.to_str().expect("text").parse().expect("a number");
    assert!((1..=300).contains(&told), "{told}");
    running.settled().await;
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_at_the_deadline() {
    let backend = Backend::start().await;
    let mut hasty = policies();
    hasty.timeouts.request = Millis::new(400);
    let running = start(hasty, [backend.addr]);
    let request = Request::get(format!("http://{}/endless", running.addr));
    let request = request.body(Full::default()).expect("valid");
    let answer = running.client.request(request).await.expect("a head");
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await;
    body.expect_err("cut, and not as if that were the end");
    running.settled().await;
    let calls = running.upstream().breaker.calls();
    assert_eq!((calls.failures(), calls.cancelled), (1, 0), "{calls:?}");
}

#[tokio::test]
async fn a_caller_that_goes_away_gives_everything_back_and_charges_nobody() {
    let backend = Backend::start().await;
    let running = start(policies(), [backend.addr]);
    for path in ["/endless", "/slow"] {
        let before = backend.requests();
        let mut stream = TcpStream::connect(running.addr).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        if path == "/endless" {
            let mut some = [0; 16];
            stream
                .read_exact(&mut some)
                .await
                .expect("an answer begins");
        }
        while backend.requests() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(stream);
        running.settled().await;
    }
    let calls = running.upstream().breaker.calls();
    assert_eq!((calls.failures(), calls.cancelled), (0, 2), "{calls:?}");
}

#[tokio::test]
async fn under_load_every_account_is_even_in_the_end() {
    let backends = [Backend::start().await, Backend::start().await];
    let running = start(policies(), backends.iter().map(|it| it.addr));
    let paths = ["/ok", "/flaky", "/down", "/ok", "/ok", "/ok", "/ok", "/ok"];
    let calls = (0..400).map(|n| running.get(paths[n % paths.len()]));
    let answers = join_all(calls).await;
    assert!(answers.iter().any(|it| it.status() == StatusCode::OK));
    running.settled().await;
}

#[test]
fn routes_are_read_and_the_longest_prefix_wins() {
    let route = |text: &str| text.parse::<Route>();
    for bad in [
        "",
        "/x",
        "x=127.0.0.1:1",
        "/x=",
        "/x=host",
        "/x=127.0.0.1:1,",
    ] {
        assert!(route(bad).is_err(), "{bad:?}");
    }
    let texts = [
        "/=127.0.0.1:1",
        "/a=127.0.0.1:2",
        "/a/b=127.0.0.1:3,127.0.0.1:4",
    ];
    let routes = texts.map(|text| route(text).expect("valid"));
    let proxy = Proxy::new(Policies::default(), routes.to_vec()).expect("valid");
    for (path, prefix) in [
        ("/", "/"),
        ("/ab", "/"),
        ("/a", "/a"),
        ("/a/x", "/a"),
        ("/a/b/c", "/a/b"),
    ] {
        let found = policies::Upstream::find(&proxy.upstreams, path).expect("found");
        assert_eq!(found.prefix, prefix, "{path}");
    }
}
