//! A sidecar process on free ports, an app on loopback that can fall ill, a registry to be found in.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use rustix::process::{Pid, Signal, kill_process};
use selvedge_registry::{
    Instance, InstanceId, ServiceName,
    client::{Registration, RegistryClient},
    node::admin::Admin,
    wire::InstanceRecord,
};
use selvedge_registry_server::{RegistryConfig, RegistryServer};
use tokio::runtime::Runtime;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Asks until it is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        if so() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("not in {PATIENCE:?}: {what}");
}

/// Sends `text` and reads to the end; `None` if there was no connection.
pub(crate) fn talk(addr: SocketAddr, text: &str) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// One `GET` on a connection of its own.
pub(crate) fn ask(addr: SocketAddr, host: &str, target: &str) -> Option<String> {
    talk(
        addr,
        &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
    )
}

pub(crate) fn status(answer: &str) -> u16 {
    let code = answer.get(9..12).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("not an answer: {answer:?}"))
}

/// An app that says its name and what it was asked, at `/healthz` how it is.
pub(crate) struct App {
    pub(crate) addr: SocketAddr,
    state: Arc<AppState>,
    _runtime: Runtime,
}

struct AppState {
    name: &'static str,
    ill: AtomicBool,
    requests: AtomicUsize,
    /// How long `/slow` takes.
    slow: Duration,
}

impl App {
    pub(crate) fn start(name: &'static str) -> Self {
        let state = Arc::new(AppState {
            name,
            ill: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            slow: Duration::from_secs(1),
        });
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/slow", get(slow))
            .fallback(echo)
            .with_state(Arc::clone(&state));
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind(loopback()));
        let listener = listener.expect("bind");
        let addr = listener.local_addr().expect("bound");
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            addr,
            state,
            _runtime: runtime,
        }
    }

    pub(crate) fn falls_ill(&self, ill: bool) {
        self.state.ill.store(ill, Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

async fn healthz(State(app): State<Arc<AppState>>) -> StatusCode {
    if app.ill.load(Ordering::SeqCst) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

async fn slow(State(app): State<Arc<AppState>>) -> &'static str {
    app.requests.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(app.slow).await;
    "at last"
}

async fn echo(State(app): State<Arc<AppState>>, request: axum::extract::Request) -> String {
    app.requests.fetch_add(1, Ordering::SeqCst);
    format!("{}: {:?}", app.name, request)
}

/// A registry server, in this process.
pub(crate) struct Registry {
    pub(crate) server: RegistryServer,
    pub(crate) runtime: Runtime,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let mut config = RegistryConfig {
            http: loopback(),
            ..RegistryConfig::default()
        };
        config.gossip.bind = loopback();
        let server = runtime.block_on(async {
            let server = RegistryServer::start(&config, &Admin::default()).await;
            let server = server.expect("starts");
            let mut serving = server.shared().serving();
            serving.wait_for(|serving| *serving).await.expect("serves");
            server
        });
        Self { server, runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.shared().http)
    }

    /// What is registered under `service`.
    pub(crate) fn instances(&self, service: &str) -> Vec<InstanceRecord> {
        let name = ServiceName::new(service).expect("a name");
        self.server.shared().read(|c| c.service(&name)).instances
    }

    /// Registers an app that has no sidecar.
    pub(crate) fn register(&self, service: &str, app: &App) -> Registration {
        self.register_at(service, &format!("{service}-plain"), app.addr)
    }

    /// Registers whatever is at `addr`.
    pub(crate) fn register_at(&self, service: &str, id: &str, addr: SocketAddr) -> Registration {
        let _there = self.runtime.enter();
        let client = RegistryClient::builder([self.server.shared().http.to_string()]).spawn();
        let service = ServiceName::new(service).expect("a name");
        let id = InstanceId::new(id).expect("an id");
        let mut registration = client.register(Instance::new(service, id, addr));
        self.runtime.block_on(registration.registered());
        registration
    }
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge-sidecar"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// What comes out of a command that ends by itself, run on a file that holds `text`.
pub(crate) fn output(text: &str, args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sidecar.toml");
    std::fs::write(&path, text).expect("written");
    let output = command().arg("--config").arg(&path).args(args).output();
    let output = output.expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

/// A sidecar that runs until dropped.
pub(crate) struct Sidecar {
    child: Child,
    dir: tempfile::TempDir,
    ports: serde_json::Value,
}

impl Sidecar {
    /// Starts with `text` as its file; `{dir}` in it is the test's own directory.
    pub(crate) fn start(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| -> PathBuf { dir.path().join(name) };
        let text = text.replace("{dir}", &dir.path().display().to_string());
        std::fs::write(at("sidecar.toml"), text).expect("written");
        let log = std::fs::File::create(at("log")).expect("a log");
        let child = command()
            .arg("--config")
            .arg(at("sidecar.toml"))
            .arg("--ports-file")
            .arg(at("ports.json"))
            .stderr(log)
            .spawn()
            .expect("spawns");
        let file = at("ports.json");
        let mut sidecar = Self {
            child,
            dir,
            ports: serde_json::Value::Null,
        };
        eventually("the ports are known", || file.exists());
        let ports = std::fs::read_to_string(file).expect("ports");
        sidecar.ports = serde_json::from_str(&ports).expect("ports");
        eventually("it lives", || {
            ask(sidecar.port("admin"), "localhost", "/livez").is_some()
        });
        sidecar
    }

    pub(crate) fn port(&self, name: &str) -> SocketAddr {
        let port = self.ports[name].as_str().expect("a port of that name");
        port.parse().expect("an address")
    }

    pub(crate) fn admin(&self, path: &str) -> String {
        ask(self.port("admin"), "localhost", path).expect("an answer")
    }

    pub(crate) fn is_ready(&self) -> bool {
        status(&self.admin("/readyz")) == 200
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("it has ended", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("checked")
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the sidecar's log:\n{}", self.read("log"));
        }
        // Ended already is what we want.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
