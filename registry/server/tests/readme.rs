//! `registry/README.md` says what is so: its commands run, in its order, against the cluster that
//! its first three commands start.
//!
//! Blocks marked `sh` are run here as they stand, with the binary in place of `cargo run` and free
//! ports in place of its own. Those marked `console` are the operator's command, which its own tests
//! run.

use std::{net::TcpListener, process::Stdio, time::Duration};

use tokio::process::{Child, Command};

const README: &str = include_str!("../../README.md");
/// The README's ports: 7900 to 7929.
const PORT: u16 = 7900;

/// The commands of every block marked `sh`, continued lines joined.
fn commands() -> Vec<String> {
    let blocks = README.split("\n```sh\n").skip(1);
    let text: String = blocks
        .filter_map(|block| Some(block.split_once("\n```")?.0.to_owned() + "\n"))
        .collect();
    let joined = text.replace("\\\n", " ");
    joined.lines().map(str::to_owned).collect()
}

/// The first of thirty ports that are free.
fn free_ports() -> u16 {
    let is_free = |first: &u16| {
        (*first..first + 30).all(|port| {
            TcpListener::bind(("127.0.0.1", port)).is_ok()
                && std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()
        })
    };
    // Below the range that the system gives to others.
    let first = 20_000 + (std::process::id() % 300) as u16 * 30;
    let all = (0..300).map(|n| 20_000 + (first - 20_000 + n * 30) % 9_000);
    all.into_iter().find(is_free).expect("thirty free ports")
}

/// With the ports of this run.
fn moved(command: &str, first: u16) -> String {
    let mut command = command.to_owned();
    for offset in (0..30).rev() {
        let (from, to) = ((PORT + offset).to_string(), (first + offset).to_string());
        command = command.replace(&format!("127.0.0.1:{from}"), &format!("127.0.0.1:{to}"));
        command = command.replace(&format!("dig -p {from}"), &format!("dig -p {to}"));
    }
    command
}

fn start(command: &str, first: u16) -> Option<Child> {
    let args = command.strip_prefix("cargo run -p selvedge-registry-server -- ")?;
    let args = args.strip_suffix(" &").expect("in the background");
    let child = Command::new(env!("CARGO_BIN_EXE_selvedge-registry"))
        .args(args.split(' '))
        .args(["--dev-port", &first.to_string()])
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    Some(child.expect("starts"))
}

/// What `command` prints, and whether it ended well.
async fn run(command: &str) -> (String, bool) {
    let run = Command::new("sh")
        .args(["-euc", command])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(20), run).await;
    let output = output.expect("ends").expect("sh runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let code = output.status.code();
    // A stream is cut off by curl's own limit of time: that is its way to end well.
    let ended = output.status.success() || command.contains("--max-time") && code == Some(28);
    (said + &String::from_utf8_lossy(&output.stderr), ended)
}

/// Until all three serve: who types the commands is slower than the servers.
async fn ready(first: u16) {
    for n in 0..3 {
        let admin = first + 10 * n + 1;
        let check = format!(
            "curl -sS --fail --retry 50 --retry-delay 0 --retry-all-errors --max-time 15 \
             http://127.0.0.1:{admin}/readyz"
        );
        let (said, ended) = run(&check).await;
        assert!(ended, "{said}");
    }
    let members = format!("curl -sS http://127.0.0.1:{first}/v1/members");
    for _ in 0..200 {
        if run(&members).await.0.matches("\"serving\"").count() == 3 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no cluster of three: {}", run(&members).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_do_what_it_says() {
    let first = free_ports();
    let mut servers = Vec::new();
    let mut said = Vec::new();
    for command in commands() {
        if let Some(server) = start(&command, first) {
            servers.push(server);
            if servers.len() == 3 {
                ready(first).await;
            }
            continue;
        }
        assert_eq!(servers.len(), 3, "three commands come first: {command}");
        let known = command.starts_with("curl ") || command.starts_with("dig ");
        assert!(
            known,
            "{command:?} is not checked: mark its block otherwise"
        );
        let checked = moved(&command, first).replacen("curl ", "curl -sS --fail-with-body ", 1);
        let (text, ended) = run(&checked).await;
        assert!(ended, "{command}\n{text}");
        said.push((command, text));
    }
    let after = |what: &str| {
        let all = said.iter().filter(|(command, _)| command.contains(what));
        let texts: Vec<&str> = all.map(|(_, text)| text.as_str()).collect();
        assert!(!texts.is_empty(), "the README shows no {what}");
        texts.join("\n")
    };
    for (what, parts) in [
        // Registered at the first, seen at the other two.
        (
            "curl 'http://127.0.0.1:7910/v1/services/orders?wait=5s'",
            &["10.0.0.7:8080", "dev-1"][..],
        ),
        (
            "curl 'http://127.0.0.1:7920/v1/services/orders?wait=5s'",
            &["10.0.0.7:8080"],
        ),
        ("/v1/leases", &["\"renewed\":1"]),
        ("/metadata", &["\"shard\":\"7\""]),
        ("health=up&version=1.4", &["orders-1"]),
        ("tag=blue&meta.shard=7", &["orders-1"]),
        ("/v1/catalog", &["\"versions\":{\"1.4\":1}"]),
        (
            "/v1/status",
            &["\"serving\":true", "\"records\":1,\"hash\":"],
        ),
        (
            "/v1/watch",
            &["event: snapshot", "event: synced", "orders-1"],
        ),
        ("wait=1s", &["orders-1"]),
        (
            "/v1/policies/orders/history",
            &["\"changes\":[{\"version\":1"],
        ),
        (
            "curl http://127.0.0.1:7900/v1/policies/orders",
            &["\"attempts\":2"],
        ),
        ("/eureka/apps", &["ORDERS", "UP_1_"]),
        ("dig -p 7904 @127.0.0.1 orders", &["10.0.0.7"]),
        ("SRV", &["8080"]),
    ] {
        let text = after(what);
        for part in parts {
            assert!(text.contains(part), "{what}: {part} in {text}");
        }
    }
    // "Kill any of them with kill -9: the other two know the instance and go on."
    servers[0].kill().await.expect("killed");
    let other = format!(
        "curl -sS --fail-with-body http://127.0.0.1:{}/v1/services/orders",
        first + 10
    );
    let (text, ended) = run(&other).await;
    assert!(ended && text.contains("10.0.0.7:8080"), "{text}");
}
