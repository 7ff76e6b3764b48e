//! One request and its answer, from the door to the last byte: what is said of it afterwards.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request::Parts};
use selvedge_registry::node::telemetry::{context_of, continue_trace, tracing_enabled};
use selvedge_resilience::{
    FailureClass, Outcome,
    context::trace::{self, TraceContext},
    fallback::Cause,
    layer::{Attempt, CallGuard, Hook, InboundHeld},
};
use tokio::time::Instant;
use tracing::{Span, field::Empty};

use crate::{
    Destination, UpstreamKey, Worker,
    access_log::{address, field, number, plain},
    clock::Busy,
    door::Route,
    metrics::Active,
    service::Connection,
};

/// What is known of one request. Ended once, with its answer's body.
#[derive(Debug)]
pub(crate) struct Exchange {
    worker: Arc<Worker>,
    start: Instant,
    method: Method,
    uri: Uri,
    version: Version,
    peer: SocketAddr,
    pub(crate) host: Box<str>,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) destination: Option<Arc<Destination>>,
    pub(crate) request_id: Option<HeaderValue>,
    pub(crate) status: StatusCode,
    /// Why there is no answer from upstream, as Envoy's response flags.
    pub(crate) flag: &'static str,
    /// Why a fallback has answered.
    degraded: Option<&'static str>,
    /// Whether another request's answer is this one's too.
    coalesced: bool,
    upstream: Option<SocketAddr>,
    attempts: u32,
    sent: u64,
    trace: Option<TraceContext>,
    span: Span,
    _active: Active,
    busy: Busy,
    /// What the service's own limits hold of it.
    inbound: Option<CallGuard<InboundHeld>>,
}

impl Exchange {
    pub(crate) fn new<D>(connection: &Connection<D>, head: &Parts) -> Box<Self> {
        let worker = &connection.worker;
        Box::new(Self {
            worker: Arc::clone(worker),
            start: Instant::now(),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            peer: connection.client.peer,
            host: Box::default(),
            route: None,
            destination: None,
            request_id: None,
            status: StatusCode::OK,
            flag: "",
            degraded: None,
            coalesced: false,
            upstream: None,
            attempts: 0,
            sent: 0,
            trace: None,
            span: Span::none(),
            _active: worker.metrics.request(),
            busy: connection.clock.busy(),
            inbound: None,
        })
    }

    /// Joins the caller's trace or begins one; `headers` carry it on.
    pub(crate) fn trace(&mut self, headers: &mut HeaderMap) {
        if !tracing_enabled() {
            self.trace = Some(trace::ensure(headers, &self.worker.rng));
            return;
        }
        let route = self.route.as_ref().map_or("", |route| &*route.name);
        self.span = tracing::info_span!(
            target: "selvedge_span",
            "request",
            otel.kind = "server",
            otel.name = %format_args!("{} {route}", self.method),
            otel.status_code = Empty,
            http.request.method = %self.method,
            http.route = route,
            url.path = self.uri.path(),
            server.address = &*self.host,
            http.response.status_code = Empty,
        );
        if let Some(parent) = TraceContext::extract(headers) {
            continue_trace(&self.span, parent);
        }
        self.trace = context_of(&self.span);
        if let Some(context) = self.trace {
            context.inject(headers);
        }
    }

    /// When it arrived.
    pub(crate) fn started(&self) -> std::time::Instant {
        self.start.into_std()
    }

    /// The service behind takes it on.
    pub(crate) fn take_on(&mut self, held: InboundHeld) {
        self.inbound = Some(CallGuard::new(held));
    }

    /// Bytes of the answer's body are on their way.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// It is over. `complete`: the answer went out whole.
    pub(crate) fn end(&mut self, complete: bool) {
        let now = Instant::now();
        self.busy.ended(now);
        if let Some(mut held) = self.inbound.take() {
            held.complete(judge(self.status, complete), None);
        }
        let took = now.saturating_duration_since(self.start);
        let seconds = took.as_secs_f64();
        if let Some(route) = &self.route {
            route.metrics.observe(&self.method, self.status, seconds);
        }
        if !self.span.is_none() {
            self.span
                .record("http.response.status_code", self.status.as_u16());
            if self.status.is_server_error() || !complete {
                self.span.record("otel.status_code", "ERROR");
            }
            self.span = Span::none();
        }
        if let Some(log) = &self.worker.log {
            log.line(now, |out| self.write(out, complete, took));
        }
    }

    fn write(&self, out: &mut Vec<u8>, complete: bool, took: Duration) {
        field(out, "method", self.method.as_str().as_bytes());
        field(out, "host", self.host.as_bytes());
        // Without the query: that is where tokens are.
        field(out, "path", self.uri.path().as_bytes());
        plain(out, "protocol", protocol(self.version).as_bytes());
        number(out, "status", self.status.as_u16());
        if let Some(route) = &self.route {
            field(out, "route", route.name.as_bytes());
        }
        if let Some(destination) = &self.destination {
            plain(out, "service", destination.name().as_str().as_bytes());
        }
        if let Some(upstream) = self.upstream {
            address(out, "upstream", upstream);
        }
        if let Some(cause) = self.degraded {
            plain(out, "degraded", cause.as_bytes());
        }
        if self.coalesced {
            plain(out, "coalesced", b"true");
        }
        number(out, "attempts", self.attempts);
        // Whole microseconds: writing a float costs more than the rest of the line.
        number(out, "duration_us", took.as_micros() as u64);
        number(out, "bytes_sent", self.sent);
        if !complete {
            // Downstream ended: Envoy's flag for an answer that was not taken whole.
            plain(out, "flag", b"DC");
        } else if !self.flag.is_empty() {
            plain(out, "flag", self.flag.as_bytes());
        }
        if let Some(id) = &self.request_id {
            field(out, "request_id", id.as_bytes());
        }
        if let Some(trace) = self.trace {
            plain(out, "trace_id", &trace.trace_hex());
        }
        address(out, "peer", self.peer);
    }
}

impl Exchange {
    /// Ends a request that nobody waits for any more. Source of the status: nginx.
    pub(crate) fn abandon(&mut self) {
        self.status = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
        self.end(false);
    }
}

/// What an exchange says of the service that it was with.
fn judge(status: StatusCode, complete: bool) -> Outcome {
    match status.as_u16() {
        _ if !complete => Outcome::Cancelled,
        429 => Outcome::RateLimited,
        504 => Outcome::Failure(FailureClass::Timeout),
        500..=599 => Outcome::Failure(FailureClass::ServerError),
        _ => Outcome::Success,
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// Looks on while the tries of a request are made.
pub(crate) struct Tries<'a> {
    exchange: &'a mut Exchange,
    destination: &'a Destination,
    span: Span,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(exchange: &'a mut Exchange, destination: &'a Destination) -> Self {
        Self {
            exchange,
            destination,
            span: Span::none(),
        }
    }
}

impl Hook<UpstreamKey> for Tries<'_> {
    fn started(&mut self, attempt: Attempt<'_, UpstreamKey>, head: &mut Parts) {
        self.exchange.attempts = attempt.number;
        self.exchange.upstream = Some(attempt.key.addr);
        if self.exchange.span.is_none() {
            return;
        }
        self.span = tracing::info_span!(
            target: "selvedge_span",
            parent: &self.exchange.span,
            "try",
            otel.kind = "client",
            otel.name = %format_args!("{} {}", self.exchange.method, self.destination.name()),
            otel.status_code = Empty,
            attempt = attempt.number,
            server.address = %attempt.key.addr.ip(),
            server.port = attempt.key.addr.port(),
            outcome = Empty,
        );
        if let Some(context) = context_of(&self.span) {
            context.inject(&mut head.headers);
        }
    }

    fn ended(&mut self, attempt: Attempt<'_, UpstreamKey>, outcome: Outcome, now: Instant) {
        let took = now.saturating_duration_since(attempt.began);
        let seconds = took.as_secs_f64();
        let metrics = self.destination.metrics();
        metrics.tried(attempt.number, outcome, seconds);
        if !self.span.is_none() {
            self.span.record("outcome", outcome.as_str());
            if outcome.is_failure() {
                self.span.record("otel.status_code", "ERROR");
            }
            self.span = Span::none();
        }
    }

    fn coalesced(&mut self) {
        self.exchange.coalesced = true;
    }

    fn degraded(&mut self, cause: Cause) {
        self.exchange.degraded = Some(cause.as_str());
        self.destination.metrics().degraded(cause);
    }
}
