//! What the behaviour tables beside this file hold, and how they are read.
//!
//! One policy, several hosts: the library's cores, its Tower stack, the sidecar, the gateway. That
//! they behave alike is worth only what is checked, so what is expected is written down once, as
//! data, and each host has a driver that runs it. This file is what the drivers share. It is
//! included by path, `#[path = "…/resilience/cases/table.rs"] mod table;`, and not a module of the
//! crate: a test's vocabulary is no API, and a feature for it would be on for every build of the
//! workspace that has tests.
//!
//! # A file
//! ```toml
//! kind = "calls"
//! [[case]]
//! name = "…"        # unique among all files
//! source = "…"      # which system's test, or why it must be so
//! policy = { breaker = { consecutive = 3 } }
//! steps = [
//!     { call = 503, times = 3, want = 503 },
//!     { at = "1s", call = 200, want = "breaker: open", retry_after = "4s", read = { breaker = "open" } },
//! ]
//! ```
//!
//! Only `calls` mean something to every host: requests, a callee that does as it is told, answers.
//! The other kinds are numbers and states of one core. A driver names the kinds that it runs and
//! says how many cases there were; a kind that nobody knows, a folder without tables and a table
//! without cases are failures.
//!
//! Times are whole milliseconds (Tokio's timers know no others) and no two things that depend on
//! each other may happen at the same time, so that every host has one answer.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::len_without_is_empty,
    reason = "included by drivers that each use the kinds and fields that their host knows"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    path::Path,
};

use selvedge_resilience::{
    TrafficPolicy,
    adaptive::{AdaptiveConfig, AlgorithmConfig, CubicConfig},
    breaker::BreakerConfig,
    config::{BackoffRange, Millis, Rate, Ratio},
    outcome::{FailureClass, Outcome},
    throttle::Form,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};

/// Every table of a folder, by kind.
#[derive(Debug, Default)]
pub struct Tables {
    /// Scripted calls through a whole policy: for every host.
    pub calls: Vec<Calls>,
    /// One breaker, told of results and by an operator.
    pub breaker: Vec<Breaker>,
    /// A rule of the adaptive limit: samples in, limits out. Run by the crate's unit tests, as the
    /// rule alone is no public item.
    pub adaptive: Vec<Adaptive>,
    /// The curve of the rule "cubic".
    pub cubic: Vec<Cubic>,
    /// The shares of an adaptive limit's partitions.
    pub partitions: Vec<Partitions>,
    /// The retry budget.
    pub budget: Vec<Budget>,
    /// The cost bucket.
    pub bucket: Vec<Bucket>,
    /// Waits before tries.
    pub backoff: Vec<Backoff>,
    /// The rate limit.
    pub rate_limit: Vec<RateLimit>,
    /// The throttle's formulas.
    pub throttle: Vec<Throttle>,
    /// Ejections.
    pub outlier: Vec<Outlier>,
    /// Costs of peak EWMA.
    pub ewma: Vec<Ewma>,
    /// Values of headers.
    pub headers: Vec<Headers>,
}

impl Tables {
    /// Reads every `*.toml` of `dir`.
    pub fn read(dir: &Path) -> Self {
        let mut all = Self::default();
        let entries =
            std::fs::read_dir(dir).unwrap_or_else(|e| panic!("read {}: {e}", dir.display()));
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("entry of the folder").path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "no tables in {}", dir.display());
        for path in paths {
            let text = std::fs::read_to_string(&path).expect("a table is text");
            let read = all.add(&text);
            read.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        all.check_names();
        all
    }

    /// Adds one file's cases.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        #[derive(Deserialize)]
        struct Head {
            kind: String,
        }
        let head: Head = toml::from_str(text).map_err(|e| e.to_string())?;
        match head.kind.as_str() {
            "calls" => take(text, &mut self.calls),
            "breaker" => take(text, &mut self.breaker),
            "adaptive" => take(text, &mut self.adaptive),
            "cubic" => take(text, &mut self.cubic),
            "partitions" => take(text, &mut self.partitions),
            "budget" => take(text, &mut self.budget),
            "bucket" => take(text, &mut self.bucket),
            "backoff" => take(text, &mut self.backoff),
            "rate_limit" => take(text, &mut self.rate_limit),
            "throttle" => take(text, &mut self.throttle),
            "outlier" => take(text, &mut self.outlier),
            "ewma" => take(text, &mut self.ewma),
            "headers" => take(text, &mut self.headers),
            other => Err(format!("no driver knows the kind {other:?}")),
        }
    }

    /// How many cases of each kind there are.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("calls", self.calls.len()),
            ("breaker", self.breaker.len()),
            ("adaptive", self.adaptive.len()),
            ("cubic", self.cubic.len()),
            ("partitions", self.partitions.len()),
            ("budget", self.budget.len()),
            ("bucket", self.bucket.len()),
            ("backoff", self.backoff.len()),
            ("rate_limit", self.rate_limit.len()),
            ("throttle", self.throttle.len()),
            ("outlier", self.outlier.len()),
            ("ewma", self.ewma.len()),
            ("headers", self.headers.len()),
        ])
    }

    /// The names of all cases.
    pub fn names(&self) -> Vec<&str> {
        fn of<T: Case>(cases: &[T]) -> impl Iterator<Item = &str> {
            cases.iter().map(Case::name)
        }
        of(&self.calls)
            .chain(of(&self.breaker))
            .chain(of(&self.adaptive))
            .chain(of(&self.cubic))
            .chain(of(&self.partitions))
            .chain(of(&self.budget))
            .chain(of(&self.bucket))
            .chain(of(&self.backoff))
            .chain(of(&self.rate_limit))
            .chain(of(&self.throttle))
            .chain(of(&self.outlier))
            .chain(of(&self.ewma))
            .chain(of(&self.headers))
            .collect()
    }

    fn check_names(&self) {
        let mut seen = BTreeSet::new();
        for name in self.names() {
            assert!(seen.insert(name), "two cases are called {name:?}");
        }
    }
}

fn take<T: Case + DeserializeOwned>(text: &str, into: &mut Vec<T>) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File<T> {
        #[serde(rename = "kind")]
        _kind: String,
        case: Vec<T>,
    }
    let file: File<T> = toml::from_str(text).map_err(|e| e.to_string())?;
    if file.case.is_empty() {
        return Err("a table without cases".to_owned());
    }
    for case in &file.case {
        if case.len() == 0 {
            return Err(format!("{} expects nothing", case.name()));
        }
    }
    into.extend(file.case);
    Ok(())
}

/// What all kinds have.
pub trait Case: Debug {
    /// What a failure is reported under.
    fn name(&self) -> &str;
    /// How many steps or values it has.
    fn len(&self) -> usize;
}

macro_rules! case {
    ($($kind:ident . $steps:ident),+ $(,)?) => {
        $(impl Case for $kind {
            fn name(&self) -> &str {
                &self.name
            }
            fn len(&self) -> usize {
                self.$steps.len()
            }
        })+
    };
}

case!(
    Calls.steps,
    Breaker.steps,
    Adaptive.samples,
    Cubic.points,
    Partitions.steps,
    Budget.steps,
    Bucket.steps,
    Backoff.waits,
    RateLimit.steps,
    Throttle.points,
    Outlier.steps,
    Ewma.samples,
    Headers.lines,
);

// ---- calls ------------------------------------------------------------------------------------

/// Calls through a whole policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calls {
    pub name: String,
    pub source: String,
    pub policy: TrafficPolicy,
    pub steps: Vec<Step>,
}

/// What happens at one time: first a change, then a call, then a reading.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Since the case began; never earlier than the step before.
    #[serde(default)]
    pub at: At,
    /// A new policy takes force.
    pub policy: Option<TrafficPolicy>,
    /// The body that the call of this label holds open ends well.
    pub ends: Option<String>,
    /// The caller of this label gives up.
    pub drop: Option<String>,
    /// A call: what the callee does at each try; at tries beyond the last, as at the last.
    pub call: Option<Tries>,
    /// Makes that many calls, one after the other has ended or hangs.
    #[serde(default = "one")]
    pub times: u32,
    /// What other steps call it.
    #[serde(rename = "as")]
    pub label: Option<String>,
    /// The request's method. Default GET.
    pub method: Option<String>,
    /// Its path and query. Default "/".
    pub path: Option<String>,
    /// The request's headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The request's body. Default none.
    pub sends: Option<String>,
    /// What its caller sees; must be said unless the call is dropped.
    pub want: Option<Want>,
    /// With a refusal: when to come back, to the millisecond, rounded up.
    pub retry_after: Option<Millis>,
    /// How many tries reached the callee.
    pub tries: Option<u32>,
    /// How long the caller waited for the head or the error.
    pub took: Option<Millis>,
    /// How the held body breaks off, if it does: `"deadline"`.
    pub body: Option<String>,
    /// What the body says.
    pub text: Option<String>,
    /// What the host says of its policies then.
    pub read: Option<Reading>,
}

fn one() -> u32 {
    1
}

/// A time since the case began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub struct At(pub Millis);

impl Default for At {
    fn default() -> Self {
        Self(Millis::new(0))
    }
}

/// What the callee does, try by try.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Tries {
    One(Act),
    Each(Vec<Act>),
}

impl Tries {
    /// What it does at try `n` (the first is 0).
    pub fn nth(&self, n: usize) -> &Act {
        match self {
            Self::One(act) => act,
            Self::Each(acts) => {
                let last = acts.last().expect("a callee does something");
                acts.get(n).unwrap_or(last)
            }
        }
    }
}

/// What the callee does at one try.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Act {
    /// Answers at once with this status and no body.
    Status(u16),
    /// Does that at once.
    Fault(Fault),
    /// The same with more to say.
    Answer(Answer),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// No connection.
    Connect,
    /// The connection breaks.
    Reset,
    /// Nothing ever comes.
    Hang,
    /// What makes the call panics.
    Panic,
}

impl Fault {
    /// What a policy takes it for; `None` for what is no result at all.
    pub fn class(self) -> Option<FailureClass> {
        match self {
            Self::Connect => Some(FailureClass::Connect),
            Self::Reset => Some(FailureClass::Reset),
            Self::Hang | Self::Panic => None,
        }
    }
}

/// An answer or a failure.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Exactly one of the two.
    pub status: Option<u16>,
    pub fault: Option<Fault>,
    /// Until the head or the failure.
    #[serde(default)]
    pub took: At,
    /// The answer's headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body.
    #[serde(default)]
    pub text: String,
    /// Sent after the body.
    #[serde(default)]
    pub trailers: BTreeMap<String, String>,
    /// Keeps the body open until the call's label is in `ends` or `drop`.
    #[serde(default)]
    pub held: bool,
}

impl Act {
    /// The long form.
    pub fn answer(&self) -> Answer {
        let plain = |status, fault| Answer {
            status,
            fault,
            took: At::default(),
            headers: BTreeMap::new(),
            text: String::new(),
            trailers: BTreeMap::new(),
            held: false,
        };
        match self {
            Self::Status(status) => plain(Some(*status), None),
            Self::Fault(fault) => plain(None, Some(*fault)),
            Self::Answer(answer) => {
                let one = answer.status.is_some() != answer.fault.is_some();
                assert!(one, "either a status or a fault: {answer:?}");
                answer.clone()
            }
        }
    }
}

/// What a caller sees: a status, a failure of the callee (`"reset"`), its own panic, a refusal of
/// ours (`"breaker: open"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// The answer's status.
    Status(u16),
    /// The callee's failure, by [`Fault`]'s name.
    Failure(String),
    /// `policy: reason`, by their names.
    Refusal(String),
}

impl<'de> Deserialize<'de> for Want {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Status(u16),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Status(status) => Ok(Self::Status(status)),
            Raw::Text(text) if text.contains(": ") => Ok(Self::Refusal(text)),
            Raw::Text(text) if matches!(text.as_str(), "reset" | "connect" | "panic") => {
                Ok(Self::Failure(text))
            }
            Raw::Text(text) => Err(D::Error::custom(format!(
                "{text:?} is neither \"reset\", \"connect\", \"panic\" nor \"policy: reason\""
            ))),
        }
    }
}

/// A host's readings. What a table leaves out is not looked at; what a host cannot tell stays out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reading {
    /// The circuit's state.
    pub breaker: Option<String>,
    /// Shares in the breaker's window; "none" below the minimum of calls.
    pub failure_rate: Option<Share>,
    pub slow_rate: Option<Share>,
    /// Calls in its window.
    pub calls: Option<u32>,
    pub failed: Option<u32>,
    pub slow: Option<u32>,
    /// Calls that it refused.
    pub rejected: Option<u64>,
    /// Results that came after their epoch.
    pub stale: Option<u64>,
    /// Calls that it was told of as cancelled.
    pub cancelled: Option<u64>,
    /// Time left before it probes.
    pub open_for: Option<Millis>,
    /// Thresholds reached while it only measures.
    pub exceeded: Option<u64>,
    /// Tries that hold a slot of the bulkhead, and calls that wait for one.
    pub in_flight: Option<u32>,
    pub waiting: Option<u32>,
    /// The adaptive limit, and tries that hold a slot of it.
    pub limit: Option<u32>,
    pub adaptive_in_flight: Option<u32>,
    /// Retries made, and those that the budget refused.
    pub retries: Option<u64>,
    pub retries_refused: Option<u64>,
    /// Retries that the budget would still pay for.
    pub balance: Option<u64>,
    /// What is left of the rate.
    pub remaining: Option<u32>,
    /// Probability of the throttle, to four digits.
    pub throttle: Option<f64>,
    /// Tries under way towards endpoints.
    pub pending: Option<u32>,
    /// Coalescing: keys under way, calls that wait for another one.
    pub keys: Option<u64>,
    pub following: Option<u64>,
    /// Calls made for all who asked, those that another one had begun among them; calls that waited.
    pub led: Option<u64>,
    pub promoted: Option<u64>,
    pub followed: Option<u64>,
    /// How waiting ended: with the answer, with a call of one's own, with the leader's panic.
    pub answered: Option<u64>,
    pub released: Option<u64>,
    pub broken: Option<u64>,
}

/// A share, or that there is none yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub Option<f64>);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "none" {
            return Ok(Self(None));
        }
        let ratio: Ratio = text.parse().map_err(D::Error::custom)?;
        Ok(Self(Some(ratio.fraction())))
    }
}

impl Reading {
    /// What differs from `seen`: empty is well. A reading that the host cannot give differs.
    pub fn differences(&self, seen: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut look = |what: &str, same: bool, text: String| {
            if !same {
                found.push(format!("{what}: {text}"));
            }
        };
        macro_rules! exact {
            ($($field:ident)+) => {
                $(if let Some(want) = &self.$field {
                    let got = &seen.$field;
                    let same = got.as_ref() == Some(want);
                    look(stringify!($field), same, format!("{got:?}, want {want:?}"));
                })+
            };
        }
        exact!(breaker calls failed slow rejected stale cancelled open_for exceeded);
        exact!(in_flight waiting limit adaptive_in_flight retries retries_refused balance);
        exact!(remaining pending keys following led promoted followed answered released broken);
        for (what, want, got) in [
            ("failure_rate", self.failure_rate, seen.failure_rate),
            ("slow_rate", self.slow_rate, seen.slow_rate),
        ] {
            let Some(Share(want)) = want else { continue };
            let same = match (want, got) {
                (None, Some(Share(None))) => true,
                (Some(want), Some(Share(Some(got)))) => (want - got).abs() < 1e-4,
                _ => false,
            };
            look(what, same, format!("{got:?}, want {want:?}"));
        }
        if let Some(want) = self.throttle {
            let same = seen.throttle.is_some_and(|got| (want - got).abs() < 5e-5);
            look(
                "throttle",
                same,
                format!("{:?}, want {want}", seen.throttle),
            );
        }
        found
    }
}

// ---- one core each ----------------------------------------------------------------------------

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
