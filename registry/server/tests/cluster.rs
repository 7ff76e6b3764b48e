//! Several servers: what one accepts all know, and what one knew survives it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use selvedge_registry::{
    InstanceStatus,
    client::Discovery,
    wire::{InstanceRecord, MemberState},
};
use selvedge_registry_server::{
    RegistryServer,
    catalogue::{Body, Catalogue, Record},
    server::{Incoming, Origin},
};

use crate::support::{ask, client, cluster, config, eventually, instance, name, start, start_with};

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
    let of_it = members.iter().find(|member| member.node == *dead);
    let state = of_it.map(|member| member.state);
    assert_eq!(state, Some(MemberState::Dead), "{members:?}");
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

const O1: &str = "/v1/services/orders/instances/o1";

/// What a server knows of it.
fn o1(server: &RegistryServer) -> Option<InstanceRecord> {
    let id = "o1".parse().expect("id");
    server.shared().read(|c| c.live(&name("orders"), &id))
}

/// Three servers that know one instance, whose lease the second keeps.
async fn registered_with_the_second() -> [RegistryServer; 3] {
    let all = cluster().await;
    let body = r#"{"addr":"10.0.0.7:80","ttl":"1h"}"#;
    assert_eq!(ask(&all[1], ("PUT", O1), body).await.status, 200);
    eventually("all know it", || async {
        all.iter().all(|server| o1(server).is_some())
    })
    .await;
    all
}

/// An operator's word by Eureka's clients, at servers that do not keep the lease: it is made where the
/// lease is, beside changes of the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_by_eureka_s_rules_leaves_the_lease_where_it_is() {
    let all = registered_with_the_second().await;
    let (path, read) = (O1, o1);
    let rows = [
        ("PUT", "OUT_OF_SERVICE", Some(InstanceStatus::OutOfService)),
        ("PUT", "DOWN", Some(InstanceStatus::Down)),
        ("DELETE", "UP", None),
    ];
    for (n, (method, word, overridden)) in rows.into_iter().enumerate() {
        let metadata = format!("{path}/metadata");
        let said = format!("/eureka/apps/ORDERS/o1/status?value={word}");
        let patch = format!(r#"{{"k{n}":"v"}}"#);
        let (said, patched) = tokio::join!(
            ask(&all[0], (method, &said), ""),
            ask(&all[2], ("PATCH", &metadata), &patch),
        );
        assert_eq!((said.status, patched.status), (200, 200), "{method} {word}");
        // Where it was asked for, at once; elsewhere soon.
        let known = read(&all[0]).expect("registered");
        assert_eq!(known.overridden, overridden, "{method} {word}");
        for server in &all {
            eventually("both are in the record", || async {
                let known = read(server).expect("registered");
                known.overridden == overridden && known.metadata.contains_key(&format!("k{n}"))
            })
            .await;
            let known = read(server).expect("registered");
            assert_eq!(known.owner, "n2", "nobody took the lease over for it");
        }
    }
}

/// The server that is asked knows an old keeper, who knows the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_follows_a_lease_that_has_moved() {
    let all = registered_with_the_second().await;
    let id = "o1".parse().expect("id");
    let record = |n: usize| {
        let catalogue = all[n].shared().catalogue();
        let record = catalogue.live_record(&name("orders"), &id).expect("known");
        Record::clone(record)
    };
    // The third keeps it by now, as it and the second know, and the first will never hear of it.
    let mut moved = record(1);
    moved.stamp.hlc += 1;
    moved.stamp.owner = "n3".into();
    for server in [&all[1], &all[2]] {
        let moved = Incoming::Instance(Box::new(moved.clone()));
        server.shared().accept([moved]);
    }
    let owners = |n: usize| record(n).stamp.owner;
    assert_eq!([0, 1, 2].map(owners), ["n2", "n3", "n3"].map(Into::into));
    let patch = ("PATCH", "/v1/services/orders/instances/o1/metadata");
    let answer = ask(&all[0], patch, r#"{"k":"v"}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["owner"], "n3");
    for server in &all {
        eventually("all know it as it is", || async {
            let known = o1(server).expect("registered");
            known.owner == "n3" && known.metadata.contains_key("k")
        })
        .await;
    }
}

/// What is known here is later than that: nothing is said, and a server that reads it twice does not
/// write twice.
#[tokio::test]
async fn an_eviction_that_is_older_than_what_is_known_is_not_contradicted() {
    let server = start("n1", &[]).await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    let body = r#"{"addr":"10.0.0.7:80","ttl":"1h"}"#;
    assert_eq!(ask(&server, ("PUT", O1), body).await.status, 200);
    let id = "o1".parse().expect("id");
    let record = || {
        let catalogue = server.shared().catalogue();
        let record = catalogue.live_record(&name("orders"), &id).expect("known");
        Record::clone(record)
    };
    let reasserted = || {
        let counters = &server.shared().counters;
        counters
            .reasserted
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    let known = record();
    let evicted = |hlc: u64| {
        let mut evicted = known.clone();
        (evicted.stamp.hlc, evicted.stamp.owner) = (hlc, "n2".into());
        evicted.body = Body::Evicted { overridden: None };
        server
            .shared()
            .accept([Incoming::Instance(Box::new(evicted))]);
    };
    evicted(known.stamp.hlc - 1);
    assert_eq!((record().stamp, reasserted()), (known.stamp.clone(), 0));
    // A later one is, also by a clock that is not believed: the lease is good.
    let later = known.stamp.hlc + (3_600_000 << 16);
    evicted(later);
    assert!(record().stamp.hlc > later);
    assert_eq!(reasserted(), 1);
}

/// What this server writes after it has heard of something is later than that, on any instance; a
/// clock that is wrong by more than a minute drags nobody along.
#[tokio::test]
async fn what_is_written_after_something_was_heard_is_later() {
    let server = start("n1", &[]).await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    let body = r#"{"addr":"10.0.0.7:80","ttl":"1h"}"#;
    let written = async |id: &str| {
        let path = format!("/v1/services/orders/instances/{id}");
        assert_eq!(ask(&server, ("PUT", &path), body).await.status, 200);
        let catalogue = server.shared().catalogue();
        let id = id.parse().expect("id");
        let record = catalogue.live_record(&name("orders"), &id).expect("known");
        Record::clone(record)
    };
    let first = written("o1").await;
    let heard = |id: &str, ahead_ms: u64| {
        let mut other = first.clone();
        other.id = id.parse().expect("id");
        other.stamp.hlc += ahead_ms << 16;
        other.stamp.owner = "n2".into();
        let hlc = other.stamp.hlc;
        server
            .shared()
            .accept([Incoming::Instance(Box::new(other))]);
        hlc
    };
    let half_a_minute = heard("o2", 30_000);
    assert!(written("o3").await.stamp.hlc > half_a_minute);
    let an_hour = heard("o4", 3_600_000);
    assert!(written("o5").await.stamp.hlc < an_hour);
}

/// A lease that is handed over is of one life: of another there is nothing to take.
#[tokio::test]
async fn a_lease_of_another_life_is_not_taken_over() {
    let all = registered_with_the_second().await;
    let life = o1(&all[0]).expect("known").incarnation;
    for (life, taken, owner) in [(life + 1, "[]", "n2"), (life, "[0]", "n1")] {
        let question = format!(r#"{{"from":"n2","leases":[[["orders","o1",{life}],60000]]}}"#);
        let answer = ask(&all[0], ("POST", "/v1/replicate/handoff"), &question).await;
        assert_eq!(answer.json()["taken"].to_string(), taken, "{answer:?}");
        assert_eq!(o1(&all[0]).expect("known").owner, owner);
    }
}

/// Somebody has to keep the time of an instance whose server is gone when it is heard of.
#[tokio::test]
async fn an_instance_of_a_server_that_is_gone_has_one_lease_to_be_heard_of() {
    let server = start("n1", &[]).await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    let body = r#"{"addr":"10.0.0.7:80","ttl":"1s"}"#;
    assert_eq!(ask(&server, ("PUT", O1), body).await.status, 200);
    let id = "o1".parse().expect("id");
    let catalogue = server.shared().catalogue();
    let record = catalogue.live_record(&name("orders"), &id).expect("known");
    let mut other = Record::clone(record);
    other.id = "o2".parse().expect("id");
    other.stamp.owner = "n2".into();
    server
        .shared()
        .accept([Incoming::Instance(Box::new(other))]);
    let known = || server.shared().catalogue().len();
    assert_eq!(known(), 2);
    eventually("both are over", || async { known() == 0 }).await;
}

/// Who was cut off has not heard the renewals that went elsewhere: it judges nobody until they come
/// here again.
#[tokio::test]
async fn who_was_isolated_settles_before_it_judges() {
    let mut config = config("n1", &[]);
    config.leases.settle = "1500ms".parse().expect("unit");
    let server = start_with(&config).await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    let body = r#"{"addr":"10.0.0.7:80","ttl":"1s"}"#;
    assert_eq!(ask(&server, ("PUT", O1), body).await.status, 200);
    let judged = |active: bool, why: &'static str| {
        let server = &server;
        move || async move {
            let judged = server.shared().self_preservation();
            judged.active == active && judged.reason.contains(why)
        }
    };
    server.shared().set_isolated(true);
    eventually("it judges nobody", judged(true, "")).await;
    let heard_again = tokio::time::Instant::now();
    server.shared().set_isolated(false);
    eventually("nor yet", judged(true, "was isolated")).await;
    eventually("and then it does", judged(false, "")).await;
    assert!(heard_again.elapsed() >= Duration::from_millis(1_500));
    eventually("whose lease is over is gone", || async {
        o1(&server).is_none()
    })
    .await;
}

/// As `statusUpdate` of Eureka's servers does.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_by_eureka_s_rules_renews_the_lease_where_it_is() {
    let all = registered_with_the_second().await;
    let body = r#"{"addr":"10.0.0.7:80","ttl":"2s"}"#;
    assert_eq!(ask(&all[1], ("PUT", O1), body).await.status, 200);
    for word in ["OUT_OF_SERVICE", "DOWN"].iter().cycle().take(20) {
        let said = format!("/eureka/apps/ORDERS/o1/status?value={word}");
        assert_eq!(ask(&all[0], ("PUT", &said), "").await.status, 200);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    for server in &all {
        assert_eq!(o1(server).expect("renewed").owner, "n2");
    }
    eventually("and it ends when nobody says anything", || async {
        all.iter().all(|server| o1(server).is_none())
    })
    .await;
}

/// Three servers, one instance, and changes of it at all of them at once: a key of metadata each, an
/// operator's word and the instance's own. Whoever keeps the lease puts them into one record.
#[tokio::test(flavor = "multi_thread")]
async fn changes_at_several_servers_at_once_are_all_in_the_record() {
    const ROUNDS: usize = 20;
    let all = registered_with_the_second().await;
    let (path, read) = (O1, o1);
    let (all, read) = (&all, &read);
    let patching = all.iter().enumerate().map(|(n, server)| async move {
        for round in 0..ROUNDS {
            let key = format!("k{n}-{round}");
            let patch = format!(r#"{{"{key}":"v","shared":"{n}-{round}"}}"#);
            let answer = ask(server, ("PATCH", &format!("{path}/metadata")), &patch).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let metadata = &answer.json()["metadata"];
            assert_eq!(
                (&metadata[&key], &metadata["shared"]),
                (&"v".into(), &format!("{n}-{round}").into())
            );
            // What was written here is read here, at once.
            let known = read(server).expect("registered");
            assert_eq!(known.metadata.get(&key).map(String::as_str), Some("v"));
        }
    });
    let overruling = async {
        let (out, starting) = (r#"{"status":"OUT_OF_SERVICE"}"#, r#"{"status":"STARTING"}"#);
        let overruled = ask(&all[0], ("PUT", &format!("{path}/override")), out).await;
        let said = ask(&all[2], ("PUT", &format!("{path}/status")), starting).await;
        assert_eq!((overruled.status, said.status), (204, 204));
    };
    tokio::join!(join_all(patching), overruling);
    eventually("all hold the same", || async {
        let hashes: BTreeSet<u64> = all
            .iter()
            .map(|s| s.shared().read(Catalogue::hash))
            .collect();
        hashes.len() == 1
    })
    .await;
    for server in all {
        let record = read(server).expect("registered");
        for n in 0..3 {
            for round in 0..ROUNDS {
                let key = format!("k{n}-{round}");
                assert!(record.metadata.contains_key(&key), "{key} is lost");
            }
        }
        assert_eq!(record.overridden, Some(InstanceStatus::OutOfService));
        assert_eq!(record.reported, InstanceStatus::Starting);
        assert_eq!(record.owner, "n2", "nobody took the lease over for it");
    }
    // Together they may not exceed what each may not: the keeper of the lease looks.
    let patch = |from: usize| -> String {
        let keys: BTreeMap<_, _> = (from..from + 2).map(|n| (format!("x{n}"), "v")).collect();
        serde_json::to_string(&keys).expect("serialises")
    };
    let metadata = format!("{path}/metadata");
    let (one, other) = (patch(0), patch(2));
    let (one, other) = tokio::join!(
        ask(&all[0], ("PATCH", &metadata), &one),
        ask(&all[2], ("PATCH", &metadata), &other)
    );
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(
        statuses,
        [200, 400],
        "61 keys and twice two are more than 64"
    );
}

/// The server that keeps the lease is gone and nobody has noticed yet: the change is made where it
/// was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_does_not_wait_for_a_server_that_is_gone() {
    let [a, b, c] = cluster().await;
    let path = "/v1/services/orders/instances/o1";
    let body = r#"{"addr":"10.0.0.7:80","ttl":"1h"}"#;
    assert_eq!(ask(&a, ("PUT", path), body).await.status, 200);
    eventually("all know it", || async {
        [&b, &c]
            .iter()
            .all(|server| server.shared().catalogue().len() == 1)
    })
    .await;
    drop(a);
    let answer = ask(&b, ("PATCH", &format!("{path}/metadata")), r#"{"k":"v"}"#).await;
    assert_eq!(
        (answer.status, &answer.json()["owner"]),
        (200, &"n2".into())
    );
    eventually("the other has it", || async {
        let (service, id) = (name("orders"), "o1".parse().expect("id"));
        let known = c.shared().read(|c| c.live(&service, &id));
        known.is_some_and(|known| known.metadata.contains_key("k"))
    })
    .await;
}
