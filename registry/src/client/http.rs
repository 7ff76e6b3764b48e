//! Just enough of an HTTP client: one connection, one request at a time, a deadline on each.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use super::connect::{Connector, Protocol};
use crate::problem::Problem;

/// Largest answer that is read whole: a list of every service of a large mesh.
const MAX_REPLY: usize = 64 << 20;

/// Why a registry server did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The client was built without servers.
    #[error("no registry servers are configured")]
    NoServers,
    /// No connection.
    #[error("connect to registry server {server}")]
    Connect {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("{method} {path} at registry server {server}")]
    Exchange {
        /// The method.
        method: &'static str,
        /// The path.
        path: String,
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{method} {path} at registry server {server}: no answer within {after:?}")]
    Timeout {
        /// The method.
        method: &'static str,
        /// The path.
        path: String,
        /// The server.
        server: String,
        /// How long it was waited.
        after: Duration,
    },
}

/// An error and what caused it, as one line: a log that only says "connect" sends nobody to the
/// right place.
pub(super) fn with_causes(error: &ClientError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// A server's answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// What the server says about it.
    pub headers: HeaderMap,
    /// The document.
    pub body: Bytes,
}

impl Reply {
    /// The problem that an error answer carries, as a sentence.
    pub fn problem(&self) -> String {
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(Problem { title, detail, .. }) => {
                format!(
                    "{}: {title}{}",
                    self.status,
                    detail.map(|d| format!(": {d}")).unwrap_or_default()
                )
            }
            Err(_) => self.status.to_string(),
        }
    }
}

/// One kept-alive connection, reopened when it broke or when the server changes.
#[derive(Debug)]
pub(super) struct Http {
    connector: Connector,
    open: Option<(String, http1::SendRequest<Full<Bytes>>)>,
}

impl Http {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            open: None,
        }
    }

    /// As [`call_with`](Self::call_with), a JSON body if any.
    pub(super) async fn call(
        &mut self,
        server: &str,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Reply, ClientError> {
        let kind = (header::CONTENT_TYPE, "application/json".to_owned());
        let headers = if body.is_empty() { &[][..] } else { &[kind] };
        self.call_with(server, method, path, body, headers, limit)
            .await
    }

    /// Sends a request and reads the whole answer, all within `limit`.
    pub(super) async fn call_with(
        &mut self,
        server: &str,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
        headers: &[(header::HeaderName, String)],
        limit: Duration,
    ) -> Result<Reply, ClientError> {
        let exchange = async {
            let response = self.send(server, method, path, body, headers).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = Limited::new(response.into_body(), MAX_REPLY)
                .collect()
                .await
                .map_err(|source| broken(server, method, path, source))?;
            Ok(Reply {
                status,
                headers,
                body: body.to_bytes(),
            })
        };
        let result = within(limit, server, method, path, exchange).await;
        if result.is_err() {
            self.open = None;
        }
        result
    }

    /// Sends a request and hands out the answer with its body still to come.
    pub(super) async fn send(
        &mut self,
        server: &str,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
        headers: &[(header::HeaderName, String)],
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, server);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = self.connector.authorization() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::from(body))
            .map_err(|source| broken(server, method, path, source))?;
        let sender = self.sender(server).await?;
        sender
            .send_request(request)
            .await
            .map_err(|source| broken(server, method, path, source))
    }

    async fn sender(
        &mut self,
        server: &str,
    ) -> Result<&mut http1::SendRequest<Full<Bytes>>, ClientError> {
        let reusable = match &mut self.open {
            Some((to, sender)) => to == server && sender.ready().await.is_ok(),
            None => false,
        };
        if !reusable {
            self.open = Some((server.to_owned(), connect(&self.connector, server).await?));
        }
        Ok(&mut self.open.as_mut().expect("was just opened").1)
    }
}

async fn connect(
    connector: &Connector,
    server: &str,
) -> Result<http1::SendRequest<Full<Bytes>>, ClientError> {
    let failed = |source| ClientError::Connect {
        server: server.to_owned(),
        source,
    };
    let stream = connector.connect(server, Protocol::Http1).await;
    let stream = stream.map_err(failed)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|source| failed(std::io::Error::other(source)))?;
    // Ends by itself with the sender, or tells the sender by ending.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "registry connection ended");
        }
    });
    Ok(sender)
}

/// `exchange` with a deadline.
pub(super) async fn within<T>(
    limit: Duration,
    server: &str,
    method: &'static str,
    path: &str,
    exchange: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Timeout {
            method,
            path: path.to_owned(),
            server: server.to_owned(),
            after: limit,
        }),
    }
}

fn broken(
    server: &str,
    method: &'static str,
    path: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClientError {
    ClientError::Exchange {
        method,
        path: path.to_owned(),
        server: server.to_owned(),
        source: source.into(),
    }
}
