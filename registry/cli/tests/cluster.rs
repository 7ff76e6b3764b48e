//! The cluster: how it is, how a server leaves, how its keys change.

use std::{sync::Arc, time::Duration};

use selvedge_registry::{
    node::{
        admin::{Admin, AdminConfig},
        config::Secret,
    },
    wire::MemberState,
};
use selvedge_registry_server::{
    RegistryServer,
    gossip::{self, keyring},
};

use crate::support::{command, config, eventually, json, says, selvedge, serving, text, url};

async fn two() -> (RegistryServer, RegistryServer) {
    let first = serving(&config("n1", &[])).await;
    let second = serving(&config("n2", &[first.gossip_addr()])).await;
    eventually("both know both", || async {
        [&first, &second].iter().all(|server| {
            let members = server.shared().member_list().members;
            let serving = members.iter().filter(|m| m.state == MemberState::Serving);
            serving.count() == 2
        })
    })
    .await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_well_until_one_of_its_servers_is_gone() {
    let (first, second) = two().await;
    let url = url(&first);
    eventually("all is well", || async {
        selvedge(&url, &["status"]).await.status.code() == Some(0)
    })
    .await;
    let args = [
        "register",
        "orders",
        "a",
        "--addr",
        "127.0.0.1:4000",
        "--once",
        "--ttl",
        "1h",
    ];
    says(&url, &args, 0, &[]).await;
    let headline = "2 registry servers, all serve; 1 services, 1 instances, 1 of them up; \
                    catalogues agree: yes";
    eventually("the second has heard of it", || async {
        second.shared().catalogue().len() == 1
    })
    .await;
    says(&url, &["status"], 0, &[headline, "n1", "n2"]).await;
    let status = json(&selvedge(&url, &["status", "--output", "json"]).await);
    assert_eq!(status["catalogues"]["agree"], true);
    for node in ["n1", "n2"] {
        let digest = &status["servers"][node]["catalogue"];
        let hash = format!("{:016x}", first.shared().catalogue().hash());
        assert_eq!(
            (&digest["records"], &digest["hash"]),
            (&1.into(), &hash.into())
        );
    }
    let members = json(&selvedge(&url, &["members", "--output", "json"]).await);
    assert_eq!(members["members"][0]["node"], "n1");
    // As SIGKILL leaves it.
    drop(second);
    let why = "n2 does not answer";
    eventually("said to be silent, or to be gone", || async {
        let status = selvedge(&url, &["--output", "json", "status"]).await;
        let document = json(&status);
        let reasons = document["reasons"].to_string();
        status.status.code() == Some(1)
            && !document["well"].as_bool().unwrap_or(true)
            && (reasons.contains(why) || reasons.contains("takes nobody out"))
    })
    .await;
    // Half of the servers are gone: evictions stop, and it is said why.
    eventually("self-preservation, with its reason", || async {
        let said = text(&selvedge(&url, &["status"]).await);
        said.contains("! n1 takes nobody out: ")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_drained_by_its_name() {
    let (first, second) = two().await;
    let url = url(&first);
    for id in ["a", "b", "c"] {
        let addr = "127.0.0.1:4000";
        let args = [
            "register", "orders", id, "--addr", addr, "--once", "--ttl", "1h",
        ];
        says(&url, &args, 0, &[]).await;
    }
    says(
        &url,
        &["drain", "n7"],
        1,
        &["no server of that name", "n1, n2"],
    )
    .await;
    says(&url, &["drain", "n1"], 0, &["n1 keeps no lease any more"]).await;
    eventually("the other one keeps them", || async {
        let members = second.shared().member_list().members;
        members.iter().any(|m| m.node == "n2" && m.owned == 3)
    })
    .await;
    says(&url, &["status"], 1, &["n1 is draining"]).await;
    says(
        &url,
        &["drain", "n2"],
        1,
        &["no other server serves", "--force"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_died_is_missed_and_one_that_left_is_not() {
    let (first, second) = two().await;
    let third = serving(&config("n3", &[first.gossip_addr()])).await;
    let url = url(&first);
    let all = "3 registry servers, all serve";
    let says = async |code: i32, parts: &[&str]| {
        eventually("it says so", || async {
            let output = selvedge(&url, &["status"]).await;
            let said = text(&output);
            output.status.code() == Some(code) && parts.iter().all(|part| said.contains(part))
        })
        .await;
    };
    says(0, &[all]).await;
    second.shutdown().await;
    says(0, &["2 registry servers, all serve", "n2", "left"]).await;
    // As `kill -9` does: without a goodbye.
    drop(third);
    let reason = "! n3 is dead: it is not heard of any more";
    says(1, &["2 registry servers, 1 of them serve", reason]).await;
}

/// An admin port with the server's keyring, as the daemon has it.
fn admin_port(server: &RegistryServer, token: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("option");
    let addr = listener.local_addr().expect("bound");
    let config = AdminConfig {
        bind: addr,
        token: Some(Secret::new(token)),
    };
    let keys = gossip::admin::routes(Arc::clone(server.gossip().keys()));
    let router = Admin::default().router(&config, || serde_json::Value::Null, keys);
    tokio::spawn(Admin::serve(listener, router, std::future::pending()));
    format!("http://{addr}")
}

#[tokio::test(flavor = "multi_thread")]
async fn gossip_keys_are_rotated_on_every_server_and_nobody_is_lost() {
    let old = keyring::generate().expect("random");
    let mut first = config("n1", &[]);
    first.gossip.keys = vec![Secret::new(&*old)];
    let first = serving(&first).await;
    let mut second = config("n2", &[first.gossip_addr()]);
    second.gossip.keys = vec![Secret::new(&*old)];
    let second = serving(&second).await;
    let ports = [admin_port(&first, "t0ken"), admin_port(&second, "t0ken")].join(",");
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("key");
    let new = keyring::generate().expect("random");
    std::fs::write(&file, format!("{new}\n")).expect("write");
    let id = keyring::Key::parse(&new).expect("a key").id().to_string();
    let file = file.to_str().expect("text");
    let run = async |token: &str, args: &[&str]| {
        let args = [&["keys"], args, &["--admin", &ports]].concat();
        let mut command = command("http://127.0.0.1:9", &args);
        let output = command.env("SELVEDGE_ADMIN_TOKEN", token).output().await;
        let output = output.expect("runs");
        let said = text(&output);
        assert!(!said.contains(&new) && !said.contains("t0ken"), "{said}");
        (output.status.code(), said)
    };
    let (code, said) = run("guess", &["rotate", file]).await;
    assert_eq!(code, Some(4), "{said}");
    let (code, said) = run("t0ken", &["rotate", file]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("only one on 2 servers, 1 removed"), "{said}");
    // Again, as after an interruption: nothing left to do.
    let (code, said) = run("t0ken", &["rotate", file]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run("", &["list"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches(&format!("{id} (seals)")).count(), 2, "{said}");
    let (code, said) = run("t0ken", &["remove", &id]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("primary key"), "{said}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    for server in [&first, &second] {
        let members = server.shared().member_list().members;
        let serving = members.iter().filter(|m| m.state == MemberState::Serving);
        assert_eq!(serving.count(), 2, "{members:?}");
    }
}
