//! The v1 API's questions, watches and writes, by hand.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, Events, ask, ask_by, config, serving};
use selvedge_registry::client::connect::Connector;
use selvedge_registry_server::RegistryServer;

async fn put(server: &RegistryServer, service: &str, id: &str, more: Value) -> Answer {
    let mut document = json!({"addr": "10.0.0.1:80", "ttl": "30s"});
    for (key, value) in more.as_object().expect("an object") {
        document[key] = value.clone();
    }
    let path = format!("/v1/services/{service}/instances/{id}");
    let answer = ask(server, ("PUT", &path), &document.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

/// Three services in two zones.
async fn shop() -> RegistryServer {
    let server = serving(&config("n1", &[])).await;
    let zone = |zone: &str| json!({"region": "eu", "zone": zone});
    for (service, id, more) in [
        (
            "orders",
            "o1",
            json!({"locality": zone("a"), "version": "1.0", "tags": ["blue", "x"]}),
        ),
        (
            "orders",
            "o2",
            json!({"locality": zone("b"), "version": "1.1", "tags": ["blue"], "status": "DOWN"}),
        ),
        (
            "orders",
            "o3",
            json!({"locality": zone("a"), "version": "1.1", "metadata": {"shard": "7"}}),
        ),
        (
            "pricing",
            "p1",
            json!({"ownership": {"team": "money", "tier": "1"}, "version": "2"}),
        ),
        ("sick", "s1", json!({"status": "DOWN"})),
    ] {
        put(&server, service, id, more).await;
    }
    server
}

fn ids(answer: &Answer) -> Vec<String> {
    let list = answer.json()["instances"]
        .as_array()
        .expect("a list")
        .clone();
    let id = |entry: &Value| {
        let instance = entry.get("instance").unwrap_or(entry);
        instance["id"].as_str().expect("an id").to_owned()
    };
    list.iter().map(id).collect()
}

#[tokio::test]
async fn instances_are_found_by_what_they_say_of_themselves() {
    let server = shop().await;
    for (query, want) in [
        ("", "o1 o2 o3 p1 s1"),
        ("service=orders", "o1 o2 o3"),
        ("service=pricing&service=sick", "p1 s1"),
        ("zone=a", "o1 o3"),
        ("region=eu&zone=b", "o2"),
        ("version=1.1", "o2 o3"),
        ("tag=blue", "o1 o2"),
        ("tag=blue&tag=x", "o1"),
        ("status=DOWN", "o2 s1"),
        ("health=up", "o1 o3 p1"),
        ("health=up_or_all", "o1 o3 p1 s1"),
        ("meta.shard=7", "o3"),
        ("service=nobody", ""),
    ] {
        let path = format!("/v1/instances?{query}");
        let answer = ask(&server, ("GET", &path), "").await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        assert_eq!(ids(&answer).join(" "), want, "{query}");
    }
    let one = ask(&server, ("GET", "/v1/services/orders?zone=a&health=up"), "").await;
    assert_eq!(ids(&one), ["o1", "o3"]);
    let none = ask(&server, ("GET", "/v1/services/orders?zone=z"), "").await;
    assert_eq!(
        (none.status, ids(&none).len()),
        (200, 0),
        "the service is there"
    );
    for bad in [
        "status=up",
        "health=x",
        "colour=red",
        "limit=0",
        "limit=5001",
        "zone=a&zone=b",
        "cursor=/",
    ] {
        let path = format!("/v1/instances?{bad}");
        let answer = ask(&server, ("GET", &path), "").await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
}

#[tokio::test]
async fn pages_hold_everything_once() {
    let server = shop().await;
    for path in ["/v1/instances?limit=2", "/v1/catalog?limit=2"] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = ask(&server, ("GET", &format!("{path}{cursor}")), "").await;
            let page = page.json();
            let list = page.get("instances").or(page.get("services"));
            let list = list.and_then(Value::as_array).expect("a list");
            assert!(list.len() <= 2, "{list:?}");
            let name = |e: &Value| {
                let name = e.pointer("/instance/id").or(e.get("name"));
                name.and_then(Value::as_str).expect("a name").to_owned()
            };
            seen.extend(list.iter().map(name));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let want = if path.contains("catalog") {
            "orders pricing sick"
        } else {
            "o1 o2 o3 p1 s1"
        };
        assert_eq!(seen.join(" "), want);
    }
}

#[tokio::test]
async fn the_catalogue_says_whose_a_service_is() {
    let server = shop().await;
    let page = ask(&server, ("GET", "/v1/catalog"), "").await.json();
    let orders = &page["services"][0];
    assert_eq!(orders["versions"], json!({"1.0": 1, "1.1": 2}));
    assert_eq!(orders["zones"], json!({"eu/a": 2, "eu/b": 1}));
    assert_eq!(
        (&orders["instances"], &orders["up"]),
        (&json!(3), &json!(2))
    );
    let page = ask(&server, ("GET", "/v1/catalog?team=money"), "")
        .await
        .json();
    assert_eq!(page["services"][0]["ownership"]["tier"], "1");
    assert_eq!(page["services"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let server = shop().await;
    let plain = Connector::plain();
    let addr = server.shared().http;
    for path in [
        "/v1/services",
        "/v1/services/orders",
        "/v1/instances",
        "/v1/catalog",
    ] {
        let first = ask(&server, ("GET", path), "").await;
        let tag = first.header("etag").to_owned();
        assert!(
            !tag.is_empty() && !first.header("x-selvedge-revision").is_empty(),
            "{path}"
        );
        let headers = [("if-none-match", tag.as_str())];
        let again = ask_by(&plain, addr, ("GET", path), &headers, "")
            .await
            .expect("answer");
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        assert_eq!(again.header("etag"), tag);
    }
    let tag = ask(&server, ("GET", "/v1/services/orders"), "").await;
    let tag = tag.header("etag").to_owned();
    put(&server, "pricing", "p2", json!({})).await;
    let headers = [("if-none-match", tag.as_str())];
    let path = ("GET", "/v1/services/orders");
    let other = ask_by(&plain, addr, path, &headers, "")
        .await
        .expect("answer");
    assert_eq!(other.status, 304, "another service has changed");
    put(&server, "orders", "o9", json!({})).await;
    let own = ask_by(&plain, addr, path, &headers, "")
        .await
        .expect("answer");
    assert_eq!(own.status, 200);
}

#[tokio::test]
async fn a_long_poll_answers_when_something_happens() {
    let server = shop().await;
    let index = ask(&server, ("GET", "/v1/services/orders"), "").await;
    let index = index.header("x-selvedge-revision").to_owned();
    let path = format!("/v1/services/orders?wait=30s&index={index}");
    let poll = ask(&server, ("GET", &path), "");
    let (answer, _) = tokio::join!(poll, async {
        // Not of the service that is waited for.
        put(&server, "pricing", "p2", json!({})).await;
        put(&server, "orders", "o4", json!({})).await
    });
    assert_eq!(ids(&answer).len(), 4);
    let path = format!("/v1/watch?service=orders&service=sick&wait=30s&index={index}");
    let changes = ask(&server, ("GET", &path), "").await.json();
    assert_eq!(changes["full"], false);
    assert_eq!(
        changes["services"].as_array().map(Vec::len),
        Some(1),
        "{changes}"
    );
    // Nothing new: the end of the time.
    let now = changes["revision"].as_str().expect("a revision");
    let path = format!("/v1/services/orders?wait=1s&index={now}");
    let begin = tokio::time::Instant::now();
    assert_eq!(ask(&server, ("GET", &path), "").await.status, 200);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    // Another server's state: at once.
    let path = "/v1/services/orders?wait=30s&index=1-1";
    assert_eq!(ids(&ask(&server, ("GET", path), "").await).len(), 4);
    // Without a time to wait it does not wait.
    let path = format!("/v1/services/orders?index={now}");
    assert_eq!(ask(&server, ("GET", &path), "").await.status, 200);
    // Nor is there nothing to wait after where nobody is yet.
    let nobody = ask(&server, ("GET", "/v1/services/nobody"), "").await;
    assert_eq!(
        (nobody.status, nobody.header("x-selvedge-revision")),
        (404, now)
    );
    for bad in ["wait=301s", "wait=x", "wait=1s&index=x", "index=x"] {
        let path = format!("/v1/services/orders?{bad}");
        assert_eq!(ask(&server, ("GET", &path), "").await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn without_a_state_of_its_own_a_poll_waits_for_an_instance() {
    let server = shop().await;
    // There already: at once.
    let path = "/v1/services/orders?wait=30s";
    let begin = tokio::time::Instant::now();
    assert_eq!(ask(&server, ("GET", path), "").await.status, 200);
    assert!(begin.elapsed() < Duration::from_secs(10));
    // Nobody yet, or nobody who fits.
    for (path, version) in [
        ("/v1/services/new?wait=30s", "1"),
        ("/v1/services/new?version=2&wait=30s", "2"),
    ] {
        let poll = ask(&server, ("GET", path), "");
        let id = format!("n{version}");
        let (answer, _) = tokio::join!(poll, async {
            put(&server, "pricing", "p3", json!({})).await;
            put(&server, "new", &id, json!({ "version": version })).await
        });
        assert_eq!((answer.status, ids(&answer)), (200, vec![id]), "{path}");
    }
    // Nobody until the end.
    for (path, status) in [
        ("/v1/services/nobody?wait=200ms", 404),
        ("/v1/services/new?version=3&wait=200ms", 200),
    ] {
        let begin = tokio::time::Instant::now();
        assert_eq!(ask(&server, ("GET", path), "").await.status, status);
        assert!(begin.elapsed() >= Duration::from_millis(200), "{path}");
    }
}

#[tokio::test]
async fn a_watch_tells_everything_once_and_resumes() {
    let server = shop().await;
    let mut events = Events::open(&server, "service=orders&service=nobody", None).await;
    let mut kinds = Vec::new();
    let token = loop {
        let (kind, id, data) = events.next().await.expect("goes on");
        kinds.push(kind.clone());
        if kind == "synced" {
            assert_eq!(data["full"], true);
            break id;
        }
        assert_eq!(id, "", "a beginning is not resumed from");
    };
    assert_eq!(kinds, ["state", "snapshot", "snapshot", "synced"]);
    put(&server, "pricing", "p2", json!({})).await;
    put(&server, "orders", "o4", json!({})).await;
    let (id, delta) = events.next_of("delta").await;
    assert_eq!(delta["changed"][0]["id"], "o4");
    drop(events);
    // From before the change: it is told again. From after it: nothing is.
    for (token, want) in [(&token, 1), (&id, 0)] {
        let mut events = Events::open(&server, "service=orders&service=nobody", Some(token)).await;
        let mut told = 0;
        loop {
            let (kind, _, data) = events.next().await.expect("goes on");
            if kind == "synced" {
                assert_eq!(data["full"], false);
                break;
            }
            told += usize::from(kind == "snapshot");
        }
        assert_eq!(told, want, "from {token}");
    }
    // Of another server's life: from the beginning.
    let mut events = Events::open(&server, "service=orders", Some("1-1")).await;
    let (_, synced) = events.next_of("synced").await;
    assert_eq!(synced["full"], true);
}

#[tokio::test]
async fn a_watch_of_every_service_hears_of_new_ones_and_of_their_end() {
    let server = shop().await;
    let mut events = Events::open(&server, "service=*", None).await;
    let mut names = Vec::new();
    let token = loop {
        let (kind, id, data) = events.next().await.expect("goes on");
        match kind.as_str() {
            "snapshot" => names.push(data["service"].as_str().expect("name").to_owned()),
            "synced" => break id,
            _ => {}
        }
    };
    assert_eq!(names, ["orders", "pricing", "sick"]);
    put(&server, "new", "n1", json!({})).await;
    let (_, delta) = events.next_of("delta").await;
    assert_eq!(delta["service"], "new");
    drop(events);
    let path = ("DELETE", "/v1/services/sick/instances/s1");
    assert_eq!(ask(&server, path, "").await.status, 204);
    let mut events = Events::open(&server, "service=*", Some(&token)).await;
    let mut told = Vec::new();
    loop {
        let (kind, _, data) = events.next().await.expect("goes on");
        match kind.as_str() {
            "snapshot" => told.push((
                data["service"].as_str().expect("name").to_owned(),
                data["instances"].as_array().map(Vec::len),
            )),
            "synced" => break,
            _ => {}
        }
    }
    let want = [("new".to_owned(), Some(1)), ("sick".to_owned(), Some(0))];
    assert_eq!(told, want);
    for bad in [
        "service=*&service=a",
        "region=eu&service=a",
        "service=a&colour=x",
    ] {
        let path = format!("/v1/watch?{bad}");
        assert_eq!(ask(&server, ("GET", &path), "").await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_watch_that_does_not_read_gets_what_is_true_and_holds_little() {
    let server = shop().await;
    let mut events = Events::open(&server, "service=orders", None).await;
    events.next_of("synced").await;
    // Far more than a mailbox and a socket's buffers hold.
    let long = "x".repeat(4000);
    for n in 0..3000 {
        let request = serde_json::from_value(json!({
            "addr": "10.0.0.1:80", "ttl": "30s", "weight": n % 1000 + 1,
            "metadata": {"a": long, "n": n.to_string()},
        }));
        let (service, id) = ("orders".parse().expect("name"), "o1".parse().expect("id"));
        let origin = selvedge_registry_server::server::Origin::v1();
        let shared = server.shared();
        shared
            .register(service, id, request.expect("valid"), origin)
            .expect("taken");
        if n % 500 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut snapshots = 0;
    loop {
        let (kind, _, data) = events.next().await.expect("goes on");
        let (list, snapshot) = match kind.as_str() {
            "snapshot" => (&data["instances"], true),
            "delta" => (&data["changed"], false),
            _ => continue,
        };
        snapshots += usize::from(snapshot);
        let all = list.as_array().expect("a list");
        if all.iter().any(|i| i["metadata"]["n"] == "2999") {
            break;
        }
    }
    assert!(snapshots > 0, "it was too slow for deltas");
}

#[tokio::test]
async fn many_leases_are_renewed_in_one_request() {
    let server = shop().await;
    let leases = json!({"leases": [
        {"service": "orders", "id": "o1"},
        {"service": "orders", "id": "nobody"},
        {"service": "orders", "id": "o2", "incarnation": 1},
        {"service": "pricing", "id": "p1"},
    ]});
    let answer = ask(&server, ("POST", "/v1/leases"), &leases.to_string()).await;
    let answer = answer.json();
    assert_eq!(answer["renewed"], 2, "{answer}");
    let refused = json!([
        {"service": "orders", "id": "nobody", "reason": "unknown"},
        {"service": "orders", "id": "o2", "reason": "unknown"},
    ]);
    assert_eq!(answer["refused"], refused);
    let lease = json!({"service": "orders", "id": "o1"});
    for (count, want) in [(1000, 200), (1001, 400)] {
        let leases = json!({"leases": vec![lease.clone(); count]}).to_string();
        assert_eq!(
            ask(&server, ("POST", "/v1/leases"), &leases).await.status,
            want,
            "{count}"
        );
    }
}

#[tokio::test]
async fn an_operators_word_stands_above_the_instances_own() {
    let server = shop().await;
    let path = "/v1/services/orders/instances/o1";
    let word = |name: &str| format!("{path}/{name}");
    let status = |answer: &Answer| {
        let of = |field: &str| answer.json()[field].as_str().unwrap_or("-").to_owned();
        [of("status"), of("reported"), of("overridden")].join(" ")
    };
    let out = r#"{"status":"OUT_OF_SERVICE"}"#;
    assert_eq!(
        ask(&server, ("PUT", &word("override")), out).await.status,
        204
    );
    put(&server, "orders", "o1", json!({})).await;
    let now = ask(&server, ("GET", path), "").await;
    assert_eq!(status(&now), "OUT_OF_SERVICE UP OUT_OF_SERVICE");
    let down = r#"{"status":"DOWN"}"#;
    assert_eq!(
        ask(&server, ("PUT", &word("status")), down).await.status,
        204
    );
    assert_eq!(
        ask(&server, ("DELETE", &word("override")), "").await.status,
        204
    );
    let now = ask(&server, ("GET", path), "").await;
    assert_eq!(status(&now), "DOWN DOWN -");
    let nobody = "/v1/services/orders/instances/nobody/override";
    assert_eq!(ask(&server, ("PUT", nobody), out).await.status, 404);
}

#[tokio::test]
async fn metadata_changes_key_by_key_within_its_limits() {
    let server = shop().await;
    let path = "/v1/services/orders/instances/o3/metadata";
    let patch = r#"{"shard":null,"colour":"red"}"#;
    let answer = ask(&server, ("PATCH", path), patch).await;
    assert_eq!(answer.json()["metadata"], json!({"colour": "red"}));
    let large: serde_json::Map<_, _> = (0..64).map(|n| (n.to_string(), json!("v"))).collect();
    let answer = ask(&server, ("PATCH", path), &Value::from(large).to_string()).await;
    assert_eq!(answer.status, 400, "64 more are too many");
    for bad in [r#"{"a":1}"#, "[]", r#"{"":"x"}"#] {
        assert_eq!(
            ask(&server, ("PATCH", path), bad).await.status,
            400,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn a_server_that_leaves_ends_its_watches_and_is_not_asked_for_room() {
    let server = shop().await;
    let mut events = Events::open(&server, "service=orders", None).await;
    events.next_of("synced").await;
    assert_eq!(ask(&server, ("POST", "/v1/drain"), "").await.status, 202);
    let body = r#"{"addr":"10.0.0.1:80"}"#;
    let answer = ask(&server, ("PUT", "/v1/services/a/instances/b"), body).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    let ((), ended) = tokio::join!(server.shutdown(), async {
        while events.next().await.is_some() {}
        true
    });
    assert!(ended);
}

#[tokio::test]
async fn the_description_is_served() {
    let server = serving(&config("n1", &[])).await;
    let document = ask(&server, ("GET", "/v1/openapi.json"), "").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let policy = &document["components"]["schemas"]["TrafficPolicy"];
    assert!(policy["properties"]["breaker"].is_object(), "{policy}");
}
