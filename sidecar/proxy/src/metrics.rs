//! What the data path counts, in OpenTelemetry's words.
//!
//! Labels come from routes, services and status codes, never from what a client sends: a scanner
//! must not be able to fill the memory of whoever scrapes.

use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::RwLock;
use prometheus_client::metrics::{
    counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
};
use selvedge_registry::node::metrics::{DURATION_BUCKETS, Metrics, Name};
use selvedge_resilience::{Outcome, Rejected, fallback::Cause};

type Labels<const N: usize> = [(&'static str, String); N];

fn histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// The data path's metrics. Clones share them.
#[derive(Debug, Clone)]
pub struct ProxyMetrics(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    server: Histograms<3>,
    client: Histograms<2>,
    retries: Family<Labels<1>, Counter>,
    rejections: Family<Labels<3>, Counter>,
    degraded: Family<Labels<2>, Counter>,
    refusals: Family<Labels<1>, Counter>,
    active: Gauge,
    connections: Gauge,
    log_dropped: Counter,
}

impl ProxyMetrics {
    /// Registers the data path's metrics; once a process.
    pub fn new(metrics: &Metrics) -> Self {
        let server = Histograms::new_with_constructor(histogram as fn() -> Histogram);
        let client = Histograms::new_with_constructor(histogram as fn() -> Histogram);
        Self(Arc::new(Shared {
            server: metrics.register(Name::ServerRequestDuration, server),
            client: metrics.register(Name::ClientRequestDuration, client),
            retries: metrics.register(Name::RetryAttempts, Family::default()),
            rejections: metrics.register(Name::PolicyRejections, Family::default()),
            degraded: metrics.register(Name::FallbackAnswers, Family::default()),
            refusals: metrics.register(Name::RequestRefusals, Family::default()),
            active: metrics.register(Name::ServerActiveRequests, Gauge::default()),
            connections: metrics.register(Name::ConnectionsActive, Gauge::default()),
            log_dropped: metrics.register(Name::AccessLogDropped, Counter::default()),
        }))
    }

    /// What is counted of the requests of one route.
    pub fn route(&self, name: &str) -> RouteMetrics {
        RouteMetrics {
            name: name.into(),
            server: self.0.server.clone(),
            known: RwLock::default(),
        }
    }

    /// A request that ended at the door.
    pub fn refused(&self, reason: &'static str) {
        let labels = [("reason", reason.to_owned())];
        self.0.refusals.get_or_create(&labels).inc();
    }

    /// A client's connection, for as long as it is held.
    pub fn connection(&self) -> Active {
        Active::new(&self.0.connections)
    }

    pub(crate) fn request(&self) -> Active {
        Active::new(&self.0.active)
    }

    pub(crate) fn destination(&self, service: &str) -> ClientMetrics {
        let retries = [("service", service.to_owned())];
        ClientMetrics {
            retries: self.0.retries.get_or_create_owned(&retries),
            service: service.into(),
            shared: Arc::clone(&self.0),
            known: RwLock::default(),
        }
    }

    pub(crate) fn log_dropped(&self) -> Counter {
        self.0.log_dropped.clone()
    }
}

/// Something that is going on; no longer when dropped.
#[derive(Debug)]
pub struct Active(Gauge);

impl Active {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is counted of the requests of one route.
///
/// A family's map is looked up with owned strings; the few combinations that occur are kept here
/// instead, so that counting allocates nothing.
#[derive(Debug)]
pub struct RouteMetrics {
    name: Box<str>,
    server: Histograms<3>,
    known: RwLock<Vec<((&'static str, u16), Histogram)>>,
}

impl RouteMetrics {
    pub(crate) fn observe(&self, method: &Method, status: StatusCode, seconds: f64) {
        let key = (method_label(method), status_label(status));
        if let Some((_, histogram)) = self.known.read().iter().find(|(known, _)| *known == key) {
            histogram.observe(seconds);
            return;
        }
        let status = match key.1 {
            0 => "_OTHER".to_owned(),
            status => status.to_string(),
        };
        let labels = [
            ("http_route", self.name.to_string()),
            ("http_request_method", key.0.to_owned()),
            ("http_response_status_code", status),
        ];
        let histogram = self.server.get_or_create_owned(&labels);
        histogram.observe(seconds);
        self.known.write().push((key, histogram));
    }
}

/// Source: OpenTelemetry HTTP conventions, known methods and `_OTHER`.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// 0 for what no specification knows: an upstream can send anything up to 999.
fn status_label(status: StatusCode) -> u16 {
    match status.as_u16() {
        known @ (100..=103 | 200..=208 | 226 | 300..=308 | 400..=431 | 451 | 500..=511) => known,
        _ => 0,
    }
}

/// What is counted of the tries towards one service.
#[derive(Debug)]
pub(crate) struct ClientMetrics {
    service: Box<str>,
    retries: Counter,
    shared: Arc<Shared>,
    known: RwLock<Vec<(&'static str, Histogram)>>,
}

impl ClientMetrics {
    pub(crate) fn tried(&self, attempt: u32, outcome: Outcome, seconds: f64) {
        if attempt > 1 {
            self.retries.inc();
        }
        let key = outcome.as_str();
        if let Some((_, histogram)) = self.known.read().iter().find(|(known, _)| *known == key) {
            histogram.observe(seconds);
            return;
        }
        let labels = [
            ("service", self.service.to_string()),
            ("outcome", key.to_owned()),
        ];
        let histogram = self.shared.client.get_or_create_owned(&labels);
        histogram.observe(seconds);
        self.known.write().push((key, histogram));
    }

    /// A fallback has answered; the refusal that it hides is counted all the same.
    pub(crate) fn degraded(&self, cause: Cause) {
        let labels = [
            ("service", self.service.to_string()),
            ("cause", cause.as_str().to_owned()),
        ];
        self.shared.degraded.get_or_create(&labels).inc();
        if let Cause::Rejected(rejected) = cause {
            self.rejected(&rejected);
        }
    }

    pub(crate) fn rejected(&self, rejected: &Rejected) {
        let labels = [
            ("service", self.service.to_string()),
            ("policy", rejected.policy.as_str().to_owned()),
            ("reason", rejected.reason.as_str().to_owned()),
        ];
        self.shared.rejections.get_or_create(&labels).inc();
    }
}
