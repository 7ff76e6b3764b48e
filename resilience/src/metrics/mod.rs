//! Counters and gauges of the policies, as samples that any exporter can take.
//!
//! A core counts in atomics and knows no metrics library. Whoever exports asks each core for its
//! samples when it is scraped, and pays then: nothing on the path of a call.
//!
//! Names are OpenTelemetry's form, `selvedge.<noun>.<what>`; `registry::node::metrics` renders them
//! for Prometheus (dots to underscores, `_total` on counters). Every sample has the labels `policy`
//! and `name`, and those that its metric adds; their values come from bounded sets.
//!
//! | metric | kind | adds |
//! |---|---|---|
//! | `selvedge.breaker.state` | gauge, 1 for the state that is | `state` |
//! | `selvedge.breaker.transitions` | counter | `from`, `to`, `cause` |
//! | `selvedge.breaker.calls` | counter | `outcome` |
//! | `selvedge.breaker.rejected` | counter | `reason` |
//! | `selvedge.breaker.slow`, `.stale`, `.exceeded` | counter | |
//! | `selvedge.breaker.inflight` | gauge | |
//! | `selvedge.breaker.failure.ratio`, `.slow.ratio` | gauge; absent below the minimum of calls | |
//! | `selvedge.breaker.open.remaining` | gauge, seconds | |
//! | `selvedge.policy.config.generation` | gauge | |
//! | `selvedge.limit.inflight`, `.limit`, `.waiting` | gauge, of policy `bulkhead` or `adaptive_limit` | |
//! | `selvedge.limit.refused` | counter | `reason` |
//! | `selvedge.adaptive.dropped`, `.stale`, `.windows` | counter | |
//! | `selvedge.rate_limit.remaining` | gauge; absent where each caller has its own | |
//! | `selvedge.rate_limit.refused` | counter | |
//! | `selvedge.retry.budget.balance` | gauge | |
//! | `selvedge.retry.budget.inflight` | gauge | `kind`: `call`, `extra` |
//! | `selvedge.retry.budget.withdrawn` | counter | |
//! | `selvedge.retry.budget.refused` | counter | `reason` |
//! | `selvedge.retry.cost.tokens` | gauge | |
//! | `selvedge.retry.cost.refused` | counter | `reason` |
//! | `selvedge.hedge.sent`, `.won`, `.wasted` | counter | |
//! | `selvedge.hedge.unsent` | counter | `reason` |
//! | `selvedge.throttle.probability` | gauge | |
//! | `selvedge.throttle.refused` | counter | `reason` |
//! | `selvedge.outlier.ejections` | counter | `cause` |
//! | `selvedge.outlier.overflow` | counter | |
//! | `selvedge.outlier.ejected`, `selvedge.balancer.endpoints` | gauge | |
//! | `selvedge.balancer.picks` | counter | |
//! | `selvedge.fault.injected` | counter | `kind`: `delay`, `abort` |
//! | `selvedge.fault.active` | gauge | |
//! | `selvedge.fault.overflow` | counter | |
//! | `selvedge.shed.cursor`, `.waiting` | gauge; the first priority that does not pass, 65 536 if all do | |
//! | `selvedge.shed.refused` | counter | `reason` |
//! | `selvedge.shed.overloaded` | counter | |
//! | `selvedge.coalesce.inflight`, `.waiting` | gauge | |
//! | `selvedge.coalesce.leaders`, `.followers`, `.full` | counter | |
//! | `selvedge.coalesce.ended` | counter, followers by how their wait ended | `end` |
//! | `selvedge.keyed.tracked`, `.capacity` | gauge | |
//! | `selvedge.keyed.inserted`, `.expired`, `.evicted`, `.removed`, `.untracked` | counter | |
//!
//! A circuit, a [`Stack`](crate::layer::Stack) and an [`Inbound`](crate::layer::Inbound) are
//! [`Samples`]; a section that its policy does not have has no samples.

use std::{borrow::Cow, time::Instant};

use crate::outcome::Reason;

// Without the layers a breaker is all that tells of itself.
#[cfg_attr(not(feature = "tower"), expect(dead_code))]
pub(crate) mod cores;

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It is what it is now.
    Gauge,
}

/// One number with its name and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// The metric, as `selvedge.breaker.transitions`.
    pub metric: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// Label names and values; the names are in a fixed order for each metric.
    pub labels: Vec<(&'static str, Cow<'a, str>)>,
    /// Counters are whole; beyond 2⁵³ they lose their last digits.
    pub value: f64,
}

/// Something that has numbers to show.
pub trait Samples {
    /// Calls `take` with every sample at `now`. Reads atomics; locks nothing that a call needs.
    fn samples<'a>(&'a self, now: Instant, take: &mut dyn FnMut(Sample<'a>));

    /// The same as a list.
    fn to_samples(&self, now: Instant) -> Vec<Sample<'_>> {
        let mut all = Vec::new();
        self.samples(now, &mut |sample| all.push(sample));
        all
    }
}

/// Builds samples that share their first labels.
pub(crate) struct Emitter<'a, 'b> {
    pub(crate) policy: &'static str,
    pub(crate) name: &'a str,
    pub(crate) take: &'b mut dyn FnMut(Sample<'a>),
}

impl<'a, 'b> Emitter<'a, 'b> {
    /// Of what is called `name`; each core sets its policy.
    pub(crate) fn new(name: &'a str, take: &'b mut dyn FnMut(Sample<'a>)) -> Self {
        Self {
            policy: "",
            name,
            take,
        }
    }

    /// A counter for each reason.
    pub(crate) fn reasons(
        &mut self,
        metric: &'static str,
        counts: impl IntoIterator<Item = (Reason, u64)>,
    ) {
        for (reason, count) in counts {
            self.counter(metric, count, &[("reason", reason.as_str())]);
        }
    }

    fn emit(
        &mut self,
        kind: Kind,
        metric: &'static str,
        value: f64,
        more: &[(&'static str, &'static str)],
    ) {
        let own = [("policy", self.policy), ("name", self.name)];
        let mut labels = Vec::with_capacity(own.len() + more.len());
        for &(label, value) in &own {
            labels.push((label, Cow::Borrowed(value)));
        }
        for &(label, value) in more {
            labels.push((label, Cow::Borrowed(value)));
        }
        (self.take)(Sample {
            metric,
            kind,
            labels,
            value,
        });
    }

    pub(crate) fn counter(
        &mut self,
        metric: &'static str,
        value: u64,
        more: &[(&'static str, &'static str)],
    ) {
        self.emit(Kind::Counter, metric, value as f64, more);
    }

    pub(crate) fn gauge(
        &mut self,
        metric: &'static str,
        value: f64,
        more: &[(&'static str, &'static str)],
    ) {
        self.emit(Kind::Gauge, metric, value, more);
    }
}
