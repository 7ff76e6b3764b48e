//! Who we are to the registry: tokens, certificates, and what is never shown.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use selvedge_registry::node::config::Secret;
use selvedge_registry_server::auth::{ClientConfig, Role};

use crate::support::{command, config, says, serving, text, url};

const TOKEN: &str = "0123456789abcdef-operator";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_from_the_environment_or_a_file_and_is_never_shown() {
    let mut config = config("n1", &[]);
    config.auth.clients = vec![ClientConfig {
        name: "ops".to_owned(),
        token: Some(Secret::new(TOKEN)),
        token_sha256: None,
        certificate: None,
        role: Role::Operate,
        services: Vec::new(),
        max_instances: None,
    }];
    config.auth.peer = Some(Secret::new("0123456789abcdef-peer"));
    let server = serving(&config).await;
    let url = url(&server);
    says(&url, &["services"], 4, &["401", "this needs a token"]).await;
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("write");
    let path = file.to_str().expect("text");
    says(&url, &["--token-file", path, "services"], 0, &["SERVICE"]).await;
    let run = async |token: &str, args: &[&str]| {
        let output = command(&url, args).env("SELVEDGE_TOKEN", token).output();
        let output = output.await.expect("runs");
        assert!(!text(&output).contains(token), "{}", text(&output));
        (output.status.code(), text(&output))
    };
    assert_eq!(run(TOKEN, &["services"]).await.0, Some(0));
    assert_eq!(
        run("0123456789abcdef-guess", &["services"]).await.0,
        Some(4)
    );
    let register = ["register", "orders", "o", "--addr", "127.0.0.1:4000"];
    let (code, said) = run("0123456789abcdef-guess", &register).await;
    assert_eq!(code, Some(4), "a refusal is not waited out: {said}");
    let (_, help) = run(TOKEN, &["--help"]).await;
    assert!(help.contains("SELVEDGE_TOKEN"), "{help}");
    std::fs::write(&file, "\n").expect("write");
    says(
        &url,
        &["--token-file", path, "services"],
        2,
        &["holds no token"],
    )
    .await;
}

/// An authority and a certificate of it for `registry.internal`.
fn certificates(dir: &Path) {
    let key = KeyPair::generate().expect("key");
    let mut ca = CertificateParams::new(Vec::new()).expect("params");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(DnType::CommonName, "test authority");
    let certificate = ca.self_signed(&key).expect("signs");
    std::fs::write(dir.join("ca.pem"), certificate.pem()).expect("write");
    let issuer = Issuer::new(ca, key);
    let key = KeyPair::generate().expect("key");
    let names = vec!["registry.internal".to_owned()];
    let leaf = CertificateParams::new(names).expect("params");
    let leaf = leaf.signed_by(&key, &issuer).expect("signs");
    std::fs::write(dir.join("tls.pem"), leaf.pem()).expect("write");
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).expect("write");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_known_by_their_certificates() {
    let dir = tempfile::tempdir().expect("dir");
    certificates(dir.path());
    let path = |name: &str| dir.path().join(name);
    let mut config = config("n1", &[]);
    config.tls.cert = Some(path("tls.pem"));
    config.tls.key = Some(path("tls.key"));
    config.tls.ca = Some(path("ca.pem"));
    config.tls.server_name = Some("registry.internal".to_owned());
    let server = serving(&config).await;
    let url = format!("https://{}", server.shared().http);
    let ca = path("ca.pem");
    let ca = ca.to_str().expect("text");
    let by_name = ["--ca", ca, "--server-name", "registry.internal"];
    says(
        &url,
        &[&by_name[..], &["services"]].concat(),
        0,
        &["SERVICE"],
    )
    .await;
    // Status asks each server by itself, over TLS as well.
    says(
        &url,
        &[&by_name[..], &["status"]].concat(),
        0,
        &["all serve"],
    )
    .await;
    let other = ["--ca", ca, "--server-name", "another.internal", "services"];
    says(&url, &other, 3, &["another.internal"]).await;
    let plain = url.replace("https", "http");
    says(&plain, &["services"], 3, &["GET /v1/services"]).await;
}
