//! The service in a mesh of its own: a real registry, a `pricing` that fails and comes back.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode},
};
use http_body_util::BodyExt;
use selvedge_registry::{
    client::{Call, Registration},
    node::admin::Admin,
};
use selvedge_registry_server::{RegistryConfig, RegistryServer};
use tower::ServiceExt;

use super::*;

async fn registry() -> (RegistryServer, RegistryClient) {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = RegistryConfig {
        http: free,
        ..RegistryConfig::default()
    };
    config.gossip.bind = free;
    let server = RegistryServer::start(&config, &Admin::default()).await;
    let server = server.expect("starts");
    let mut serving = server.shared().serving();
    serving.wait_for(|serving| *serving).await.expect("serves");
    let client = RegistryClient::builder([server.shared().http.to_string()]).spawn();
    (server, client)
}

/// Fails every other request.
async fn pricing(registry: &RegistryClient) -> Registration {
    let asked = Arc::new(AtomicUsize::new(0));
    let routes = Router::new().route(
        "/prices/{sku}",
        get(move |Path(sku): Path<u32>| async move {
            match asked.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => Err(StatusCode::SERVICE_UNAVAILABLE),
                _ => Ok((sku * 3).to_string()),
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("bind");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let name = ServiceName::new("pricing").expect("a name");
    let id = InstanceId::new("pricing-1").expect("an id");
    let mut registration = registry.register(Instance::new(name, id, addr));
    registration.registered().await;
    registration
}

async fn ask(app: &Router, path: &str) -> (StatusCode, HeaderMap, String) {
    let request = Request::get(path).body(Body::empty()).expect("valid");
    let answer = app.clone().oneshot(request).await.expect("infallible");
    let (head, body) = answer.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    (head.status, head.headers, text)
}

#[tokio::test]
async fn a_callee_that_fails_now_and_then_is_not_noticed() {
    let (_server, registry) = registry().await;
    let app = app(&registry).expect("valid policies");
    assert_eq!(ask(&app, "/greet/you").await.2, "Hello, you!\n");
    let (status, headers, text) = ask(&app, "/quote/7").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(headers.contains_key("retry-after"));
    assert!(text.contains("urn:selvedge:problem:refused"), "{text}");

    let _pricing = pricing(&registry).await;
    let mut answers = Vec::new();
    // News takes a moment; from the first answer on, each is good.
    while answers.len() < 5 {
        let (status, _, text) = ask(&app, "/quote/7").await;
        if status.is_success() || !answers.is_empty() {
            answers.push(text);
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(answers, ["7 costs 21\n"; 5]);
}

/// As `selvedge policy put pricing` does.
async fn publish(registry: &RegistryClient, policy: &str) -> u16 {
    let call = Call {
        path: "/v1/policies/pricing",
        body: policy.as_bytes().to_vec(),
        headers: vec![(
            axum::http::header::CONTENT_TYPE,
            "application/toml".to_owned(),
        )],
        ..Call::default()
    };
    let reply = registry.call("PUT", &call).await;
    reply.expect("an answer").status.as_u16()
}

#[tokio::test]
async fn a_policy_that_is_published_is_enforced_without_a_restart() {
    let (_server, registry) = registry().await;
    let app = app(&registry).expect("valid policies");
    let _pricing = pricing(&registry).await;
    let asked = async || ask(&app, "/quote/7").await.0.is_success();
    // Of ten, how many are answered: half of the tries fail.
    let good = async || {
        let mut good = 0;
        for _ in 0..10 {
            good += usize::from(asked().await);
        }
        good
    };
    let until = async |wanted: fn(usize) -> bool| {
        for _ in 0..500 {
            if wanted(good().await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not in five seconds");
    };
    until(|good| good == 10).await;
    assert_eq!(
        publish(&registry, "timeouts = { request = \"1s\" }\n").await,
        201
    );
    until(|good| good == 5).await;
    assert_eq!(
        publish(&registry, "retry = { attempts = 1000 }\n").await,
        422
    );
    assert_eq!(good().await, 5, "what cannot work has changed nothing");
    let retries = "retry = { attempts = 2, backoff = \"1ms\", budget = \"100% min 100/s\" }\n";
    assert_eq!(publish(&registry, retries).await, 200);
    until(|good| good == 10).await;
}

#[tokio::test]
async fn who_asks_for_too_much_is_told_when_to_come_back() {
    let limits = toml::from_str(r#"rate_limit = { rate = "2/h", by = "all" }"#).expect("limits");
    let inbound = selvedge_resilience::layer::Inbound::new(limits).expect("valid");
    let app = inbound::by(inbound, Router::new().route("/greet/{name}", get(greet)));
    for expected in [StatusCode::OK, StatusCode::OK] {
        assert_eq!(ask(&app, "/greet/you").await.0, expected);
    }
    let (status, headers, text) = ask(&app, "/greet/you").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{text}");
    assert!(headers.contains_key("retry-after"), "{headers:?}");
    assert!(text.contains("rate_limit"), "{text}");
}
