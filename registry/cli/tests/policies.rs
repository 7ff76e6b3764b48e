//! Policies: checked here, published there, gone back to.

use crate::support::{config, json, says, selvedge, serving, text, url};

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_published_read_changed_and_gone_back_to() {
    let server = serving(&config("n1", &[])).await;
    let url = url(&server);
    let dir = tempfile::tempdir().expect("dir");
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("write");
        path.to_str().expect("text").to_owned()
    };
    let first = file(
        "first.toml",
        "bulkhead = 7\nretry = { attempts = 2, codes = [503] }\n",
    );
    says(
        &url,
        &["policy", "put", "orders", &first, "--new"],
        0,
        &["policy version 1"],
    )
    .await;
    says(
        &url,
        &["policy", "put", "orders", &first, "--new"],
        1,
        &["412", "there is \"1\""],
    )
    .await;
    // What comes out goes in.
    let got = selvedge(&url, &["policy", "get", "orders"]).await;
    assert!(
        text(&got).starts_with("# orders, version 1, published by anonymous"),
        "{got:?}"
    );
    let second = text(&got).replace("max = 7", "max = 8");
    assert_ne!(second, text(&got));
    let second = file("second.toml", &second);
    let put = ["policy", "put", "orders", &second, "--if-version", "1"];
    says(&url, &put, 0, &["policy version 2"]).await;
    says(&url, &put, 1, &["412"]).await;
    let third = file("third.json", r#"{"bulkhead": 9}"#);
    says(
        &url,
        &["policy", "put", "orders", &third],
        0,
        &["version 3"],
    )
    .await;
    says(&url, &["policy", "list"], 0, &["orders", "3", "anonymous"]).await;
    let history = says(
        &url,
        &["policy", "history", "orders"],
        0,
        &["bulkhead, retry"],
    )
    .await;
    assert_eq!(history.lines().count(), 4, "{history}");
    says(
        &url,
        &["policy", "rollback", "orders", "1"],
        0,
        &["version 4"],
    )
    .await;
    let now = json(&selvedge(&url, &["policy", "get", "orders", "--output", "json"]).await);
    assert_eq!(now["policy"]["bulkhead"]["max"], 7, "{now}");
    assert_eq!(now["policy"]["retry"]["attempts"], 2, "{now}");
    says(
        &url,
        &["policy", "rollback", "orders", "9"],
        1,
        &["remembered are 4, 3, 2, 1"],
    )
    .await;
    says(
        &url,
        &["policy", "delete", "orders", "--if-version", "3"],
        1,
        &["412"],
    )
    .await;
    says(&url, &["policy", "delete", "orders"], 0, &[]).await;
    says(
        &url,
        &["policy", "get", "orders"],
        1,
        &["404", "no policy is published"],
    )
    .await;
    says(&url, &["policy", "history", "orders"], 0, &["withdrawn"]).await;
    says(
        &url,
        &["policy", "rollback", "orders", "5"],
        1,
        &["a withdrawal"],
    )
    .await;
    says(
        &url,
        &["policy", "rollback", "orders", "3"],
        0,
        &["version 6"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_work_is_refused_with_its_place_before_anything_changes() {
    let server = serving(&config("n1", &[])).await;
    let url = url(&server);
    let nowhere = "http://127.0.0.1:9";
    let dir = tempfile::tempdir().expect("dir");
    for (name, content, parts) in [
        (
            "unknown.toml",
            "\nbulkhed = 3\n",
            &["unknown.toml:2:1", "did you mean `bulkhead`?"][..],
        ),
        (
            "unit.toml",
            "timeouts = { request = \"5\" }\n",
            &["unit.toml:1:", "250ms"],
        ),
        (
            "zero.toml",
            "\n\nbulkhead = 0\n",
            &["zero.toml:3", "bulkhead", "at least 1"],
        ),
        (
            "zero.json",
            "{\"bulkhead\": 0}",
            &["zero.json", "bulkhead", "at least 1"],
        ),
        ("syntax.json", "{", &["syntax.json", "line 1"]),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("write");
        let path = path.to_str().expect("text");
        // Offline: nobody is asked.
        says(nowhere, &["policy", "validate", path], 2, parts).await;
        says(&url, &["policy", "put", "orders", path], 2, parts).await;
    }
    let good = dir.path().join("good.toml");
    std::fs::write(&good, "bulkhead = 1\n").expect("write");
    let good = good.to_str().expect("text");
    says(nowhere, &["policy", "validate", good], 0, &["is a policy"]).await;
    says(&url, &["policy", "get", "orders"], 1, &["404"]).await;
}

#[tokio::test]
async fn the_schema_is_json_and_has_every_section() {
    let out = selvedge("http://127.0.0.1:1", &["policy", "schema"]).await;
    assert!(out.status.success(), "{out:?}");
    let schema: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    for section in [
        "timeouts", "retry", "breaker", "balance", "outlier", "inbound",
    ] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}

/// The file that is shipped as the one with everything in it.
#[tokio::test]
async fn the_whole_shipped_policy_is_one() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/config/policy.toml"
    );
    let nowhere = "http://127.0.0.1:1";
    says(nowhere, &["policy", "validate", file], 0, &["is a policy"]).await;
}
