//! What policies did, from admin ports that serve what a gateway and a sidecar serve.

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use axum::{Router, body::Body, extract::Query, http::HeaderMap, routing::get};
use selvedge_proxy::{Destination, ProxyMetrics};
use selvedge_registry::{
    Locality,
    client::{Discovery, StaticDiscovery},
    node::admin::{Admin, AdminConfig},
};
use selvedge_resilience::TrafficPolicy;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::Notify,
    task::JoinHandle,
};

use crate::support::{command, json, name, says, selvedge, text};

/// Nobody is there: these commands ask no registry.
const NO_REGISTRY: &str = "http://127.0.0.1:1";

/// An admin port, and the policies that tell there.
struct Node {
    addr: SocketAddr,
    metrics: ProxyMetrics,
    /// Told of each answer.
    answered: Arc<Notify>,
    served: JoinHandle<()>,
}

impl Node {
    /// At `addr`, or a free port.
    fn start(addr: Option<SocketAddr>) -> Self {
        let admin = Admin::default();
        let metrics = ProxyMetrics::new(&admin.metrics);
        let shown = metrics.clone();
        let answered = Arc::new(Notify::new());
        let told = Arc::clone(&answered);
        let events = move |query: Query<Vec<(String, String)>>, headers: HeaderMap| async move {
            let answer = shown.events(query.0, &headers).map(Body::new);
            told.notify_one();
            answer
        };
        let extra = Router::new().route("/events", get(events));
        let router = admin.router(&AdminConfig::default(), || Value::Null, extra);
        let addr = addr.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = std::net::TcpListener::bind(addr).expect("bind");
        listener.set_nonblocking(true).expect("set");
        let addr = listener.local_addr().expect("bound");
        let served = tokio::spawn(async move {
            let served = Admin::serve(listener, router, std::future::pending());
            served.await.expect("served");
        });
        Self {
            addr,
            metrics,
            answered,
            served,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// A service whose circuit an operator opens.
    fn opens(&self, service: &str) -> Arc<Destination> {
        let policy: TrafficPolicy =
            serde_json::from_value(serde_json::json!({ "breaker": {} })).expect("a policy");
        let (name, nowhere) = (name(service), Locality::default());
        let watch = StaticDiscovery::default().watch(&name);
        let destination = Destination::new(name, policy, watch, &nowhere, &self.metrics);
        let destination = destination.expect("valid");
        destination.stack().breaker().expect("one").force_open();
        destination
    }
}

#[tokio::test]
async fn what_happened_is_told_by_port_by_service_and_since_when() {
    let (edge, beside) = (Node::start(None), Node::start(None));
    let (edge_url, beside_url) = (edge.url(), beside.url());
    let columns = "AT  SIDE  NAME  POLICY  ENDPOINT  WHAT\n";
    assert_eq!(
        says(NO_REGISTRY, &["events", &edge_url], 0, &[]).await,
        columns
    );
    let _orders = edge.opens("orders");
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let _stock = beside.opens("stock");
    let row = [
        "client",
        "orders",
        "breaker",
        "-",
        "forced_open, was closed: operator",
    ];
    says(NO_REGISTRY, &["events", &edge_url], 0, &row).await;
    // Both, in the order in which it happened, whoever is asked first.
    let both = ["events", &beside_url, &edge_url];
    let said = says(NO_REGISTRY, &both, 0, &["FROM", &edge_url, &beside_url]).await;
    assert!(said.find("orders") < said.find("stock"), "{said}");
    let of = [&both[..], &["--service", "stock"]].concat();
    let said = says(NO_REGISTRY, &of, 0, &["stock"]).await;
    assert!(!said.contains("orders"), "{said}");
    // For scripts: the port's own document, and where to go on.
    let output = selvedge(NO_REGISTRY, &["--output", "json", "events", &edge_url]).await;
    let document = json(&output);
    assert_eq!(
        (&document["from"], &document["lost"]),
        (&edge_url.as_str().into(), &0.into())
    );
    assert_eq!(document["events"][0]["to"], "forced_open");
    let last = document["last"].as_str().expect("an id");
    let after = ["--output", "json", "events", &edge_url, "--after", last];
    assert_eq!(text(&selvedge(NO_REGISTRY, &after).await), "");
    // What cannot be.
    let bad = ["events", &edge_url, "--after", "7"];
    says(
        NO_REGISTRY,
        &bad,
        1,
        &["allowed is what an event's `id` said"],
    )
    .await;
    says(
        NO_REGISTRY,
        &["events", NO_REGISTRY],
        3,
        &["does not answer"],
    )
    .await;
    // Of several, one that is down hides nothing of the others.
    let output = selvedge(NO_REGISTRY, &["events", NO_REGISTRY, &edge_url]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output).contains("orders"), "{output:?}");
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(notes.contains("does not answer"), "{notes}");
    let of_one = [&both[..], &["--after", "0badcafe-1"]].concat();
    says(NO_REGISTRY, &of_one, 2, &["ask that one alone"]).await;
    says(NO_REGISTRY, &["events"], 2, &["<URL>"]).await;
}

#[tokio::test]
async fn who_follows_is_told_what_comes_and_that_a_process_is_another() {
    let node = Node::start(None);
    let _orders = node.opens("orders");
    let mut child = command(NO_REGISTRY, &["events", "--follow", &node.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawns");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut notes = BufReader::new(child.stderr.take().expect("piped")).lines();
    let patience = std::time::Duration::from_secs(30);
    let mut next = async || {
        let line = tokio::time::timeout(patience, said.next_line()).await;
        line.expect("in time").expect("read").expect("a line")
    };
    assert!(next().await.starts_with("AT "));
    assert!(next().await.contains("orders"));
    let _stock = node.opens("stock");
    assert!(next().await.contains("stock"));
    // Another process at the same address knows nothing of the first.
    node.served.abort();
    let _ended = (&mut { node.served }).await;
    let node = Node::start(Some(node.addr));
    let _pricing = node.opens("pricing");
    assert!(next().await.contains("pricing"));
    let mut anew = async || {
        let line = tokio::time::timeout(patience, notes.next_line()).await;
        line.expect("in time").expect("read").expect("a line")
    };
    while !anew().await.contains("has been started anew") {}
    child.kill().await.expect("killed");
}

#[tokio::test]
async fn who_follows_before_anything_has_happened_reads_what_the_columns_are() {
    let node = Node::start(None);
    let mut child = command(NO_REGISTRY, &["events", "--follow", &node.url()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawns");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
    let patience = std::time::Duration::from_secs(30);
    let mut next = async || {
        let line = tokio::time::timeout(patience, said.next_line()).await;
        line.expect("in time").expect("read").expect("a line")
    };
    node.answered.notified().await;
    let _orders = node.opens("orders");
    assert!(next().await.starts_with("AT "));
    assert!(next().await.contains("orders"));
    let _stock = node.opens("stock");
    assert!(next().await.contains("stock"));
    child.kill().await.expect("killed");
}
