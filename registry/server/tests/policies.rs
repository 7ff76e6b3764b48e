//! Published policies: from an operator's document to every client of a cluster.

use selvedge_registry::client::{Discovery, connect::Connector};
use serde_json::json;

use crate::support::{Events, ask, ask_by, client, cluster, config, eventually, name, serving};

#[tokio::test]
async fn a_policy_reaches_every_servers_clients_and_a_bad_one_changes_nothing() {
    let servers = cluster().await;
    let client = client(&[&servers[2]]);
    let watch = client.policy(&name("orders"));
    let other = client.policy(&name("pricing"));
    let version = || watch.current().map(|published| published.version);
    let put = |path: &'static str, body: &'static str| ask(&servers[0], ("PUT", path), body);
    let first = put("/v1/policies/orders", r#"{"bulkhead":7}"#).await;
    assert_eq!((first.status, first.header("etag")), (201, "\"1\""));
    eventually("the client of another server has it", || async {
        version() == Some(1)
    })
    .await;
    assert_eq!(other.current(), None);
    let bad = put("/v1/policies/orders", r#"{"bulkhead":0}"#).await;
    assert_eq!(bad.status, 422);
    assert!(
        bad.json()["detail"]
            .as_str()
            .is_some_and(|d| d.contains("at least 1")),
        "{bad:?}"
    );
    assert_eq!(
        ask(&servers[0], ("GET", "/v1/policies/orders"), "")
            .await
            .json()["version"],
        1
    );
    let second = put("/v1/policies/orders", r#"{"bulkhead":8}"#).await;
    assert_eq!(
        (second.status, second.json()["by"].clone()),
        (200, json!("anonymous"))
    );
    eventually("its change, too", || async { version() == Some(2) }).await;
    // The default is for those that have none of their own.
    assert_eq!(
        put("/v1/policies/default", r#"{"bulkhead":9}"#)
            .await
            .status,
        201
    );
    eventually("the default", || async {
        other.current().is_some_and(|p| p.policy.bulkhead.is_some())
    })
    .await;
    assert_eq!(version(), Some(2));
    let delete = ask(&servers[1], ("DELETE", "/v1/policies/orders"), "").await;
    assert_eq!(delete.status, 204);
    eventually("the default for it as well", || async {
        watch
            .current()
            .is_some_and(|p| p.document == name("default"))
    })
    .await;
    assert_eq!(
        ask(&servers[1], ("DELETE", "/v1/policies/orders"), "")
            .await
            .status,
        404
    );
    let list = ask(&servers[2], ("GET", "/v1/policies"), "").await.json();
    assert_eq!(list["policies"][0]["service"], "default");
}

#[tokio::test]
async fn two_authors_do_not_overwrite_each_other() {
    let server = serving(&config("n1", &[])).await;
    let (plain, addr) = (Connector::plain(), server.shared().http);
    let put = async |condition: (&str, &str), body: &str| {
        let what = ("PUT", "/v1/policies/orders");
        let answer = ask_by(&plain, addr, what, &[condition], body).await;
        answer.expect("answer").status
    };
    assert_eq!(put(("if-match", "\"1\""), "{}").await, 412);
    assert_eq!(put(("if-none-match", "*"), "{}").await, 201);
    assert_eq!(put(("if-none-match", "*"), "{}").await, 412);
    assert_eq!(put(("if-match", "\"1\""), r#"{"bulkhead":1}"#).await, 200);
    assert_eq!(put(("if-match", "\"1\""), r#"{"bulkhead":2}"#).await, 412);
    let toml = [("content-type", "application/toml")];
    let what = ("PUT", "/v1/policies/orders");
    let answer = ask_by(&plain, addr, what, &toml, "\nbulkhed = 3\n").await;
    let answer = answer.expect("answer");
    assert_eq!(answer.status, 400);
    let detail = answer.json()["detail"].as_str().expect("detail").to_owned();
    for part in ["policy:2:1", "bulkhed", "did you mean `bulkhead`?"] {
        assert!(detail.contains(part), "{part} in {detail}");
    }
    assert_eq!(
        ask(&server, ("GET", "/v1/policies/orders"), "")
            .await
            .json()["version"],
        2
    );
}

#[tokio::test]
async fn a_watch_begins_with_the_policies_in_force() {
    let server = serving(&config("n1", &[])).await;
    for path in [
        "/v1/policies/orders",
        "/v1/policies/default",
        "/v1/policies/other",
    ] {
        assert_eq!(
            ask(&server, ("PUT", path), r#"{"bulkhead":1}"#)
                .await
                .status,
            201
        );
    }
    let mut events = Events::open(&server, "service=orders", None).await;
    let (_, synced) = events.next_of("synced").await;
    assert_eq!(synced["policies"], json!(["default", "orders"]));
    assert_eq!(
        ask(&server, ("DELETE", "/v1/policies/orders"), "")
            .await
            .status,
        204
    );
    let (_, gone) = events.next_of("policy").await;
    assert_eq!(
        (&gone["service"], &gone["policy"]),
        (&json!("orders"), &json!(null))
    );
}
