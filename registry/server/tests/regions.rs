//! Two regions: each a cluster of its own, which know of each other what they need to.

use selvedge_registry::client::{Discovery, RegistryClient};
use selvedge_registry_server::{RegistryServer, regions::PeerRegion};

use crate::support::{ask, client, config, eventually, instance, name, serving};

async fn region(
    name: &str,
    other: Option<(&str, &RegistryServer)>,
    gateway: u16,
) -> RegistryServer {
    let mut config = config(&format!("{name}-1"), &[]);
    config.locality.region = name.into();
    config.regions.gateways = vec![([127, 0, 0, 1], gateway).into()];
    config.regions.every = "200ms".parse().expect("unit");
    if let Some((other, server)) = other {
        config.regions.peers = vec![PeerRegion {
            region: other.into(),
            servers: vec![server.shared().http.to_string()],
            token: None,
            ca: None,
            server_name: None,
        }];
    }
    config.validate().expect("good");
    serving(&config).await
}

#[tokio::test]
async fn a_service_that_is_away_here_is_called_in_the_next_region() {
    let us = region("us", None, 9001).await;
    let eu = region("eu", Some(("us", &us)), 9002).await;
    // A second server of the region asks the first, or the first it.
    let mut second = config("eu-2", &[eu.gossip_addr()]);
    second.locality.region = "eu".into();
    second.regions.every = "200ms".parse().expect("unit");
    second.regions.peers = vec![PeerRegion {
        region: "us".into(),
        servers: vec![us.shared().http.to_string()],
        token: None,
        ca: None,
        server_name: None,
    }];
    let second = serving(&second).await;
    let there = client(&[&us]);
    let mut registered = there.register(instance("orders", "us-1", 4001));
    registered.registered().await;
    let path = "/v1/services/orders?region=any";
    for server in [&eu, &second] {
        eventually("the region knows", || async {
            let answer = ask(server, ("GET", path), "").await;
            answer.status == 200 && answer.json()["fallback"][0]["region"] == "us"
        })
        .await;
        let plain = ask(server, ("GET", "/v1/services/orders"), "").await;
        assert_eq!(plain.status, 404, "not without asking for it");
    }
    let here = RegistryClient::builder([eu.shared().http.to_string()])
        .region_fallback(true)
        .spawn();
    let watch = here.watch(&name("orders"));
    let ports = || {
        let list = watch.current();
        list.endpoints
            .iter()
            .map(|e| e.addr.port())
            .collect::<Vec<_>>()
    };
    eventually("the other region's gateway", || async { ports() == [9001] }).await;
    let home = client(&[&eu]);
    let mut local = home.register(instance("orders", "eu-1", 4002));
    local.registered().await;
    eventually("our own", || async { ports() == [4002] }).await;
    let answer = ask(&eu, ("GET", path), "").await.json();
    assert_eq!(answer["instances"][0]["id"], "eu-1");
    assert!(answer["fallback"].is_null(), "{answer}");
    local.deregister().await;
    eventually("theirs again", || async { ports() == [9001] }).await;
    registered.deregister().await;
    eventually("nobody", || async { ports().is_empty() }).await;
    let list = ask(&eu, ("GET", "/v1/regions"), "").await.json();
    assert_eq!(list["regions"][0]["region"], "eu");
    assert_eq!(
        (&list["regions"][1]["region"], &list["regions"][1]["local"]),
        (&"us".into(), &false.into())
    );
    assert_eq!(ask(&eu, ("GET", "/v1/regions/mars"), "").await.status, 404);
}

#[tokio::test]
async fn a_region_that_does_not_answer_is_remembered() {
    let us = region("us", None, 9001).await;
    let eu = region("eu", Some(("us", &us)), 9002).await;
    let there = client(&[&us]);
    let mut registered = there.register(instance("orders", "us-1", 4001));
    registered.registered().await;
    let path = "/v1/services/orders?region=any";
    eventually("the region knows", || async {
        ask(&eu, ("GET", path), "").await.status == 200
    })
    .await;
    us.shutdown().await;
    let list = || async { ask(&eu, ("GET", "/v1/regions"), "").await.json() };
    eventually("its news grow old", || async {
        list().await["regions"][1]["age_ms"]
            .as_u64()
            .is_some_and(|age| age > 1000)
    })
    .await;
    assert_eq!(
        ask(&eu, ("GET", path), "").await.json()["fallback"][0]["region"],
        "us"
    );
}
