//! Metric names, in one place, and the registry that shows them.
//!
//! OpenTelemetry's conventions come first (`http.server.request.duration`, in seconds), then
//! `selvedge.*`. Prometheus spells the dots as underscores and adds units and `_total`. What policies
//! count has a table of its own, in [`policies`](super::policies).

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Metric, Registry, Unit},
};

/// Every metric that a Selvedge process may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `http.server.request.duration`: requests answered, by route and status class.
    ServerRequestDuration,
    /// `http.server.active_requests`: requests under way.
    ServerActiveRequests,
    /// `http.client.request.duration`: tries made, by service and result.
    ClientRequestDuration,
    /// `selvedge.retry.attempts`: tries after the first, by service.
    RetryAttempts,
    /// `selvedge.policy.rejections`: calls refused, by policy and reason.
    PolicyRejections,
    /// `selvedge.request.refusals`: requests refused at the door, by reason.
    RequestRefusals,
    /// `selvedge.fallback.answers`: answers that stood in for another.
    FallbackAnswers,
    /// `selvedge.connections.active`: client connections.
    ConnectionsActive,
    /// `selvedge.access_log.dropped`: log lines that found their buffer full.
    AccessLogDropped,
    /// `selvedge.events.lost`: events of policies that nobody can read.
    EventsLost,
    /// `selvedge.config.rejected`: configurations that were refused.
    ConfigRejected,
    /// `selvedge.config.reloads`: configurations that were taken.
    ConfigReloads,
    /// `selvedge.registry.members`: servers, by state.
    RegistryMembers,
    /// `selvedge.registry.instances`: instances in the catalogue.
    RegistryInstances,
    /// `selvedge.registry.watchers`: watches open.
    RegistryWatchers,
    /// `selvedge.registry.renewals`: leases renewed.
    RegistryRenewals,
    /// `selvedge.registry.evictions`: leases that ran out.
    RegistryEvictions,
    /// `selvedge.gossip.io`: bytes of datagrams, by direction.
    GossipIo,
    /// `selvedge.gossip.dropped`: datagrams and messages dropped, by reason.
    GossipDropped,
    /// `selvedge.gossip.digest`: bytes of the digest last sent.
    GossipDigest,
    /// `selvedge.gossip.digests`: digests sent, by form.
    GossipDigests,
    /// `selvedge.gossip.events`: what happened to servers.
    GossipEvents,
    /// `selvedge.gossip.isolated`: whether this server is cut off.
    GossipIsolated,
    /// `selvedge.gossip.health_score`: how late this server runs itself.
    GossipHealthScore,
}

impl Name {
    /// The name as Prometheus spells it, without unit and `_total`, with its help text and unit.
    fn parts(self) -> (&'static str, &'static str, Option<Unit>) {
        let seconds = Some(Unit::Seconds);
        match self {
            Self::ServerRequestDuration => {
                ("http_server_request_duration", "Requests answered", seconds)
            }
            Self::ServerActiveRequests => {
                ("http_server_active_requests", "Requests under way", None)
            }
            Self::ClientRequestDuration => (
                "http_client_request_duration",
                "Tries made towards services",
                seconds,
            ),
            Self::RetryAttempts => ("selvedge_retry_attempts", "Tries after the first", None),
            Self::PolicyRejections => (
                "selvedge_policy_rejections",
                "Calls that a policy refused",
                None,
            ),
            Self::RequestRefusals => (
                "selvedge_request_refusals",
                "Requests refused at the door",
                None,
            ),
            Self::FallbackAnswers => (
                "selvedge_fallback_answers",
                "Answers that stood in for another",
                None,
            ),
            Self::ConnectionsActive => ("selvedge_connections_active", "Client connections", None),
            Self::AccessLogDropped => (
                "selvedge_access_log_dropped",
                "Access log lines that were dropped",
                None,
            ),
            Self::EventsLost => (
                "selvedge_events_lost",
                "Events of policies that came faster than they were collected",
                None,
            ),
            Self::ConfigRejected => (
                "selvedge_config_rejected",
                "Configurations that were refused",
                None,
            ),
            Self::ConfigReloads => (
                "selvedge_config_reloads",
                "Configurations that were taken",
                None,
            ),
            Self::RegistryMembers => ("selvedge_registry_members", "Registry servers", None),
            Self::RegistryInstances => (
                "selvedge_registry_instances",
                "Instances in the catalogue",
                None,
            ),
            Self::RegistryWatchers => ("selvedge_registry_watchers", "Watches open", None),
            Self::RegistryRenewals => ("selvedge_registry_renewals", "Leases renewed", None),
            Self::RegistryEvictions => ("selvedge_registry_evictions", "Leases that ran out", None),
            Self::GossipIo => ("selvedge_gossip_io", "Gossip datagrams", Some(Unit::Bytes)),
            Self::GossipDropped => (
                "selvedge_gossip_dropped",
                "Gossip datagrams and messages that were dropped",
                None,
            ),
            Self::GossipDigest => (
                "selvedge_gossip_digest",
                "The digest last sent",
                Some(Unit::Bytes),
            ),
            Self::GossipDigests => (
                "selvedge_gossip_digests",
                "Digests sent, in full or short",
                None,
            ),
            Self::GossipEvents => (
                "selvedge_gossip_events",
                "What happened to registry servers",
                None,
            ),
            Self::GossipIsolated => (
                "selvedge_gossip_isolated",
                "Whether this server is cut off from most others",
                None,
            ),
            Self::GossipHealthScore => (
                "selvedge_gossip_health_score",
                "How late this server runs itself, 0 to 7",
                None,
            ),
        }
    }
}

/// Buckets for request durations, in seconds.
///
/// Source: OpenTelemetry HTTP semantic conventions, advised boundaries.
pub const DURATION_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// The metrics of this process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// Shows `metric` under `name` from now on; hands it back.
    pub fn register<M: Metric + Clone>(&self, name: Name, metric: M) -> M {
        let (text, help, unit) = name.parts();
        let mut registry = self.0.lock();
        match unit {
            Some(unit) => registry.register_with_unit(text, help, unit, metric.clone()),
            None => registry.register(text, help, metric.clone()),
        }
        metric
    }

    /// Asks `collector` whenever somebody looks.
    pub(super) fn collect(&self, collector: impl Collector) {
        self.0.lock().register_collector(Box::new(collector));
    }

    /// Everything in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` does not fail.
        let _infallible = encode(&mut text, &self.0.lock());
        text
    }
}

/// One value of a metric that is asked for when somebody looks: its labels, and the number.
pub type Sample = (Vec<(&'static str, String)>, u64);

/// A metric whose values live elsewhere already; counting them twice would let them differ.
#[derive(Clone)]
pub struct Observed {
    kind: MetricType,
    read: Arc<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl Observed {
    /// A value that goes up and down.
    pub fn gauge(read: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self::gauges(move || vec![(Vec::new(), read())])
    }

    /// Values that go up and down, by label.
    pub fn gauges(read: impl Fn() -> Vec<Sample> + Send + Sync + 'static) -> Self {
        Self {
            kind: MetricType::Gauge,
            read: Arc::new(read),
        }
    }

    /// A value that only grows.
    pub fn counter(read: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self::counters(move || vec![(Vec::new(), read())])
    }

    /// Values that only grow, by label.
    pub fn counters(read: impl Fn() -> Vec<Sample> + Send + Sync + 'static) -> Self {
        Self {
            kind: MetricType::Counter,
            read: Arc::new(read),
        }
    }
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed")
            .field("samples", &(self.read)())
            .finish_non_exhaustive()
    }
}

impl EncodeMetric for Observed {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        for (labels, value) in (self.read)() {
            let labels: Vec<_> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let one = |encoder: &mut MetricEncoder<'_>| match self.kind {
                MetricType::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
                _ => encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
            };
            if labels.is_empty() {
                one(&mut encoder)?;
            } else {
                one(&mut encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::default();
        metrics
            .register(
                Name::ServerRequestDuration,
                Histogram::new(DURATION_BUCKETS),
            )
            .observe(0.2);
        metrics
            .register(Name::RetryAttempts, Counter::<u64>::default())
            .inc();
        let text = metrics.text();
        assert!(
            text.contains("http_server_request_duration_seconds_bucket{le=\"0.25\"} 1"),
            "{text}"
        );
        assert!(text.contains("selvedge_retry_attempts_total 1"), "{text}");
    }
    #[test]
    fn what_lives_elsewhere_is_read_when_somebody_looks() {
        let metrics = Metrics::default();
        let by_state = || vec![(vec![("state", "serving".to_owned())], 3)];
        metrics.register(Name::RegistryMembers, Observed::gauges(by_state));
        metrics.register(Name::RegistryEvictions, Observed::counter(|| 7));
        let text = metrics.text();
        for line in [
            "# TYPE selvedge_registry_members gauge",
            "selvedge_registry_members{state=\"serving\"} 3",
            "# TYPE selvedge_registry_evictions counter",
            "selvedge_registry_evictions_total 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
