//! The small HTTP client with which the quickstart asks processes how they are.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// No admin page is larger than this.
const BODY_MAX: usize = 4 << 20;

/// Asks, with a time limit, and reads the whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Asker {
    /// A client with its own connections.
    pub(crate) fn new() -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// `GET http://{addr}{path}` within `limit`.
    pub(crate) async fn get(
        &self,
        addr: SocketAddr,
        path: &str,
        limit: Duration,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let ask = async {
            let request = Request::get(format!("http://{addr}{path}")).body(Empty::new())?;
            let response = self.client.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX)
                .collect()
                .await
                .map_err(|error| anyhow::anyhow!(error))?
                .to_bytes();
            anyhow::Ok((status, body))
        };
        tokio::time::timeout(limit, ask)
            .await
            .context("no answer in time")
            .and_then(|answer| answer)
            .with_context(|| format!("get http://{addr}{path}"))
    }

    /// Whether `path` answers 200 within a second.
    pub(crate) async fn is_ok(&self, addr: SocketAddr, path: &str) -> bool {
        self.get(addr, path, Duration::from_secs(1))
            .await
            .is_ok_and(|(status, _)| status == StatusCode::OK)
    }
}
