//! What the data path counts, in OpenTelemetry's words.
//!
//! Labels come from routes, services and status codes, never from what a client sends: a scanner
//! must not be able to fill the memory of whoever scrapes.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use http::{HeaderMap, Method, Response, StatusCode};
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::{
    counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
};
use selvedge_registry::node::metrics::{DURATION_BUCKETS, Metrics, Name};
use selvedge_resilience::{Outcome, Rejected, events::Events, fallback::Cause, layer::Inbound};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    Destination,
    events::{self, Chronicle, EventsBody, Origin},
    hystrix::{self, HystrixBody},
    observed::{Listed, Observed, Side},
    seats::Seats,
};

type Labels<const N: usize> = [(&'static str, String); N];

fn histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// The data path's metrics. Clones share them.
#[derive(Debug, Clone)]
pub struct ProxyMetrics {
    shared: Arc<Shared>,
    side: Side,
}

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
    observed: Arc<Observed>,
    dashboards: Arc<Seats>,
    chronicle: Arc<Chronicle>,
    /// The series of each service; locked when a destination comes or goes.
    services: Mutex<HashMap<Box<str>, Weak<ClientMetrics>>>,
}

impl ProxyMetrics {
    /// Registers the data path's metrics; once a process.
    pub fn new(metrics: &Metrics) -> Self {
        let server = Histograms::new_with_constructor(histogram as fn() -> Histogram);
        let client = Histograms::new_with_constructor(histogram as fn() -> Histogram);
        let observed = Arc::new(Observed::default());
        let shown = Arc::clone(&observed);
        metrics.observe_policies(move |take| shown.samples(Instant::now().into_std(), take));
        let shared = Arc::new(Shared {
            server: metrics.register(Name::ServerRequestDuration, server),
            client: metrics.register(Name::ClientRequestDuration, client),
            retries: metrics.register(Name::RetryAttempts, Family::default()),
            rejections: metrics.register(Name::PolicyRejections, Family::default()),
            degraded: metrics.register(Name::FallbackAnswers, Family::default()),
            refusals: metrics.register(Name::RequestRefusals, Family::default()),
            active: metrics.register(Name::ServerActiveRequests, Gauge::default()),
            connections: metrics.register(Name::ConnectionsActive, Gauge::default()),
            log_dropped: metrics.register(Name::AccessLogDropped, Counter::default()),
            observed,
            dashboards: Arc::default(),
            chronicle: Chronicle::new(metrics),
            services: Mutex::default(),
        });
        Self {
            shared,
            side: Side::Client,
        }
    }

    /// The same for the destination that is the app behind this proxy: its limits are shown as
    /// those that are enforced here, and its circuit apart from that of a service of the same name.
    #[must_use]
    pub fn for_app(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            side: Side::App,
        }
    }

    /// What is counted of the requests of one route.
    pub fn route(&self, name: &str) -> RouteMetrics {
        RouteMetrics {
            name: name.into(),
            server: self.shared.server.clone(),
            known: RwLock::default(),
        }
    }

    /// Shows what a listener takes on, until the answer is dropped.
    pub fn listener(&self, name: &str, inbound: &Inbound) -> Arc<Listed> {
        self.shared.observed.listener(name, inbound)
    }

    /// Answers `GET /hystrix.stream`: every destination as commands, twice a second, as long as the
    /// body is read; 503 if five others listen already.
    ///
    /// # Panics
    /// Outside a tokio runtime: the body has a timer.
    pub fn hystrix_stream(&self) -> Response<HystrixBody> {
        hystrix::answer(&self.shared.observed, &self.shared.dashboards)
    }

    /// Where what a listener takes on tells what happens to it, so that [`events`](Self::events)
    /// shows it.
    pub fn listener_events(&self) -> Events {
        self.shared.chronicle.hub(Origin::Listener)
    }

    /// Where what an app takes on tells it.
    pub(crate) fn server_events(&self) -> Events {
        self.shared.chronicle.hub(Origin::Server)
    }

    /// Where destinations tell it.
    pub(crate) fn destination_events(&self) -> Events {
        self.shared.chronicle.hub(match self.side {
            Side::Client => Origin::Client,
            Side::App => Origin::App,
        })
    }

    /// Whether destinations are the app behind this proxy.
    pub(crate) fn is_for_app(&self) -> bool {
        self.side == Side::App
    }

    /// Answers `GET /events` with the parameters `query`: what policies did of late, as a list, or
    /// as an event stream to whoever accepts one; 503 if five others read streams already.
    pub fn events(
        &self,
        query: impl IntoIterator<Item = (String, String)>,
        headers: &HeaderMap,
    ) -> Response<EventsBody> {
        let query = events::Query::parse(query, headers);
        events::answer(&self.shared.chronicle, query, headers)
    }

    /// Does what policies have to do by the clock, and keeps [`events`](Self::events) and the log
    /// true; never ends. Once a process, where nothing else waits. Cancel-safe.
    pub async fn keep_time(self) {
        let mut ticks = interval(events::PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.shared.observed.tick();
            self.shared.chronicle.collect();
        }
    }

    /// A request that ended at the door.
    pub fn refused(&self, reason: &'static str) {
        let labels = [("reason", reason.to_owned())];
        self.shared.refusals.get_or_create(&labels).inc();
    }

    /// A client's connection, for as long as it is held.
    pub fn connection(&self) -> Active {
        Active::new(&self.shared.connections)
    }

    pub(crate) fn request(&self) -> Active {
        Active::new(&self.shared.active)
    }

    /// Shows a destination's policies for as long as it is there.
    pub(crate) fn show(&self, destination: &Arc<Destination>) {
        self.shared.observed.destination(self.side, destination);
    }

    /// What is counted of the tries towards `service`; destinations of one name share it.
    pub(crate) fn client(&self, service: &str) -> Arc<ClientMetrics> {
        let mut services = self.shared.services.lock();
        if let Some(known) = services.get(service).and_then(Weak::upgrade) {
            return known;
        }
        let retries = [("service", service.to_owned())];
        let series = Arc::new(ClientMetrics {
            retries: self.shared.retries.get_or_create_owned(&retries),
            service: service.into(),
            shared: Arc::clone(&self.shared),
            known: RwLock::default(),
            rejections: RwLock::default(),
            degraded: RwLock::default(),
        });
        services.insert(service.into(), Arc::downgrade(&series));
        series
    }

    pub(crate) fn log_dropped(&self) -> Counter {
        self.shared.log_dropped.clone()
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

/// What is counted of the tries towards one service. Its series leave with the last destination of
/// that name: an app may ask for any number of names in its life.
#[derive(Debug)]
pub(crate) struct ClientMetrics {
    service: Box<str>,
    retries: Counter,
    shared: Arc<Shared>,
    known: RwLock<Vec<(&'static str, Histogram)>>,
    rejections: RwLock<Vec<((&'static str, &'static str), Counter)>>,
    degraded: RwLock<Vec<(&'static str, Counter)>>,
}

impl ClientMetrics {
    pub(crate) fn tried(&self, attempt: u32, outcome: Outcome, seconds: f64) {
        if attempt > 1 {
            self.retries.inc();
        }
        let key = outcome.as_str();
        with(
            &self.known,
            key,
            |histogram| histogram.observe(seconds),
            || self.shared.client.get_or_create_owned(&self.tries(key)),
        );
    }

    /// A fallback has answered; the refusal that it hides is counted all the same.
    pub(crate) fn degraded(&self, cause: Cause) {
        let key = cause.as_str();
        with(&self.degraded, key, count, || {
            self.shared.degraded.get_or_create_owned(&self.answers(key))
        });
        if let Cause::Rejected(rejected) = cause {
            self.rejected(&rejected);
        }
    }

    pub(crate) fn rejected(&self, rejected: &Rejected) {
        let key = (rejected.policy.as_str(), rejected.reason.as_str());
        with(&self.rejections, key, count, || {
            self.shared
                .rejections
                .get_or_create_owned(&self.refusals(key))
        });
    }

    fn tries(&self, outcome: &str) -> Labels<2> {
        [
            ("service", self.service.to_string()),
            ("outcome", outcome.to_owned()),
        ]
    }

    fn answers(&self, cause: &str) -> Labels<2> {
        [
            ("service", self.service.to_string()),
            ("cause", cause.to_owned()),
        ]
    }

    fn refusals(&self, (policy, reason): (&str, &str)) -> Labels<3> {
        [
            ("service", self.service.to_string()),
            ("policy", policy.to_owned()),
            ("reason", reason.to_owned()),
        ]
    }
}

fn count(counter: &Counter) {
    counter.inc();
}

/// Counts in the series of `key`, which is made if it is the first time: a family's map is looked up
/// with owned strings.
fn with<K: Copy + PartialEq, M>(
    known: &RwLock<Vec<(K, M)>>,
    key: K,
    count: impl FnOnce(&M),
    make: impl FnOnce() -> M,
) {
    if let Some((_, metric)) = known.read().iter().find(|(known, _)| *known == key) {
        count(metric);
        return;
    }
    let mut known = known.write();
    // Two may have found nothing.
    if let Some((_, metric)) = known.iter().find(|(known, _)| *known == key) {
        count(metric);
        return;
    }
    let metric = make();
    count(&metric);
    known.push((key, metric));
}

impl Drop for ClientMetrics {
    fn drop(&mut self) {
        let mut services = self.shared.services.lock();
        match services.get(&self.service) {
            // Another one has come meanwhile, and goes on with these.
            Some(newer) if newer.strong_count() > 0 => return,
            _ => services.remove(&self.service),
        };
        let shared = &self.shared;
        let retries = [("service", self.service.to_string())];
        shared.retries.remove(&retries);
        for (outcome, _) in self.known.read().iter() {
            shared.client.remove(&self.tries(outcome));
        }
        for (cause, _) in self.degraded.read().iter() {
            shared.degraded.remove(&self.answers(cause));
        }
        for (key, _) in self.rejections.read().iter() {
            shared.rejections.remove(&self.refusals(*key));
        }
    }
}
