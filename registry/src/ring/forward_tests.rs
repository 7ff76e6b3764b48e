//! Three real servers on loopback, and a ring that moves under them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;

use super::{
    FORWARDED, ForwardConfig, ForwardLayer, HashRing, KEYS, MISMATCH, Member, Ring,
    exchange::{Failed, Pool},
};
use crate::problem::Problem;

/// What a server says of a request that it handled: where, how often, and with which body.
async fn handle(State(here): State<Arc<Server>>, request: Request) -> String {
    let (parts, body) = request.into_parts();
    let n = here.handled.fetch_add(1, Ordering::SeqCst) + 1;
    let keys = parts.headers.get(KEYS).map_or("", |v| v.to_str().unwrap());
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    format!("{} {n} [{keys}] {} {body}", here.address, parts.uri)
}

struct Server {
    address: Arc<str>,
    ring: Ring,
    handled: AtomicUsize,
}

/// The key is what follows `/key/`; several are separated by commas.
fn keys(parts: &http::request::Parts) -> Vec<String> {
    let named = parts.uri.path().strip_prefix("/key/").unwrap_or_default();
    named
        .split(',')
        .filter(|k| !k.is_empty())
        .map(str::to_owned)
        .collect()
}

async fn serve() -> Arc<Server> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Arc<str> = listener.local_addr().unwrap().to_string().into();
    let ring = Ring::new(HashRing::default());
    let server = Arc::new(Server {
        address: Arc::clone(&address),
        ring: ring.clone(),
        handled: AtomicUsize::new(0),
    });
    let layer = ForwardLayer::new(ring, address, keys).with_config(ForwardConfig {
        pauses: [0, 20, 70].map(Duration::from_millis).to_vec(),
        timeout: Duration::from_millis(500),
        max_body: "1KiB".parse().unwrap(),
    });
    let app = Router::new()
        .fallback(handle)
        .with_state(Arc::clone(&server))
        .layer(layer);
    tokio::spawn(async move { axum::serve(listener, app).await });
    server
}

async fn three() -> [Arc<Server>; 3] {
    let all = [serve().await, serve().await, serve().await];
    let ring = HashRing::new(all.iter().map(|s| Member::new(Arc::clone(&s.address))));
    for server in &all {
        server.ring.replace(ring.clone());
    }
    all
}

fn owned_by(ring: &HashRing, address: &str) -> String {
    let mut keys = (0..10_000).map(|i| format!("k{i}"));
    keys.find(|key| *ring.lookup(key).unwrap().address == *address)
        .unwrap()
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

async fn ask(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::from(Bytes::from(body.to_owned())))
        .unwrap();
    let answer = Pool::default()
        .send(&server.address, request)
        .await
        .unwrap();
    let (parts, body) = answer.into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        text: String::from_utf8(text.to_vec()).unwrap(),
    }
}

async fn get(server: &Server, path: &str) -> Answer {
    ask(server, Method::GET, path, &[], "").await
}

#[tokio::test]
async fn r7_own_keys_are_handled_and_others_forwarded_once() {
    let all = three().await;
    let ring = all[0].ring.current();
    for owner in &all {
        let key = owned_by(&ring, &owner.address);
        for asked in &all {
            let path = format!("/key/{key}?x=1");
            let answer = ask(asked, Method::POST, &path, &[], "the body").await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            let mark = if asked.address == owner.address {
                "[]".to_owned()
            } else {
                format!("[{key}]")
            };
            assert!(answer.text.starts_with(&*owner.address), "{}", answer.text);
            assert!(answer.text.contains(&mark), "{}", answer.text);
            assert!(
                answer.text.ends_with(&format!("{path} the body")),
                "{}",
                answer.text
            );
        }
        assert_eq!(owner.handled.load(Ordering::SeqCst), 3);
    }
    let nobodys = get(&all[1], "/").await;
    assert!(
        nobodys.text.starts_with(&*all[1].address),
        "no key: where it arrived"
    );
}

#[tokio::test]
async fn r7_a_forwarded_request_is_never_forwarded_again() {
    let all = three().await;
    let ring = all[0].ring.current();
    let key = owned_by(&ring, &all[0].address);
    let path = format!("/key/{key}");
    // With the right checksum it is handled where it arrives, though another owns the key.
    let mark = ring.replica_checksum().to_string();
    let answer = ask(&all[1], Method::GET, &path, &[(FORWARDED, &mark)], "").await;
    assert!(answer.text.starts_with(&*all[1].address), "{}", answer.text);
    for wrong in ["0", "", "x", "-1", "99999999999"] {
        let answer = ask(&all[1], Method::GET, &path, &[(FORWARDED, wrong)], "").await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST, "{wrong:?}");
        assert_eq!(answer.headers[MISMATCH], mark.as_str());
    }
    assert_eq!(all[0].handled.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn r8_another_ring_is_refused_retried_and_given_up() {
    assert_eq!(
        ForwardConfig::default().pauses,
        [0, 1000, 3500].map(Duration::from_millis)
    );
    let all = three().await;
    let key = owned_by(&all[0].ring.current(), &all[2].address);
    // The owner has heard of a fourth that the others know nothing of.
    all[2].ring.replace(HashRing::new([
        Member::new(Arc::clone(&all[2].address)),
        Member::new("127.0.0.1:1"),
    ]));
    let answer = ask(&all[0], Method::POST, &format!("/key/{key}"), &[], "").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let problem: Problem = serde_json::from_str(&answer.text).unwrap();
    let detail = problem.detail.unwrap();
    assert!(
        detail.starts_with("max retries") && detail.contains("another ring"),
        "{detail}"
    );
    assert_eq!(all[2].handled.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn r8_the_key_is_looked_up_again_when_the_ring_moves() {
    let all = three().await;
    let before = all[0].ring.current();
    let key = owned_by(&before, &all[2].address);
    let two = HashRing::new(all[..2].iter().map(|s| Member::new(Arc::clone(&s.address))));
    // The owner has left for everybody but the first, which hears of it between two tries.
    all[1].ring.replace(two.clone());
    all[2].ring.replace(two.clone());
    let (first, ring) = (all[0].ring.clone(), two.clone());
    let mover = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        first.replace(ring);
    });
    let answer = ask(&all[0], Method::POST, &format!("/key/{key}"), &[], "once").await;
    mover.await.unwrap();
    let owner = &two.lookup(&key).unwrap().address;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert!(answer.text.starts_with(&**owner), "{}", answer.text);
    let handled: usize = all.iter().map(|s| s.handled.load(Ordering::SeqCst)).sum();
    assert_eq!(handled, 1, "handled once, by the new owner");
}

#[tokio::test]
async fn an_owner_that_is_gone_is_tried_again_and_named() {
    let all = three().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    let ring = HashRing::new([Member::new(address.clone())]);
    all[0].ring.replace(ring);
    let answer = ask(&all[0], Method::POST, "/key/a", &[], "").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text.contains(&address), "{}", answer.text);
}

#[tokio::test]
async fn a_silent_owner_gets_a_post_once_and_a_get_again() {
    let all = three().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    all[0].ring.replace(HashRing::new([Member::new(address)]));
    for (method, tries) in [(Method::POST, 1), (Method::GET, 4)] {
        let before = connections.load(Ordering::SeqCst);
        let answer = ask(&all[0], method.clone(), "/key/a", &[], "").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        let now = connections.load(Ordering::SeqCst);
        assert_eq!(now - before, tries, "{method}");
    }
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused() {
    let all = three().await;
    let ring = all[0].ring.current();
    let [a, b] = [0, 2].map(|i: usize| owned_by(&ring, &all[i].address));
    let diverged = get(&all[0], &format!("/key/{a},{b}")).await;
    assert_eq!(diverged.status, StatusCode::CONFLICT, "{}", diverged.text);
    let large = "x".repeat(2000);
    let too_large = ask(&all[0], Method::PUT, &format!("/key/{b}"), &[], &large).await;
    assert_eq!(too_large.status, StatusCode::PAYLOAD_TOO_LARGE);
    // Its own key may have any body.
    let own = ask(&all[0], Method::PUT, &format!("/key/{a}"), &[], &large).await;
    assert_eq!(own.status, StatusCode::OK);
}

#[tokio::test]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let seen = Arc::new(parking_lot::Mutex::new(HeaderMap::new()));
    let keep = Arc::clone(&seen);
    let app = Router::new().fallback(move |headers: HeaderMap| {
        *keep.lock() = headers;
        async { Body::empty() }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let all = three().await;
    all[0].ring.replace(HashRing::new([Member::new(address)]));
    let headers = [
        ("connection", "x-secret"),
        ("x-secret", "1"),
        ("te", "trailers"),
        ("x-kept", "1"),
    ];
    ask(&all[0], Method::GET, "/key/a%20b", &headers, "").await;
    let seen = seen.lock();
    assert!(seen.contains_key("x-kept") && seen.contains_key(FORWARDED));
    assert!(!seen.contains_key("x-secret") && !seen.contains_key("te"));
    assert_eq!(
        (&seen["host"], &seen[KEYS]),
        (&"shop".parse().unwrap(), &"a%2520b".parse().unwrap())
    );
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    let server = serve().await;
    let pool = Pool::default();
    let request = || {
        http::Request::builder()
            .uri("/")
            .header("host", "x")
            .body(Full::default())
            .unwrap()
    };
    for _ in 0..3 {
        let answer = pool.send(&server.address, request()).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    let nowhere: Arc<str> = "127.0.0.1:1".into();
    assert!(matches!(
        pool.send(&nowhere, request()).await,
        Err(Failed::NotSent(_))
    ));
}

#[tokio::test]
async fn changes_are_told_and_equal_rings_are_not_changes() {
    let mut ring = Ring::new(HashRing::default());
    ring.replace(HashRing::new([Member::new("10.0.0.1:1")]));
    ring.changed().await;
    ring.replace(HashRing::new([Member::new("10.0.0.1:1")]));
    let again = tokio::time::timeout(Duration::from_millis(20), ring.changed()).await;
    assert!(again.is_err());
}

#[tokio::test]
async fn a_service_s_ring_is_that_of_its_endpoints() {
    use super::Labels;
    use crate::{
        client::{Discovery, StaticDiscovery},
        instance::{Endpoint, Locality},
        name::{InstanceId, ServiceName},
    };
    let service = ServiceName::new("carts").unwrap();
    let endpoint = |port| Endpoint {
        id: InstanceId::new(format!("i{port}")).unwrap(),
        addr: ([127, 0, 0, 1], port).into(),
        incarnation: 1,
        weight: 1,
        protocol: crate::AppProtocol::Http1,
        locality: Locality::default(),
    };
    let list = (3000..3003).map(endpoint).collect();
    let discovery = StaticDiscovery::new([(service.clone(), list)]);
    let ring = Ring::follow(discovery.watch(&service), Labels::Address);
    assert_eq!(ring.current().checksum(), 742_371_003);
    let labelled = Ring::follow(discovery.watch(&service), Labels::InstanceId);
    assert_eq!(
        *labelled.current().lookup("i3001#7").unwrap().address,
        *"127.0.0.1:3001"
    );
}
