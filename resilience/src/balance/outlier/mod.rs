//! Outlier ejection: leaving out the endpoint that is worse than its peers.
//!
//! One bad instance among ten fails a tenth of all calls, and nobody but the callers sees it: its
//! health check may well answer. The callers' own results are the fastest witness. But a judge who
//! sees only one endpoint cannot tell "it is broken" from "everything is", so each endpoint is
//! also compared with the others, and only so many may be out at once.
//!
//! | how it fails | what sees it |
//! |---|---|
//! | every call, at once | failures in a row: 5xx, gateway errors, connections |
//! | some calls, more than its peers | success rate: below mean − 1.9 σ of all, and by a gap |
//! | most calls, where σ is blind (few endpoints, many bad) | failure percentage |
//! | answers, but late | latency: its median against the median of all |
//!
//! Failures in a row are judged when a call ends. The rest is judged once an interval, by whichever
//! pick comes first after its end (or by [`Balancer::tick`](super::Balancer::tick)): a core has no
//! timers, and an endpoint that nobody calls needs no judgement. An interval that nobody closed in
//! time says nothing and is dropped.
//!
//! # Source
//! Envoy outlier detection, with what its users asked for: of two or more endpoints at least one
//! may always be ejected, near-equals are not ejected, latency counts (envoy #288). nginx
//! `max_fails` for refused connections.

mod config;
mod health;
mod histogram;
#[cfg(all(test, loom))]
mod models;
mod sweep;

pub use self::config::{
    FailurePercentageConfig, LatencyOutlierConfig, OutlierConfig, SuccessRateConfig,
};
pub(super) use self::{
    health::{Health, Places, Verdict},
    histogram::Histogram,
    sweep::{Sample, judge},
};

/// What an endpoint was ejected for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Failed answers in a row.
    Consecutive5xx,
    /// Gateway errors in a row.
    ConsecutiveGateway,
    /// Failures to reach it in a row, of any kind.
    ConsecutiveLocalOrigin,
    /// Failed connections in a row.
    ConsecutiveConnect,
    /// A success rate well below that of its peers.
    SuccessRate,
    /// Too many of its calls failed.
    FailurePercentage,
    /// Much slower than its peers.
    Latency,
}

impl Cause {
    /// All of them, in the order of their counters.
    pub const ALL: &'static [Self] = &[
        Self::Consecutive5xx,
        Self::ConsecutiveGateway,
        Self::ConsecutiveLocalOrigin,
        Self::ConsecutiveConnect,
        Self::SuccessRate,
        Self::FailurePercentage,
        Self::Latency,
    ];

    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGateway => "consecutive_gateway",
            Self::ConsecutiveLocalOrigin => "consecutive_local_origin",
            Self::ConsecutiveConnect => "consecutive_connect",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::Latency => "latency",
        }
    }
}
