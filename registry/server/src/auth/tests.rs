use std::net::SocketAddr;

use selvedge_registry::node::config::Secret;

use super::*;

fn config(text: &str) -> AuthConfig {
    // Secrets come from files and the environment: tests put them in as they are.
    serde_json::from_str(text).expect(text)
}

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).expect("name")
}

const TOKEN: &str = "0123456789abcdef";

fn known(client: &str) -> AuthConfig {
    let mut config = config(&format!(r#"{{"clients":[{client}]}}"#));
    config.peer = Some(Secret::new("the servers' own secret"));
    for client in &mut config.clients {
        if client.certificate.is_none() && client.token_sha256.is_none() {
            client.token = Some(Secret::new(TOKEN));
        }
    }
    config
}

#[test]
fn an_address_that_others_reach_wants_clients_or_a_loud_word() {
    let open: SocketAddr = "10.0.0.1:7900".parse().expect("addr");
    let loopback: SocketAddr = "127.0.0.1:7900".parse().expect("addr");
    let none = AuthConfig::default();
    assert!(none.validate(loopback, false).is_ok());
    let error = none.validate(open, false).expect_err("open to all");
    assert!(error.to_string().contains("insecure = true"), "{error}");
    assert!(none.validate(open, true).is_ok(), "certificates will do");
    let loud = config(r#"{"insecure":true}"#);
    assert!(loud.validate(open, false).is_ok());
    let clients = known(r#"{"name":"ci","role":"operate"}"#);
    assert!(clients.validate(open, false).is_ok());
}

#[test]
fn what_cannot_work_is_refused_with_its_path() {
    let at: SocketAddr = "127.0.0.1:1".parse().expect("addr");
    for (client, path) in [
        (
            r#"{"name":"a","role":"register"}"#,
            "auth.clients[0].services",
        ),
        (
            r#"{"name":"a","role":"read","services":["b"]}"#,
            "auth.clients[0].services",
        ),
        (
            r#"{"name":"a","role":"register","services":["*"]}"#,
            "auth.clients[0].services",
        ),
        (
            r#"{"name":"a","role":"register","services":["No"]}"#,
            "auth.clients[0].services",
        ),
        (
            r#"{"name":"a","role":"operate","max_instances":1}"#,
            "auth.clients[0].max_instances",
        ),
        (
            r#"{"name":"a","role":"read","token_sha256":"12"}"#,
            "auth.clients[0].token_sha256",
        ),
        (
            r#"{"name":"a","role":"read","certificate":"x"}"#,
            "auth.clients[0].certificate",
        ),
    ] {
        let error = known(client).validate(at, false).expect_err(client);
        assert_eq!(error.path, path, "{error}");
    }
    let mut short = known(r#"{"name":"a","role":"read"}"#);
    short.clients[0].token = Some(Secret::new("hunter2"));
    let error = short.validate(at, false).expect_err("guessable");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let mut no_peer = known(r#"{"name":"a","role":"read"}"#);
    no_peer.peer = None;
    assert_eq!(
        no_peer.validate(at, false).expect_err("no peer").path,
        "auth.peer"
    );
}

#[test]
fn each_role_may_what_the_table_says() {
    let (orders, shop) = (name("orders"), name("shop-cart"));
    for (role, services, may) in [
        ("read", "[]", [true, false, false, false, false]),
        (
            "register",
            r#"["orders"]"#,
            [true, true, false, false, false],
        ),
        (
            "register",
            r#"["shop-*"]"#,
            [true, false, true, false, false],
        ),
        ("operate", "[]", [true, true, true, true, false]),
    ] {
        let client = format!(r#"{{"name":"c","role":"{role}","services":{services}}}"#);
        let auth = Auth::new(&known(&client));
        let bearer = format!("Bearer {TOKEN}");
        let caller = auth.who(Some(bearer.as_bytes()), &[]).expect("known");
        let got = [
            caller.may_read(),
            caller.may_register(&orders),
            caller.may_register(&shop),
            caller.may_operate(),
            caller.is_peer(),
        ];
        assert_eq!(got, may, "{role} {services}");
    }
}

#[test]
fn a_wrong_token_is_never_taken_for_anonymous() {
    let mut config = known(r#"{"name":"c","role":"read"}"#);
    config.anonymous = Anonymous::Read;
    let auth = Auth::new(&config);
    assert!(auth.who(None, &[]).expect("anonymous").may_read());
    let basic = {
        use base64::{Engine, engine::general_purpose::STANDARD};
        format!("Basic {}", STANDARD.encode(format!("me:{TOKEN}")))
    };
    assert_eq!(
        &**auth
            .who(Some(basic.as_bytes()), &[])
            .expect("eureka")
            .name(),
        "c"
    );
    for wrong in [
        "Bearer x",
        "Bearer",
        "",
        "Digest a",
        &format!("Bearer {TOKEN}x"),
    ] {
        assert!(auth.who(Some(wrong.as_bytes()), &[]).is_err(), "{wrong}");
    }
}

#[test]
fn a_certificate_and_a_hash_do_as_well_as_a_token() {
    let certificate = r#"{"name":"c","role":"read","certificate":"spiffe://mesh/c"}"#;
    let auth = Auth::new(&known(certificate));
    let names = ["spiffe://mesh/c".to_owned()];
    assert!(auth.who(None, &names).expect("known").may_read());
    assert!(!auth.who(None, &[]).expect("nobody").may_read());
    let hex = hash(TOKEN.as_bytes())
        .iter()
        .fold(String::new(), |mut hex, byte| {
            use std::fmt::Write;
            write!(hex, "{byte:02x}").expect("a string takes all");
            hex
        });
    let auth = Auth::new(&known(&format!(
        r#"{{"name":"c","role":"read","token_sha256":"{hex}"}}"#
    )));
    let bearer = format!("bearer {TOKEN}");
    assert!(auth.who(Some(bearer.as_bytes()), &[]).is_ok());
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let config = known(r#"{"name":"c","role":"read"}"#);
    let auth = Auth::new(&config);
    let dump = serde_json::to_string(&config).expect("json");
    for shown in [format!("{config:?} {auth:?}"), dump] {
        assert!(
            !shown.contains(TOKEN) && !shown.contains("own secret"),
            "{shown}"
        );
    }
}

/// Two clients whose tokens are in files, and one whose token is not.
struct Files {
    _dir: tempfile::TempDir,
    paths: [std::path::PathBuf; 2],
    auth: Arc<Auth>,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let paths = ["shop", "ops"].map(|name| dir.path().join(name));
        for (path, token) in paths.iter().zip(["shop's first token", "ops' first token"]) {
            std::fs::write(path, token).expect("written");
        }
        let mut config = config(&format!(
            r#"{{"clients":[
                {{"name":"inline","role":"read"}},
                {{"name":"shop","role":"register","services":["shop-*"],"max_instances":3,
                  "token":{{"file":{:?}}}}},
                {{"name":"ops","role":"operate","token":{{"file":{:?}}}}}]}}"#,
            paths[0], paths[1]
        ));
        config.peer = Some(Secret::new("the servers' own secret"));
        config.clients[0].token = Some(Secret::new(TOKEN));
        let auth = Arc::new(Auth::new(&config));
        Self {
            _dir: dir,
            paths,
            auth,
        }
    }

    fn who(&self, token: &str) -> Option<Caller> {
        let header = format!("Bearer {token}");
        self.auth.who(Some(header.as_bytes()), &[]).ok()
    }

    fn name(&self, token: &str) -> Option<String> {
        self.who(token).map(|caller| caller.name().to_string())
    }
}

fn is_over(revoked: impl Future<Output = ()>) -> bool {
    futures_util::FutureExt::now_or_never(revoked).is_some()
}

#[test]
fn a_token_is_what_its_file_holds_and_stays_if_that_cannot_be_used() {
    let files = Files::new();
    let shop = files.who("shop's first token").expect("known");
    let ops = files.who("ops' first token").expect("known");
    files.auth.renew();
    assert!(!is_over(shop.revoked()), "nothing has changed");
    assert_eq!(files.name("shop's first token").as_deref(), Some("shop"));
    for (name, bad) in [("empty", " \n"), ("short", "hunter2")] {
        std::fs::write(&files.paths[0], bad).expect("written");
        files.auth.renew();
        assert_eq!(files.name(bad), None, "{name}");
        assert_eq!(
            files.name("shop's first token").as_deref(),
            Some("shop"),
            "{name}"
        );
    }
    std::fs::remove_file(&files.paths[0]).expect("removed");
    files.auth.renew();
    assert!(!is_over(shop.revoked()), "the last good one");
    std::fs::write(&files.paths[0], "shop's second token\n").expect("written");
    files.auth.renew();
    assert!(is_over(shop.revoked()));
    assert_eq!(files.name("shop's first token"), None, "it is nobody's");
    let again = files.who("shop's second token").expect("known");
    assert!(!is_over(again.revoked()));
    // With the rights that it had.
    assert!(again.may_register(&name("shop-cart")) && !again.may_register(&name("orders")));
    assert_eq!(again.quota().map(|(_, most)| most), Some(3));
    // The others are who they were.
    assert!(!is_over(ops.revoked()));
    assert_eq!(files.name("ops' first token").as_deref(), Some("ops"));
    assert_eq!(files.name(TOKEN).as_deref(), Some("inline"));
    assert_eq!(
        files.name("the servers' own secret").as_deref(),
        Some("peer")
    );
}

#[tokio::test(start_paused = true)]
async fn files_of_tokens_are_looked_at_every_half_minute() {
    let files = Files::new();
    let task = tokio::spawn(Arc::clone(&files.auth).renew_for_ever());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    std::fs::write(&files.paths[1], "ops' second token").expect("written");
    let revoked = files.who("ops' first token").expect("known").revoked();
    let begun = tokio::time::Instant::now();
    revoked.await;
    assert!(
        begun.elapsed() <= super::renew::LOOK,
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(files.name("ops' second token").as_deref(), Some("ops"));
    task.abort();
}
