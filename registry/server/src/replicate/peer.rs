//! Calls from one server to another.

use std::{
    collections::HashMap, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection on its way.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// How peers are reached: plain TCP, TLS, or in a test not at all.
pub type Connect = Arc<dyn Fn(SocketAddr) -> Connecting + Send + Sync>;

/// Plain TCP.
pub fn tcp() -> Connect {
    Arc::new(|addr| {
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    })
}

/// A peer answered, and not with what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{path} answered {status}, expected 200")]
pub(crate) struct Refused {
    path: String,
    status: StatusCode,
}

impl Refused {
    fn of(path: &str, status: StatusCode) -> BoxError {
        let path = path.to_owned();
        Box::new(Self { path, status })
    }

    /// What it answered, if that is why a call failed.
    pub(crate) fn status_of(error: &BoxError) -> Option<StatusCode> {
        error.downcast_ref::<Self>().map(|refused| refused.status)
    }
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Silence after which a peer is given up for now.
pub(crate) const STALL: Duration = Duration::from_secs(3);
/// Bytes of an answer that is not a stream.
const MAX_ANSWER: usize = 4 << 20;

/// Calls other servers; one connection each for what is short, one for each stream.
pub struct Peers {
    connect: Connect,
    authorization: Option<HeaderValue>,
    senders: Mutex<HashMap<SocketAddr, SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers")
            .field("connected", &self.senders.lock().len())
            .finish_non_exhaustive()
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self::new(tcp(), None)
    }
}

impl Peers {
    /// Reaches peers by `connect`, and shows them `authorization`.
    pub fn new(connect: Connect, authorization: Option<HeaderValue>) -> Self {
        Self {
            connect,
            authorization,
            senders: Mutex::default(),
        }
    }

    async fn open(&self, addr: SocketAddr) -> Result<SendRequest<Full<Bytes>>, BoxError> {
        let io = (self.connect)(addr).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            // A snapshot should not wait for the other side of the ocean.
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(2 << 20)
            .handshake(TokioIo::new(io))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a peer ended");
            }
        });
        Ok(sender)
    }

    fn request(
        &self,
        method: Method,
        addr: SocketAddr,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, BoxError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{addr}{path}"))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        Ok(request.body(Full::new(body))?)
    }

    /// A stream, over a connection of its own: what is slow on it slows nothing else.
    pub(crate) async fn stream(&self, addr: SocketAddr, path: &str) -> Result<Incoming, BoxError> {
        let opening = async {
            let mut sender = self.open(addr).await?;
            let request = self.request(Method::GET, addr, path, Bytes::new())?;
            let response = sender.send_request(request).await?;
            match response.status() {
                StatusCode::OK => Ok(response.into_body()),
                status => Err(Refused::of(path, status)),
            }
        };
        tokio::time::timeout(STALL, opening).await?
    }

    /// Asks and waits for the answer.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        addr: SocketAddr,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, BoxError> {
        self.ask_within(STALL, addr, path, question).await
    }

    /// Asks and waits for the answer so long.
    pub(crate) async fn ask_within<T: DeserializeOwned>(
        &self,
        patience: Duration,
        addr: SocketAddr,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, BoxError> {
        let body = Bytes::from(serde_json::to_vec(question)?);
        let asking = async {
            let known = self.senders.lock().get(&addr).cloned();
            let mut sender = if let Some(sender) = known.filter(|sender| !sender.is_closed()) {
                sender
            } else {
                let sender = self.open(addr).await?;
                self.senders.lock().insert(addr, sender.clone());
                sender
            };
            let request = self.request(Method::POST, addr, path, body)?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            if status != StatusCode::OK {
                return Err(Refused::of(path, status));
            }
            let answer = Limited::new(response.into_body(), MAX_ANSWER);
            Ok(serde_json::from_slice(&answer.collect().await?.to_bytes())?)
        };
        let answer = tokio::time::timeout(patience, asking).await;
        let answer = answer.map_err(BoxError::from).and_then(|answer| answer);
        if answer.is_err() {
            // It may hang: the next question opens another.
            self.senders.lock().remove(&addr);
        }
        answer
    }
}
