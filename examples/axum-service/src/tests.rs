//! The service in a mesh of its own: a real registry, a `pricing` that fails and comes back.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{body::Body, http::StatusCode};
use http_body_util::BodyExt;
use selvedge_registry::{client::Registration, node::admin::Admin};
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
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let routes = Router::new().route(
        "/prices/{sku}",
        get(|Path(sku): Path<u32>| async move {
            match ASKED.fetch_add(1, Ordering::SeqCst) % 2 {
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
