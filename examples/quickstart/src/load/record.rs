//! What came of the requests.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Kind;

/// Failures kept in full; of the others only the number.
const FAILURES_KEPT: usize = 10;
/// Latencies are recorded in microseconds from 1 µs to this, with three significant digits.
const LATENCY_MAX_US: u64 = 60_000_000;

/// A request that did not get the answer it should have.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    index: u64,
    kind: Kind,
    why: String,
    request_id: String,
    body: String,
}

impl Failure {
    /// There was an answer, but not a good one.
    pub(crate) fn answered(
        index: u64,
        kind: Kind,
        why: &str,
        status: StatusCode,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Self {
        let request_id = headers
            .get("x-request-id")
            .and_then(|value| value.to_str().ok());
        let body: String = String::from_utf8_lossy(body).chars().take(600).collect();
        Self {
            index,
            kind,
            why: format!("{status}: {why}"),
            request_id: request_id.unwrap_or("none").to_owned(),
            body,
        }
    }

    /// There was no answer.
    pub(crate) fn unanswered(index: u64, kind: Kind, why: &str) -> Self {
        Self {
            index,
            kind,
            why: why.to_owned(),
            request_id: "none".to_owned(),
            body: String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "request {} ({:?}): {}, request id {}",
            self.index, self.kind, self.why, self.request_id
        )?;
        if !self.body.is_empty() {
            write!(f, "\n            {}", self.body)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Inner {
    latency: Histogram<u64>,
    failed: u64,
    repeated: u64,
    failures: Vec<Failure>,
}

/// Shared by all requests; a lock a request, which at these rates nobody feels.
#[derive(Debug)]
pub(crate) struct Record(Mutex<Inner>);

/// A reading of [`Record`].
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Asked again at the other gateway, because the connection to the first one broke.
    pub(crate) repeated: u64,
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
    pub(crate) failures: Vec<Failure>,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Inner {
            latency: Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
                .expect("bounds and digits are in range"),
            failed: 0,
            repeated: 0,
            failures: Vec::new(),
        }))
    }

    /// A request that was due at `due` got its outcome at `now`.
    pub(crate) fn add(&self, due: Instant, now: Instant, outcome: Result<(), Failure>) {
        let took = now.saturating_duration_since(due).as_micros();
        let mut inner = self.0.lock();
        inner
            .latency
            .saturating_record(took.try_into().unwrap_or(u64::MAX));
        if let Err(failure) = outcome {
            inner.failed += 1;
            if inner.failures.len() < FAILURES_KEPT {
                inner.failures.push(failure);
            }
        }
    }

    /// A request was sent a second time.
    pub(crate) fn repeated(&self) {
        self.0.lock().repeated += 1;
    }

    /// All that happened so far.
    pub(crate) fn summary(&self) -> Summary {
        let inner = self.0.lock();
        let at = |quantile| Duration::from_micros(inner.latency.value_at_quantile(quantile));
        Summary {
            done: inner.latency.len(),
            failed: inner.failed,
            repeated: inner.repeated,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
            failures: inner.failures.clone(),
        }
    }
}
