//! A proxy on a free port, upstreams that do as they are told, clients that say what they like.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::request::Parts;
use selvedge_proxy::{
    AccessLog, Admitted, Client, Destination, Door, ProxyMetrics, Refusal, Route, Routed, Rules,
    Worker, serve_connection,
};
use selvedge_registry::{
    AppProtocol, Endpoint, Locality, ServiceName,
    client::{Discovery, StaticDiscovery},
    node::metrics::Metrics,
};
use selvedge_resilience::TrafficPolicy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Everything for host `svc` goes to one destination.
#[derive(Debug)]
pub(crate) struct TestDoor {
    destination: Arc<Destination>,
    route: Arc<Route>,
    rules: Rules,
}

impl Door for TestDoor {
    fn route(&self, admitted: &Admitted, head: &Parts) -> Result<Routed, Refusal> {
        if &*admitted.host != "svc" {
            return Err(Refusal::not_found("no route for this host"));
        }
        let path = admitted.path(head).strip_prefix("/cut").map(str::to_owned);
        Ok(Routed {
            route: Arc::clone(&self.route),
            destination: Arc::clone(&self.destination),
            path,
            timeout: None,
        })
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }
}

pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) leave: watch::Sender<bool>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) metrics: Metrics,
    worker: Arc<Worker>,
    dir: tempfile::TempDir,
}

impl Proxy {
    pub(crate) async fn start(policy: &str, upstreams: &[(SocketAddr, AppProtocol)]) -> Self {
        Self::with_rules(policy, upstreams, Rules::default()).await
    }

    pub(crate) async fn with_rules(
        policy: &str,
        upstreams: &[(SocketAddr, AppProtocol)],
        rules: Rules,
    ) -> Self {
        let policy: TrafficPolicy = toml::from_str(policy).expect("a policy");
        let name = ServiceName::new("svc").expect("a name");
        let endpoints = upstreams
            .iter()
            .enumerate()
            .map(|(n, (addr, protocol))| Endpoint {
                id: format!("svc-{n}").parse().expect("an id"),
                addr: *addr,
                incarnation: 0,
                weight: 1,
                protocol: *protocol,
                locality: Locality::default(),
            });
        let known = StaticDiscovery::new([(name.clone(), endpoints.collect())]);
        let registry = Metrics::default();
        let metrics = ProxyMetrics::new(&registry);
        let destination = Destination::new(
            name.clone(),
            policy,
            known.watch(&name),
            &Locality::default(),
            &metrics,
        );
        let destination = destination.expect("a destination");
        let dir = tempfile::tempdir().expect("a directory");
        let log = AccessLog::open(&dir.path().join("access.log"), &metrics).expect("a log");
        let worker = Worker::new("selvedge-test", metrics.clone(), Some(&log));
        let door = Arc::new(TestDoor {
            destination: Arc::clone(&destination),
            route: Arc::new(Route {
                name: "all".into(),
                metrics: metrics.route("all"),
            }),
            rules,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("bound");
        let (leave, leaving) = watch::channel(false);
        let served = Arc::clone(&worker);
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let client = Client::new(peer, false, "http");
                let (worker, door) = (Arc::clone(&served), Arc::clone(&door));
                tokio::spawn(serve_connection(
                    stream,
                    worker,
                    door,
                    client,
                    leaving.clone(),
                ));
            }
        });
        Self {
            addr,
            leave,
            destination,
            metrics: registry,
            worker,
            dir,
        }
    }

    /// The access log, once it has `lines` of them.
    pub(crate) async fn log(&self, lines: usize) -> Vec<serde_json::Value> {
        for _ in 0..2_000 {
            self.worker.flush();
            let text = std::fs::read_to_string(self.dir.path().join("access.log"));
            let text = text.unwrap_or_default();
            if text.lines().count() >= lines {
                let parse = |line| serde_json::from_str(line).expect("a line is JSON");
                return text.lines().map(parse).collect();
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        panic!("the access log has less than {lines} lines");
    }
}

/// An upstream that reads a head and lets `answer` do the rest.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn http1(&self) -> (SocketAddr, AppProtocol) {
        (self.addr, AppProtocol::Http1)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// `serve` gets each connection.
    pub(crate) async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let n = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, n));
            }
        });
        Self { addr, connections }
    }

    /// Answers every request, with its own head as the body.
    pub(crate) async fn echo() -> Self {
        Self::start(|mut stream, _| async move {
            while let Some((head, body)) = read_request(&mut stream).await {
                let text = format!("{head}{body}");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
                    text.len()
                );
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    /// Answers every request with these bytes; closes after each if `close`.
    pub(crate) async fn says(answer: &'static str, close: bool) -> Self {
        Self::start(move |mut stream, _| async move {
            while read_request(&mut stream).await.is_some() {
                if stream.write_all(answer.as_bytes()).await.is_err() || close {
                    return;
                }
            }
        })
        .await
    }

    /// Takes requests and never answers.
    pub(crate) async fn silent() -> Self {
        Self::start(|mut stream, _| async move {
            let mut sink = Vec::new();
            let _until_closed = stream.read_to_end(&mut sink).await;
        })
        .await
    }
}

/// An address that refuses connections.
pub(crate) async fn closed_port() -> (SocketAddr, AppProtocol) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    (listener.local_addr().expect("bound"), AppProtocol::Http1)
}

/// Reads one head, and the body that its length or coding announces, as they are on the wire.
pub(crate) async fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a head is text");
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some((_, rest)) = lower.split_once("content-length: ") {
        let length = rest
            .split("\r\n")
            .next()
            .expect("a line")
            .parse()
            .expect("a length");
        body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
    } else if lower.contains("transfer-encoding: chunked") {
        while !body.ends_with(b"0\r\n\r\n") {
            body.push(stream.read_u8().await.ok()?);
        }
    }
    Some((head, String::from_utf8_lossy(&body).into_owned()))
}

/// Sends `text`, closes nothing, and returns all that comes until the proxy closes.
pub(crate) async fn talk(addr: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connect");
    stream.write_all(text.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _or_cut = tokio::time::timeout(std::time::Duration::from_secs(20), read)
        .await
        .expect("an answer, and the connection's end, in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// One `GET` on a connection of its own.
pub(crate) async fn get(addr: SocketAddr, path: &str, fields: &str) -> String {
    let text = format!("GET {path} HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n{fields}\r\n");
    talk(addr, &text).await
}

pub(crate) fn status(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("not an answer: {answer:?}"))
}
