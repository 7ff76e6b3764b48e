//! Connections to registry servers: plain or TLS, for the client and between servers.
//!
//! Who registers decides where traffic goes, so a registry that is reached over a network wants
//! both sides to know whom they talk to. One [`Connector`] holds what that takes: the authorities
//! that a server's certificate must come from, our own certificate where the server asks for one,
//! and the token that says what we may do.
//!
//! # Guarantees
//! - With TLS configured no byte of a request leaves in clear; a server whose certificate does not
//!   fit its name is not spoken to.
//! - Key and token never show in `Debug`.
//! - Files that were renewed are taken by the next connection that is made half a minute later or
//!   more; what cannot be used changes nothing and is said in the log.

use std::{
    fmt,
    hash::{DefaultHasher, Hasher as _},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

/// What a connection to a registry server needs beyond its address. Nothing: plain TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file of the authorities that servers' certificates come from. There is no default: a
    /// mesh has an authority of its own.
    pub ca: PathBuf,
    /// PEM files of our certificate chain and of its key, where the server asks who we are.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that every server's certificate carries, where servers are dialled by another one
    /// (an address, a pod's name). Not set: the name that is dialled.
    pub server_name: Option<String>,
}

/// Why TLS cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file does not hold what it should.
    #[error("read {what} in {path}: {reason}")]
    File {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it was not found.
        reason: String,
    },
    /// Certificate and key do not belong together, or are of a kind that cannot be used.
    #[error("use certificate {path}")]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The name is neither a host's nor an address.
    #[error("{0:?} is not a name that a certificate can carry")]
    Name(String),
}

/// Every certificate in the PEM file at `path`; at least one.
///
/// # Errors
/// [`TlsError::File`] naming the file and what is wrong with it.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError::File {
        what: "certificates",
        path: path.to_owned(),
        reason,
    };
    let list = CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
    let list: Vec<_> = list
        .collect::<Result<_, _>>()
        .map_err(|error| fail(error.to_string()))?;
    if list.is_empty() {
        return Err(fail("there is no CERTIFICATE block".into()));
    }
    Ok(list)
}

/// The private key in the PEM file at `path`.
///
/// # Errors
/// [`TlsError::File`]; never with a byte of the key.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::File {
        what: "a private key",
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The authorities in the PEM file at `path`.
///
/// # Errors
/// [`TlsError`] naming the file.
pub fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Unusable {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

/// The one crypto provider of the mesh, handed in where it is used: nothing depends on a process
/// default that somebody else may set.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, known beforehand or by ALPN.
    Http2,
}

/// How often renewed files are looked for, at most. A guess: certificates live for hours at least.
const LOOK: Duration = Duration::from_secs(30);

/// What the files held when they were read last.
#[derive(Clone)]
struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl Tls {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Unusable {
                path: files.ca.clone(),
                source,
            })?
            .with_root_certificates(read_roots(&files.ca)?);
        let mut http1 = match &files.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(read_certificates(chain)?, read_key(key)?)
                .map_err(|source| TlsError::Unusable {
                    path: chain.clone(),
                    source,
                })?,
        };
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        let name = files.server_name.as_ref().map(|name| server_name(name));
        Ok(Self {
            http1: TlsConnector::from(Arc::new(http1)),
            http2: TlsConnector::from(Arc::new(http2)),
            name: name.transpose()?,
        })
    }
}

/// The files, and what of them is used.
struct Renewed {
    files: TlsFiles,
    current: ArcSwap<Tls>,
    looked: Mutex<Looked>,
}

struct Looked {
    again: Instant,
    contents: Vec<Option<u64>>,
}

impl Renewed {
    fn new(files: &TlsFiles) -> Result<Arc<Self>, TlsError> {
        // Before they are read: what comes in between is seen the next time.
        let contents = contents(files);
        Ok(Arc::new(Self {
            files: files.clone(),
            current: ArcSwap::from_pointee(Tls::read(files)?),
            looked: Mutex::new(Looked {
                again: Instant::now() + LOOK,
                contents,
            }),
        }))
    }

    /// For the next connection. Cancel-safe: what was begun is finished for the one after.
    async fn current(self: &Arc<Self>) -> Arc<Tls> {
        let now = Instant::now();
        let is_due = {
            let mut looked = self.looked.lock();
            let is_due = looked.again <= now;
            if is_due {
                looked.again = now + LOOK;
            }
            is_due
        };
        if is_due {
            let this = Arc::clone(self);
            // Disks may be slow. A look that failed leaves what there is.
            let _looked = tokio::task::spawn_blocking(move || this.look()).await;
        }
        self.current.load_full()
    }

    fn look(&self) {
        let now = contents(&self.files);
        if self.looked.lock().contents == now {
            return;
        }
        match Tls::read(&self.files) {
            Ok(tls) => {
                self.current.store(Arc::new(tls));
                tracing::info!(ca = %self.files.ca.display(), "certificates renewed");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                let causes = std::iter::successors(Some(error), |error| (*error).source());
                let causes: Vec<String> = causes.map(ToString::to_string).collect();
                tracing::error!(
                    error = causes.join(": "),
                    "renewed certificates cannot be used, the old ones stay"
                );
            }
        }
        self.looked.lock().contents = now;
    }
}

/// A hash of what each file holds, as a key is not to lie about; `None` of one that cannot be read.
fn contents(files: &TlsFiles) -> Vec<Option<u64>> {
    let identity = files.identity.iter().flat_map(|(chain, key)| [chain, key]);
    let all = std::iter::once(&files.ca).chain(identity);
    let hash = |bytes: Vec<u8>| {
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        hasher.finish()
    };
    all.map(|path| std::fs::read(path).ok().map(hash)).collect()
}

/// Connects to registry servers. Clones share certificates and sessions.
#[derive(Clone, Default)]
pub struct Connector {
    tls: Option<Arc<Renewed>>,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("tls", &self.tls.is_some())
            .field("token", &self.authorization.is_some())
            .finish()
    }
}

impl Connector {
    /// Plain TCP, without a token.
    pub fn plain() -> Self {
        Self::default()
    }

    /// TLS by these files, and by what they are renewed to.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what is wrong with it.
    pub fn tls(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            tls: Some(Renewed::new(files)?),
            authorization: None,
        })
    }

    /// Presents `token` with every request.
    ///
    /// # Errors
    /// [`TlsError::Name`] without the token, if it holds what a header cannot carry.
    pub fn with_token(mut self, token: &str) -> Result<Self, TlsError> {
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| TlsError::Name("the token".into()))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// The `Authorization` of every request, if there is a token.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Whether connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    /// Connects to `server` (`host:port`). Cancel-safe: dropped, nothing is left open.
    ///
    /// # Errors
    /// Whatever keeps the connection or the handshake from being made.
    pub async fn connect(&self, server: &str, protocol: Protocol) -> io::Result<Stream> {
        let tcp = TcpStream::connect(server).await?;
        tcp.set_nodelay(true)?;
        let Some(renewed) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let tls = renewed.current().await;
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => server_name(host(server)).map_err(io::Error::other)?,
        };
        let connector = match protocol {
            Protocol::Http1 => &tls.http1,
            Protocol::Http2 => &tls.http2,
        };
        let stream = connector.connect(name, tcp).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// `host` of `host:port`, without the brackets of an IPv6 address.
fn host(server: &str) -> &str {
    if let Ok(addr) = server.parse::<SocketAddr>()
        && addr.is_ipv6()
    {
        let end = server.rfind(']').unwrap_or(server.len());
        return &server[1..end];
    }
    server.rsplit_once(':').map_or(server, |(host, _)| host)
}

fn server_name(text: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(text.to_owned()).map_err(|_| TlsError::Name(text.to_owned()))
}

/// A connection to a registry server.
#[derive(Debug)]
pub enum Stream {
    /// In clear.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{ServerConfig, server::WebPkiClientVerifier},
    };

    use super::*;

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
}
