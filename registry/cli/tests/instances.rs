//! Services and instances: asked for, watched, changed.

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{command, config, eventually, json, says, selvedge, serving, text, url};

async fn register(url: &str, id: &str, more: &[&str]) {
    let addr = format!("127.0.0.1:{}", 4000 + id.len());
    let mut args = vec!["register", "orders", id, "--addr", &addr, "--once"];
    args.extend(more);
    says(url, &args, 0, &["is registered"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_shown_to_people_and_to_scripts() {
    let server = serving(&config("n1", &[])).await;
    let url = url(&server);
    register(
        &url,
        "orders-1",
        &[
            "--version",
            "1.4",
            "--zone",
            "a",
            "--region",
            "eu",
            "--tag",
            "blue",
            "--team",
            "shop",
            "--meta",
            "shard=7",
        ],
    )
    .await;
    register(
        &url,
        "orders-22",
        &["--zone", "b", "--region", "eu", "--weight", "5"],
    )
    .await;
    let services = says(&url, &["services"], 0, &[]).await;
    assert_eq!(services, "SERVICE  INSTANCES  UP\norders   2          2\n");
    let all = [
        "orders-1",
        "UP",
        "127.0.0.1:4008",
        "http1",
        "eu/a",
        "1.4",
        "10s",
        "n1",
    ];
    says(&url, &["instances", "orders"], 0, &all).await;
    says(
        &url,
        &["instances"],
        0,
        &["orders   orders-1 ", "orders   orders-22"],
    )
    .await;
    let details = ["shard", "7", "team", "shop", "tags", "blue"];
    says(&url, &["instance", "orders", "orders-1"], 0, &details).await;
    says(&url, &["catalog"], 0, &["1.4×1", "eu/a×1 eu/b×1", "shop"]).await;
    says(&url, &["catalog", "--team", "nobody"], 0, &["SERVICE"]).await;
    for (filter, want) in [
        (&["--zone", "b"][..], "orders-22"),
        (&["--version", "1.4"], "orders-1"),
        (&["--tag", "blue", "--meta", "shard=7"], "orders-1"),
    ] {
        let args = [&["--output", "json", "instances", "orders"], filter].concat();
        let found = json(&selvedge(&url, &args).await);
        let ids: Vec<_> = found["instances"]
            .as_array()
            .expect("list")
            .iter()
            .collect();
        assert_eq!(ids.len(), 1, "{filter:?}: {found}");
        assert_eq!(ids[0]["id"], want, "{filter:?}");
        let args = [&["--output", "json", "instances"], filter].concat();
        let found = json(&selvedge(&url, &args).await);
        assert_eq!(found["instances"][0]["instance"]["id"], want, "{filter:?}");
    }
    says(&url, &["renew", "orders", "orders-1"], 0, &["renewed"]).await;
    says(
        &url,
        &["override", "set", "orders", "orders-1", "out_of_service"],
        0,
        &["override"],
    )
    .await;
    let up = ["--output", "json", "instances", "orders", "--health", "up"];
    let up = json(&selvedge(&url, &up).await);
    assert_eq!(up["instances"].as_array().map(Vec::len), Some(1), "{up}");
    says(
        &url,
        &["instances", "orders"],
        0,
        &["OUT_OF_SERVICE (override)"],
    )
    .await;
    says(&url, &["override", "clear", "orders", "orders-1"], 0, &[]).await;
    says(
        &url,
        &["deregister", "orders", "orders-22"],
        0,
        &["deregistered"],
    )
    .await;
    says(
        &url,
        &["deregister", "orders", "orders-22"],
        1,
        &["404", "orders-22"],
    )
    .await;
    let services = says(&url, &["services"], 0, &[]).await;
    assert_eq!(services, "SERVICE  INSTANCES  UP\norders   1          1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_each_list_of_those_that_were_asked_for() {
    let server = serving(&config("n1", &[])).await;
    let url = url(&server);
    let args = [
        "--output", "json", "watch", "orders", "--zone", "b", "--count", "3",
    ];
    let mut watch = command(&url, &args)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut ids = async || -> Vec<String> {
        let line = lines.next_line().await.expect("text").expect("a line");
        let list: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let list = list["instances"].as_array().expect("a list").clone();
        let id = |i: &serde_json::Value| i["id"].as_str().unwrap_or_default().to_owned();
        list.iter().map(id).collect()
    };
    assert!(
        ids().await.is_empty(),
        "nobody is there, and that is a list"
    );
    register(&url, "orders-1", &["--zone", "a"]).await;
    register(&url, "orders-22", &["--zone", "b"]).await;
    assert_eq!(ids().await, ["orders-22"], "the other zone's is not shown");
    says(&url, &["deregister", "orders", "orders-22"], 0, &[]).await;
    assert!(ids().await.is_empty());
    assert!(watch.wait().await.expect("ends").success());
    eventually("and nobody watches any more", || async {
        server.shared().hub.watchers() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_one_clear_message_and_an_exit_code() {
    let server = serving(&config("n1", &[])).await;
    let url = url(&server);
    let parts = [
        "list the instances of nobody",
        "404",
        "no instance of this service",
    ];
    says(&url, &["instances", "nobody"], 1, &parts).await;
    // Nobody listens on port 9 of loopback.
    let nowhere = "http://127.0.0.1:9";
    let said = says(
        nowhere,
        &["status"],
        3,
        &["list the members", "127.0.0.1:9", "refused"],
    )
    .await;
    assert_eq!(said.lines().count(), 1, "{said}");
    let both = format!("{nowhere},{url}");
    says(&both, &["services"], 0, &[]).await;
    let twice = ["--server", nowhere, "services", "--server", &url];
    says(nowhere, &twice, 0, &[]).await;
    for (bad, parts) in [
        (&["instances", "No Name"][..], &["allowed are"][..]),
        (
            &["--registry", "10.0.0.5", "status"],
            &["--server", "expected \"http://10.0.0.5:7900\""],
        ),
        (
            &["--server", "https://a:1", "status"],
            &["--ca", "authorities"],
        ),
        (
            &["override", "set", "a", "b", "SIDEWAYS"],
            &["OUT_OF_SERVICE"],
        ),
        (
            &["register", "a", "b", "--addr", "10.0.0.1:1", "--ttl", "5"],
            &["250ms"],
        ),
        (
            &[
                "register",
                "a",
                "b",
                "--addr",
                "10.0.0.1:1",
                "--ttl",
                "5ms",
                "--once",
            ],
            &["1s", "1h"],
        ),
        (
            &["--token-file", "/nowhere/token", "services"],
            &["/nowhere/token"],
        ),
        (&["instances", "orders", "--meta", "shard"], &["KEY=VALUE"]),
    ] {
        says(&url, bad, 2, parts).await;
    }
    let help = text(&selvedge(&url, &["--help"]).await);
    for part in ["Exit codes", "SELVEDGE_TOKEN", "completions"] {
        assert!(help.contains(part), "{part} in {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        says(
            &url,
            &["completions", shell],
            0,
            &["selvedge", "deregister"],
        )
        .await;
    }
}
