//! Servers, and the command beside them.

use std::{
    future::Future,
    net::SocketAddr,
    process::{Output, Stdio},
    time::Duration,
};

use selvedge_registry::{ServiceName, node::admin::Admin, wire::MemberState};
use selvedge_registry_server::{RegistryConfig, RegistryServer};
use serde_json::Value;
use tokio::process::Command;

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::new(text).expect("name")
}

pub(crate) fn config(node: &str, seeds: &[SocketAddr]) -> RegistryConfig {
    let mut config = RegistryConfig {
        node: Some(name(node)),
        ..RegistryConfig::default()
    };
    config.http = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gossip.bind = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gossip.seeds = seeds.iter().map(ToString::to_string).collect();
    config.gossip.interval = "50ms".parse().expect("unit");
    config
}

/// A server that serves, and says so through its own gossip.
pub(crate) async fn serving(config: &RegistryConfig) -> RegistryServer {
    let server = RegistryServer::start(config, &Admin::default()).await;
    let server = server.expect("starts");
    let node = server.shared().node.clone();
    eventually("serves", || async {
        let members = server.shared().member_list().members;
        let me = members.iter().find(|m| *m.node == *node);
        me.is_some_and(|m| m.state == MemberState::Serving)
    })
    .await;
    server
}

pub(crate) fn url(server: &RegistryServer) -> String {
    format!("http://{}", server.shared().http)
}

/// The command, with nothing of this process's environment that it would listen to.
pub(crate) fn command(registry: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
    for variable in ["SELVEDGE_TOKEN", "SELVEDGE_TOKEN_FILE", "SELVEDGE_CA"] {
        command.env_remove(variable);
    }
    command.args(args).env("SELVEDGE_REGISTRY", registry);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub(crate) async fn selvedge(registry: &str, args: &[&str]) -> Output {
    let run = command(registry, args).output();
    let output = tokio::time::timeout(Duration::from_secs(30), run).await;
    output.expect("ends").expect("runs")
}

pub(crate) fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    String::from_utf8_lossy(&output.stdout).into_owned() + &error
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

/// Runs it, and wants it to exit with `code` and to say all of `parts`.
pub(crate) async fn says(registry: &str, args: &[&str], code: i32, parts: &[&str]) -> String {
    let output = selvedge(registry, args).await;
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{args:?}: {part:?} in {said}");
    }
    said
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
