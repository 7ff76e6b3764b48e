//! A cluster on loopback, and patience with a limit.

use std::{future::Future, net::SocketAddr, time::Duration};

use selvedge_registry::{
    Instance, InstanceId, ServiceName,
    client::RegistryClient,
    node::{admin::Admin, metrics::Metrics},
};
use selvedge_registry_server::{RegistryConfig, RegistryServer};

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::new(text).expect("name")
}

pub(crate) fn instance(service: &str, id: &str, port: u16) -> Instance {
    let id = InstanceId::new(id).expect("id");
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    Instance {
        ttl: "1s".parse().expect("unit"),
        ..Instance::new(name(service), id, addr)
    }
}

/// Quick gossip, so that tests need not wait for slow one.
pub(crate) fn config(node: &str, seeds: &[SocketAddr]) -> RegistryConfig {
    let mut config = RegistryConfig {
        node: Some(name(node)),
        ..RegistryConfig::default()
    };
    config.http = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gossip.bind = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gossip.seeds = seeds.iter().map(ToString::to_string).collect();
    config.gossip.interval = "50ms".parse().expect("unit");
    config.gossip.join_timeout = "500ms".parse().expect("unit");
    config
}

pub(crate) async fn start(node: &str, seeds: &[SocketAddr]) -> RegistryServer {
    RegistryServer::start(&config(node, seeds), &Admin::default())
        .await
        .expect("starts")
}

/// A server, and what it counts.
pub(crate) async fn with_metrics(node: &str) -> (RegistryServer, Metrics) {
    let admin = Admin::default();
    let server = RegistryServer::start(&config(node, &[]), &admin).await;
    (server.expect("starts"), admin.metrics)
}

/// Three servers that know each other and serve.
pub(crate) async fn cluster() -> [RegistryServer; 3] {
    let a = start("n1", &[]).await;
    eventually("the first serves", || async { a.shared().is_serving() }).await;
    let b = start("n2", &[a.gossip_addr()]).await;
    let c = start("n3", &[a.gossip_addr(), b.gossip_addr()]).await;
    let all = [a, b, c];
    for server in &all {
        eventually("three members, all serving", || async {
            let list = server.shared().member_list().members;
            list.len() == 3
                && list
                    .iter()
                    .all(|m| m.state == selvedge_registry::wire::MemberState::Serving)
        })
        .await;
    }
    all
}

pub(crate) fn client(servers: &[&RegistryServer]) -> RegistryClient {
    RegistryClient::builder(
        servers
            .iter()
            .map(|server| server.shared().http.to_string()),
    )
    .spawn()
}

/// Asks until it is so; fails after ten seconds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, so: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !so().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in ten seconds: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
