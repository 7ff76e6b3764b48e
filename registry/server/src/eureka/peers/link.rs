//! One connection to one peer.

use std::{fmt, time::Duration};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::net::TcpStream;

use super::super::{
    REPLICA, SEEDING,
    batch::{self, Answer, Item},
};

/// How long a peer may take for an answer. Source: `peerNodeReadTimeoutMs` is 200 ms and much
/// complained of; batches of 250 take longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a peer's whole registry.
const MAX_REGISTRY: usize = 256 << 20;

/// Where a peer is.
#[derive(Clone)]
pub(crate) struct Peer {
    address: String,
    /// Without a slash at its end.
    path: String,
    authorization: Option<HeaderValue>,
}

impl Peer {
    /// `http://[user:password@]host[:port]/path`.
    ///
    /// # Errors
    /// What is allowed.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let allowed = || "http://[user:password@]host[:port]/eureka".to_owned();
        let rest = url.strip_prefix("http://").ok_or_else(allowed)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let parsed: http::uri::Authority = host.parse().map_err(|_| allowed())?;
        if parsed.host().is_empty() {
            return Err(allowed());
        }
        let address = format!("{}:{}", parsed.host(), parsed.port_u16().unwrap_or(80));
        let path = path.trim_end_matches('/');
        let path = format!("{}{path}", if path.is_empty() { "" } else { "/" });
        path.parse::<http::uri::PathAndQuery>()
            .or_else(|error| {
                if path.is_empty() {
                    Ok("/".parse()?)
                } else {
                    Err(error)
                }
            })
            .map_err(|_| allowed())?;
        let authorization = user.map(|user| {
            let plain = percent_decode_str(user).decode_utf8_lossy();
            let text = base64::engine::general_purpose::STANDARD.encode(plain.as_bytes());
            let mut value = HeaderValue::from_str(&format!("Basic {text}")).expect("base64");
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            address,
            path,
            authorization,
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a peer was not told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// No connection, or it broke.
    #[error("exchange with it: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// It refused.
    #[error("it answered {0}")]
    Refused(StatusCode),
    /// Its answer is not one.
    #[error("its answer cannot be read: {0}")]
    Unreadable(String),
}

impl LinkError {
    pub(crate) fn is_congestion(&self) -> bool {
        matches!(
            self,
            Self::Refused(StatusCode::SERVICE_UNAVAILABLE) | Self::Silent(_)
        )
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LinkError {
    LinkError::Broken(error.into())
}

/// What a peer has.
pub(crate) struct Apps {
    pub(crate) document: Value,
    /// It is one of us, and waits for its own peers; and whether each of those waits as well.
    pub(crate) seeding: Option<bool>,
}

/// A connection that is opened when it is needed and kept.
pub(crate) struct Link<'a> {
    peer: &'a Peer,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl<'a> Link<'a> {
    pub(crate) fn new(peer: &'a Peer) -> Self {
        Self { peer, open: None }
    }

    /// Everything that the peer has.
    pub(crate) async fn apps(&mut self) -> Result<Apps, LinkError> {
        let (headers, body) = self.call(Method::GET, "/apps/", Bytes::new()).await?;
        let document = serde_json::from_slice(&body);
        Ok(Apps {
            document: document.map_err(|error| LinkError::Unreadable(error.to_string()))?,
            seeding: headers.get(SEEDING).map(|word| word == "stuck"),
        })
    }

    /// Tells the peer what has happened.
    pub(crate) async fn batch(&mut self, items: &[Item]) -> Result<Vec<Answer>, LinkError> {
        let body = Bytes::from(batch::write(items));
        let (_, answer) = self
            .call(Method::POST, "/peerreplication/batch/", body)
            .await?;
        let answers = batch::read_answers(&answer).map_err(LinkError::Unreadable)?;
        if answers.len() != items.len() {
            let (got, sent) = (answers.len(), items.len());
            let what = format!("{got} answers to {sent} items");
            return Err(LinkError::Unreadable(what));
        }
        Ok(answers)
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(HeaderMap, Bytes), LinkError> {
        let called = tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await;
        let result = called.unwrap_or(Err(LinkError::Silent(PATIENCE)));
        if result.is_err() {
            self.open = None;
        }
        result
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(HeaderMap, Bytes), LinkError> {
        let mut request = Request::builder()
            .method(&method)
            .uri(format!("{}{path}", self.peer.path))
            .header(header::HOST, &self.peer.address)
            .header(header::ACCEPT, "application/json")
            .header("discoveryidentity-name", "DefaultServer")
            .header(REPLICA, "true");
        if method == Method::GET {
            request = request.header(SEEDING, "ask");
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.peer.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(broken)?;
        let sender = self.sender().await?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_REGISTRY);
        let body = body.collect().await.map_err(LinkError::Broken)?.to_bytes();
        if status.is_success() {
            Ok((parts.headers, body))
        } else {
            Err(LinkError::Refused(status))
        }
    }

    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, LinkError> {
        let usable = match &mut self.open {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = TcpStream::connect(&self.peer.address)
                .await
                .map_err(broken)?;
            stream.set_nodelay(true).map_err(broken)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(broken)?;
            // Ends with the sender.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to a eureka peer ended");
                }
            });
            self.open = Some(sender);
        }
        Ok(self.open.as_mut().expect("was just opened"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_where_their_urls_say() {
        for (url, shown, secret) in [
            ("http://a:8761/eureka/", "http://a:8761/eureka", false),
            ("http://u:p%40@10.0.0.1/v2", "http://10.0.0.1:80/v2", true),
            ("http://[::1]:1", "http://[::1]:1", false),
        ] {
            let peer = Peer::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(peer.to_string(), shown);
            assert_eq!(peer.authorization.is_some(), secret);
            assert!(!format!("{peer:?}").contains("p@"));
        }
        for url in [
            "",
            "a:1",
            "https://a/eureka",
            "http://",
            "http:///x",
            "http://a b/",
        ] {
            assert!(Peer::parse(url).is_err(), "{url}");
        }
    }
}
