//! The seam between the data path and who knows where requests go.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::{StatusCode, request::Parts};

use selvedge_resilience::layer::Inbound;

use crate::{Admitted, Destination, Limits, RouteMetrics};

/// One listener's mind: the gateway's routes, the sidecar's inbound and outbound sides.
pub trait Door: Send + Sync + 'static {
    /// Where an admitted request goes.
    ///
    /// Called once a request on the thread that carries it: no I/O, no waiting.
    ///
    /// # Errors
    /// [`Refusal`]: what the client is told instead.
    fn route(&self, admitted: &Admitted, head: &Parts) -> Result<Routed, Refusal>;

    /// What clients may take.
    fn rules(&self) -> &Rules;

    /// What a routed request must pass before it is sent on; nothing, where this door is not the
    /// one that protects what is behind it.
    fn guard(&self, routed: &Routed) -> Option<Inbound> {
        let _ = routed;
        None
    }
}

/// What clients of a listener may take.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Of a request's head.
    pub limits: Limits,
    /// Bytes of a request's body; more is answered 413. `None`: any size, streamed.
    pub body: Option<u64>,
    /// Requests at once on an HTTP/2 connection. Default 100: RFC 9113 §6.5.2's least.
    pub h2_streams: u32,
    /// From a head's first byte to its last. Default 10 s, in all, however much it drips.
    pub header_timeout: Duration,
    /// Without a request. Default 75 s: nginx `keepalive_timeout`.
    pub idle_timeout: Duration,
    /// Whether anybody's `x-priority` is believed; else only a trusted proxy's. Default false:
    /// strangers find themselves all critical.
    pub believe_priority: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            body: None,
            h2_streams: 100,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            believe_priority: false,
        }
    }
}

/// What a route is called, and what is counted of it.
#[derive(Debug)]
pub struct Route {
    /// For logs.
    pub name: Arc<str>,
    /// For metrics.
    pub metrics: RouteMetrics,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Routed {
    /// By which rule.
    pub route: Arc<Route>,
    /// To which service.
    pub destination: Arc<Destination>,
    /// The path to send, if not the one that came; without a query.
    pub path: Option<String>,
    /// All tries together, if not as the destination's policy says; zero is for ever.
    pub timeout: Option<Duration>,
}

/// A request that ends at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The answer.
    pub status: StatusCode,
    /// A stable word for metrics, logs and the problem's type.
    pub reason: &'static str,
    /// The reason for people.
    pub title: Cow<'static, str>,
    /// When it may be worth coming back.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal for good.
    pub fn new(
        status: StatusCode,
        reason: &'static str,
        title: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            reason,
            title: title.into(),
            retry_after: None,
        }
    }

    /// Nothing is served here under that name.
    pub fn not_found(title: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-route", title)
    }
}
