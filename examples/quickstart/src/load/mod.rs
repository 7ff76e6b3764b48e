//! Open-loop load: requests leave at a fixed rate, whether or not earlier ones were answered.
//!
//! A closed loop (N clients, each waiting for its answer) slows down exactly when the server does
//! and so measures only the requests that it managed to send: coordinated omission (Tene, "How NOT
//! to Measure Latency", 2013). Here request `i` is due at `start + i / rate`, and its latency runs
//! from that moment, not from when it left: a pause of the mesh, or of this generator, shows up in
//! every request that was due during it.
//!
//! The client behaves as a good edge client would: it knows both gateways, and when a connection
//! breaks before an answer came, it asks once more at the other. All that it sends may be repeated
//! (GET, or POST with an idempotency key). It never repeats a request that was *answered*, however
//! badly, and counts what it repeats, so nothing that the mesh does wrong hides here.

mod mix;
mod record;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) use self::mix::{HOST, Kind};
pub(crate) use self::record::{Failure, Record, Summary};

/// What one request may take; the gateway's own deadline is shorter.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests in the air at once; beyond it requests wait, and their wait is counted as latency.
const IN_FLIGHT_MAX: usize = 4_096;

/// How much, how fast, to whom.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) requests: u64,
    pub(crate) rate: u32,
    pub(crate) gateways: Vec<SocketAddr>,
}

impl Plan {
    /// Time from the first request to the last.
    pub(crate) fn duration(&self) -> Duration {
        self.due(self.requests)
    }

    /// When request `index` is due, from the start.
    fn due(&self, index: u64) -> Duration {
        Duration::from_nanos(
            (u128::from(index) * 1_000_000_000 / u128::from(self.rate))
                .try_into()
                .unwrap_or(u64::MAX),
        )
    }
}

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Sends all of `plan` and returns when the last answer is in. `record` can be read meanwhile.
pub(crate) async fn run(plan: Plan, record: Arc<Record>) {
    let client = client();
    let plan = Arc::new(plan);
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut flying = JoinSet::new();
    let start = Instant::now();
    for index in 0..plan.requests {
        let due = start + plan.due(index);
        tokio::time::sleep_until(due).await;
        let place = Arc::clone(&places).acquire_owned().await;
        let (client, plan, record) = (client.clone(), Arc::clone(&plan), Arc::clone(&record));
        flying.spawn(async move {
            let outcome = one(&client, &plan, index, &record).await;
            record.add(due, Instant::now(), outcome);
            drop(place);
        });
        while flying.try_join_next().is_some() {}
    }
    while flying.join_next().await.is_some() {}
}

fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(2)));
    Client::builder(TokioExecutor::new())
        // We count what we repeat; a client that repeats by itself would hide it.
        .retry_canceled_requests(false)
        // Shorter than any server's idle limit: a kept connection is never one about to be closed.
        .pool_idle_timeout(Duration::from_secs(5))
        .pool_timer(TokioTimer::new())
        .build(connector)
}

/// Sends request `index`, at a second gateway if the connection to the first one broke.
async fn one(client: &HttpClient, plan: &Plan, index: u64, record: &Record) -> Result<(), Failure> {
    let kind = Kind::of(index);
    let last = plan.gateways.len().min(2) - 1;
    for attempt in 0..=last {
        let gateway = plan.gateways[(index as usize + attempt) % plan.gateways.len()];
        match send(client, kind.request(gateway, index)).await {
            Ok((status, headers, body)) => {
                return kind
                    .check(status, &body)
                    .map_err(|why| Failure::answered(index, kind, why, status, &headers, &body));
            }
            Err(error) if attempt == last => {
                return Err(Failure::unanswered(
                    index,
                    kind,
                    &format!("{gateway}: {error}"),
                ));
            }
            Err(_) => record.repeated(),
        }
    }
    unreachable!("the loop returns at its last attempt")
}

async fn send(
    client: &HttpClient,
    request: http::Result<Request<Full<Bytes>>>,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let exchange = async {
        let response = client.request(request.map_err(|error| error.to_string())?);
        let (head, body) = response.await.map_err(|error| chain(&error))?.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| chain(&error))?
            .to_bytes();
        Ok((head.status, head.headers, body))
    };
    tokio::time::timeout(LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")))
}

/// An error with all of its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::Uri;

    async fn serve(app: Router) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        addr
    }

    fn good() -> Router {
        Router::new().fallback(|uri: Uri| async move {
            if uri.path().starts_with("/products") {
                r#"{"price":{"cents":1}}"#
            } else {
                r#"{"items":[]}"#
            }
        })
    }

    /// Accepts and closes at once: every connection breaks before an answer.
    async fn breaking() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        addr
    }

    async fn summary(gateways: Vec<SocketAddr>) -> Summary {
        let record = Arc::new(Record::new());
        run(
            Plan {
                requests: 200,
                rate: 10_000,
                gateways,
            },
            Arc::clone(&record),
        )
        .await;
        record.summary()
    }

    #[tokio::test]
    async fn counts_every_request_once() {
        let summary = summary(vec![serve(good()).await]).await;
        assert_eq!(
            (summary.done, summary.failed, summary.repeated),
            (200, 0, 0)
        );
        assert!(summary.p50 > Duration::ZERO && summary.p50 <= summary.p99);
    }

    #[tokio::test]
    async fn a_broken_gateway_is_repeated_at_the_other_and_counted() {
        let summary = summary(vec![serve(good()).await, breaking().await]).await;
        assert_eq!(
            (summary.done, summary.failed, summary.repeated),
            (200, 0, 100)
        );
    }

    #[tokio::test]
    async fn a_bad_answer_is_a_failure_and_is_not_repeated() {
        let bad = Router::new().fallback(|| async {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                [("x-request-id", "r-1")],
                "no endpoint",
            )
        });
        let summary = summary(vec![serve(bad).await, serve(good()).await]).await;
        assert_eq!(
            (summary.done, summary.failed, summary.repeated),
            (200, 100, 0)
        );
        let shown = summary.failures[0].to_string();
        for part in ["503", "no endpoint", "r-1"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[tokio::test]
    async fn an_empty_success_is_a_failure() {
        let hollow = Router::new().fallback(|| async { "{}" });
        let summary = summary(vec![serve(hollow).await]).await;
        assert_eq!(summary.failed, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn latency_runs_from_when_the_request_was_due() {
        let record = Record::new();
        let due = Instant::now();
        tokio::time::advance(Duration::from_millis(500)).await;
        record.add(due, Instant::now(), Ok(()));
        let p50 = record.summary().p50;
        assert!(p50 >= Duration::from_millis(499), "{p50:?}");
    }
}
