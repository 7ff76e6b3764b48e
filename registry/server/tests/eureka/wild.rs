//! What the cases do not name: odd input, v1 and Eureka beside each other, odd names, a law.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    delete, fetch,
    http::{JSON, REPLICA, ask, get},
    of, one, post, put, register, serving, spring, strict,
};
use crate::support::{client, cluster, eventually, instance};

#[tokio::test]
async fn fields_are_taken_in_whatever_form_they_come() {
    let (_server, to) = serving().await;
    // eureka-js-client's own example, and worse.
    let body = json!({"instance": [{
        "app": "jqservice", "hostName": "localhost", "ipAddr": "127.0.0.1", "status": "weird",
        "port": [{"$": "8080", "@enabled": true}], "securePort": 7002, "vipAddress": "jq.test.com",
        "dataCenterInfo": {"@class": "java.lang.Runtime", "name": "MyOwn"},
        "overriddenstatus": "OUT_OF_SERVICE", "countryId": "7", "leaseInfo": {"durationInSecs": -1},
        "lastDirtyTimestamp": 1_500_000_000_000_u64, "isCoordinatingDiscoveryServer": true,
        "unheardOf": {"a": 1}, "metadata": null,
    }]});
    let answer = post(to, "jqservice", &body).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    let found = one(to, "JQSERVICE", "localhost").await;
    assert_eq!(found["status"], "UNKNOWN");
    assert_eq!(found["overriddenStatus"], "OUT_OF_SERVICE");
    assert_eq!(found["port"], json!({"$": 8080, "@enabled": "true"}));
    assert_eq!(found["securePort"], json!({"$": 7002, "@enabled": "false"}));
    assert_eq!(
        (&found["countryId"], &found["leaseInfo"]["durationInSecs"]),
        (&json!(7), &json!(90))
    );
    assert_eq!(found["lastDirtyTimestamp"], "1500000000000");
    assert_eq!(found["isCoordinatingDiscoveryServer"], "true");
    let class = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo";
    assert_eq!(
        found["dataCenterInfo"],
        json!({"@class": class, "name": "MyOwn"})
    );
    // The least that there may be.
    let least =
        json!({"hostName": "h", "app": "X", "ipAddr": "::1", "dataCenterInfo": {"name": "MyOwn"}});
    assert_eq!(post(to, "X", &least).await.status, 204);
    let found = one(to, "X", "h").await;
    assert_eq!(found["port"], json!({"$": 7001, "@enabled": "true"}));
    assert_eq!(found["leaseInfo"]["renewalIntervalInSecs"], 30);
}

#[tokio::test]
async fn what_registers_by_one_dialect_is_seen_by_the_others() {
    let [a, b, c] = cluster().await;
    let (to, other) = (a.shared().http, b.shared().http);
    let mut body = spring("MY_SHOP", "h:shop:1", 9);
    body["instance"]["metadata"] = json!({"zone": "z1", "weight": "3", "version": "1.2"});
    assert_eq!(post(to, "MY_SHOP", &body).await.status, 204);
    let registry = client(&[&c]);
    let _orders = registry.register(instance("orders", "o1", 4001));
    eventually("both are everywhere", || async {
        let v1 = get(other, "/v1/services/my-shop").await;
        v1.status == 200 && get(other, "/eureka/apps/ORDERS").await.status == 200
    })
    .await;
    let v1 = get(other, "/v1/services/my-shop").await.json();
    let shop = &v1["instances"][0];
    assert_eq!(
        (&shop["id"], &shop["addr"]),
        (&json!("h:shop:1"), &json!("10.0.0.1:8080"))
    );
    assert_eq!(
        (&shop["weight"], &shop["locality"]["zone"]),
        (&json!(3), &json!("z1"))
    );
    let eureka = one(other, "MY_SHOP", "h:shop:1").await;
    assert_eq!(eureka["lastDirtyTimestamp"], "9");
    let orders = one(other, "ORDERS", "o1").await;
    assert_eq!(orders["ipAddr"], "127.0.0.1");
    assert_eq!(orders["port"], json!({"$": 4001, "@enabled": "true"}));
    assert_eq!(orders["vipAddress"], "orders");
    let all = fetch(other, "/eureka/apps").await;
    assert_eq!(all["apps__hashcode"], "UP_2_");
    // An operator's word given in one is seen in the other.
    put(other, "/eureka/apps/ORDERS/o1/status?value=OUT_OF_SERVICE").await;
    eventually("out of service in v1, too", || async {
        let v1 = get(to, "/v1/services/orders").await.json();
        v1["instances"][0]["status"] == "OUT_OF_SERVICE"
    })
    .await;
}

#[tokio::test]
async fn names_that_become_the_same_stay_apart() {
    let (_server, to) = serving().await;
    register(to, "A_B", "i", 1).await;
    assert_eq!(get(to, "/eureka/apps/A-B").await.status, 404);
    assert_eq!(get(to, "/eureka/apps/A.B/i").await.status, 404);
    assert_eq!(delete(to, "/eureka/apps/A.B/i").await.status, 404);
    assert_eq!(one(to, "A_B", "i").await["app"], "A_B");
    let mut odd = spring("FOO", "x", 1);
    odd["instance"]["instanceId"] = json!("some host/with spaces:80");
    assert_eq!(post(to, "FOO", &odd).await.status, 204);
    let found = one(to, "FOO", "some%20host%2Fwith%20spaces%3A80").await;
    assert_eq!(found["instanceId"], "some host/with spaces:80");
    assert_eq!(
        put(to, "/eureka/apps/FOO/some%20host%2Fwith%20spaces:80")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_registration_that_is_older_than_what_is_held_changes_nothing_but_the_lease() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 10).await;
    let mut older = spring("FOO", "i", 9);
    older["instance"]["hostName"] = json!("older");
    assert_eq!(post(to, "FOO", &older).await.status, 204);
    assert_eq!(one(to, "FOO", "i").await["hostName"], "h");
    let mut same = spring("FOO", "i", 10);
    same["instance"]["hostName"] = json!("same");
    assert_eq!(post(to, "FOO", &same).await.status, 204);
    assert_eq!(
        one(to, "FOO", "i").await["hostName"],
        "same",
        "equal: the incoming one wins"
    );
}

#[tokio::test]
async fn an_instance_that_took_itself_out_is_not_back_by_saying_up() {
    let (_server, to) = serving().await;
    let mut out = spring("FOO", "i", 1);
    out["instance"]["status"] = json!("OUT_OF_SERVICE");
    post(to, "FOO", &out).await;
    register(to, "FOO", "i", 2).await;
    assert_eq!(one(to, "FOO", "i").await["status"], "OUT_OF_SERVICE");
    // A peer's word is not bound by that.
    let headers = [JSON, REPLICA];
    let body = spring("FOO", "i", 3).to_string();
    ask(to, "POST", "/eureka/apps/FOO", &headers, body).await;
    assert_eq!(one(to, "FOO", "i").await["status"], "UP");
}

#[tokio::test]
async fn an_override_in_the_body_holds_if_there_is_none_yet() {
    let (_server, to) = serving().await;
    let mut body = spring("FOO", "i", 1);
    body["instance"]["overriddenStatus"] = json!("OUT_OF_SERVICE");
    post(to, "FOO", &body).await;
    assert_eq!(one(to, "FOO", "i").await["status"], "OUT_OF_SERVICE");
    body["instance"]["overriddenStatus"] = json!("DOWN");
    body["instance"]["lastDirtyTimestamp"] = json!("2");
    post(to, "FOO", &body).await;
    assert_eq!(
        one(to, "FOO", "i").await["overriddenStatus"],
        "OUT_OF_SERVICE"
    );
}

#[tokio::test]
async fn the_same_status_again_changes_nothing() {
    let (_server, to) = serving().await;
    register(to, "FOO", "i", 1).await;
    let version = || async { fetch(to, "/eureka/apps").await["versions__delta"].clone() };
    let before = version().await;
    assert_eq!(
        put(to, "/eureka/apps/FOO/i/status?value=UP").await.status,
        200
    );
    assert_eq!(put(to, "/eureka/apps/FOO/i").await.status, 200);
    assert_eq!(version().await, before);
    assert_eq!(one(to, "FOO", "i").await["overriddenStatus"], "UNKNOWN");
}

/// A client as Netflix's: a full fetch, then deltas, compared by hash.
#[derive(Default)]
struct Follower(std::collections::BTreeMap<String, String>);

impl Follower {
    fn apply(&mut self, document: &Value, full: bool) -> String {
        if full {
            self.0.clear();
        }
        let actions = of(document, "actionType");
        for ((name, status), (_, action)) in of(document, "status").into_iter().zip(actions) {
            if action == "DELETED" {
                self.0.remove(&name);
            } else {
                self.0.insert(name, status);
            }
        }
        let mut counts = std::collections::BTreeMap::<&str, u32>::new();
        for status in self.0.values() {
            *counts.entry(status).or_default() += 1;
        }
        let parts: Vec<String> = counts
            .iter()
            .map(|(status, n)| format!("{status}_{n}_"))
            .collect();
        parts.concat()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Register(u8, u8),
    Cancel(u8),
    Out(u8),
    Back(u8),
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u8..6, 0u8..3).prop_map(|(i, s)| Step::Register(i, s)),
        1 => (0u8..6).prop_map(Step::Cancel),
        1 => (0u8..6).prop_map(Step::Out),
        1 => (0u8..6).prop_map(Step::Back),
        2 => Just(Step::Look),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn who_follows_deltas_holds_what_a_full_fetch_gives(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (_server, to) = serving().await;
            let mut follower = Follower::default();
            follower.apply(&fetch(to, "/eureka/apps").await, true);
            let mut dirty = 0;
            for step in steps {
                dirty += 1;
                match step {
                    Step::Register(i, s) => {
                        let app = ["FOO", "BAR"][usize::from(i % 2)];
                        let mut body = spring(app, &format!("i{i}"), dirty);
                        body["instance"]["status"] = json!(["UP", "DOWN", "STARTING"][usize::from(s)]);
                        post(to, app, &body).await;
                    }
                    Step::Cancel(i) => {
                        delete(to, &format!("/eureka/apps/{}/i{i}", ["FOO", "BAR"][usize::from(i % 2)])).await;
                    }
                    Step::Out(i) => {
                        put(to, &format!("/eureka/apps/{}/i{i}/status?value=OUT_OF_SERVICE", ["FOO", "BAR"][usize::from(i % 2)])).await;
                    }
                    Step::Back(i) => {
                        delete(to, &format!("/eureka/apps/{}/i{i}/status?value=UP", ["FOO", "BAR"][usize::from(i % 2)])).await;
                    }
                    Step::Look => {
                        let delta = fetch(to, "/eureka/apps/delta").await;
                        let hash = follower.apply(&delta, false);
                        assert_eq!(delta["apps__hashcode"], hash.as_str(), "{delta}");
                    }
                }
            }
            let full = fetch(to, "/eureka/apps").await;
            let xml = ask(to, "GET", "/eureka/apps", &[], "").await.text();
            assert_eq!(xml.matches("<instance>").count(), of(&full, "app").len());
            let delta = fetch(to, "/eureka/apps/delta").await;
            follower.apply(&delta, false);
            let held: Vec<_> = follower.0.into_iter().collect();
            let mut want = of(&full, "status");
            want.sort();
            assert_eq!(held, want);
            strict::applications(&json!({"applications": full})).expect("strict");
        });
    }
}
