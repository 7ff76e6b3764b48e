//! TLS on the API: the server's certificate, and the clients' where they are asked for one.
//!
//! Certificates are renewed while a server runs. The files are looked at every half minute and
//! taken as a whole; what cannot be used changes nothing and is said in the log.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use selvedge_registry::client::connect::{
    Connector, TlsError, TlsFiles, provider, read_certificates, read_key, read_roots,
};
use selvedge_resilience::config::PolicyError;
use serde::{Deserialize, Serialize};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::CertificateDer,
        server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};

/// `[tls]`: without it the API is served in clear.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file of this server's certificate chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// PEM file of the authorities that the servers' certificates come from: servers speak to each
    /// other, too. Default: `client_ca`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of the authorities that clients' certificates come from. Set: a client without a
    /// certificate is not served. Servers show theirs to each other, so it must be good for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// The name that every server's certificate carries, where that is not its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl TlsConfig {
    /// Whether the API is served over TLS.
    pub fn is_on(&self) -> bool {
        self.cert.is_some()
    }

    /// Whether clients must show a certificate.
    pub fn is_mutual(&self) -> bool {
        self.client_ca.is_some()
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let all = [&self.key, &self.ca, &self.client_ca];
        let allowed = match (&self.cert, &self.key) {
            (Some(_), Some(_)) if self.ca.is_none() && self.client_ca.is_none() => {
                "with a certificate: servers check each other's, so name its authority in tls.ca"
            }
            (Some(_), Some(_)) => return Ok(()),
            (None, _) if all.iter().all(|file| file.is_none()) && self.server_name.is_none() => {
                return Ok(());
            }
            _ => "tls.cert and tls.key together, or no [tls] at all",
        };
        Err(PolicyError::new("tls.cert", "incomplete", allowed))
    }

    /// How this server reaches its peers.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what is wrong with it.
    pub fn connector(&self) -> Result<Connector, TlsError> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            return Ok(Connector::plain());
        };
        Connector::tls(&TlsFiles {
            ca: self
                .ca
                .clone()
                .or(self.client_ca.clone())
                .unwrap_or_default(),
            identity: Some((cert.clone(), key.clone())),
            server_name: self.server_name.clone(),
        })
    }

    fn build(&self) -> Result<Option<ServerConfig>, TlsError> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            return Ok(None);
        };
        let unusable = |source| TlsError::Unusable {
            path: cert.clone(),
            source,
        };
        let clients: Arc<dyn ClientCertVerifier> = match &self.client_ca {
            None => Arc::new(NoClientAuth),
            Some(ca) => {
                let roots = Arc::new(read_roots(ca)?);
                WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| TlsError::File {
                        what: "client authorities",
                        path: ca.clone(),
                        reason: error.to_string(),
                    })?
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_single_cert(read_certificates(cert)?, read_key(key)?)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(config))
    }
}

/// How often the files are looked at. A guess: certificates live for hours at least. (What this
/// server shows to its peers is renewed by their connector.)
const LOOK: Duration = Duration::from_secs(30);

/// Accepts TLS by the newest certificate that could be used.
#[derive(Clone)]
pub struct Acceptor(Arc<ArcSwap<ServerConfig>>);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Acceptor {
    /// By these files; `None` if the API is served in clear.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what is wrong with it.
    pub fn new(config: &TlsConfig) -> Result<Option<Self>, TlsError> {
        let built = config.build()?;
        Ok(built.map(|built| Self(Arc::new(ArcSwap::from_pointee(built)))))
    }

    /// For the next connection.
    pub fn current(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }

    /// Takes renewed files, for ever.
    pub async fn reload_for_ever(self, config: TlsConfig) {
        let mut seen = contents(&config);
        loop {
            tokio::time::sleep(LOOK).await;
            let now = contents(&config);
            if now == seen {
                continue;
            }
            seen = now;
            match config.build() {
                Ok(Some(built)) => {
                    self.0.store(Arc::new(built));
                    tracing::info!("certificate of the API renewed");
                }
                Ok(None) => {}
                Err(error) => {
                    let causes = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(
                        error = causes,
                        "certificate of the API cannot be used, the old one stays"
                    );
                }
            }
        }
    }
}

fn contents(config: &TlsConfig) -> Vec<Option<Vec<u8>>> {
    let files = [&config.cert, &config.key, &config.client_ca];
    let read = |path: &PathBuf| std::fs::read(path).ok();
    files.map(|file| file.as_ref().and_then(read)).into()
}

/// The DNS and URI names of a certificate that was verified.
pub fn names(certificates: Option<&[CertificateDer<'_>]>) -> Vec<String> {
    let Some(first) = certificates.and_then(<[_]>::first) else {
        return Vec::new();
    };
    let Ok(certificate) = webpki::EndEntityCert::try_from(first) else {
        return Vec::new();
    };
    let dns = certificate.valid_dns_names();
    dns.chain(certificate.valid_uri_names())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use selvedge_registry::client::connect::Protocol;
    use tokio::{net::TcpListener, time::sleep};

    use super::*;

    /// Writes a new authority, and a certificate by it; gives who trusts it.
    fn renew(config: &TlsConfig) -> Connector {
        let path = |path: &Option<PathBuf>| path.clone().expect("a path");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("signed");
        std::fs::write(path(&config.ca), issuer.pem()).expect("written");
        let own = key();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("params");
        let certificate = params.signed_by(&own, &issuer).expect("signed");
        std::fs::write(path(&config.cert), certificate.pem()).expect("written");
        std::fs::write(path(&config.key), own.serialize_pem()).expect("written");
        let files = TlsFiles {
            ca: path(&config.ca),
            identity: None,
            server_name: None,
        };
        Connector::tls(&files).expect("good files")
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_certificate_is_shown_to_the_next_client_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().expect("dir");
        let file = |name: &str| Some(dir.path().join(name));
        let config = TlsConfig {
            cert: file("tls.pem"),
            key: file("tls.key"),
            ca: file("ca.pem"),
            ..TlsConfig::default()
        };
        let old = renew(&config);
        let acceptor = Acceptor::new(&config).expect("good").expect("TLS");
        tokio::spawn(acceptor.clone().reload_for_ever(config.clone()));
        // It reads them once more before it waits.
        sleep(Duration::from_secs(1)).await;
        let is_trusted = async |connector: &Connector| {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let addr = listener.local_addr().expect("bound").to_string();
            let accepted = async {
                let (stream, _) = listener.accept().await.expect("accepted");
                acceptor.current().accept(stream).await
            };
            let connected = connector.connect(&addr, Protocol::Http1);
            let (accepted, connected) = tokio::join!(accepted, connected);
            accepted.is_ok() && connected.is_ok()
        };
        assert!(is_trusted(&old).await);
        let new = renew(&config);
        assert!(is_trusted(&old).await, "not looked at yet");
        sleep(LOOK).await;
        assert!(is_trusted(&new).await);
        std::fs::write(dir.path().join("tls.key"), "-----BEGIN").expect("written");
        sleep(LOOK).await;
        assert!(is_trusted(&new).await, "the last good one");
    }

    #[test]
    fn half_a_configuration_is_refused() {
        for (text, ok) in [
            ("", true),
            ("cert = \"c\"", false),
            ("cert = \"c\"\nkey = \"k\"", false),
            ("cert = \"c\"\nkey = \"k\"\nca = \"a\"", true),
            ("cert = \"c\"\nkey = \"k\"\nclient_ca = \"a\"", true),
            ("client_ca = \"a\"", false),
            ("server_name = \"a\"", false),
        ] {
            let config = selvedge_registry::node::config::parse::<TlsConfig>(
                std::path::Path::new("x"),
                text.into(),
            );
            let config = config.expect("parses").value;
            assert_eq!(config.validate().is_ok(), ok, "{text}");
        }
        let missing = TlsConfig {
            cert: Some("/nowhere/cert.pem".into()),
            key: Some("/nowhere/key.pem".into()),
            ..TlsConfig::default()
        };
        let error = Acceptor::new(&missing).expect_err("no file");
        assert!(error.to_string().contains("/nowhere/cert.pem"), "{error}");
    }
}
