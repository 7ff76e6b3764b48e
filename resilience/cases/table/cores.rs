//! One core each: numbers and states that mean nothing to a host.

use std::collections::BTreeMap;

use selvedge_resilience::{
    adaptive::{AdaptiveConfig, AlgorithmConfig, CubicConfig},
    breaker::BreakerConfig,
    config::{BackoffRange, Millis, Rate, Ratio},
    outcome::{FailureClass, Outcome},
    throttle::Form,
};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{At, Reading, calls::one};

/// How a call ended, by [`Outcome::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended(pub Outcome);

impl<'de> Deserialize<'de> for Ended {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use FailureClass as Class;
        let text = String::deserialize(d)?;
        let classes = [
            Class::Connect,
            Class::Timeout,
            Class::Reset,
            Class::ServerError,
            Class::Gateway,
            Class::Protocol,
            Class::Other,
        ];
        let others = [
            Outcome::Success,
            Outcome::RateLimited,
            Outcome::Ignored,
            Outcome::Cancelled,
        ];
        classes
            .map(Outcome::Failure)
            .into_iter()
            .chain(others)
            .find(|outcome| outcome.as_str() == text)
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no outcome")))
    }
}

/// One breaker.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    pub name: String,
    pub source: String,
    pub config: BreakerConfig,
    pub steps: Vec<BreakerStep>,
}

/// First the operator, then calls, then a reading.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakerStep {
    /// When the result is told.
    #[serde(default)]
    pub at: At,
    pub operator: Option<Operator>,
    /// The operator's word is refused.
    #[serde(default)]
    pub illegal: bool,
    /// Results of calls that began `took` before; each must be admitted.
    #[serde(default)]
    pub ended: Vec<Ended>,
    #[serde(default)]
    pub took: At,
    #[serde(default = "one")]
    pub times: u32,
    /// A call asks and is refused for this reason.
    pub denied: Option<String>,
    pub read: Option<Reading>,
}

/// What an operator does.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    ForceOpen,
    Disable,
    MetricsOnly,
    Reset,
    Open,
    HalfOpen,
    OpenFor(Millis),
    OpenUntil(Millis),
}

/// A rule of the adaptive limit. One that begins by measuring takes the first sample for that.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    pub name: String,
    pub source: String,
    pub algorithm: AlgorithmConfig,
    pub initial: u32,
    pub min: u32,
    pub max: u32,
    /// What each window saw, and the limit after it.
    pub samples: Vec<AdaptiveSample>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveSample {
    /// Milliseconds.
    #[serde(default)]
    pub rtt: f64,
    pub in_flight: u32,
    #[serde(default)]
    pub dropped: bool,
    pub limit: u32,
}

/// A limit, or a rate, that moves by the rule "cubic".
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cubic {
    pub name: String,
    pub source: String,
    pub config: CubicConfig,
    /// What it was before the last drop, and when that was, in seconds.
    pub top: f64,
    pub since: f64,
    pub points: Vec<CubicPoint>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CubicPoint {
    /// In seconds.
    pub at: f64,
    /// A drop: it becomes a share of what it was, which is the top from then on.
    #[serde(default)]
    pub dropped: bool,
    pub is: f64,
}

/// The shares of an adaptive limit's partitions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partitions {
    pub name: String,
    pub source: String,
    pub config: AdaptiveConfig,
    pub steps: Vec<PartitionStep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionStep {
    /// The class that asks or gives back; all give back everything if it is not said.
    pub class: Option<String>,
    /// Asks so often.
    #[serde(default)]
    pub ask: u32,
    /// So many are admitted.
    #[serde(default)]
    pub admitted: u32,
    /// Gives so many back.
    #[serde(default)]
    pub release: u32,
    /// A new configuration takes force.
    pub config: Option<AdaptiveConfig>,
    /// What a class is sure of.
    #[serde(default)]
    pub shares: BTreeMap<String, u32>,
}

/// The retry budget.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub name: String,
    pub source: String,
    pub ratio: f64,
    /// Either so many a second or so many a `ttl`.
    #[serde(default)]
    pub min_per_second: i64,
    pub reserve: Option<u64>,
    pub ttl: Millis,
    /// It cannot be made, because of this field.
    pub refused: Option<String>,
    pub steps: Vec<BudgetStep>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetStep {
    pub at: At,
    pub deposit: u32,
    /// Withdrawals that succeed.
    pub take: u32,
    /// Then one fails.
    pub then_empty: bool,
    pub balance: Option<u64>,
}

/// The cost bucket.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    pub name: String,
    pub source: String,
    pub config: selvedge_resilience::retry::cost::CostConfig,
    pub steps: Vec<BucketStep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketStep {
    /// What the try came to; a success ends the call and its retries.
    pub ended: Ended,
    pub tokens: u32,
}

/// Waits before tries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    pub name: String,
    pub source: String,
    pub range: BackoffRange,
    /// Grows by this step each time, instead of doubling.
    pub step: Option<Millis>,
    pub waits: Vec<Millis>,
}

/// The rate limit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub name: String,
    pub source: String,
    pub rate: Rate,
    pub steps: Vec<RateStep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateStep {
    #[serde(default)]
    pub at: At,
    /// Cells for each call.
    #[serde(default = "one")]
    pub cells: u32,
    /// So many calls pass.
    #[serde(default)]
    pub pass: u32,
    /// Then one is told to wait so long.
    pub wait: Option<Millis>,
    /// Then one will never pass, because the burst is this.
    #[serde(default)]
    pub never: bool,
    /// What is left then.
    pub remaining: Option<u32>,
}

/// A formula of the throttle.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    pub name: String,
    pub source: String,
    pub form: Form,
    /// The cap; not written: none.
    pub max: Option<Ratio>,
    /// Requests, accepts, probability.
    pub points: Vec<(u64, u64, f64)>,
    /// How exact a probability is written.
    pub within: f64,
}

/// Ejections among some endpoints.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outlier {
    pub name: String,
    pub source: String,
    pub config: selvedge_resilience::balance::OutlierConfig,
    pub endpoints: u32,
    pub steps: Vec<OutlierStep>,
}

/// First calls, then the interval's end if it is due, then a look at endpoint 0.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutlierStep {
    #[serde(default)]
    pub at: At,
    /// Results of calls to endpoint 0, or to all.
    #[serde(default)]
    pub ended: Vec<Ended>,
    #[serde(default)]
    pub all: bool,
    #[serde(default = "one")]
    pub times: u32,
    /// How long endpoint 0 is still out; "0s" is in.
    pub out_for: Option<Millis>,
    /// Whether calls reach it.
    pub picked: Option<bool>,
    /// Ejections of all endpoints so far.
    pub ejections: Option<u64>,
}

/// The cost of one endpoint under peak EWMA.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ewma {
    pub name: String,
    pub source: String,
    /// The time constant; one unit of the samples is a second.
    pub decay: Millis,
    /// Time, round trip, cost after it.
    pub samples: Vec<(u64, u64, f64)>,
    /// Of fifty calls that are then left open, so many go to an endpoint that has just joined.
    pub newcomer_picks: Option<u32>,
}

/// What headers mean, or are written as.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Headers {
    pub name: String,
    pub source: String,
    pub what: What,
    pub lines: Vec<HeaderLine>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// `value` is a `grpc-timeout`, `gives` its length.
    GrpcTimeout,
    /// `value` is the `Retry-After` of `status`, `gives` what is waited at most `cap`.
    RetryAfter,
    /// `value` is a `grpc-retry-pushback-ms`, `gives` the wait; nothing is "do not".
    Pushback,
    /// `value` is `policy; count; per; remaining; reset`, `writes` the two fields.
    RateLimit,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderLine {
    pub value: String,
    pub status: Option<u16>,
    pub cap: Option<Millis>,
    pub gives: Option<Millis>,
    #[serde(default)]
    pub writes: Vec<String>,
}
