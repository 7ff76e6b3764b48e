//! What a Eureka beside us, or its client, says to a server that does not keep the lease: it is done
//! where the lease is kept, beside changes of the same moment, and told to nobody again.

use std::future::Future;

use selvedge_registry::{InstanceStatus, wire::InstanceRecord};
use selvedge_registry_server::RegistryServer;
use serde_json::json;

use super::{
    JSON, ask,
    http::REPLICA,
    peers::{StandIn, beside},
    register, spring,
};
use crate::support::{self, cluster, eventually, name, start_with};

fn h1(server: &RegistryServer) -> Option<InstanceRecord> {
    let id = "h:1".parse().expect("id");
    server.shared().read(|c| c.live(&name("foo"), &id))
}

fn is_of_a_peer(record: &InstanceRecord) -> bool {
    record.dialects["eureka"].contains(r#""from_peer":true"#)
}

/// Three servers that know one instance, which the second keeps for a Eureka beside it.
async fn of_a_peer_with_the_second() -> [RegistryServer; 3] {
    let all = cluster().await;
    let body = spring("FOO", "h:1", 100).to_string();
    let to = all[1].shared().http;
    let answer = ask(to, "POST", "/eureka/apps/FOO", &[JSON, REPLICA], body).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    eventually("all know it", || async {
        all.iter().all(|server| h1(server).is_some())
    })
    .await;
    all
}

/// `said` at the first server while metadata is changed at the third: the second puts both into one
/// record and goes on keeping it.
async fn beside_a_change(
    all: &[RegistryServer; 3],
    n: usize,
    said: impl Future<Output = support::Answer>,
    is_done: impl Fn(&InstanceRecord) -> bool,
) {
    let key = format!("k{n}");
    let patch = format!(r#"{{"{key}":"v"}}"#);
    let metadata = "/v1/services/foo/instances/h:1/metadata".to_owned();
    let patched = support::ask(&all[2], ("PATCH", &metadata), &patch);
    let (said, patched) = tokio::join!(said, patched);
    assert_eq!((said.status, patched.status), (200, 200), "{n}");
    // Where it was said, at once; elsewhere soon.
    assert!(is_done(&h1(&all[0]).expect("registered")), "{n}");
    for server in all {
        eventually("both are in the record", || async {
            let known = h1(server).expect("registered");
            is_done(&known) && known.metadata.contains_key(&key)
        })
        .await;
        let known = h1(server).expect("registered");
        assert_eq!(known.owner, "n2", "{n}: nobody took the lease over for it");
    }
}

fn item(action: &str, status: &str) -> serde_json::Value {
    json!({"appName": "FOO", "id": "h:1", "lastDirtyTimestamp": 100, "action": action, "status": status})
}

/// As a peer says it, by itself or in a batch.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_eureka_says_of_an_instance_leaves_the_lease_where_it_is() {
    let all = of_a_peer_with_the_second().await;
    let first = all[0].shared().http;
    let marked = async |method: &str, path: &str, body: String| {
        let headers = [JSON, REPLICA, ("content-type", "application/json")];
        let answer = ask(first, method, path, &headers, body).await;
        support::Answer {
            status: answer.status,
            headers: answer.headers,
            body: answer.body.to_vec(),
        }
    };
    let batch = async |items: &[serde_json::Value]| {
        let body = json!({ "replicationList": items }).to_string();
        let answer = marked("POST", "/eureka/peerreplication/batch/", body).await;
        let ok = json!({"statusCode": 200, "responseEntity": null});
        assert_eq!(answer.json()["responseList"], json!(vec![ok; items.len()]));
        answer
    };
    let word = |word: Option<InstanceStatus>| move |r: &InstanceRecord| r.overridden == word;
    let (out, down) = (InstanceStatus::OutOfService, InstanceStatus::Down);
    let said = marked(
        "PUT",
        "/eureka/apps/FOO/h:1/status?value=OUT_OF_SERVICE",
        String::new(),
    );
    beside_a_change(&all, 0, said, word(Some(out))).await;
    let said = marked(
        "DELETE",
        "/eureka/apps/FOO/h:1/status?value=UP",
        String::new(),
    );
    beside_a_change(&all, 1, said, word(None)).await;
    let said = marked(
        "PUT",
        "/eureka/apps/FOO/h:1/metadata?shard=7",
        String::new(),
    );
    beside_a_change(&all, 2, said, |r| r.metadata.contains_key("shard")).await;
    let items = [item("StatusUpdate", "DOWN")];
    beside_a_change(&all, 3, batch(&items), word(Some(down))).await;
    // Of one instance in its order, of many at once.
    let items = [
        item("DeleteStatusOverride", "UP"),
        item("StatusUpdate", "OUT_OF_SERVICE"),
        item("Heartbeat", "UP"),
    ];
    beside_a_change(&all, 4, batch(&items), word(Some(out))).await;
    let items = [
        item("StatusUpdate", "DOWN"),
        item("DeleteStatusOverride", "UP"),
    ];
    beside_a_change(&all, 5, batch(&items), word(None)).await;
}

/// Its client heartbeats another server of ours than the one that keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_turns_to_us_leaves_the_lease_where_it_is() {
    let all = of_a_peer_with_the_second().await;
    assert!(
        all.iter()
            .all(|server| is_of_a_peer(&h1(server).expect("known")))
    );
    let beat = support::ask(&all[0], ("PUT", "/eureka/apps/FOO/h:1?status=UP"), "");
    beside_a_change(&all, 0, beat, |record| !is_of_a_peer(record)).await;
}

/// The one that keeps the lease talks to the same Eureka as the one that was told.
#[tokio::test]
async fn what_a_eureka_says_to_another_server_of_ours_is_not_told_it_again() {
    let eureka = StandIn::new().await;
    let first = start_with(&beside("a", &[eureka.url()])).await;
    eventually("it serves", || async { first.shared().is_serving() }).await;
    let mut config = beside("b", &[eureka.url()]);
    config.gossip.seeds = vec![first.gossip_addr().to_string()];
    let keeper = start_with(&config).await;
    eventually("both know both", || async {
        let members = |s: &RegistryServer| s.shared().member_list().members.len();
        keeper.shared().is_serving() && members(&first) == 2 && members(&keeper) == 2
    })
    .await;
    let (a, b) = (first.shared().http, keeper.shared().http);
    register(b, "FOO", "h:1", 100).await;
    eureka
        .is_told("h:1", &["Register UP", "Heartbeat UP"])
        .await;
    eventually("the other knows it", || async { h1(&first).is_some() }).await;
    for (action, status, want) in [
        (
            "StatusUpdate",
            "OUT_OF_SERVICE",
            InstanceStatus::OutOfService,
        ),
        ("DeleteStatusOverride", "UP", InstanceStatus::Up),
        ("StatusUpdate", "DOWN", InstanceStatus::Down),
    ] {
        let body = json!({"replicationList": [item(action, status)]}).to_string();
        let headers = [JSON, REPLICA, ("content-type", "application/json")];
        let answer = ask(a, "POST", "/eureka/peerreplication/batch/", &headers, body).await;
        assert_eq!(answer.status, 200);
        let of_both = [&first, &keeper].map(|server| h1(server).expect("known").status);
        assert_eq!(of_both, [want; 2], "{action} {status}");
        // A whole round of what is told after it.
        let later = format!("after-{action}-{status}");
        register(b, "FOO", &later, 100).await;
        eureka
            .is_told(&later, &["Register UP", "Heartbeat UP"])
            .await;
    }
    assert_eq!(h1(&keeper).expect("known").owner, "b");
    let told = eureka.of("h:1");
    let no_word = |word: &String| word.starts_with("Register UP") || word.starts_with("Heartbeat");
    assert!(told.iter().all(no_word), "{told:?}");
    // A word that is our own goes to it.
    super::put(a, "/eureka/apps/FOO/h:1/status?value=OUT_OF_SERVICE").await;
    eureka
        .is_told("h:1", &["StatusUpdate OUT_OF_SERVICE"])
        .await;
}

/// A peer's heartbeat says that an instance lives, not that the peer knows what we have just done.
#[tokio::test]
async fn a_heartbeat_of_a_eureka_does_not_hide_a_change_of_ours_from_it() {
    let eureka = StandIn::new().await;
    let server = start_with(&beside("a", &[eureka.url()])).await;
    eventually("it serves", || async { server.shared().is_serving() }).await;
    let to = server.shared().http;
    let body = spring("FOO", "h:1", 100).to_string();
    let answer = ask(to, "POST", "/eureka/apps/FOO", &[JSON, REPLICA], body).await;
    assert_eq!(answer.status, 204);
    for word in ["DOWN", "OUT_OF_SERVICE"] {
        super::put(to, &format!("/eureka/apps/FOO/h:1/status?value={word}")).await;
        // Before the next batch goes out.
        let path = "/eureka/apps/FOO/h:1";
        let beat = ask(to, "PUT", path, &[JSON, REPLICA], "").await;
        assert_eq!(beat.status, 200);
        let told = format!("StatusUpdate {word}");
        eureka.is_told("h:1", &[&told]).await;
    }
}
