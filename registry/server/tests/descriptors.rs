//! A server whose system gives it few descriptors, and clients that take as many as they can.

use std::{net::TcpStream, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::support::eventually;

/// A server by itself that may have 128 open files, and the ports that it has written down.
async fn starved(dir: &std::path::Path) -> (Child, Value) {
    let config = dir.join("registry.toml");
    let text = format!(
        "http = \"127.0.0.1:0\"\nstate_dir = \"{}\"\n[gossip]\nbind = \"127.0.0.1:0\"\n\
         [admin]\nbind = \"127.0.0.1:0\"\n[storage]\nsnapshot_every = \"1s\"\n\
         [dns]\nbind = \"127.0.0.1:0\"\n",
        dir.join("state").display()
    );
    std::fs::write(&config, text).expect("written");
    let ports = dir.join("ports.json");
    let child = Command::new("sh")
        .args(["-c", "ulimit -n 128; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_selvedge-registry"))
        .arg("--config")
        .arg(&config)
        .arg("--ports-file")
        .arg(&ports)
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let read = || std::fs::read(&ports).ok();
    let parsed = || read().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    eventually("it has written its ports", || async { parsed().is_some() }).await;
    (child, parsed().expect("was there"))
}

async fn curl(url: &str) -> String {
    let output = Command::new("curl").args(["-sS", "-m", "3", url]).output();
    let output = output.await.expect("curl runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_every_connection_leave_the_server_what_it_needs() {
    let dir = tempfile::tempdir().expect("dir");
    let (_child, ports) = starved(dir.path()).await;
    let at = |what: &str| ports[what].as_str().expect("an address").to_owned();
    let (http, admin, dns) = (at("http"), at("admin"), at("dns"));
    eventually("it serves", || async {
        curl(&format!("http://{admin}/readyz")).await == "ok\n"
    })
    .await;
    let dump = curl(&format!("http://{admin}/config_dump")).await;
    let dump: Value = serde_json::from_str(&dump).expect("JSON");
    assert_eq!(dump["limits"]["connections"], 64, "half of 128 is kept");
    // The kernel takes those that the server does not.
    let addr = http.parse().expect("an address");
    let connect = |_| TcpStream::connect_timeout(&addr, Duration::from_secs(2)).expect("open");
    let held: Vec<TcpStream> = (0..200).map(connect).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // It says how it is, saves what it knows, answers in the other dialect.
    assert_eq!(curl(&format!("http://{admin}/readyz")).await, "ok\n");
    let snapshot = dir.path().join("state/catalogue.snapshot");
    let saved = || {
        std::fs::metadata(&snapshot)
            .and_then(|file| file.modified())
            .ok()
    };
    let before = saved();
    eventually("it saves", || async {
        saved().is_some() && saved() != before
    })
    .await;
    let (ip, port) = dns.rsplit_once(':').expect("an address");
    let asked = Command::new("dig")
        .args(["+tcp", "+time=2", "+tries=1", "-p", port])
        .arg(format!("@{ip}"))
        .args(["mesh", "SOA", "+short"])
        .output();
    let asked = asked.await.expect("dig runs");
    let said = String::from_utf8_lossy(&asked.stdout);
    assert!(said.contains("ns.mesh."), "{said}");
    // They go, and everybody is served again.
    drop(held);
    eventually("it answers", || async {
        curl(&format!("http://{http}/v1/status"))
            .await
            .contains("\"serving\":true")
    })
    .await;
}
