//! The API is what it says it is: Schemathesis makes requests out of the served description, right
//! and wrong ones, and looks at each answer: its status, its type, its schema, its headers.
//!
//! `.ci/clients` installs it; without it this test fails and says so. `SELVEDGE_FUZZ_SEED` and
//! `SELVEDGE_FUZZ_EXAMPLES` look elsewhere and longer.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use crate::support::{client, config, installed, instance, serving};

fn script(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn setting(name: &str, otherwise: &str) -> String {
    let set = std::env::var_os(name).and_then(|text| text.into_string().ok());
    set.unwrap_or_else(|| otherwise.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_as_the_served_description_says() {
    let mut config = config("n1", &[]);
    // One client that asks as fast as it can.
    config.limits.requests = "1000000/s".parse().expect("rate");
    let server = serving(&config).await;
    // Something to find.
    let mut registration = client(&[&server]).register(instance("orders", "orders-1", 4001));
    registration.registered().await;
    let dir = tempfile::tempdir().expect("dir");
    let path = format!(
        "{}:{}/tests/clients",
        installed("schemathesis").display(),
        env!("CARGO_MANIFEST_DIR")
    );
    let run = Command::new("python3")
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(script("schemathesis.toml"))
        .arg("run")
        .arg(format!("http://{}/v1/openapi.json", server.shared().http))
        .args(["--checks", "all", "--workers", "1", "--no-shrink"])
        .args(["--suppress-health-check", "all", "--request-timeout", "10"])
        .args(["--max-examples", &setting("SELVEDGE_FUZZ_EXAMPLES", "8")])
        .args(["--seed", &setting("SELVEDGE_FUZZ_SEED", "7900")])
        .current_dir(dir.path())
        .env("PYTHONPATH", path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(150), run).await;
    let output = output.expect("ends in time").expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{error}");
    // What was selected, and that it was tested at all.
    assert!(said.contains("Tested: 23"), "{said}\n{error}");
}
