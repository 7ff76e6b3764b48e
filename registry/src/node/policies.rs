//! What policies have counted, as Prometheus reads it.
//!
//! Cores count in atomics of their own, under OpenTelemetry's names. One collector walks all of
//! them when somebody scrapes, once, and sorts by metric what came by destination: a series is there
//! exactly as long as the destination is, and no call pays for it.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};
use selvedge_resilience::metrics::{Kind, Sample};

use super::metrics::Metrics;

/// Every metric of a policy, and what it says. Prometheus spells the dots as underscores and adds
/// the unit and `_total`.
pub const POLICY_METRICS: [(&str, &str); 58] = [
    ("selvedge.adaptive.dropped", "Calls that counted as dropped"),
    (
        "selvedge.adaptive.stale",
        "Samples of an epoch that was over",
    ),
    (
        "selvedge.adaptive.windows",
        "Windows that moved the limit, or confirmed it",
    ),
    ("selvedge.balancer.endpoints", "Endpoints of the service"),
    ("selvedge.balancer.picks", "Endpoints picked"),
    ("selvedge.breaker.calls", "Calls that ended, by outcome"),
    (
        "selvedge.breaker.exceeded",
        "Times a circuit that only measures would have opened",
    ),
    (
        "selvedge.breaker.failure.ratio",
        "Share of failed calls in the window",
    ),
    ("selvedge.breaker.inflight", "Calls under way"),
    (
        "selvedge.breaker.open.remaining",
        "Time left before the circuit probes",
    ),
    (
        "selvedge.breaker.rejected",
        "Calls that the circuit refused, by reason",
    ),
    (
        "selvedge.breaker.slow",
        "Calls that took longer than the slow threshold",
    ),
    (
        "selvedge.breaker.slow.ratio",
        "Share of slow calls in the window",
    ),
    (
        "selvedge.breaker.stale",
        "Results of an epoch that was over",
    ),
    (
        "selvedge.breaker.state",
        "1 for the state that the circuit is in",
    ),
    (
        "selvedge.breaker.transitions",
        "Changes of the circuit's state",
    ),
    (
        "selvedge.coalesce.ended",
        "Calls that waited for another's, by how their wait ended",
    ),
    (
        "selvedge.coalesce.followers",
        "Calls that began to wait for another's",
    ),
    (
        "selvedge.coalesce.full",
        "Calls that went by themselves for want of room",
    ),
    (
        "selvedge.coalesce.inflight",
        "Calls under way that others may wait for",
    ),
    (
        "selvedge.coalesce.leaders",
        "Calls made that others could wait for",
    ),
    ("selvedge.coalesce.waiting", "Calls that wait for another's"),
    (
        "selvedge.fault.active",
        "Calls that suffer an injected fault",
    ),
    ("selvedge.fault.injected", "Faults injected, by kind"),
    (
        "selvedge.fault.overflow",
        "Calls spared because too many suffered",
    ),
    ("selvedge.hedge.sent", "Hedges sent"),
    (
        "selvedge.hedge.unsent",
        "Hedges that were due and not sent, by reason",
    ),
    (
        "selvedge.hedge.wasted",
        "Hedges whose answer was not the first good one",
    ),
    (
        "selvedge.hedge.won",
        "Hedges whose answer was the first good one",
    ),
    ("selvedge.keyed.capacity", "Callers that may be told apart"),
    ("selvedge.keyed.evicted", "Callers forgotten to make room"),
    (
        "selvedge.keyed.expired",
        "Callers forgotten because they were idle",
    ),
    ("selvedge.keyed.inserted", "Callers taken in"),
    ("selvedge.keyed.removed", "Callers removed by hand"),
    ("selvedge.keyed.tracked", "Callers told apart"),
    ("selvedge.keyed.untracked", "Lookups that found no room"),
    ("selvedge.limit.inflight", "Calls that hold a slot"),
    ("selvedge.limit.limit", "Calls that may hold one"),
    (
        "selvedge.limit.refused",
        "Calls that found no slot, by reason",
    ),
    ("selvedge.limit.waiting", "Calls that wait for a slot"),
    (
        "selvedge.outlier.ejected",
        "Endpoints that are out by their results",
    ),
    ("selvedge.outlier.ejections", "Endpoints ejected, by cause"),
    (
        "selvedge.outlier.overflow",
        "Ejections that the maximum share did not allow",
    ),
    (
        "selvedge.policy.config.generation",
        "Configurations taken since the first",
    ),
    ("selvedge.rate_limit.refused", "Calls beyond the rate"),
    (
        "selvedge.rate_limit.remaining",
        "Calls that may begin at once",
    ),
    (
        "selvedge.retry.budget.balance",
        "Retries that the budget would pay for",
    ),
    (
        "selvedge.retry.budget.inflight",
        "Calls under way, and retries and hedges of them",
    ),
    (
        "selvedge.retry.budget.refused",
        "Retries and hedges that were not paid for, by reason",
    ),
    (
        "selvedge.retry.budget.withdrawn",
        "Retries and hedges that were paid for",
    ),
    (
        "selvedge.retry.cost.refused",
        "Retries that the bucket of costs did not pay for",
    ),
    (
        "selvedge.retry.cost.tokens",
        "Tokens in the bucket of costs",
    ),
    (
        "selvedge.shed.cursor",
        "The first priority that does not pass as a whole",
    ),
    ("selvedge.shed.overloaded", "Windows that were overloaded"),
    ("selvedge.shed.refused", "Requests shed"),
    (
        "selvedge.shed.waiting",
        "Requests admitted that have not begun",
    ),
    (
        "selvedge.throttle.probability",
        "Probability with which the next call is kept back",
    ),
    ("selvedge.throttle.refused", "Calls kept back"),
];

/// A label whose value is not one of a fixed set: whose sample it is.
pub type Owner<'a> = (&'static str, &'a str);

/// Takes a sample of `owner`; its own label `name` gives way to that.
pub type TakeSample<'t> = dyn FnMut(&[Owner<'_>], &Sample<'_>) + 't;

impl Metrics {
    /// Shows what `read` hands over whenever somebody looks.
    ///
    /// No two samples of one metric may have the same owner and labels.
    pub fn observe_policies(&self, read: impl Fn(&mut TakeSample<'_>) + Send + Sync + 'static) {
        self.collect(Policies(Box::new(read)));
    }
}

struct Policies(Box<dyn Fn(&mut TakeSample<'_>) + Send + Sync>);

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Series {
    kind: Option<Kind>,
    values: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Collector for Policies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metrics = BTreeMap::<&'static str, Series>::new();
        (self.0)(&mut |owner, sample| {
            let series = metrics.entry(sample.metric).or_default();
            series.kind = Some(sample.kind);
            series.values.push((labels(owner, sample), sample.value));
        });
        for (metric, series) in metrics {
            let kind = match series.kind {
                Some(Kind::Counter) => MetricType::Counter,
                _ => MetricType::Gauge,
            };
            let unit = metric.ends_with(".remaining").then_some(Unit::Seconds);
            let unit = unit.filter(|_| metric.starts_with("selvedge.breaker."));
            let name = metric.replace('.', "_");
            let help = format!("{}.", help(metric));
            let mut family = encoder.encode_descriptor(&name, &help, unit.as_ref(), kind)?;
            for (labels, value) in &series.values {
                let mut one = family.encode_family(labels)?;
                match series.kind {
                    // Whole below 2⁵³: written as such.
                    Some(Kind::Counter) => {
                        one.encode_counter::<NoLabelSet, u64, u64>(&(*value as u64), None)?;
                    }
                    _ => one.encode_gauge(value)?,
                }
            }
        }
        Ok(())
    }
}

fn labels(owner: &[Owner<'_>], sample: &Sample<'_>) -> Vec<(&'static str, String)> {
    let own = sample.labels.iter().filter(|(label, _)| *label != "name");
    let own = own.map(|(label, value)| (*label, Cow::clone(value).into_owned()));
    let owner = owner
        .iter()
        .map(|(label, value)| (*label, (*value).to_owned()));
    owner.chain(own).collect()
}

fn help(metric: &str) -> &'static str {
    let known = POLICY_METRICS.iter().find(|(name, _)| *name == metric);
    known.map_or("Of a policy", |(_, help)| help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_sorted_by_metric_and_told_apart_by_owner() {
        let metrics = Metrics::default();
        metrics.observe_policies(|take| {
            for service in ["orders", "stock"] {
                let mut sample = Sample {
                    metric: "selvedge.breaker.rejected",
                    kind: Kind::Counter,
                    labels: vec![("policy", "breaker".into()), ("name", "x".into())],
                    value: 3.0,
                };
                take(&[("service", service)], &sample);
                sample.metric = "selvedge.breaker.open.remaining";
                (sample.kind, sample.value) = (Kind::Gauge, 0.25);
                take(&[("service", service)], &sample);
            }
        });
        let text = metrics.text();
        for line in [
            "# HELP selvedge_breaker_rejected Calls that the circuit refused, by reason.",
            "# TYPE selvedge_breaker_rejected counter",
            r#"selvedge_breaker_rejected_total{service="orders",policy="breaker"} 3"#,
            r#"selvedge_breaker_rejected_total{service="stock",policy="breaker"} 3"#,
            "# TYPE selvedge_breaker_open_remaining_seconds gauge",
            r#"selvedge_breaker_open_remaining_seconds{service="stock",policy="breaker"} 0.25"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        let headers = text.lines().filter(|line| line.starts_with("# TYPE"));
        assert_eq!(headers.count(), 2, "{text}");
    }
}
