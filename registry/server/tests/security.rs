//! Who may do what, over what, and how much of it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use selvedge_registry::{
    client::{
        Discovery, RegistryClient,
        connect::{Connector, TlsFiles},
    },
    node::{admin::Admin, config::Secret},
};
use selvedge_registry_server::{RegistryConfig, RegistryServer, tls::TlsConfig};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Answer, ask, ask_by, config, eventually, instance, name, serving};

const READ: &str = "a-token-that-reads";
const ORDERS: &str = "a-token-that-registers-orders";
const OPERATE: &str = "a-token-that-operates";
const IN_A_URL: &str = "a-password-in-a-url";
const PEER: &str = "what-servers-tell-each-other";

/// Secrets come from files in a configuration; a test puts them in as they are.
fn secured(node: &str, seeds: &[std::net::SocketAddr]) -> RegistryConfig {
    let mut config = config(node, seeds);
    let clients = r#"[
        {"name":"reader","role":"read","token_sha256":"0000000000000000000000000000000000000000000000000000000000000000"},
        {"name":"orders-team","role":"register","services":["orders","shop-*"],"max_instances":2,
         "token_sha256":"0000000000000000000000000000000000000000000000000000000000000000"},
        {"name":"operator","role":"operate","token_sha256":"0000000000000000000000000000000000000000000000000000000000000000"}
    ]"#;
    config.auth.clients = serde_json::from_str(clients).expect("clients");
    for (client, token) in config.auth.clients.iter_mut().zip([READ, ORDERS, OPERATE]) {
        client.token_sha256 = None;
        client.token = Some(Secret::new(token));
    }
    config.auth.peer = Some(Secret::new(PEER));
    config.validate().expect("good");
    config
}

async fn by(token: &str, server: &RegistryServer, what: (&str, &str), body: &str) -> Answer {
    let connector = Connector::plain().with_token(token).expect("a token");
    let answer = ask_by(&connector, server.shared().http, what, &[], body).await;
    answer.expect("an answer")
}

#[tokio::test]
async fn each_token_opens_what_its_role_does_and_nothing_else() {
    let server = serving(&secured("n1", &[])).await;
    let body = r#"{"addr":"10.0.0.1:80","ttl":"30s"}"#;
    let orders = "/v1/services/orders/instances/i1";
    for (token, method, path, body, want) in [
        ("", "GET", "/v1/services", "", 401),
        ("", "GET", "/v1/openapi.json", "", 200),
        ("wrong", "GET", "/v1/openapi.json", "", 401),
        (READ, "GET", "/v1/services", "", 200),
        (READ, "PUT", orders, body, 403),
        (ORDERS, "PUT", orders, body, 200),
        (
            ORDERS,
            "PUT",
            "/v1/services/shop-cart/instances/i1",
            body,
            200,
        ),
        (ORDERS, "PUT", "/v1/services/orders/instances/i2", body, 429),
        (ORDERS, "PUT", orders, body, 200),
        (
            ORDERS,
            "PUT",
            "/v1/services/payments/instances/i1",
            body,
            403,
        ),
        (
            ORDERS,
            "PUT",
            "/v1/services/orders/instances/i1/override",
            r#"{"status":"DOWN"}"#,
            403,
        ),
        (ORDERS, "PUT", "/v1/policies/orders", "{}", 403),
        (
            OPERATE,
            "PUT",
            "/v1/services/orders/instances/i1/override",
            r#"{"status":"DOWN"}"#,
            204,
        ),
        (OPERATE, "PUT", "/v1/policies/orders", "{}", 201),
        (
            OPERATE,
            "GET",
            "/v1/replicate?node=x&generation=1&next=0",
            "",
            403,
        ),
        (PEER, "PUT", orders, body, 403),
        (ORDERS, "DELETE", orders, "", 204),
    ] {
        let answer = match token {
            "" => ask(&server, (method, path), body).await,
            token => by(token, &server, (method, path), body).await,
        };
        assert_eq!(answer.status, want, "{token} {method} {path}: {answer:?}");
        if want == 401 {
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        if want >= 400 {
            assert_eq!(answer.header("content-type"), "application/problem+json");
        }
    }
    let leases =
        r#"{"leases":[{"service":"payments","id":"a"},{"service":"shop-cart","id":"i1"}]}"#;
    let answer = by(ORDERS, &server, ("POST", "/v1/leases"), leases)
        .await
        .json();
    assert_eq!(
        (&answer["renewed"], &answer["refused"][0]["reason"]),
        (&1.into(), &"forbidden".into())
    );
}

#[tokio::test]
async fn secured_servers_follow_each_other_and_strangers_follow_none() {
    let first = serving(&secured("n1", &[])).await;
    let second = serving(&secured("n2", &[first.gossip_addr()])).await;
    let body = r#"{"addr":"10.0.0.1:80","ttl":"30s"}"#;
    let path = "/v1/services/orders/instances/i1";
    assert_eq!(by(ORDERS, &first, ("PUT", path), body).await.status, 200);
    eventually("the other has it", || async {
        by(READ, &second, ("GET", path), "").await.status == 200
    })
    .await;
    let follow = ("GET", "/v1/replicate?node=x&generation=1&next=0");
    assert_eq!(ask(&first, follow, "").await.status, 401);
}

#[tokio::test]
async fn who_asks_too_often_waits_and_renewals_never_do() {
    let mut config = config("n1", &[]);
    config.limits.requests = "1/s burst 3".parse().expect("rate");
    config.limits.watches_per_client = 1;
    let server = serving(&config).await;
    let path = "/v1/services/orders/instances/i1";
    let body = r#"{"addr":"10.0.0.1:80","ttl":"30s"}"#;
    assert_eq!(ask(&server, ("PUT", path), body).await.status, 200);
    let mut last = 200;
    for _ in 0..3 {
        let answer = ask(&server, ("GET", path), "").await;
        last = answer.status;
        if last == 429 {
            assert_eq!(answer.header("retry-after"), "1");
        }
    }
    assert_eq!(last, 429);
    for _ in 0..20 {
        let lease = ("PUT", "/v1/services/orders/instances/i1/lease");
        assert_eq!(ask(&server, lease, "").await.status, 204);
        let leases = r#"{"leases":[{"service":"orders","id":"i1"}]}"#;
        assert_eq!(
            ask(&server, ("POST", "/v1/leases"), leases).await.status,
            200
        );
    }
}

#[tokio::test]
async fn there_is_room_for_so_many_and_no_more() {
    let mut config = config("n1", &[]);
    config.limits.services = 2;
    config.limits.instances_per_service = 2;
    let server = serving(&config).await;
    let body = r#"{"addr":"10.0.0.1:80","ttl":"30s"}"#;
    for (path, want, part) in [
        ("a/instances/1", 200, ""),
        ("a/instances/2", 200, ""),
        ("a/instances/3", 429, "instances of a service: at most 2"),
        ("a/instances/2", 200, ""),
        ("b/instances/1", 200, ""),
        ("c/instances/1", 429, "services: at most 2"),
    ] {
        let path = format!("/v1/services/{path}");
        let answer = ask(&server, ("PUT", &path), body).await;
        assert_eq!(answer.status, want, "{path}: {answer:?}");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn every_dialect_is_held_to_the_same_rights_and_limits() {
    let mut config = secured("n1", &[]);
    config.limits.services = 3;
    let server = serving(&config).await;
    let register = |app: &str, id: &str| {
        format!(
            r#"{{"instance":{{"instanceId":"{id}","hostName":"h","app":"{app}","ipAddr":"10.0.0.1",
                "port":{{"$":80}},"dataCenterInfo":{{"name":"MyOwn"}}}}}}"#
        )
    };
    // `orders-team` may register `orders` and `shop-*`, two instances in all.
    for (token, app, id, want, name) in [
        (
            ORDERS,
            "SHOP_CART",
            "h:1",
            204,
            "an application whose service is its",
        ),
        (ORDERS, "shop_cart", "h:1", 204, "the same again"),
        (ORDERS, "PAYMENTS", "h:1", 403, "another's"),
        (ORDERS, "ORDERS_2", "h:1", 403, "no name of its service"),
        (READ, "ORDERS", "h:1", 403, "who may only read"),
        (ORDERS, "ORDERS", "h:1", 204, "its second instance"),
        (ORDERS, "ORDERS", "h:2", 503, "one more than it may have"),
        (ORDERS, "ORDERS", "h:1", 204, "which it has already"),
        (OPERATE, "ORDERS", "h:3", 204, "by another's right"),
        (OPERATE, "A", "h:1", 204, "the third service"),
        (OPERATE, "B", "h:1", 503, "a service more than there may be"),
    ] {
        let path = format!("/eureka/apps/{app}");
        let answer = by(token, &server, ("POST", &path), &register(app, id)).await;
        assert_eq!(answer.status, want, "{name}: {answer:?}");
    }
    let heartbeat = ("PUT", "/eureka/apps/SHOP_CART/h%3A1?status=UP");
    assert_eq!(by(ORDERS, &server, heartbeat, "").await.status, 200);
    let batch = r#"{"replicationList":[
        {"appName":"B","id":"h:1","action":"Register","instanceInfo":{"instanceId":"h:1","hostName":"h",
         "app":"B","ipAddr":"10.0.0.1","port":{"$":80},"dataCenterInfo":{"name":"MyOwn"}}}]}"#;
    let path = ("POST", "/eureka/peerreplication/batch/");
    assert_eq!(by(ORDERS, &server, path, batch).await.status, 403);
    let answer = by(OPERATE, &server, path, batch).await.json();
    assert_eq!(answer["responseList"][0]["statusCode"], 503, "{answer}");
}

/// An authority and what it has signed, as files.
struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { dir, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Certificate and key for these names.
    fn issue(&self, file: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into().expect("a URI")),
                Err(_) => SanType::DnsName((*name).try_into().expect("a name")),
            })
            .collect();
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let path = |end: &str| self.dir.path().join(format!("{file}.{end}"));
        let write = |path: &Path, text: &str| std::fs::write(path, text).expect("written");
        write(&path("pem"), &certificate.pem());
        write(&path("key"), &key.serialize_pem());
        (path("pem"), path("key"))
    }

    fn server(&self, mutual: bool) -> TlsConfig {
        let (cert, key) = self.issue("server", &["127.0.0.1"]);
        TlsConfig {
            cert: Some(cert),
            key: Some(key),
            ca: Some(self.ca()),
            client_ca: mutual.then(|| self.ca()),
            server_name: None,
        }
    }

    fn connector(&self, identity: Option<(PathBuf, PathBuf)>) -> Connector {
        let files = TlsFiles {
            ca: self.ca(),
            identity,
            server_name: None,
        };
        Connector::tls(&files).expect("good files")
    }
}

#[tokio::test]
async fn a_cluster_and_its_clients_speak_tls() {
    let authority = Authority::new();
    let mut one = secured("n1", &[]);
    one.tls = authority.server(false);
    one.validate().expect("good");
    let first = serving(&one).await;
    let mut two = secured("n2", &[first.gossip_addr()]);
    two.tls = authority.server(false);
    let second = serving(&two).await;
    let connector = authority
        .connector(None)
        .with_token(OPERATE)
        .expect("token");
    let client = |server: &RegistryServer| {
        RegistryClient::builder([server.shared().http.to_string()])
            .connector(connector.clone())
            .spawn()
    };
    let mut registration = client(&first).register(instance("orders", "i1", 4001));
    registration.registered().await;
    let watch = client(&second).watch(&name("orders"));
    eventually("seen through the other server", || async {
        watch.current().endpoints.len() == 1
    })
    .await;
    // In clear, by a stranger's authority, under another name: no.
    let addr = first.shared().http;
    let what = ("GET", "/v1/openapi.json");
    assert!(
        ask_by(&Connector::plain(), addr, what, &[], "")
            .await
            .is_err()
    );
    let stranger = Authority::new().connector(None);
    let error = ask_by(&stranger, addr, what, &[], "")
        .await
        .expect_err("not ours");
    assert!(error.to_string().contains("certificate"), "{error}");
    let misnamed = Connector::tls(&TlsFiles {
        ca: authority.ca(),
        identity: None,
        server_name: Some("registry.example".into()),
    });
    let misnamed = misnamed.expect("good files");
    assert!(ask_by(&misnamed, addr, what, &[], "").await.is_err());
}

#[tokio::test]
async fn a_certificate_is_a_clients_name() {
    let authority = Authority::new();
    let mut config = config("n1", &[]);
    config.tls = authority.server(true);
    config.auth.peer = Some(Secret::new(PEER));
    let client = r#"{"name":"orders-team","role":"register","services":["orders"],
                     "certificate":"spiffe://mesh/orders"}"#;
    config.auth.clients = vec![serde_json::from_str(client).expect("client")];
    config.validate().expect("good");
    let server = serving(&config).await;
    let addr = server.shared().http;
    let put = async |connector: &Connector, service: &str| {
        let path = format!("/v1/services/{service}/instances/i1");
        let body = r#"{"addr":"10.0.0.1:80","ttl":"30s"}"#;
        let answer = ask_by(connector, addr, ("PUT", &path), &[], body).await;
        answer.map(|answer| answer.status)
    };
    let ours = authority.issue("orders", &["spiffe://mesh/orders"]);
    let ours = authority.connector(Some(ours));
    assert_eq!(put(&ours, "orders").await.expect("answer"), 200);
    assert_eq!(put(&ours, "payments").await.expect("answer"), 403);
    let unnamed = authority.issue("other", &["spiffe://mesh/other"]);
    let unnamed = authority.connector(Some(unnamed));
    assert_eq!(put(&unnamed, "orders").await.expect("answer"), 401);
    // Without one, or with one that somebody else has signed, there is no connection.
    assert!(put(&authority.connector(None), "orders").await.is_err());
    let stranger = Authority::new();
    let theirs = stranger.issue("orders", &["spiffe://mesh/orders"]);
    assert!(
        put(&authority.connector(Some(theirs)), "orders")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_a_message_at_the_start() {
    let authority = Authority::new();
    let mut config = config("n1", &[]);
    config.tls = authority.server(false);
    config.tls.key = Some(authority.issue("another", &["127.0.0.1"]).1);
    let error = RegistryServer::start(&config, &Admin::default()).await;
    let error = anyhow::Error::from(error.expect_err("not its key"));
    assert!(format!("{error:#}").contains("server.pem"), "{error:#}");
}

/// Log lines of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        let lines = self.0.lock().expect("not poisoned").clone();
        String::from_utf8(lines).expect("UTF-8")
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .expect("not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The lines of the audit log: who did what to what, and what came of it.
fn audited(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let audit = lines.filter(|line: &serde_json::Value| line["target"] == "audit");
    let told = audit.map(|line| {
        let of = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let (client, action, outcome) = (of("client"), of("action"), &line["outcome"]);
        let from = of("from");
        assert!(from.starts_with("127.0.0.1:"), "{line}");
        let method = line["method"].as_str().map(|method| format!("{method} "));
        let (method, subject) = (method.unwrap_or_default(), of("subject"));
        format!("{client} {action} {method}{subject} {outcome}")
    });
    told.collect()
}

/// Every line that this thread logs from now on.
fn logged() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn writes_are_audited_and_nothing_that_is_logged_or_dumped_holds_a_secret() {
    let (lines, _for_this_thread) = logged();
    let mut config = secured("n1", &[]);
    // Nobody there: what is said of it, and of its URL, is looked at.
    config.eureka.peers = vec![format!("http://joe:{IN_A_URL}@127.0.0.1:9/eureka")];
    let server = serving(&config).await;
    let body = r#"{"addr":"10.0.0.1:80","ttl":"30s"}"#;
    let path = "/v1/services/orders/instances/i1";
    by(ORDERS, &server, ("PUT", path), body).await;
    by(
        ORDERS,
        &server,
        ("PUT", "/v1/services/orders/instances/i1/lease"),
        "",
    )
    .await;
    by(READ, &server, ("DELETE", path), "").await;
    by("a-guess", &server, ("DELETE", path), "").await;
    ask(&server, ("DELETE", path), "").await;
    // Reading is no write.
    by("a-guess", &server, ("GET", path), "").await;
    by(OPERATE, &server, ("PUT", "/v1/policies/orders"), "{}").await;
    let in_eureka = r#"{"instance":{"instanceId":"h:1","hostName":"h","app":"SHOP_CART",
        "ipAddr":"10.0.0.1","port":{"$":80},"dataCenterInfo":{"name":"MyOwn"}}}"#;
    let cart = "/eureka/apps/SHOP_CART";
    let of = |rest: &str| format!("{cart}/h:1{rest}");
    by(ORDERS, &server, ("POST", cart), in_eureka).await;
    by(ORDERS, &server, ("PUT", &of("")), "").await;
    by(ORDERS, &server, ("PUT", &of("/metadata?shard=7")), "").await;
    by(OPERATE, &server, ("PUT", &of("/status?value=DOWN")), "").await;
    by(OPERATE, &server, ("DELETE", &of("/status?value=UP")), "").await;
    by(ORDERS, &server, ("DELETE", &of("/status")), "").await;
    by(ORDERS, &server, ("DELETE", &of("")), "").await;
    by(ORDERS, &server, ("DELETE", &of("")), "").await;
    let batch = r#"{"replicationList":[
        {"appName":"A","id":"h","action":"Register","instanceInfo":{"instanceId":"h","hostName":"h",
         "app":"A","ipAddr":"10.0.0.1","port":{"$":80},"dataCenterInfo":{"name":"MyOwn"}}},
        {"appName":"A","id":"h","action":"Heartbeat"},
        {"appName":"A","id":"h","action":"StatusUpdate","status":"DOWN"},
        {"appName":"A","id":"h","action":"Cancel"}]}"#;
    let path = "/eureka/peerreplication/batch/";
    by(OPERATE, &server, ("POST", path), batch).await;
    let text = lines.text();
    let told = audited(&text);
    let want = [
        "orders-team register orders/i1 200",
        "reader refused DELETE /v1/services/orders/instances/i1 403",
        "unknown refused DELETE /v1/services/orders/instances/i1 401",
        "anonymous refused DELETE /v1/services/orders/instances/i1 401",
        "operator policy orders 201",
        "orders-team register shop-cart/h:1 200",
        "orders-team metadata shop-cart/h:1 200",
        "operator override shop-cart/h:1 200",
        "operator override-drop shop-cart/h:1 200",
        "orders-team refused DELETE /eureka/apps/SHOP_CART/h:1/status 403",
        "orders-team deregister shop-cart/h:1 200",
        "orders-team deregister shop-cart/h:1 404",
        "operator register a/h 200",
        "operator override a/h 200",
        "operator deregister a/h 200",
    ];
    assert_eq!(told, want);
    let dump = serde_json::to_string(&config).expect("json");
    let debug = format!("{config:?} {:?}", server.shared());
    assert!(text.contains("127.0.0.1:9/eureka"), "{text}");
    assert!(dump.contains("http://***@127.0.0.1:9/eureka"), "{dump}");
    for token in [READ, ORDERS, OPERATE, PEER, IN_A_URL, "a-guess"] {
        for shown in [&text, &dump, &debug] {
            assert!(!shown.contains(token), "{token}");
        }
    }
}

/// Token, method, path and body; the status, and the lines after who it was.
type Row<'a> = (&'a str, &'a str, &'a str, &'a str, u16, &'a [&'a str]);

#[tokio::test]
async fn a_write_that_is_refused_is_in_the_audit_log_whatever_is_wrong_with_it() {
    let (lines, _for_this_thread) = logged();
    let mut config = secured("n1", &[]);
    config.limits.requests.burst = 60;
    config.limits.requests.count = 1;
    config.limits.requests.per = std::time::Duration::from_secs(3_600);
    let server = serving(&config).await;
    let (i1, orders) = ("/v1/services/orders/instances/i1", "/eureka/apps/ORDERS");
    let sub = |rest: &str| format!("{i1}/{rest}");
    let long = format!("/v1/services/{}", "a".repeat(400));
    let good = r#"{"addr":"10.0.0.1:80","ttl":"30s"}"#;
    let huge = format!(
        r#"{{"addr":"10.0.0.1:80","metadata":{{"k":"{}"}}}}"#,
        "v".repeat(70_000)
    );
    let batch = r#"{"replicationList":[{"action":"Register"},{"appName":"A","id":"h",
        "action":"Register","instanceInfo":{"hostName":"h"}},{"appName":"A","id":"h",
        "action":"Register"},{"appName":"A","id":"h","action":"Heartbeat"}]}"#;
    let rows: [Row<'_>; 22] = [
        (OPERATE, "PUT", i1, "{", 400, &["refused PUT {} 400"]),
        (
            OPERATE,
            "PUT",
            i1,
            r#"{"addr":"10.0.0.1:80","ttl":"0s"}"#,
            400,
            &["refused PUT {} 400"],
        ),
        (OPERATE, "PUT", i1, &huge, 413, &["refused PUT {} 413"]),
        (OPERATE, "POST", i1, "", 405, &["refused POST {} 405"]),
        (
            OPERATE,
            "PUT",
            "/v1/services/Orders/instances/i1",
            good,
            400,
            &["refused PUT {} 400"],
        ),
        (
            OPERATE,
            "PUT",
            &sub("status"),
            r#"{"status":"UPP"}"#,
            400,
            &["refused PUT {} 400"],
        ),
        (
            OPERATE,
            "PUT",
            &sub("override"),
            "[]",
            400,
            &["refused PUT {} 400"],
        ),
        (
            OPERATE,
            "DELETE",
            &sub("override"),
            "",
            404,
            &["override-drop orders/i1 404"],
        ),
        (
            OPERATE,
            "PATCH",
            &sub("metadata"),
            "7",
            400,
            &["refused PATCH {} 400"],
        ),
        (
            OPERATE,
            "PUT",
            "/v1/policies/orders",
            r#"{"bulkhead":-1}"#,
            400,
            &["refused PUT {} 400"],
        ),
        (
            OPERATE,
            "DELETE",
            "/v1/policies/orders",
            "",
            404,
            &["policy-delete orders 404"],
        ),
        (
            OPERATE,
            "POST",
            "/v1/nowhere",
            "",
            404,
            &["refused POST {} 404"],
        ),
        (READ, "PUT", &long, "", 403, &["refused PUT {} 403"]),
        (ORDERS, "POST", orders, "{", 400, &["refused POST {} 400"]),
        (
            ORDERS,
            "POST",
            orders,
            r#"{"instance":{"hostName":"h"}}"#,
            400,
            &["refused POST {} 400"],
        ),
        (
            OPERATE,
            "PUT",
            "/eureka/apps/ORDERS/i1/status?value=UPP",
            "",
            404,
            &["refused PUT /eureka/apps/ORDERS/i1/status 404"],
        ),
        (
            OPERATE,
            "PUT",
            "/eureka/asg/x/status?value=DISABLED",
            "",
            400,
            &["refused PUT /eureka/asg/x/status 400"],
        ),
        (
            OPERATE,
            "POST",
            "/eureka/peerreplication/batch/",
            "{}",
            400,
            &["refused POST {} 400"],
        ),
        (
            OPERATE,
            "POST",
            "/eureka/peerreplication/batch/",
            batch,
            200,
            &["replication - 500", "register a/h 400", "register a/h 500"],
        ),
        // What is no write: renewals that find nobody or are not understood, and questions.
        (OPERATE, "PUT", &sub("lease"), "", 404, &[]),
        (OPERATE, "POST", "/v1/leases", "{", 400, &[]),
        (OPERATE, "GET", "/v1/services/Orders", "", 400, &[]),
    ];
    for (token, method, path, body, status, want) in rows {
        let before = audited(&lines.text()).len();
        let answer = by(token, &server, (method, path), body).await;
        assert_eq!(answer.status, status, "{method} {path} {body:.60}");
        let told = audited(&lines.text()).split_off(before);
        let who = match token {
            READ => "reader",
            ORDERS => "orders-team",
            _ => "operator",
        };
        let shown = &path[..path.len().min(256)];
        let want: Vec<String> = want
            .iter()
            .map(|line| format!("{who} {}", line.replace("{}", shown)))
            .collect();
        assert_eq!(told, want, "{method} {path} {body:.60}");
    }
    // And who asks too often.
    let mut last = String::new();
    for _ in 0..100 {
        if by(ORDERS, &server, ("PUT", i1), good).await.status == 429 {
            last = audited(&lines.text()).pop().expect("a line");
            break;
        }
    }
    assert_eq!(last, format!("orders-team refused PUT {i1} 429"));
    // Not a word of what was sent.
    assert!(!lines.text().contains("10.0.0.1:80"), "{}", lines.text());
}

#[tokio::test]
async fn a_token_that_is_taken_away_opens_nothing_and_ends_what_it_had_opened() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("token");
    let (old, new) = ("reader's first token", "reader's second token");
    std::fs::write(&path, old).expect("written");
    let mut config = secured("n1", &[]);
    config.auth.clients[0].token = Some(Secret::from_file(&path).expect("a token"));
    let server = serving(&config).await;
    let services = ("GET", "/v1/services");
    assert_eq!(by(old, &server, services, "").await.status, 200);
    // A watch, and a question that waits.
    let mut watch = TcpStream::connect(server.shared().http)
        .await
        .expect("connects");
    let head = format!(
        "GET /v1/watch?service=orders HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {old}\r\n\r\n"
    );
    watch.write_all(head.as_bytes()).await.expect("sent");
    let mut said = vec![0; 1024];
    let n = watch.read(&mut said).await.expect("an answer");
    assert!(said[..n].starts_with(b"HTTP/1.1 200"));
    let asking = async { by(old, &server, ("GET", "/v1/services/orders?wait=50s"), "").await };
    let taken_away = async {
        // Meanwhile the question has come.
        for _ in 0..3 {
            assert_eq!(by(old, &server, services, "").await.status, 200);
        }
        std::fs::write(&path, new).expect("written");
        server.renew_tokens();
    };
    let both = async { tokio::join!(asking, taken_away) };
    let limit = std::time::Duration::from_secs(10);
    let (asked, ()) = tokio::time::timeout(limit, both).await.expect("in time");
    assert_eq!(asked.status, 401, "{asked:?}");
    let ended = tokio::time::timeout(limit, async {
        loop {
            match watch.read(&mut said).await {
                // The last chunk.
                Ok(n) if n > 0 && !said[..n].ends_with(b"0\r\n\r\n") => {}
                _ => return,
            }
        }
    });
    ended.await.expect("the watch ends");
    assert_eq!(by(old, &server, services, "").await.status, 401);
    assert_eq!(by(new, &server, services, "").await.status, 200);
    assert_eq!(by(OPERATE, &server, services, "").await.status, 200);
}
