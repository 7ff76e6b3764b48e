//! Two public clients of Eureka, unmodified, against a real server.
//!
//! `.ci/clients` installs them; without them these tests fail and say so.

use std::{process::Stdio, sync::atomic::Ordering, time::Duration};

use selvedge_registry::{InstanceStatus, client::Registration};
use selvedge_registry_server::{RegistryServer, server::Edit};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::serving;
use crate::support::{client, eventually, installed, instance};

/// A client's process, and what it prints.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let started = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = started.unwrap_or_else(|error| {
            panic!("a Eureka client cannot be run ({error}): .ci/clients installs them")
        });
        let stdout = child.stdout.take().expect("piped");
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
        }
    }

    /// Reads until a line contains `what`.
    async fn says(&mut self, what: &str) {
        let mut said = Vec::new();
        let found = async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                if line.contains(what) {
                    return;
                }
                said.push(line);
            }
            let status = self.child.wait().await;
            panic!("ended ({status:?}) without saying {what:?}; run .ci/clients");
        };
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        assert!(found.is_ok(), "never said {what:?}, only {said:?}");
    }

    async fn leave(mut self) {
        drop(self.child.stdin.take());
        self.says("stopped").await;
        assert!(self.child.wait().await.expect("ends").success());
    }
}

fn script(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What a client of any language is held to: it finds what v1 registered, v1 finds it, changes
/// reach it, and it leaves at once.
async fn round(
    server: &RegistryServer,
    orders: Registration,
    mut program: Program,
    app: &str,
    id: &str,
    port: u16,
) {
    program.says(r#""UP""#).await;
    let service = app.parse().expect("a name");
    let id = id.parse().expect("an id");
    let shared = server.shared();
    let known = || shared.read(|c| c.live(&service, &id));
    eventually("registered", || async { known().is_some() }).await;
    let record = known().expect("there above");
    assert_eq!(
        (record.addr.port(), record.status),
        (port, InstanceStatus::Up)
    );
    assert!(
        record.metadata.contains_key("color"),
        "{:?}",
        record.metadata
    );
    let (called, i1) = (
        "orders".parse().expect("a name"),
        "i1".parse().expect("an id"),
    );
    let out = Some(InstanceStatus::OutOfService);
    shared
        .edit_here(&called, &i1, Edit::Override(out))
        .expect("is there");
    program.says("OUT_OF_SERVICE").await;
    // Nobody else renews from now on.
    orders.deregister().await;
    let renewals = &shared.counters.renewals;
    let renewed = renewals.load(Ordering::Relaxed);
    eventually("renews", || async {
        renewals.load(Ordering::Relaxed) >= renewed + 3
    })
    .await;
    assert!(known().is_some());
    program.leave().await;
    assert!(known().is_none(), "it said good-bye");
}

#[tokio::test]
async fn eureka_js_client_works_unmodified() {
    let (server, http) = serving().await;
    let orders = client(&[&server]).register(instance("orders", "i1", 8080));
    let mut command = Command::new("node");
    command
        .arg(script("eureka.js"))
        .arg(http.port().to_string())
        .env("NODE_PATH", installed("npm").join("node_modules"));
    round(
        &server,
        orders,
        Program::start(command),
        "js-app",
        "js-1",
        9091,
    )
    .await;
}

#[tokio::test]
async fn py_eureka_client_works_unmodified() {
    let (server, http) = serving().await;
    let orders = client(&[&server]).register(instance("orders", "i1", 8080));
    let mut command = Command::new("python3");
    command
        .arg(script("eureka.py"))
        .arg(http.port().to_string())
        .env("PYTHONPATH", installed("python"));
    round(
        &server,
        orders,
        Program::start(command),
        "py-app",
        "py-1",
        9092,
    )
    .await;
}
