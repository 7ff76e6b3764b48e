//! A cluster on loopback, and patience with a limit.

use std::{future::Future, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use selvedge_registry::{
    Instance, InstanceId, ServiceName,
    api::{CatalogueDigest, ServerStatus},
    client::{
        RegistryClient,
        connect::{Connector, Protocol},
    },
    node::{admin::Admin, metrics::Metrics},
};
use selvedge_registry_server::{RegistryConfig, RegistryServer};

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::new(text).expect("name")
}

pub(crate) fn instance(service: &str, id: &str, port: u16) -> Instance {
    let id = InstanceId::new(id).expect("id");
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    Instance {
        ttl: "1s".parse().expect("unit"),
        ..Instance::new(name(service), id, addr)
    }
}

/// Quick gossip, so that tests need not wait for slow one.
pub(crate) fn config(node: &str, seeds: &[SocketAddr]) -> RegistryConfig {
    let mut config = RegistryConfig {
        node: Some(name(node)),
        ..RegistryConfig::default()
    };
    config.http = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gossip.bind = SocketAddr::from(([127, 0, 0, 1], 0));
    config.gossip.seeds = seeds.iter().map(ToString::to_string).collect();
    config.gossip.interval = "50ms".parse().expect("unit");
    config.gossip.join_timeout = "500ms".parse().expect("unit");
    config
}

pub(crate) async fn start(node: &str, seeds: &[SocketAddr]) -> RegistryServer {
    start_with(&config(node, seeds)).await
}

pub(crate) async fn start_with(config: &RegistryConfig) -> RegistryServer {
    let server = RegistryServer::start(config, &Admin::default()).await;
    server.expect("starts")
}

/// A server, and what it counts.
pub(crate) async fn with_metrics(node: &str) -> (RegistryServer, Metrics) {
    let admin = Admin::default();
    let server = RegistryServer::start(&config(node, &[]), &admin).await;
    (server.expect("starts"), admin.metrics)
}

/// Three servers that know each other and serve.
pub(crate) async fn cluster() -> [RegistryServer; 3] {
    let a = start("n1", &[]).await;
    eventually("the first serves", || async { a.shared().is_serving() }).await;
    let b = start("n2", &[a.gossip_addr()]).await;
    let c = start("n3", &[a.gossip_addr(), b.gossip_addr()]).await;
    let all = [a, b, c];
    for server in &all {
        eventually("three members, all serving", || async {
            let list = server.shared().member_list().members;
            list.len() == 3
                && list
                    .iter()
                    .all(|m| m.state == selvedge_registry::wire::MemberState::Serving)
        })
        .await;
    }
    all
}

pub(crate) fn client(servers: &[&RegistryServer]) -> RegistryClient {
    RegistryClient::builder(
        servers
            .iter()
            .map(|server| server.shared().http.to_string()),
    )
    .spawn()
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }
}

/// One request on a connection of its own, by `connector`.
pub(crate) async fn ask_by(
    connector: &Connector,
    addr: SocketAddr,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let stream = connector
        .connect(&addr.to_string(), Protocol::Http1)
        .await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "registry");
    if let Some(token) = connector.authorization() {
        request = request.header("authorization", token);
    }
    if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::<bytes::Bytes>::from(body.to_owned()))
        .expect("valid");
    let response = sender.send_request(request).await;
    let (head, body) = response.map_err(std::io::Error::other)?.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?;
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.to_bytes().to_vec(),
    })
}

/// One request, in clear and without a token.
pub(crate) async fn ask(server: &RegistryServer, what: (&str, &str), body: &str) -> Answer {
    let addr = server.shared().http;
    let answer = ask_by(&Connector::plain(), addr, what, &[], body).await;
    answer.expect("an answer")
}

/// What the catalogue of the server at `addr` holds, by its own word over HTTP; `None` if it does not
/// answer.
pub(crate) async fn digest(addr: SocketAddr) -> Option<CatalogueDigest> {
    let what = ("GET", "/v1/status");
    let answer = ask_by(&Connector::plain(), addr, what, &[], "")
        .await
        .ok()?;
    let status: ServerStatus = serde_json::from_slice(&answer.body).ok()?;
    status.catalogue
}

/// One server that serves.
pub(crate) async fn serving(config: &RegistryConfig) -> RegistryServer {
    let server = RegistryServer::start(config, &Admin::default()).await;
    let server = server.expect("starts");
    eventually("serves", || async { server.shared().is_serving() }).await;
    server
}

/// A watch, event by event.
pub(crate) struct Events {
    body: hyper::body::Incoming,
    text: String,
}

impl Events {
    pub(crate) async fn open(server: &RegistryServer, query: &str, resume: Option<&str>) -> Self {
        let stream = tokio::net::TcpStream::connect(server.shared().http).await;
        Self::over(stream.expect("connect"), query, resume).await
    }

    /// Through a socket that takes so many bytes before somebody reads.
    pub(crate) async fn open_with_window(server: &RegistryServer, query: &str, bytes: u32) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.set_recv_buffer_size(bytes).expect("option");
        let stream = socket.connect(server.shared().http).await;
        Self::over(stream.expect("connect"), query, None).await
    }

    async fn over(stream: tokio::net::TcpStream, query: &str, resume: Option<&str>) -> Self {
        let io = TokioIo::new(stream);
        // A connection that nobody reads from reads no further itself.
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(16 << 10)
            .handshake(io)
            .await
            .expect("handshake");
        tokio::spawn(connection);
        let mut request = http::Request::get(format!("/v1/watch?{query}")).header("host", "r");
        if let Some(token) = resume {
            request = request.header("last-event-id", token);
        }
        let request = request
            .body(Full::<bytes::Bytes>::default())
            .expect("valid");
        let response = sender.send_request(request).await.expect("answer");
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body(),
            text: String::new(),
        }
    }

    /// Kind, id and document of the next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<(String, String, serde_json::Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().to_owned()
                };
                if event.starts_with(':') {
                    continue;
                }
                let data = serde_json::from_str(&field("data: ")).expect("JSON");
                return Some((field("event: "), field("id: "), data));
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame());
            let frame = frame.await.expect("not silent")?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.text
                    .push_str(std::str::from_utf8(data).expect("UTF-8"));
            }
        }
    }

    /// The next of this kind.
    pub(crate) async fn next_of(&mut self, kind: &str) -> (String, serde_json::Value) {
        loop {
            let (is, id, data) = self.next().await.expect("goes on");
            if is == kind {
                return (id, data);
            }
        }
    }
}

/// Asks until it is so; fails after ten seconds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, so: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !so().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in ten seconds: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where `.ci/clients` has installed `part`.
pub(crate) fn installed(part: &str) -> std::path::PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")),
        std::path::PathBuf::from,
    );
    let path = target.join("clients").join(part);
    assert!(
        path.join(".done").exists(),
        "{} is not there: .ci/clients installs it",
        path.display()
    );
    path
}
