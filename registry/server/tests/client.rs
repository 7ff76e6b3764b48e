//! The client library against real servers: few requests, failover, restarts, and what it keeps.

use std::{net::SocketAddr, sync::atomic::Ordering};

use selvedge_registry::{
    Locality,
    client::{Discovery, RegistryClient, ServiceWatch},
    node::admin::Admin,
};
use selvedge_registry_server::{RegistryConfig, RegistryServer};

use crate::support::{ask, client, cluster, config, eventually, instance, name, serving};

fn ids(watch: &ServiceWatch) -> Vec<String> {
    let list = watch.current();
    list.endpoints.iter().map(|e| e.id.to_string()).collect()
}

#[tokio::test]
async fn a_hundred_instances_renew_in_step() {
    let server = serving(&config("n1", &[])).await;
    let client = client(&[&server]);
    let mut all = Vec::new();
    for n in 0..100 {
        all.push(client.register(instance("orders", &format!("i{n}"), 4000 + n)));
    }
    for registration in &mut all {
        registration.registered().await;
    }
    let renewals = || server.shared().counters.renewals.load(Ordering::Relaxed);
    // Two rounds, each a third of a second: everybody's lease is renewed in it.
    let before = renewals();
    eventually("renewed twice", || async { renewals() >= before + 200 }).await;
    let watch = client.watch(&name("orders"));
    eventually("all are there", || async { ids(&watch).len() == 100 }).await;
    // One leaves by name, the others by being dropped.
    all.pop().expect("one").deregister().await;
    eventually("one less", || async { ids(&watch).len() == 99 }).await;
    drop(all);
    eventually("none", || async { watch.current().endpoints.is_empty() }).await;
}

#[tokio::test]
async fn a_status_that_changes_is_told_and_one_that_is_lost_is_registered_again() {
    let server = serving(&config("n1", &[])).await;
    let client = client(&[&server]);
    let mut registration = client.register(instance("orders", "i1", 4001));
    registration.registered().await;
    let watch = client.watch(&name("orders"));
    eventually("there", || async { ids(&watch) == ["i1"] }).await;
    registration.set_status(selvedge_registry::InstanceStatus::Down);
    eventually("out", || async { ids(&watch).is_empty() }).await;
    registration.set_status(selvedge_registry::InstanceStatus::Up);
    eventually("in", || async { ids(&watch) == ["i1"] }).await;
    let path = ("DELETE", "/v1/services/orders/instances/i1");
    assert_eq!(ask(&server, path, "").await.status, 204);
    eventually("out behind its back", || async { ids(&watch).is_empty() }).await;
    eventually("registered again", || async { ids(&watch) == ["i1"] }).await;
}

#[tokio::test]
async fn a_server_that_goes_is_not_noticed() {
    let [a, b, c] = cluster().await;
    let client = client(&[&a, &b, &c]);
    let mut registration = client.register(instance("orders", "i1", 4001));
    registration.registered().await;
    let mut watch = client.watch(&name("orders"));
    watch.synced().await;
    eventually("there", || async { ids(&watch) == ["i1"] }).await;
    let emptied = {
        let mut watch = watch.clone();
        tokio::spawn(async move {
            loop {
                watch.changed().await;
                if watch.current().endpoints.is_empty() {
                    return;
                }
            }
        })
    };
    for server in [a, b] {
        server.shutdown().await;
    }
    let second = client.register(instance("orders", "i2", 4002));
    eventually("still told of changes", || async {
        ids(&watch) == ["i1", "i2"]
    })
    .await;
    assert!(!emptied.is_finished(), "the list was never empty");
    assert!(!watch.is_stale());
    drop(second);
}

#[tokio::test]
async fn a_process_whose_clock_was_set_back_is_registered_all_the_same() {
    let server = serving(&config("n1", &[])).await;
    // Twice, its last life is of a clock that was an hour ahead: one that is still there, one that
    // is buried.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ahead = now.expect("after 1970").as_millis() + 3_600_000;
    let body = format!(r#"{{"addr":"127.0.0.1:1","ttl":"60s","incarnation":{ahead}}}"#);
    for id in ["live", "buried"] {
        let path = format!("/v1/services/orders/instances/{id}");
        assert_eq!(ask(&server, ("PUT", &path), &body).await.status, 200);
    }
    let buried = ("DELETE", "/v1/services/orders/instances/buried");
    assert_eq!(ask(&server, buried, "").await.status, 204);
    let client = client(&[&server]);
    let begun = tokio::time::Instant::now();
    let mut held = Vec::new();
    for id in ["live", "buried"] {
        let mut registration = client.register(instance("orders", id, 4001));
        registration.registered().await;
        held.push(registration);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(2));
    let watch = client.watch(&name("orders"));
    eventually("in its new life", || async {
        let list = watch.current();
        let new = |e: &selvedge_registry::Endpoint| e.addr.port() == 4001;
        list.endpoints.len() == 2 && list.endpoints.iter().all(new)
    })
    .await;
    // And its renewals are of that life.
    let renewals = || server.shared().counters.renewals.load(Ordering::Relaxed);
    let before = renewals();
    eventually("renewed twice", || async { renewals() >= before + 4 }).await;
    assert!(
        held.iter()
            .all(selvedge_registry::client::Registration::is_registered)
    );
}

/// The same addresses again, in a new life.
async fn again(config: &RegistryConfig, addr: SocketAddr) -> RegistryServer {
    let config = RegistryConfig {
        http: addr,
        ..config.clone()
    };
    serving(&config).await
}

#[tokio::test]
async fn a_registry_that_restarts_empty_is_told_again_and_its_clients_keep_their_list() {
    let config = config("n1", &[]);
    let server = serving(&config).await;
    let addr = server.shared().http;
    let client = client(&[&server]);
    let mut registration = client.register(instance("orders", "i1", 4001));
    registration.registered().await;
    let watch = client.watch(&name("orders"));
    eventually("there", || async { ids(&watch) == ["i1"] }).await;
    server.shutdown().await;
    eventually("nobody answers", || async { client.is_stale() }).await;
    assert_eq!(ids(&watch), ["i1"], "the last good list stays");
    let server = again(&config, addr).await;
    eventually("it is known there again", || async {
        let path = ("GET", "/v1/services/orders/instances/i1");
        ask(&server, path, "").await.status == 200
    })
    .await;
    eventually("and heard", || async { !client.is_stale() }).await;
    eventually("seen", || async { ids(&watch) == ["i1"] }).await;
}

#[tokio::test]
async fn what_was_known_is_known_in_the_next_process_while_every_server_is_away() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("known.json");
    let server = serving(&config("n1", &[])).await;
    let addr = server.shared().http.to_string();
    let build = || RegistryClient::builder([addr.clone()]).cache(&file).spawn();
    let first = build();
    let mut registration = first.register(instance("orders", "i1", 4001));
    registration.registered().await;
    let put = ("PUT", "/v1/policies/orders");
    assert_eq!(ask(&server, put, r#"{"bulkhead":7}"#).await.status, 201);
    let (watch, policy) = (first.watch(&name("orders")), first.policy(&name("orders")));
    eventually("known", || async {
        ids(&watch) == ["i1"] && policy.current().is_some()
    })
    .await;
    eventually("kept", || async {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.contains("i1") && text.contains("bulkhead")
    })
    .await;
    server.shutdown().await;
    drop((registration, first, watch, policy));
    let second = build();
    let mut watch = second.watch(&name("orders"));
    watch.synced().await;
    assert_eq!(ids(&watch), ["i1"]);
    assert!(watch.is_stale(), "and said to be old");
    let policy = second
        .policy(&name("orders"))
        .current()
        .expect("kept as well");
    assert_eq!(policy.version, 1);
    let unknown = second.watch(&name("pricing"));
    assert!(
        !unknown.current().synced,
        "what was not known is not known to be empty"
    );
}

#[tokio::test]
async fn servers_nearby_are_preferred() {
    let place = |zone: &str| Locality {
        region: "eu".into(),
        zone: zone.into(),
    };
    let mut servers: Vec<RegistryServer> = Vec::new();
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c")] {
        let seeds: Vec<_> = servers.iter().map(RegistryServer::gossip_addr).collect();
        let mut config = config(node, &seeds);
        config.locality = place(zone);
        let server = RegistryServer::start(&config, &Admin::default()).await;
        let server = server.expect("starts");
        eventually("serves", || async { server.shared().is_serving() }).await;
        servers.push(server);
    }
    let addrs = || servers.iter().map(|s| s.shared().http.to_string());
    for (n, zone) in [(0, "a"), (1, "b"), (2, "c")] {
        let client = RegistryClient::builder(addrs())
            .locality(place(zone))
            .spawn();
        let mut watch = client.watch(&name("orders"));
        watch.synced().await;
        let watchers = || servers.iter().map(|s| s.shared().hub.watchers());
        // On a busy machine the nearest may answer too late for the first choice.
        eventually("there", || async { watchers().nth(n) == Some(1) }).await;
        eventually("nowhere else", || async { watchers().sum::<usize>() == 1 }).await;
        drop((client, watch));
        eventually("gone", || async { servers[n].shared().hub.watchers() == 0 }).await;
    }
}

#[tokio::test]
async fn one_stream_carries_every_service_and_one_more_is_told_of_alone() {
    const SERVICES: u16 = 50;
    let server = serving(&config("n1", &[])).await;
    let registering = client(&[&server]);
    let mut held = Vec::new();
    for n in 0..SERVICES {
        held.push(registering.register(instance(&format!("s{n}"), "i1", 4000 + n)));
    }
    for registration in &mut held {
        registration.registered().await;
    }
    let watching = client(&[&server]);
    let mut watches: Vec<ServiceWatch> = (0..SERVICES)
        .map(|n| watching.watch(&name(&format!("s{n}"))))
        .collect();
    for watch in &mut watches {
        watch.synced().await;
        assert_eq!(ids(watch), ["i1"]);
    }
    assert_eq!(
        server.shared().hub.watchers(),
        1,
        "one watch for all of them"
    );
    // One more: all go on over one stream, and those that are known are not told of again.
    let told = server.shared().hub.snapshots();
    let mut late = watching.watch(&name("late"));
    late.synced().await;
    assert!(late.current().endpoints.is_empty());
    assert_eq!(server.shared().hub.snapshots() - told, 1, "of the new one");
    let registration = registering.register(instance("late", "i1", 4999));
    eventually("it is heard of", || async { ids(&late) == ["i1"] }).await;
    eventually("over one stream", || async {
        server.shared().hub.watchers() == 1
    })
    .await;
    // And the others, too.
    held.pop().expect("one").deregister().await;
    let last = watches.last().expect("one");
    eventually("gone", || async { ids(last).is_empty() }).await;
    drop(registration);
}

#[tokio::test]
async fn a_server_that_never_answers_holds_up_no_first_call() {
    let place = |zone: &str| Locality {
        region: "eu".into(),
        zone: zone.into(),
    };
    let mut config = config("n1", &[]);
    config.locality = place("b");
    let server = RegistryServer::start(&config, &Admin::default()).await;
    let server = server.expect("starts");
    eventually("serves", || async { server.shared().is_serving() }).await;
    // It accepts (the kernel does), and that is all.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let silent = silent.local_addr().expect("bound").to_string();
    // Whichever comes first by chance, and whether or not the one that answers is of our zone.
    for zone in ["a", "b"].repeat(5) {
        let addrs = [silent.clone(), server.shared().http.to_string()];
        let begun = tokio::time::Instant::now();
        let client = RegistryClient::builder(addrs).locality(place(zone)).spawn();
        let mut watch = client.watch(&name("orders"));
        let mut registration = client.register(instance("orders", "i1", 4001));
        let asked = async { client.get("/v1/status").await.expect("answered") };
        let (asked, registered, seen) = tokio::join!(
            async { (asked.await, begun.elapsed()).1 },
            async { (registration.registered().await, begun.elapsed()).1 },
            async { (watch.synced().await, begun.elapsed()).1 },
        );
        for (what, took) in [("get", asked), ("register", registered), ("watch", seen)] {
            let limit = std::time::Duration::from_millis(500);
            assert!(took < limit, "{zone}: the first {what} took {took:?}");
        }
    }
}
