//! Several servers: what one accepts all know, and what one knew survives it.

use std::time::Duration;

use selvedge_registry::{InstanceStatus, client::Discovery, wire::MemberState};
use selvedge_registry_server::{RegistryServer, catalogue::Catalogue, server::Origin};

use crate::support::{ask, client, cluster, eventually, instance, name, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_seen_by_every_server_and_every_watcher() {
    let [a, b, c] = cluster().await;
    let watches = [&a, &b, &c].map(|server| client(&[server]).watch(&name("orders")));
    let mut registration = client(&[&a]).register(instance("orders", "i1", 4001));
    registration.registered().await;
    for watch in &watches {
        eventually("seen", || async { watch.current().endpoints.len() == 1 }).await;
    }
    registration.set_status(InstanceStatus::OutOfService);
    for watch in &watches {
        eventually("taken out", || async {
            watch.current().endpoints.is_empty()
        })
        .await;
    }
    registration.set_status(InstanceStatus::Up);
    eventually("back", || async {
        watches[2].current().endpoints.len() == 1
    })
    .await;
    registration.deregister().await;
    for watch in &watches {
        eventually("gone", || async { watch.current().endpoints.is_empty() }).await;
        assert!(watch.current().synced);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_not_renewed_runs_out_everywhere() {
    let [a, b, _c] = cluster().await;
    let watch = client(&[&b]).watch(&name("orders"));
    let request = serde_json::json!({"addr": "127.0.0.1:4001", "ttl": "1s"}).to_string();
    let request = serde_json::from_str(&request).expect("valid");
    let (service, id) = (name("orders"), "silent".parse().expect("id"));
    a.shared()
        .register(service, id, request, Origin::v1())
        .expect("accepted");
    eventually("seen", || async { watch.current().endpoints.len() == 1 }).await;
    eventually("evicted", || async { watch.current().endpoints.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_when_the_server_that_keeps_the_leases_dies() {
    let [a, b, c] = cluster().await;
    let clients: Vec<_> = (0..10).map(|_| client(&[&a, &b, &c])).collect();
    let mut held = Vec::new();
    for (i, client) in (0u16..).zip(&clients) {
        let mut registration = client.register(instance("orders", &format!("i{i}"), 4000 + i));
        registration.registered().await;
        held.push(registration);
    }
    let watch = client(&[&b, &c]).watch(&name("orders"));
    eventually("all ten", || async {
        watch.current().endpoints.len() == 10
    })
    .await;
    // As SIGKILL leaves it: no word to anybody.
    let dead = a.shared().node.clone();
    drop(a);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(4);
    while tokio::time::Instant::now() < deadline {
        assert_eq!(
            watch.current().endpoints.len(),
            10,
            "an instance was evicted wrongly"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let members = b.shared().member_list().members;
    assert!(
        members.iter().all(|member| member.node != *dead),
        "{members:?}"
    );
    // And those that die with it go too, after one full lease.
    drop(held.pop());
    eventually("the orphan goes", || async {
        watch.current().endpoints.len() == 9
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_joins_late_knows_everything_before_it_answers() {
    let [a, b, _c] = cluster().await;
    let mut held = Vec::new();
    for i in 0..50u16 {
        let mut registration =
            client(&[&a]).register(instance("orders", &format!("i{i}"), 4000 + i));
        registration.registered().await;
        held.push(registration);
    }
    let late = start("n4", &[b.gossip_addr()]).await;
    let mut serving = late.shared().serving();
    serving.wait_for(|serving| *serving).await.expect("serves");
    assert_eq!(late.shared().read(Catalogue::len), 50);
    let hash = a.shared().read(Catalogue::hash);
    eventually("the same catalogue", || async {
        late.shared().read(Catalogue::hash) == hash
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_turns_to_another_server_and_never_sees_an_empty_list() {
    let [a, b, c] = cluster().await;
    let mut registration = client(&[&c]).register(instance("orders", "i1", 4001));
    registration.registered().await;
    let watching = client(&[&a, &b]);
    let watch = watching.watch(&name("orders"));
    eventually("seen", || async { watch.current().endpoints.len() == 1 }).await;
    drop(a);
    drop(b);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(watch.current().endpoints.len(), 1, "last known good");
}

#[tokio::test]
async fn a_drained_server_hands_its_leases_over_and_goes_on_answering() {
    let [a, b, c] = cluster().await;
    let client = client(&[&a]);
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(client.register(instance("orders", &format!("i{n}"), 4000 + n)));
    }
    for registration in &mut all {
        registration.registered().await;
    }
    let owned = |server: &RegistryServer| {
        let members = server.shared().member_list().members;
        let at = members.into_iter().find(|m| m.node == "n1");
        at.map(|m| (m.state, m.owned))
    };
    eventually("they are its own", || async {
        owned(&b) == Some((MemberState::Serving, 20))
    })
    .await;
    assert_eq!(ask(&a, ("POST", "/v1/drain"), "").await.status, 202);
    for server in [&a, &b, &c] {
        eventually("nothing is left there", || async {
            owned(server) == Some((MemberState::Draining, 0))
        })
        .await;
    }
    // Their client still talks to the drained server, which passes the renewals on: three leases
    // long nobody is lost.
    let ends = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < ends {
        let answer = ask(&a, ("GET", "/v1/services/orders?health=up"), "").await;
        let there = answer.json()["instances"].as_array().map(Vec::len);
        assert_eq!(there, Some(20), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_not_lost_when_the_lease_moves_at_the_same_time() {
    let [a, b, c] = cluster().await;
    let register = r#"{"addr":"10.0.0.1:80","ttl":"1h"}"#;
    let mut all = Vec::new();
    for n in 0..60u64 {
        let (a, b) = (&a, &b);
        all.push(async move {
            let path = format!("/v1/services/orders/instances/i{n}");
            assert_eq!(ask(a, ("PUT", &path), register).await.status, 200);
            eventually("it is known there", || async {
                ask(b, ("GET", &path), "").await.status == 200
            })
            .await;
            // Twice at another server: the lease moves there, twenty milliseconds later.
            let lease = format!("{path}/lease");
            for _ in 0..2 {
                assert_eq!(ask(b, ("PUT", &lease), "").await.status, 204);
            }
            tokio::time::sleep(Duration::from_millis(n / 2)).await;
            let metadata = format!("{path}/metadata");
            let patch = ask(a, ("PATCH", &metadata), r#"{"shard":"7"}"#).await;
            assert_eq!(patch.status, 200);
        });
    }
    futures_util::future::join_all(all).await;
    // What was accepted is everywhere, and stays.
    for _ in 0..2 {
        for server in [&a, &b, &c] {
            eventually("no change is lost", || async {
                let path = "/v1/services/orders?meta.shard=7";
                let answer = ask(server, ("GET", path), "").await.json();
                answer["instances"].as_array().map(Vec::len) == Some(60)
            })
            .await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
