//! A server that the system stops for longer than leases last, and lets go on.
//!
//! Real processes: a task cannot be stopped the way SIGSTOP does it.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use selvedge_registry::client::{Discovery, RegistryClient};
use tokio::time::Instant;

use crate::support::{digest, eventually, instance, name};

struct Process {
    child: Child,
    http: SocketAddr,
    gossip: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    async fn start(dir: &Path, node: &str, seeds: &[SocketAddr]) -> Self {
        let ports = dir.join(format!("{node}.json"));
        let seeds: Vec<_> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        let text = format!(
            "node = \"{node}\"\nhttp = \"127.0.0.1:0\"\n\
             [gossip]\nbind = \"127.0.0.1:0\"\nseeds = [{}]\ninterval = \"100ms\"\njoin_timeout = \"1s\"\n\
             [leases]\nserver_loss_within = \"0s\"\n\
             [admin]\nbind = \"127.0.0.1:0\"\n[telemetry]\nlog = \"warn\"\n",
            seeds.join(", ")
        );
        let config = dir.join(format!("{node}.toml"));
        std::fs::write(&config, text).expect("writes");
        let child = Command::new(env!("CARGO_BIN_EXE_selvedge-registry"))
            .arg("--config")
            .arg(&config)
            .arg("--ports-file")
            .arg(&ports)
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        eventually("it says its ports", || async { ports.exists() }).await;
        let ports: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&ports).expect("reads")).expect("JSON");
        let addr = |what: &str| -> SocketAddr {
            let text = ports[what].as_str().expect("an address");
            text.parse().expect("an address")
        };
        Self {
            child,
            http: addr("http"),
            gossip: addr("gossip"),
            admin: addr("admin"),
        }
    }

    fn signal(&self, signal: &str) {
        let kill = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(kill.expect("kill runs").success());
    }

    /// The value of a metric without labels.
    async fn metric(&self, name: &str) -> Option<u64> {
        let text = get(self.admin, "/metrics").await?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    async fn up(&self, service: &str) -> Option<usize> {
        let text = get(self.http, &format!("/v1/services/{service}")).await?;
        let record: selvedge_registry::wire::ServiceRecord = serde_json::from_str(&text).ok()?;
        Some(record.instances.len())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _may_be_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

pub(super) async fn get(addr: SocketAddr, path: &str) -> Option<String> {
    ask(addr, ("GET", path), "").await
}

/// The body of an answer by HTTP/1.0: without chunks, to the end.
async fn ask(addr: SocketAddr, (method, path): (&str, &str), body: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asking = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await.ok()?;
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: {addr}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some(body.to_owned())
    };
    tokio::time::timeout(Duration::from_secs(2), asking)
        .await
        .ok()?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_wrongs_nobody_when_it_goes_on() {
    let dir = tempfile::tempdir().expect("directory");
    let a = Process::start(dir.path(), "n1", &[]).await;
    let b = Process::start(dir.path(), "n2", &[a.gossip]).await;
    let c = Process::start(dir.path(), "n3", &[a.gossip, b.gossip]).await;
    let all = [&a, &b, &c];
    for server in all {
        eventually("three serve", || async {
            let members = get(server.http, "/v1/members").await.unwrap_or_default();
            members.matches("\"serving\"").count() == 3
        })
        .await;
    }
    let clients: Vec<_> = (0..30u16)
        .map(|n| {
            let order = [0, 1, 2].map(|i| all[(usize::from(n) + i) % 3].http.to_string());
            RegistryClient::builder(order).spawn()
        })
        .collect();
    let mut held = Vec::new();
    for (n, client) in (0u16..).zip(&clients) {
        let mut one = instance("orders", &format!("i{n}"), 4_000 + n);
        one.ttl = "3s".parse().expect("unit");
        let mut registration = client.register(one);
        registration.registered().await;
        held.push(registration);
    }
    let watching = RegistryClient::builder([b.http.to_string()]).spawn();
    let watch = watching.watch(&name("orders"));
    eventually("all are seen", || async {
        watch.current().endpoints.len() == 30
    })
    .await;
    let least = async |least: &mut usize, how_long: Duration| {
        let end = Instant::now() + how_long;
        while Instant::now() < end {
            *least = (*least).min(watch.current().endpoints.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut seen = 30;
    a.signal("-STOP");
    least(&mut seen, Duration::from_secs(60)).await;
    a.signal("-CONT");
    least(&mut seen, Duration::from_secs(4)).await;
    assert_eq!(seen, 30, "a watcher saw somebody go");
    for server in all {
        eventually("all are there again", || async {
            server.up("orders").await == Some(30)
        })
        .await;
        let evicted = server.metric("selvedge_registry_evictions_total").await;
        assert_eq!(evicted, Some(0));
    }
    // And it still hears a goodbye, and finds the dead: one that is registered there, and never again
    // heard of.
    drop(held.pop());
    let dead = r#"{"addr":"127.0.0.1:5000","ttl":"3s"}"#;
    let path = "/v1/services/orders/instances/dead";
    let answer = ask(a.http, ("PUT", path), dead).await.unwrap_or_default();
    assert!(answer.contains("dead"), "{answer}");
    let evictions = async || {
        let mut sum = 0;
        for server in all {
            let one = server.metric("selvedge_registry_evictions_total").await;
            sum += one.unwrap_or_default();
        }
        sum
    };
    eventually("the dead one is evicted", || async {
        evictions().await == 1
    })
    .await;
    for server in all {
        eventually("both are gone", || async {
            server.up("orders").await == Some(29)
        })
        .await;
    }
    let held = digest(a.http).await.expect("it answers");
    assert_eq!(held.records, 29);
    for server in [&b, &c] {
        eventually("all hold the same", || async {
            digest(server.http).await.as_ref() == Some(&held)
        })
        .await;
    }
}
