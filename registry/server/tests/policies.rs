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

#[tokio::test]
async fn what_a_policy_was_and_who_changed_it_is_remembered_everywhere() {
    let servers = cluster().await;
    let path = "/v1/policies/orders";
    let history = "/v1/policies/orders/history";
    assert_eq!(ask(&servers[0], ("GET", history), "").await.status, 404);
    for n in 1..=12 {
        let server = &servers[n % 3];
        let known = format!("\"{}\"", n - 1);
        eventually("the change before has arrived", || async {
            n == 1 || ask(server, ("GET", path), "").await.header("etag") == known
        })
        .await;
        let put = ask(server, ("PUT", path), &format!(r#"{{"bulkhead":{n}}}"#)).await;
        assert!(matches!(put.status, 200 | 201), "{n}: {put:?}");
    }
    let delete = ask(&servers[0], ("DELETE", path), "").await;
    assert_eq!(delete.status, 204);
    for server in &servers {
        eventually("all of it, on every server", || async {
            let answer = ask(server, ("GET", history), "").await.json();
            let changes = answer["changes"].as_array().cloned().unwrap_or_default();
            let versions: Vec<_> = changes.iter().map(|c| c["version"].as_u64()).collect();
            let want: Vec<_> = (4..=13).rev().map(Some).collect();
            versions == want
                && changes[0]["policy"].is_null()
                && changes[1]["policy"]["bulkhead"]["max"] == 12
                && changes[1]["by"] == "anonymous"
        })
        .await;
    }
}

#[tokio::test]
async fn of_two_changes_for_the_same_version_one_is_made() {
    let server = serving(&config("n1", &[])).await;
    let path = ("PUT", "/v1/policies/orders");
    assert_eq!(ask(&server, path, r#"{"bulkhead":1}"#).await.status, 201);
    let change = |n: u32| {
        let addr = server.shared().http;
        async move {
            let body = format!(r#"{{"bulkhead":{n}}}"#);
            let condition = [("if-match", "\"1\"")];
            let answer = ask_by(&Connector::plain(), addr, path, &condition, &body).await;
            answer.expect("an answer").status
        }
    };
    let mut all = futures_util::future::join_all((2..34).map(change)).await;
    all.sort_unstable();
    assert_eq!(all[0], 200);
    assert!(all[1..].iter().all(|status| *status == 412), "{all:?}");
}
