use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer},
        server::WebPkiClientVerifier,
    },
};

use super::{tls::LOOK, *};

/// A new authority, a server that it has signed, and the client's files, which it has as well.
struct Mesh {
    acceptor: TlsAcceptor,
    /// The client's certificate.
    client: CertificateDer<'static>,
}

impl Mesh {
    fn written_to(files: &TlsFiles) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("signed");
        std::fs::write(&files.ca, issuer.pem()).expect("written");
        let issue = |key: &KeyPair| {
            let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]);
            params
                .expect("params")
                .signed_by(key, &issuer)
                .expect("signed")
        };
        let (ours, theirs) = (key(), key());
        let (client, server) = (issue(&ours), issue(&theirs));
        let (chain, key) = files.identity.as_ref().expect("an identity");
        std::fs::write(chain, client.pem()).expect("written");
        std::fs::write(key, ours.serialize_pem()).expect("written");
        let roots = Arc::new(read_roots(&files.ca).expect("an authority"));
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients.expect("a verifier"))
            .with_single_cert(
                vec![server.der().clone()],
                PrivateKeyDer::try_from(theirs.serialize_der()).expect("a key"),
            )
            .expect("they fit");
        Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            client: client.der().clone(),
        }
    }

    /// Whom the server sees when `connector` connects; `None` if either side refuses.
    async fn sees(&self, connector: &Connector) -> Option<CertificateDer<'static>> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("bound");
        let addr = listener.local_addr().expect("bound").to_string();
        let accepted = async {
            let (stream, _) = listener.accept().await.expect("accepted");
            self.acceptor.accept(stream).await
        };
        let connected = connector.connect(&addr, Protocol::Http2);
        let (accepted, connected) = tokio::join!(accepted, connected);
        let _both = connected.ok()?;
        let accepted = accepted.ok()?;
        let certificates = accepted.get_ref().1.peer_certificates();
        Some(certificates?.first()?.clone().into_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn renewed_files_are_taken_by_every_clone_and_damaged_ones_are_not() {
    let dir = tempfile::tempdir().expect("dir");
    let file = |name: &str| dir.path().join(name);
    let files = TlsFiles {
        ca: file("ca.pem"),
        identity: Some((file("tls.pem"), file("tls.key"))),
        server_name: None,
    };
    let old = Mesh::written_to(&files);
    let connector = Connector::tls(&files).expect("good");
    let clone = connector.clone().with_token("t").expect("a token");
    let seen = old.sees(&connector).await;
    assert_eq!(seen.as_ref(), Some(&old.client));
    for (name, at) in [("half a file", "tls.pem"), ("no key", "tls.key")] {
        std::fs::write(file(at), "-----BEGIN").expect("written");
        tokio::time::advance(LOOK).await;
        assert_eq!(old.sees(&clone).await, Some(old.client.clone()), "{name}");
    }
    // By another authority, as after its own renewal.
    let new = Mesh::written_to(&files);
    assert_eq!(new.sees(&connector).await, None, "not looked at yet");
    tokio::time::advance(LOOK).await;
    for connector in [&connector, &clone] {
        assert_eq!(new.sees(connector).await, Some(new.client.clone()));
        assert_eq!(old.sees(connector).await, None, "no longer ours");
    }
}

#[test]
fn the_name_that_a_certificate_must_carry_is_the_host_that_is_dialled() {
    for (server, want) in [
        ("registry.internal:7900", "registry.internal"),
        ("10.0.0.5:7900", "10.0.0.5"),
        ("[::1]:7900", "::1"),
    ] {
        assert_eq!(host(server), want);
        assert!(server_name(want).is_ok(), "{want}");
    }
    assert!(server_name("not a name").is_err());
}

#[test]
fn what_is_wrong_with_a_file_is_said_and_a_token_is_not() {
    let dir = tempfile::tempdir().expect("dir");
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "nothing\n").expect("write");
    for (path, part) in [
        (&empty, "no CERTIFICATE"),
        (&dir.path().join("none.pem"), "none.pem"),
    ] {
        let error = read_certificates(path).expect_err("no certificate");
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(read_key(&empty).is_err());
    let connector = Connector::plain().with_token("t0psecret").expect("token");
    let shown = format!("{connector:?} {:?}", connector.authorization());
    assert!(!shown.contains("t0psecret"), "{shown}");
    assert!(Connector::plain().with_token("a\nb").is_err());
}
