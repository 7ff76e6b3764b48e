//! The command as an operator runs it, against a server that really serves.

use std::process::{Command, Output, Stdio};

use selvedge_registry::wire::MemberState;
use selvedge_registry::{
    Instance, InstanceId, ServiceName,
    client::{Registration, RegistryClient},
    node::admin::Admin,
};
use selvedge_registry_server::{RegistryConfig, RegistryServer, gossip::Members};
use serde_json::Value;

struct Mesh {
    server: RegistryServer,
    url: String,
    _orders: Registration,
}

async fn mesh() -> Mesh {
    let mut config = RegistryConfig {
        node: Some(ServiceName::new("n1").expect("name")),
        ..RegistryConfig::default()
    };
    config.http = "127.0.0.1:0".parse().expect("address");
    config.gossip.bind = "127.0.0.1:0".parse().expect("address");
    let server = RegistryServer::start(&config, &Admin::default()).await;
    let server = server.expect("starts");
    let mut serving = server.shared().serving();
    serving.wait_for(|serving| *serving).await.expect("serves");
    // What it says of itself goes through its own gossip, too.
    let mut members = server.shared().members();
    let told = |members: &Members| members.values().all(|m| m.state == MemberState::Serving);
    members.wait_for(told).await.expect("gossips");
    let addr = server.shared().http.to_string();
    let orders = Instance::new(
        ServiceName::new("orders").expect("name"),
        InstanceId::new("orders-1").expect("id"),
        "127.0.0.1:4001".parse().expect("address"),
    );
    let client = RegistryClient::builder([addr.clone()]).spawn();
    let mut registration = client.register(orders);
    registration.registered().await;
    Mesh {
        server,
        url: format!("http://{addr}"),
        _orders: registration,
    }
}

async fn selvedge(registry: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge"));
    command.args(args).env("SELVEDGE_REGISTRY", registry);
    command.stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output());
    run.await.expect("joined").expect("runs")
}

fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    String::from_utf8_lossy(&output.stdout).into_owned() + &error
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_is_shown_to_people_and_to_scripts() {
    let mesh = mesh().await;
    let status = selvedge(&mesh.url, &["status"]).await;
    assert_eq!(status.status.code(), Some(0), "{}", text(&status));
    let want = "1 registry servers, all serve; 1 services, 1 instances, 1 of them up";
    assert!(text(&status).starts_with(want), "{}", text(&status));
    let members = json(&selvedge(&mesh.url, &["members", "--output", "json"]).await);
    assert_eq!(members["members"][0]["node"], "n1");
    let services = text(&selvedge(&mesh.url, &["services"]).await);
    assert_eq!(services, "SERVICE  INSTANCES  UP\norders   1          1\n");
    let instances = selvedge(&mesh.url, &["instances", "orders"]).await;
    let row = text(&instances);
    for cell in ["orders-1", "UP", "127.0.0.1:4001", "http1", "10s", "n1"] {
        assert!(row.contains(cell), "{cell} in {row}");
    }
    let args = ["--output", "json", "watch", "orders", "--count", "1"];
    let watch = json(&selvedge(&mesh.url, &args).await);
    assert_eq!(watch["endpoints"][0]["addr"], "127.0.0.1:4001");
    mesh.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_one_clear_message_and_an_exit_code() {
    let mesh = mesh().await;
    let unknown = selvedge(&mesh.url, &["instances", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    for part in ["404", "no instance of this service", "nobody"] {
        assert!(text(&unknown).contains(part), "{part}: {}", text(&unknown));
    }
    // Nobody listens on port 9 of loopback.
    let nowhere = selvedge("http://127.0.0.1:9", &["status"]).await;
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere).contains("127.0.0.1:9"), "{}", text(&nowhere));
    assert_eq!(text(&nowhere).lines().count(), 1, "{}", text(&nowhere));
    let both = format!("http://127.0.0.1:9,{}", mesh.url);
    let other = selvedge(&both, &["services"]).await;
    assert_eq!(other.status.code(), Some(0), "{}", text(&other));
    for bad in [["instances", "No Name"], ["--registry", "10.0.0.5"]] {
        let refused = selvedge(&mesh.url, &bad).await;
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    }
    mesh.server.shutdown().await;
}
