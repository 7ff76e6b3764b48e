//! A gateway process on free ports, upstreams on threads, clients that read whole answers.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that runs until dropped.
pub(crate) struct Gateway {
    pub(crate) child: Child,
    pub(crate) dir: tempfile::TempDir,
    ports: serde_json::Value,
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge-gateway"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Gateway {
    /// Starts with `text` as its file; `{dir}` in it is the test's own directory.
    pub(crate) fn start(text: &str) -> Self {
        Self::start_with(text, &[])
    }

    pub(crate) fn start_with(text: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let gateway = Self {
            child: command().arg("--version").spawn().expect("spawns"),
            dir,
            ports: serde_json::Value::Null,
        };
        let mut gateway = gateway;
        gateway.child.wait().expect("ended");
        gateway.write(text);
        let ports = gateway.dir.path().join("ports.json");
        let errors = std::fs::File::create(gateway.dir.path().join("log")).expect("a log");
        gateway.child = command()
            .arg("--config")
            .arg(gateway.file())
            .arg("--ports-file")
            .arg(&ports)
            .envs(env.iter().copied())
            .stderr(errors)
            .spawn()
            .expect("spawns");
        eventually("the ports are known", || ports.exists());
        let ports = std::fs::read_to_string(ports).expect("ports");
        gateway.ports = serde_json::from_str(&ports).expect("ports");
        eventually("it lives", || {
            get(gateway.port("admin"), "localhost", "/livez")
                .is_some_and(|text| status(&text) == 200)
        });
        gateway
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("gateway.toml")
    }

    pub(crate) fn write(&self, text: &str) {
        let text = text.replace("{dir}", &self.dir.path().display().to_string());
        std::fs::write(self.file(), text).expect("written");
    }

    pub(crate) fn port(&self, name: &str) -> SocketAddr {
        let port = self.ports[name].as_str().expect("a port of that name");
        port.parse().expect("an address")
    }

    /// `GET path` for `host` on the listener `http`.
    pub(crate) fn get(&self, host: &str, path: &str) -> String {
        get(self.port("http"), host, path).expect("an answer")
    }

    pub(crate) fn admin(&self, path: &str) -> String {
        get(self.port("admin"), "localhost", path).expect("an answer")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
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

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
        // Ended already is what we want.
        self.child.kill().ok();
        self.child.wait().ok();
    }
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

/// One `GET` on a connection of its own; `None` if there was none.
pub(crate) fn get(addr: SocketAddr, host: &str, path: &str) -> Option<String> {
    talk(
        addr,
        &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
    )
}

/// Sends `text` and reads to the end.
pub(crate) fn talk(addr: SocketAddr, text: &str) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

pub(crate) fn status(answer: &str) -> u16 {
    let code = answer.get(9..12).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("not an answer: {answer:?}"))
}

/// An upstream on a thread a connection: answers with its name and what it was asked.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn start(name: &'static str) -> Self {
        Self::slow(name, Duration::ZERO)
    }

    /// Takes its time for every answer.
    pub(crate) fn slow(name: &'static str, time: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("bound");
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || serve(stream, name, time, &count));
            }
        });
        Self { addr, requests }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, name: &str, time: Duration, count: &AtomicUsize) {
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        count.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(time);
        let head = String::from_utf8_lossy(&head);
        let body = format!("{name}: {head}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// What comes out of a command that ends by itself.
pub(crate) fn output(args: &[&str], file: Option<(&Path, &str)>) -> (Option<i32>, String) {
    if let Some((path, text)) = file {
        std::fs::write(path, text).expect("written");
    }
    let output = command().args(args).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}
