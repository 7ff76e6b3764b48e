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

mod tls;

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::HeaderValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use self::tls::{Renewed, server_name};
pub use self::tls::{TlsError, TlsFiles, provider, read_certificates, read_key, read_roots};

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, known beforehand or by ALPN.
    Http2,
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
mod tests;
