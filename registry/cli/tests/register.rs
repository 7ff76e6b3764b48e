//! Services that know nothing of a registry, registered by whoever starts them.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use selvedge_registry_server::RegistryServer;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Child,
};

use crate::support::{command, config, eventually, says, serving, url};

/// An address that is free, most likely still when somebody binds it.
fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("bound")
}

fn up(server: &RegistryServer) -> usize {
    server.shared().catalogue().up()
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.expect("runs"), signal).expect("sent");
}

/// Listens after a while, says what it is told, ends with 7 when told to.
const SERVICE: &str = r#"
import signal, socket, sys, time
def stop(number, frame):
    print("told", number, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("started", flush=True)
time.sleep(0.5)
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
while True:
    s.accept()[0].close()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_registered_once_it_listens_and_taken_out_before_it_is_told_to_stop() {
    let server = serving(&config("n1", &[])).await;
    let addr = free();
    let (text, port) = (addr.to_string(), addr.port().to_string());
    let args = [
        "register", "orders", "orders-1", "--addr", &text, "--ttl", "1s", "--linger", "300ms",
        "--", "python3", "-c", SERVICE, &port,
    ];
    let mut child = command(&url(&server), &args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut line = async || lines.next_line().await.expect("text").unwrap_or_default();
    assert_eq!(line().await, "started");
    assert_eq!(up(&server), 0, "not before it listens");
    assert_eq!(line().await, "listens");
    eventually("registered", || async { up(&server) == 1 }).await;
    // Longer than its lease: it is renewed.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(up(&server), 1);
    signal(&child, Signal::TERM);
    eventually("taken out", || async { up(&server) == 0 }).await;
    assert!(child.try_wait().expect("asked").is_none(), "and lingers");
    assert_eq!(line().await, "told 15");
    assert_eq!(child.wait().await.expect("ends").code(), Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_is_taken_out_and_its_exit_code_is_ours() {
    let server = serving(&config("n1", &[])).await;
    let url = url(&server);
    let at = [
        "register",
        "orders",
        "o",
        "--addr",
        "127.0.0.1:4000",
        "--wait",
        "0s",
        "--",
    ];
    for (script, code) in [("sleep 0.5; exit 3", 3), ("sleep 0.5; kill -9 $$", 137)] {
        let args = [&at[..], &["sh", "-c", script]].concat();
        let run = says(&url, &args, code, &["o of orders is registered"]);
        let seen = eventually("there", || async { up(&server) == 1 });
        tokio::join!(run, seen);
        assert_eq!(up(&server), 0, "{script}");
    }
    // One that never listens is not registered, and not left behind.
    let addr = free().to_string();
    let args = [
        "register", "orders", "o", "--addr", &addr, "--wait", "300ms", "--", "sleep", "60",
    ];
    let started = tokio::time::Instant::now();
    says(&url, &args, 1, &["nothing listens on", &addr, "300ms"]).await;
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "the command was ended"
    );
    says(
        &url,
        &[&at[..], &["/nowhere/at-all"]].concat(),
        1,
        &["start /nowhere/at-all"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_command_it_is_kept_until_a_signal() {
    let server = serving(&config("n1", &[])).await;
    let args = [
        "register",
        "orders",
        "orders-1",
        "--addr",
        "127.0.0.1:4000",
        "--ttl",
        "1s",
    ];
    let mut child = command(&url(&server), &args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    eventually("registered", || async { up(&server) == 1 }).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(up(&server), 1, "renewed");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().await.expect("ends").code(), Some(0));
    assert_eq!(up(&server), 0);
    let mut said = String::new();
    let mut out = child.stdout.take().expect("piped");
    out.read_to_string(&mut said).await.expect("text");
    assert_eq!(
        said,
        "orders-1 of orders is registered\norders-1 of orders is deregistered\n"
    );
}
