//! Eureka's REST interface: cases E1 to E19 of the reference, and what real clients rely on.

mod clients;
mod http;
mod keeper;
mod peers;
mod rest;
mod strict;
mod wild;

use std::net::SocketAddr;

use selvedge_registry_server::RegistryServer;
use serde_json::{Value, json};

use self::http::{Answer, JSON, ask, get};
use crate::support::{eventually, start};

async fn serving() -> (RegistryServer, SocketAddr) {
    let server = start("n1", &[]).await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    let http = server.shared().http;
    (server, http)
}

/// What a Spring client sends.
fn spring(app: &str, id: &str, dirty: u64) -> Value {
    json!({"instance": {
        "instanceId": id, "hostName": "h", "app": app, "ipAddr": "10.0.0.1", "status": "UP",
        "overriddenStatus": "UNKNOWN", "port": {"$": 8080, "@enabled": "true"},
        "securePort": {"$": 443, "@enabled": "false"}, "countryId": 1,
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn",
        },
        "leaseInfo": {
            "renewalIntervalInSecs": 30, "durationInSecs": 90, "registrationTimestamp": 0,
            "lastRenewalTimestamp": 0, "evictionTimestamp": 0, "serviceUpTimestamp": 0,
        },
        "metadata": {"management.port": "8081"}, "homePageUrl": "http://h:8080/",
        "statusPageUrl": "http://h:8080/info", "healthCheckUrl": "http://h:8080/health",
        "vipAddress": app, "secureVipAddress": app, "isCoordinatingDiscoveryServer": "false",
        "lastUpdatedTimestamp": dirty.to_string(), "lastDirtyTimestamp": dirty.to_string(),
    }})
}

async fn post(to: SocketAddr, app: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), JSON];
    ask(
        to,
        "POST",
        &format!("/eureka/apps/{app}"),
        &headers,
        body.to_string(),
    )
    .await
}

async fn register(to: SocketAddr, app: &str, id: &str, dirty: u64) {
    let answer = post(to, app, &spring(app, id, dirty)).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
}

async fn put(to: SocketAddr, path: &str) -> Answer {
    ask(to, "PUT", path, &[JSON], "").await
}

async fn delete(to: SocketAddr, path: &str) -> Answer {
    ask(to, "DELETE", path, &[JSON], "").await
}

async fn one(to: SocketAddr, app: &str, id: &str) -> Value {
    let answer = get(to, &format!("/eureka/apps/{app}/{id}")).await;
    assert_eq!(answer.status, 200, "{app}/{id}");
    let document = answer.json();
    strict::instance(&document["instance"]).unwrap_or_else(|why| panic!("{why}"));
    document["instance"].clone()
}

/// A full fetch or a delta that Spring would take.
async fn fetch(to: SocketAddr, path: &str) -> Value {
    let answer = get(to, path).await;
    assert_eq!(answer.status, 200, "{path}");
    let document = answer.json();
    let hash = strict::applications(&document).unwrap_or_else(|why| panic!("{why}"));
    if !path.contains("delta") {
        assert_eq!(document["applications"]["apps__hashcode"], hash.as_str());
    }
    document["applications"].clone()
}

/// Every instance of an answer, by `app/id`, with a field of it.
fn of(applications: &Value, field: &str) -> Vec<(String, String)> {
    let apps = applications["application"].as_array().into_iter().flatten();
    let instances = apps.flat_map(|app| app["instance"].as_array().into_iter().flatten());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let named = |i: &Value| format!("{}/{}", text(&i["app"]), text(&i["instanceId"]));
    instances.map(|i| (named(i), text(&i[field]))).collect()
}
