//! Policies that are published in the registry, as a running gateway enforces them.

use std::{net::SocketAddr, time::Duration};

use http::header::CONTENT_TYPE;
use selvedge_registry::{
    Instance,
    client::{Call, Registration, RegistryClient},
    node::admin::Admin,
};
use selvedge_registry_server::{RegistryConfig, RegistryServer};
use tokio::runtime::Runtime;

use crate::support::{Gateway, Upstream, eventually, status};

/// A registry in this process, with a service in it.
struct Registry {
    runtime: Runtime,
    server: RegistryServer,
    client: RegistryClient,
    _held: Registration,
}

impl Registry {
    fn with(service: &str, addr: SocketAddr) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let mut config = RegistryConfig {
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..RegistryConfig::default()
        };
        config.gossip.bind = config.http;
        let (service, id) = (
            service.parse().expect("a name"),
            "one".parse().expect("an id"),
        );
        let (server, client, held) = runtime.block_on(async {
            let server = RegistryServer::start(&config, &Admin::default()).await;
            let server = server.expect("starts");
            let mut serving = server.shared().serving();
            serving.wait_for(|serving| *serving).await.expect("serves");
            let client = RegistryClient::builder([server.shared().http.to_string()]).spawn();
            let mut held = client.register(Instance::new(service, id, addr));
            held.answered().await.expect("registered");
            (server, client, held)
        });
        Self {
            runtime,
            server,
            client,
            _held: held,
        }
    }

    /// As `selvedge policy put` does. The answer's status and document.
    fn publish(&self, service: &str, policy: &str) -> (u16, String) {
        let path = format!("/v1/policies/{service}");
        let call = Call {
            path: &path,
            body: policy.as_bytes().to_vec(),
            headers: vec![(CONTENT_TYPE, "application/toml".to_owned())],
            ..Call::default()
        };
        let reply = self.runtime.block_on(self.client.call("PUT", &call));
        let reply = reply.expect("an answer");
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        (reply.status.as_u16(), text)
    }
}

#[test]
fn what_is_published_is_enforced_at_once_and_what_cannot_work_changes_nothing() {
    let slow = Upstream::slow("pricing", Duration::from_millis(500));
    let registry = Registry::with("pricing", slow.addr);
    let gateway = Gateway::start(&format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[registry]
servers = ["http://{}"]
[policies.mine]
timeouts = {{ request = "10s" }}
[services.pricing]
[services.own]
endpoints = ["{}"]
policy = "mine"
[[routes]]
name = "own"
hosts = ["own"]
to = "own"
[[routes]]
name = "all"
to = "pricing"
"#,
        registry.server.shared().http,
        slow.addr
    ));
    let asked = |host: &str| status(&gateway.get(host, "/"));
    eventually("it is found", || asked("shop") == 200);
    let (code, text) = registry.publish("pricing", "timeouts = { request = \"100ms\" }\n");
    assert_eq!(code, 201, "{text}");
    eventually("cut off", || asked("shop") == 504);
    let clusters = gateway.admin("/clusters");
    let source = r#""policy":{"document":"pricing","from":"published","version":1}"#;
    assert!(clusters.contains(source), "{clusters}");
    let (code, text) = registry.publish("pricing", "\nretry = { attempts = 1000 }\n");
    assert_eq!(code, 422, "{text}");
    assert!(text.contains("retry.attempts"), "{text}");
    assert_eq!(asked("shop"), 504, "the old one is in force");
    // What is written down in the file counts.
    assert_eq!(
        registry
            .publish("own", "timeouts = { request = \"100ms\" }\n")
            .0,
        201
    );
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(asked("own"), 200);
    let (code, text) = registry.publish("pricing", "timeouts = { request = \"5s\" }\n");
    assert_eq!(code, 200, "{text}");
    eventually("all of its time", || asked("shop") == 200);
}

#[test]
fn who_asks_the_same_at_the_same_time_shares_one_call_and_its_failure() {
    let slow = Upstream::slow("pricing", Duration::from_millis(500));
    let gateway = Gateway::start(&format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[policies.one]
coalesce = {{}}
[policies.hasty]
coalesce = {{}}
timeouts = {{ request = "10s", backendRequest = "200ms" }}
[services.pricing]
endpoints = ["{0}"]
policy = "one"
[services.hasty]
endpoints = ["{0}"]
policy = "hasty"
[[routes]]
name = "hasty"
hosts = ["hasty"]
to = "hasty"
[[routes]]
name = "all"
to = "pricing"
"#,
        slow.addr
    ));
    let together = |host: &'static str| -> Vec<String> {
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| gateway.get(host, "/")))
                .collect();
            let answers = asked.into_iter().map(|it| it.join().expect("no panic"));
            answers.collect()
        })
    };
    let answers = together("shop");
    assert!(answers.iter().all(|it| status(it) == 200), "{answers:?}");
    assert_eq!(slow.requests(), 1, "one call for all of them");
    let clusters = gateway.admin("/clusters");
    assert!(clusters.contains(r#""answered":7"#), "{clusters}");
    let metrics = gateway.admin("/metrics");
    let answered = metrics.lines().find(|line| {
        line.starts_with("selvedge_coalesce_ended_total")
            && line.contains(r#"service="pricing""#)
            && line.contains(r#"end="answered""#)
    });
    assert!(
        answered.is_some_and(|line| line.ends_with(" 7")),
        "{metrics}"
    );
    // One after the other is not at the same time.
    assert_eq!(status(&gateway.get("shop", "/")), 200);
    assert_eq!(slow.requests(), 2);
    let answers = together("hasty");
    assert!(answers.iter().all(|it| status(it) >= 500), "{answers:?}");
}
