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
//!
//! # What it does not do
//! Reload: a process whose certificate was renewed builds a new connector. (Servers reload theirs.)

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::HeaderValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
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

#[derive(Clone)]
struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    name: Option<ServerName<'static>>,
}

/// Connects to registry servers. Clones share certificates and sessions.
#[derive(Clone, Default)]
pub struct Connector {
    tls: Option<Arc<Tls>>,
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

    /// TLS by these files.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what is wrong with it.
    pub fn tls(files: &TlsFiles) -> Result<Self, TlsError> {
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
            tls: Some(Arc::new(Tls {
                http1: TlsConnector::from(Arc::new(http1)),
                http2: TlsConnector::from(Arc::new(http2)),
                name: name.transpose()?,
            })),
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
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
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
    use super::*;

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
