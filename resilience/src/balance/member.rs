//! One endpoint: what discovery says of it, and what calls have shown.

use std::{hash::Hash, sync::Arc, time::Duration};

use super::{
    Locality, OutlierConfig, SlowStartConfig,
    calls::Calls,
    ewma::PeakEwma,
    outlier::{Cause, Health, Histogram, Verdict},
    shared::Shared,
    stable_hash,
};
use crate::{
    clock::{Tick, nanos},
    due::age,
    events::{EventKind, Return},
    outcome::Outcome,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// What a balancer chooses between.
pub trait Key: Clone + Eq + Hash + Send + Sync + 'static {}
impl<K: Clone + Eq + Hash + Send + Sync + 'static> Key for K {}

/// One endpoint as discovery sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member<K> {
    /// What the transport needs to reach it.
    pub key: K,
    /// Its share relative to the others; 0 counts as 1.
    pub weight: u32,
    /// Where it runs.
    pub locality: Locality,
    /// What places it on rings, in tables and subsets; not given, the hash of its key.
    pub placed: Option<u64>,
}

impl<K> Member<K> {
    /// A member of weight 1 that runs anywhere.
    pub fn new(key: K) -> Self {
        Self {
            key,
            weight: 1,
            locality: Locality::default(),
            placed: None,
        }
    }

    /// With this share relative to the others.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Running there.
    #[must_use]
    pub fn locality(mut self, locality: Locality) -> Self {
        self.locality = locality;
        self
    }

    /// Placed on rings, in tables and subsets by this instead of its key: what stays the same where
    /// the key does not, such as the name of an instance that restarts at another address.
    #[must_use]
    pub fn placed(mut self, hash: u64) -> Self {
        self.placed = Some(hash);
        self
    }
}

/// What an active health check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// It answered: it is let in whatever calls said.
    Passed,
    /// It did not: it is left out until it does.
    Failed,
}

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndpointState {
    /// Takes its share.
    In,
    /// New, or back: takes a share that grows.
    Warming,
    /// Left out for a time, by its results.
    Ejected,
    /// Left out until its health check passes.
    Unhealthy,
    /// Not among those that this process calls.
    OutsideSubset,
}

impl EndpointState {
    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Warming => "warming",
            Self::Ejected => "ejected",
            Self::Unhealthy => "unhealthy",
            Self::OutsideSubset => "outside_subset",
        }
    }
}

/// One endpoint as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EndpointStatus<K> {
    /// What the transport needs to reach it.
    pub key: K,
    /// Where it runs.
    pub locality: Locality,
    /// Where it stands.
    pub state: EndpointState,
    /// Its share relative to the others, as discovery says.
    pub weight: u32,
    /// The same as it counts at this moment: less while it warms up, 0 while it is out.
    pub weight_now: f64,
    /// Calls under way there.
    pub pending: u32,
    /// Decayed peak latency.
    pub cost: Duration,
    /// Time until it is let in again; zero unless ejected.
    pub ejected_for: Duration,
    /// Recent ejections: the next one lasts one step longer than that many.
    pub ejections: u32,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed.
    pub failed: u64,
}

/// Calls under way in one zone that were placed by a hash. Lives as long as the balancer, so that
/// calls of an older membership are still counted out.
#[derive(Debug, Default)]
pub(super) struct Zone {
    pub(super) locality: Locality,
    pub(super) hashed: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Endpoint<K> {
    // What every pick reads comes first.
    pub(super) health: Health,
    pub(super) calls: Calls,
    ewma: PeakEwma,
    /// When it was picked last, and how many picks the balancer had made by then.
    picked: AtomicU64,
    picked_at: AtomicU64,
    /// When it joined or came back.
    since: AtomicU64,
    failed: AtomicU64,
    /// Those that had succeeded and failed as the last interval ended.
    seen: (AtomicU64, AtomicU64),
    latencies: Histogram,
    weight: AtomicU32,
    pub(super) id: u64,
    pub(super) key: K,
    pub(super) zone: Arc<Zone>,
    pub(super) shared: Arc<Shared<K>>,
}

/// The cost of an endpoint without history but with calls under way: it is tried one at a time.
const UNPROVEN: f64 = 1e15;

/// Nanoseconds added to every latency: endpoints a fraction of a millisecond apart are alike. A
/// guess; on a loopback, where all is faster, a preference would follow the scheduler's moods.
const GRAIN: f64 = 1e6;

/// A cost is a memory: who was passed over for this long, and for this many picks of others, is
/// picked again, so that one that has become fast, or has died, is noticed. At most 3 % of a
/// balancer's calls, and two a second, go the dearer way for it. A guess: half of the second in
/// which a dead endpoint should be known.
const FORGOTTEN: Duration = Duration::from_millis(500);
const FORGOTTEN_PICKS: u64 = 32;

impl<K: Key> Endpoint<K> {
    pub(super) fn new(
        member: Member<K>,
        zone: Arc<Zone>,
        shared: Arc<Shared<K>>,
        now: Tick,
    ) -> Self {
        shared.warms(now);
        Self {
            health: Health::default(),
            calls: Calls::default(),
            ewma: PeakEwma::default(),
            picked: AtomicU64::new(0),
            picked_at: AtomicU64::new(0),
            since: AtomicU64::new(now.0),
            failed: AtomicU64::new(0),
            seen: Default::default(),
            latencies: Histogram::default(),
            weight: AtomicU32::new(1),
            id: member.placed.unwrap_or_else(|| stable_hash(&member.key)),
            key: member.key,
            zone,
            shared,
        }
    }
}

impl<K> Endpoint<K> {
    pub(super) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed).max(1)
    }

    pub(super) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// For how long it has been there, or back.
    pub(super) fn age(&self, now: Tick) -> Duration {
        Duration::from_nanos(age(self.since().0, now))
    }

    pub(super) fn since(&self) -> Tick {
        Tick(self.since.load(Ordering::Relaxed))
    }

    /// Whether nobody knows any more what a call to it costs.
    pub(super) fn is_forgotten(&self, now: Tick, picks: u64) -> bool {
        self.calls.pending() == 0
            && picks.saturating_sub(self.picked_at.load(Ordering::Relaxed)) >= FORGOTTEN_PICKS
            && Duration::from_nanos(age(self.picked.load(Ordering::Relaxed), now)) >= FORGOTTEN
    }

    /// Peak latency × (calls under way ÷ `share` + 1); `share`: its weight ÷ the mean weight.
    pub(super) fn latency_load(&self, now: Tick, share: f64, decay: f64) -> f64 {
        let pending = f64::from(self.calls.pending()) / share;
        if self.ewma.has_history() {
            (self.ewma.read(now, decay) + GRAIN) * (pending + 1.0)
        } else if pending > 0.0 {
            UNPROVEN + pending
        } else {
            0.0
        }
    }

    pub(super) fn was_picked(&self, now: Tick, picks: u64) {
        self.picked.store(now.0, Ordering::Relaxed);
        self.picked_at.store(picks, Ordering::Relaxed);
    }

    /// A call that was made in `epoch` has ended, and is no longer counted as under way; the cause if
    /// that ejected the endpoint.
    pub(super) fn ended(
        &self,
        outcome: Outcome,
        epoch: u32,
        started: Tick,
        now: Tick,
    ) -> Option<Cause> {
        let (rtt, decay) = (nanos(now.since(started)), self.shared.decay());
        match outcome {
            Outcome::Success | Outcome::Ignored | Outcome::RateLimited => {
                self.ewma.observe(now, rtt as f64, decay);
                if self.shared.timed.load(Ordering::Relaxed) != 0 {
                    self.latencies.add(rtt);
                }
            }
            Outcome::Failure(_) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                // A quick refusal must not make a broken endpoint look fast.
                let cost = self.ewma.read(now, decay);
                self.ewma.observe(now, cost.max(rtt as f64), decay);
            }
            // Whoever gave up has seen at least this much of its latency.
            Outcome::Cancelled => self.ewma.observe_at_least(now, rtt as f64, decay),
        }
        let config = || self.shared.outlier.load();
        let cause = self.health.record(outcome, epoch, config)?;
        self.eject(cause, &self.shared.outlier.load(), now)
            .then_some(cause)
    }

    /// Puts it out if it may be; `true` to the one who did.
    pub(super) fn eject(&self, cause: Cause, config: &OutlierConfig, now: Tick) -> bool {
        let shared = &*self.shared;
        let jitter = if config.eject_jitter.0.is_zero() {
            0.0
        } else {
            shared.rng.unit()
        };
        match self.health.eject(&shared.places, config, now, jitter) {
            Verdict::Ejected => {
                shared.ejections[cause as usize].fetch_add(1, Ordering::Relaxed);
                shared.due.request();
                let lasts = Duration::from_nanos(self.health.out_for(now));
                self.tell(now, || EventKind::Ejected { cause, lasts });
                true
            }
            Verdict::Overflow => {
                shared.overflow.fetch_add(1, Ordering::Relaxed);
                false
            }
            Verdict::Already => false,
        }
    }

    /// Lets it in if its time is over.
    pub(super) fn readmit_if_due(&self, now: Tick) {
        let until = self.health.until().unwrap_or(now);
        if self.health.readmit_if_due(&self.shared.places, now) {
            self.is_back(until.min(now));
            let why = Return::TimeOver;
            self.tell(until.min(now), || EventKind::Returned { why });
        }
    }

    /// Lets it in whatever its time.
    pub(super) fn readmit_now(&self, why: Return, now: Tick) {
        if self.health.readmit_now(&self.shared.places) {
            self.is_back(now);
            self.tell(now, || EventKind::Returned { why });
        }
    }

    /// It is no longer a member.
    pub(super) fn retire(&self, now: Tick) {
        if self.health.retire(&self.shared.places) {
            let why = Return::Left;
            self.tell(now, || EventKind::Returned { why });
        }
    }

    pub(super) fn tell(&self, at: Tick, kind: impl FnOnce() -> EventKind) {
        self.shared.tell(Some(&self.key), at, kind);
    }

    pub(super) fn is_back(&self, now: Tick) {
        // What it did before it was out has been judged.
        self.take_interval();
        self.since.store(now.0, Ordering::Relaxed);
        self.shared.warms(now);
        self.shared.due.request();
    }

    /// Calls and failures since this was last asked.
    pub(super) fn take_interval(&self) -> (u64, u64) {
        let since =
            |now: u64, seen: &AtomicU64| now.saturating_sub(seen.swap(now, Ordering::Relaxed));
        let failed = since(self.failed.load(Ordering::Relaxed), &self.seen.1);
        (since(self.calls.succeeded(), &self.seen.0) + failed, failed)
    }

    pub(super) fn take_latencies(&self, quantile: f64) -> (u64, Duration) {
        self.latencies.take(quantile)
    }
}

impl<K: Key> Endpoint<K> {
    pub(super) fn status(&self, now: Tick, slow: Option<&SlowStartConfig>) -> EndpointStatus<K> {
        let ramp = slow.map_or(1.0, |slow| slow.factor(self.age(now)));
        let ejected_for = Duration::from_nanos(self.health.out_for(now));
        let state = if self.health.is_unhealthy() {
            EndpointState::Unhealthy
        } else if !ejected_for.is_zero() {
            EndpointState::Ejected
        } else if ramp < 1.0 {
            EndpointState::Warming
        } else {
            EndpointState::In
        };
        let is_in = matches!(state, EndpointState::In | EndpointState::Warming);
        EndpointStatus {
            key: self.key.clone(),
            locality: self.zone.locality.clone(),
            state,
            weight: self.weight(),
            weight_now: f64::from(u8::from(is_in)) * f64::from(self.weight()) * ramp,
            pending: self.calls.pending(),
            cost: Duration::from_nanos(self.ewma.read(now, self.shared.decay()) as u64),
            ejected_for,
            ejections: self.health.times(),
            succeeded: self.calls.succeeded(),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}
