//! E13, and all that passes between this server and a Eureka beside it.
//!
//! The other Eureka is a stand-in that writes down what it is told and answers as Netflix's
//! `PeerReplicationResource` does, or as a test wants; where two directions matter, it is another
//! server of ours in a cluster of its own.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use selvedge_registry_server::{RegistryConfig, RegistryServer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    delete, fetch,
    http::{JSON, REPLICA, ask, get},
    of, one, post, put, register, spring, strict,
};
use crate::support::{self, eventually, start_with};

/// What the stand-in was told and what it says.
#[derive(Default)]
struct Told {
    /// Items of batches.
    items: Vec<Value>,
    /// Heads of all requests: method, path, what of its headers matters.
    heads: Vec<String>,
    /// Answers to the next items, by status; then 200 to all. An object is a 409's instance.
    answers: VecDeque<Value>,
    /// The next batches are refused with these.
    refuse: VecDeque<StatusCode>,
    /// What `/apps/` holds; not set: 503.
    apps: Option<Value>,
}

/// A Eureka beside us, at an address.
#[derive(Clone)]
pub(super) struct StandIn {
    addr: SocketAddr,
    told: Arc<Mutex<Told>>,
}

impl StandIn {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let stand_in = Self {
            addr: listener.local_addr().expect("bound"),
            told: Arc::default(),
        };
        let router = Router::new()
            .fallback(serve)
            .with_state(Arc::clone(&stand_in.told));
        tokio::spawn(async move { axum::serve(listener, router).await });
        stand_in.says_it_has(&[]);
        stand_in
    }

    fn says_it_has(&self, instances: &[Value]) {
        let applications = instances.iter().map(|one| {
            let instance = &one["instance"];
            json!({"name": instance["app"], "instance": [instance]})
        });
        let list: Vec<Value> = applications.collect();
        self.told.lock().apps = Some(json!({"applications": {
            "versions__delta": "1", "apps__hashcode": "", "application": list}}));
    }

    /// What it was told of `id`: its actions with the status that each came with, in order, the
    /// same heartbeat once.
    pub(super) fn of(&self, id: &str) -> Vec<String> {
        let told = self.told.lock();
        let items = told.items.iter().filter(|item| item["id"] == id);
        let mut words: Vec<String> = items
            .map(|item| {
                let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
                format!("{} {}", text("action"), text("status"))
            })
            .collect();
        words.dedup();
        words
    }

    /// Until the last that it was told of `id` is this; heartbeats after it aside.
    pub(super) async fn is_told(&self, id: &str, want: &[&str]) {
        let is_heartbeat = |word: &str| word.starts_with("Heartbeat");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let mut words = self.of(id);
            if !want.last().is_some_and(|word| is_heartbeat(word)) {
                while words.last().is_some_and(|word| is_heartbeat(word)) {
                    words.pop();
                }
            }
            let tail = words.len().saturating_sub(want.len());
            if words[tail..] == *want {
                return;
            }
            let in_time = tokio::time::Instant::now() < deadline;
            assert!(in_time, "{id}: {want:?}, but {words:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://joe:s3cret@{}/eureka/", self.addr)
    }
}

async fn serve(State(told): State<Arc<Mutex<Told>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let mut told = told.lock();
    let of = |name: &str| {
        let value = head
            .headers
            .get(name)
            .map(|value| value.to_str().expect("text"));
        value.unwrap_or_default().to_owned()
    };
    told.heads.push(format!(
        "{} {} {} {} {}",
        head.method,
        head.uri,
        of("x-netflix-discovery-replication"),
        of("discoveryidentity-name"),
        of("authorization"),
    ));
    if head.uri.path() == "/eureka/apps/" {
        return match &told.apps {
            Some(apps) => axum::Json(apps.clone()).into_response(),
            None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        };
    }
    assert_eq!(head.uri.path(), "/eureka/peerreplication/batch/");
    if let Some(status) = told.refuse.pop_front() {
        return status.into_response();
    }
    let batch: Value = serde_json::from_slice(&body).expect("JSON");
    let list = batch["replicationList"].as_array().expect("a list").clone();
    assert!((1..=250).contains(&list.len()), "{} items", list.len());
    let answer = |item: &Value| {
        check(item);
        let answer = told.answers.pop_front().unwrap_or(json!(200));
        told.items.push(item.clone());
        match answer {
            Value::Number(_) => json!({"statusCode": answer, "responseEntity": null}),
            held => json!({"statusCode": 409, "responseEntity": held}),
        }
    };
    let answers: Vec<Value> = list.iter().map(answer).collect();
    axum::Json(json!({ "responseList": answers })).into_response()
}

/// What `ReplicationInstance` of a real Eureka takes: it fails on keys that it does not know.
fn check(item: &Value) {
    let known = [
        "appName",
        "id",
        "lastDirtyTimestamp",
        "overriddenStatus",
        "status",
        "instanceInfo",
        "action",
    ];
    let item = item.as_object().expect("an object");
    for key in item.keys() {
        assert!(known.contains(&key.as_str()), "{key}");
    }
    assert!(item["lastDirtyTimestamp"].is_i64());
    if !item["instanceInfo"].is_null() {
        strict::instance(&item["instanceInfo"]).unwrap_or_else(|why| panic!("{why}"));
    }
}

/// A server that has these beside it.
pub(super) fn beside(node: &str, peers: &[String]) -> RegistryConfig {
    let mut config = support::config(node, &[]);
    config.eureka.peers = peers.to_vec();
    config.eureka.peer_heartbeat = "300ms".parse().expect("unit");
    config.validate().expect("good");
    config
}

/// Starts it; reads are answered once it has asked its peers.
async fn seeded(config: &RegistryConfig) -> (RegistryServer, SocketAddr) {
    let server = start_with(config).await;
    let http = server.shared().http;
    eventually("it answers reads", || async {
        get(http, "/eureka/apps").await.status == 200
    })
    .await;
    (server, http)
}

#[tokio::test]
async fn what_is_done_here_is_told_beside_us_in_eurekas_words() {
    let beside_us = StandIn::new().await;
    let (_server, http) = seeded(&beside("n1", &[beside_us.url()])).await;
    register(http, "FOO", "h:1", 100).await;
    beside_us.is_told("h:1", &["Register UP"]).await;
    // An operator's word, and its end.
    let status = "/eureka/apps/FOO/h:1/status?value=";
    put(http, &format!("{status}OUT_OF_SERVICE")).await;
    beside_us
        .is_told("h:1", &["StatusUpdate OUT_OF_SERVICE"])
        .await;
    delete(http, &format!("{status}UP")).await;
    beside_us.is_told("h:1", &["DeleteStatusOverride UP"]).await;
    // What it says of itself, whole.
    put(http, "/eureka/apps/FOO/h:1/metadata?shard=7").await;
    beside_us.is_told("h:1", &["Register UP"]).await;
    let metadata = {
        let told = beside_us.told.lock();
        let of = |item: &&Value| item["id"] == "h:1" && item["action"] == "Register";
        let last = told.items.iter().rev().find(of).expect("told");
        last["instanceInfo"]["metadata"]["shard"].clone()
    };
    assert_eq!(metadata, "7");
    // That it lives, as long as it does.
    beside_us
        .is_told("h:1", &["Register UP", "Heartbeat UP"])
        .await;
    // In the other dialect.
    let v1 = r#"{"addr":"10.0.0.2:80","ttl":"30s"}"#;
    let kind = [("content-type", "application/json")];
    ask(http, "PUT", "/v1/services/bar/instances/b1", &kind, v1).await;
    beside_us
        .is_told("b1", &["Register UP", "Heartbeat UP"])
        .await;
    // Its end by its own word, and by silence: of that each server is its own judge.
    let short = r#"{"addr":"10.0.0.3:80","ttl":"1s"}"#;
    ask(http, "PUT", "/v1/services/bar/instances/b2", &kind, short).await;
    delete(http, "/eureka/apps/FOO/h:1").await;
    beside_us.is_told("h:1", &["Cancel UP"]).await;
    eventually("the silent one is gone here", || async {
        get(http, "/eureka/apps/BAR/b2").await.status == 404
    })
    .await;
    // Two more rounds.
    let rounds = || {
        let told = beside_us.told.lock();
        told.items.iter().filter(|item| item["id"] == "b1").count()
    };
    let then = rounds() + 2;
    eventually("two rounds", || async { rounds() >= then }).await;
    let of_the_silent = beside_us.of("b2");
    assert_eq!(of_the_silent[0], "Register UP");
    assert!(
        !of_the_silent.iter().any(|word| word.starts_with("Cancel")),
        "{of_the_silent:?}"
    );
    // Marked, so that nobody passes it on; by whom it is; with the password of the URL.
    let heads = beside_us.told.lock().heads.clone();
    for head in &heads {
        assert!(
            head.ends_with(" true DefaultServer Basic am9lOnMzY3JldA=="),
            "{head}"
        );
    }
    let firsts = ["GET /eureka/apps/ ", "POST /eureka/peerreplication/batch/ "];
    assert!(
        firsts
            .iter()
            .all(|first| heads.iter().any(|head| head.starts_with(first)))
    );
}

#[tokio::test]
async fn e13_what_came_from_a_eureka_goes_to_no_other() {
    let (last, second) = (StandIn::new().await, Doorway::new().await);
    let (_second, b) = seeded(&beside("b", &[last.url()])).await;
    second.leads_to(b);
    let (_first, a) = seeded(&beside("a", &[second.url()])).await;
    register(a, "FOO", "from-a", 100).await;
    eventually("it is at b", || async {
        get(b, "/eureka/apps/FOO/from-a").await.status == 200
    })
    .await;
    put(a, "/eureka/apps/FOO/from-a/status?value=OUT_OF_SERVICE").await;
    eventually("an operator's word too", || async {
        get(b, "/eureka/apps/FOO/from-a").await.json()["instance"]["status"] == "OUT_OF_SERVICE"
    })
    .await;
    let by_hand = ask(b, "POST", "/eureka/apps/FOO", &[JSON, REPLICA], {
        spring("FOO", "by-hand", 100).to_string()
    });
    assert_eq!(by_hand.await.status, 204);
    register(b, "FOO", "from-b", 100).await;
    last.is_told("from-b", &["Register UP", "Heartbeat UP"])
        .await;
    delete(a, "/eureka/apps/FOO/from-a").await;
    eventually("it is gone at b", || async {
        get(b, "/eureka/apps/FOO/from-a").await.status == 404
    })
    .await;
    register(b, "FOO", "later", 100).await;
    last.is_told("later", &["Register UP", "Heartbeat UP"])
        .await;
    for id in ["from-a", "by-hand"] {
        assert_eq!(last.of(id), [""; 0], "{id}");
    }
    // Its client turns to b: from then on b speaks for it.
    put(b, "/eureka/apps/FOO/by-hand?status=UP").await;
    last.is_told("by-hand", &["Register UP", "Heartbeat UP"])
        .await;
}

#[tokio::test]
async fn two_clusters_that_name_each_other_hold_the_same_and_nothing_circles() {
    let (to_a, to_b) = (Doorway::new().await, Doorway::new().await);
    let start = async |node: &str, other: &Doorway| start_with(&beside(node, &[other.url()])).await;
    let (a, b) = (start("a", &to_b).await, start("b", &to_a).await);
    let (http_a, http_b) = (a.shared().http, b.shared().http);
    // Each waits for the other, and finds that there is nothing to wait for.
    register(http_a, "EARLY", "a:1", 100).await;
    register(http_b, "EARLY", "b:1", 100).await;
    let begun = tokio::time::Instant::now();
    to_a.leads_to(http_a);
    to_b.leads_to(http_b);
    for http in [http_a, http_b] {
        eventually("it answers reads", || async {
            get(http, "/eureka/apps").await.status == 200
        })
        .await;
        let early = of(&fetch(http, "/eureka/apps/").await, "status");
        assert_eq!(early.len(), 2, "{early:?}");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "half of the time"
    );
    for id in ["a:1", "b:1"] {
        delete(http_a, &format!("/eureka/apps/EARLY/{id}")).await;
    }
    for n in 0..20 {
        let http = if n % 2 == 0 { http_a } else { http_b };
        register(http, "FOO", &format!("h:{n}"), 100).await;
    }
    put(http_a, "/eureka/apps/FOO/h:0/status?value=DOWN").await;
    delete(http_b, "/eureka/apps/FOO/h:1").await;
    let same = || async {
        let (a, b) = (
            fetch(http_a, "/eureka/apps").await,
            fetch(http_b, "/eureka/apps").await,
        );
        let mut lists = [of(&a, "status"), of(&b, "status")];
        for list in &mut lists {
            list.sort();
        }
        let down = ("FOO/h:0".to_owned(), "DOWN".to_owned());
        lists[0].len() == 19 && lists[0].contains(&down) && lists[0] == lists[1]
    };
    eventually("both hold the same", same).await;
    // Quiet: rounds of heartbeats change nothing on either side.
    let revisions = || [&a, &b].map(|server| server.shared().catalogue().revision());
    let renewals = || {
        let of = |server: &RegistryServer| {
            let renewals = &server.shared().counters.renewals;
            renewals.load(std::sync::atomic::Ordering::Relaxed)
        };
        [of(&a), of(&b)]
    };
    let (before, then) = (revisions(), renewals().map(|n| n + 50));
    eventually("five rounds", || async {
        renewals().iter().zip(then).all(|(now, then)| *now >= then)
    })
    .await;
    assert_eq!(revisions(), before);
}

/// One that waits for us is no reason not to wait, if it waits for somebody else as well.
#[tokio::test]
async fn who_waits_for_one_of_us_that_waits_for_a_eureka_is_told_what_that_has() {
    let (eureka, to_a, to_b) = (
        StandIn::new().await,
        Doorway::new().await,
        Doorway::new().await,
    );
    eureka.told.lock().apps = None;
    let a = start_with(&beside("a", &[to_b.url()])).await;
    let b = start_with(&beside("b", &[eureka.url(), to_a.url()])).await;
    let (http_a, http_b) = (a.shared().http, b.shared().http);
    to_a.leads_to(http_a);
    to_b.leads_to(http_b);
    let asked = || {
        eureka
            .told
            .lock()
            .heads
            .iter()
            .filter(|head| head.starts_with("GET"))
            .count()
    };
    eventually("b has asked three times", || async { asked() >= 3 }).await;
    for http in [http_a, http_b] {
        assert_eq!(get(http, "/eureka/apps").await.status, 403);
    }
    // Nobody but one of us is told what there is of it.
    let replica = ask(http_a, "GET", "/eureka/apps", &[JSON, REPLICA], "").await;
    assert_eq!(replica.status, 403);
    eureka.says_it_has(&[spring("OLD", "there", 50)]);
    for http in [http_a, http_b] {
        eventually("it answers reads", || async {
            get(http, "/eureka/apps").await.status == 200
        })
        .await;
        let all = of(&fetch(http, "/eureka/apps").await, "status");
        assert_eq!(all, [("OLD/there".to_owned(), "UP".to_owned())]);
    }
}

#[tokio::test]
async fn what_a_eureka_has_is_taken_before_anybody_is_answered() {
    let beside_us = StandIn::new().await;
    beside_us.told.lock().apps = None;
    let server = start_with(&beside("n1", &[beside_us.url()])).await;
    let http = server.shared().http;
    eventually("it has been asked", || async {
        !beside_us.told.lock().heads.is_empty()
    })
    .await;
    // Neither an empty list nor a word that clients would believe; but registrations are taken.
    for path in [
        "/eureka/apps",
        "/eureka/apps/delta",
        "/eureka/apps/FOO",
        "/eureka/vips/foo",
    ] {
        assert_eq!(get(http, path).await.status, 403, "{path}");
    }
    register(http, "FOO", "here", 100).await;
    let mut old = spring("OLD", "there", 50);
    old["instance"]["overriddenStatus"] = json!("OUT_OF_SERVICE");
    old["instance"]["status"] = json!("OUT_OF_SERVICE");
    beside_us.says_it_has(&[old, spring("FOO", "here", 10)]);
    eventually("it answers reads", || async {
        get(http, "/eureka/apps").await.status == 200
    })
    .await;
    let all = fetch(http, "/eureka/apps").await;
    let mut statuses = of(&all, "status");
    statuses.sort();
    let want = [("FOO/here", "UP"), ("OLD/there", "OUT_OF_SERVICE")];
    let want = want.map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(statuses, want);
    // Ours was newer.
    assert_eq!(one(http, "FOO", "here").await["lastDirtyTimestamp"], "100");
    beside_us
        .is_told("here", &["Register UP", "Heartbeat UP"])
        .await;
    assert_eq!(beside_us.of("there"), [""; 0]);
}

#[tokio::test]
async fn a_eureka_that_refuses_fails_or_knows_better_is_told_again_or_believed() {
    let beside_us = StandIn::new().await;
    {
        let mut told = beside_us.told.lock();
        told.refuse.push_back(StatusCode::SERVICE_UNAVAILABLE);
        told.refuse.push_back(StatusCode::INTERNAL_SERVER_ERROR);
        told.answers.push_back(json!(500));
    }
    let (_server, http) = seeded(&beside("n1", &[beside_us.url()])).await;
    register(http, "FOO", "h:1", 100).await;
    // Refused twice, failed once, taken.
    beside_us
        .is_told("h:1", &["Register UP", "Heartbeat UP"])
        .await;
    let registers = || {
        let told = beside_us.told.lock();
        let of = |item: &&Value| item["id"] == "h:1" && item["action"] == "Register";
        told.items.iter().filter(of).count()
    };
    assert_eq!(registers(), 2);
    // It has forgotten the instance, as after a restart: 404 to a heartbeat.
    beside_us.told.lock().answers.push_back(json!(404));
    eventually("it is told anew", || async { registers() == 3 }).await;
    // Its client has said something newer there.
    let mut newer = spring("FOO", "h:1", 200)["instance"].clone();
    newer["metadata"] = json!({"from": "there"});
    beside_us.told.lock().answers.push_back(newer);
    eventually("it is taken", || async {
        one(http, "FOO", "h:1").await["metadata"]["from"] == "there"
    })
    .await;
    assert_eq!(one(http, "FOO", "h:1").await["lastDirtyTimestamp"], "200");
    // And what is older is not.
    let older = spring("FOO", "h:1", 150)["instance"].clone();
    beside_us.told.lock().answers.push_back(older);
    post(http, "FOO", &spring("FOO", "h:2", 100)).await;
    beside_us
        .is_told("h:2", &["Register UP", "Heartbeat UP"])
        .await;
    assert_eq!(one(http, "FOO", "h:1").await["metadata"]["from"], "there");
}

#[tokio::test]
async fn a_eureka_is_told_of_many_in_batches_of_its_own_size() {
    let beside_us = StandIn::new().await;
    let (_server, http) = seeded(&beside("n1", &[beside_us.url()])).await;
    // Away while they come.
    beside_us
        .told
        .lock()
        .refuse
        .extend([StatusCode::BAD_GATEWAY; 2]);
    for n in 0..600 {
        register(http, "FOO", &format!("h:{n}"), 100).await;
    }
    for n in [0, 299, 599] {
        beside_us
            .is_told(&format!("h:{n}"), &["Register UP", "Heartbeat UP"])
            .await;
    }
    let told = beside_us.told.lock();
    let registers = told
        .items
        .iter()
        .filter(|item| item["action"] == "Register");
    assert_eq!(registers.count(), 600);
}

/// An address that is known before the server that it leads to.
struct Doorway {
    addr: SocketAddr,
    to: Arc<Mutex<Option<SocketAddr>>>,
}

impl Doorway {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("bound");
        let to: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let leads = Arc::clone(&to);
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let to = *leads.lock();
                tokio::spawn(async move {
                    // Nobody there yet: closed.
                    if let Some(to) = to
                        && let Ok(mut there) = tokio::net::TcpStream::connect(to).await
                    {
                        let _ended = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    }
                });
            }
        });
        Self { addr, to }
    }

    fn leads_to(&self, addr: SocketAddr) {
        *self.to.lock() = Some(addr);
    }

    fn url(&self) -> String {
        format!("http://{}/eureka", self.addr)
    }
}
