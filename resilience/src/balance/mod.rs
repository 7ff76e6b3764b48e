//! Balancing: which endpoint takes the next call.
//!
//! Round robin sends as much to the slow endpoint as to the fast one, and a queue grows there.
//! Picking two at random and taking the cheaper one keeps queues short without any shared state
//! between callers; costing an endpoint by its peak latency times the calls under way there makes
//! "cheaper" mean what the next caller will feel. Endpoints that fail are ejected for a while.
//!
//! The balancer knows nothing of addresses: it is generic over a key.
//!
//! # Guarantees
//! - A pick is two random draws and a compare; no lock, no allocation. Who was passed over for
//!   long is tried again: costs grow old, and endpoints die. Only where most members
//!   are ejected does it look further.
//! - An ejected member is not picked while any other member is in.
//! - A membership update keeps what is known of the members that stay; calls under way end
//!   normally.
//!
//! # Source
//! Mitzenmacher 2001 (two choices); Finagle (peak EWMA); Envoy (outlier detection).

mod ewma;
mod outlier;

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub use self::outlier::OutlierConfig;
use self::{
    ewma::PeakEwma,
    outlier::{Group, Health},
};
use crate::{
    clock::{Tick, nanos},
    config::PolicyError,
    outcome::{Outcome, Policy, Reason, Rejected},
    rng::Rng,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// What a balancer chooses between.
pub trait Key: Clone + Eq + Hash + Send + Sync + 'static {}
impl<K: Clone + Eq + Hash + Send + Sync + 'static> Key for K {}

/// One endpoint as discovery sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<K> {
    /// What the transport needs to reach it.
    pub key: K,
    /// Its share relative to the others; 0 counts as 1.
    pub weight: u32,
}

impl<K> Member<K> {
    /// A member of weight 1.
    pub fn new(key: K) -> Self {
        Self { key, weight: 1 }
    }
}

#[derive(Debug)]
struct Endpoint<K> {
    key: K,
    weight: AtomicU32,
    pending: AtomicU32,
    /// When it was picked last, and how many picks the balancer had made by then.
    picked: AtomicU64,
    picked_at: AtomicU64,
    ewma: PeakEwma,
    health: Health,
    succeeded: AtomicU64,
    failed: AtomicU64,
    group: Arc<Group>,
}

/// The cost of an endpoint without history but with calls under way: it is tried one at a time.
const UNPROVEN: f64 = 1e15;

/// Nanoseconds added to every latency: endpoints a fraction of a millisecond apart are alike. A
/// guess; on a loopback, where all is faster, a preference would follow the scheduler's moods.
const GRAIN: f64 = 1e6;
/// How much dearer an endpoint must be to be passed over. A guess between 1, which starves whoever
/// was slow once of the calls that would show it is fast again (or dead), and 2, at which one call
/// under way would no longer count.
const NOISE: f64 = 1.5;

/// A cost is a memory: who was passed over for this long, and for this many picks of others, is
/// picked again, so that one that has become fast, or has died, is noticed. At most 3 % of a
/// balancer's calls, and two a second, go the dearer way for it. A guess: half of the second in
/// which a dead endpoint should be known.
const FORGOTTEN: Duration = Duration::from_millis(500);
const FORGOTTEN_PICKS: u64 = 32;

impl<K> Endpoint<K> {
    /// Whether nobody knows any more what a call to it costs.
    fn is_forgotten(&self, now: Tick, picks: u64) -> bool {
        self.pending.load(Ordering::Relaxed) == 0
            && picks.saturating_sub(self.picked_at.load(Ordering::Relaxed)) >= FORGOTTEN_PICKS
            && now.since(Tick(self.picked.load(Ordering::Relaxed))) >= FORGOTTEN
    }

    fn load(&self, now: Tick) -> f64 {
        let pending = f64::from(self.pending.load(Ordering::Relaxed));
        let cost = if self.ewma.has_history() {
            (self.ewma.read(now) + GRAIN) * (pending + 1.0)
        } else if pending > 0.0 {
            UNPROVEN + pending
        } else {
            0.0
        };
        cost / f64::from(self.weight.load(Ordering::Relaxed).max(1))
    }
}

/// One endpoint as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointStatus<K> {
    /// What the transport needs to reach it.
    pub key: K,
    /// Its share relative to the others.
    pub weight: u32,
    /// Calls under way there.
    pub pending: u32,
    /// Decayed peak latency.
    pub cost: Duration,
    /// Time until it is let in again; zero unless ejected.
    pub ejected_for: Duration,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed.
    pub failed: u64,
}

#[derive(Debug)]
struct Core<K> {
    members: ArcSwap<Vec<Arc<Endpoint<K>>>>,
    group: Arc<Group>,
    rng: Rng,
    picks: AtomicU64,
}

/// Picks endpoints by two choices over peak EWMA. Clones share one membership.
#[derive(Debug)]
pub struct Balancer<K>(Arc<Core<K>>);

impl<K> Clone for Balancer<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Key> Balancer<K> {
    /// A balancer without members.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(outlier: OutlierConfig, rng: Rng) -> Result<Self, PolicyError> {
        outlier.validate()?;
        let group = Group {
            config: ArcSwap::from_pointee(outlier),
            size: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
            ejections: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
        };
        Ok(Self(Arc::new(Core {
            members: ArcSwap::default(),
            group: Arc::new(group),
            rng,
            picks: AtomicU64::new(0),
        })))
    }

    /// Replaces the membership. A key given twice counts once, with its first weight.
    pub fn set_members(&self, members: impl IntoIterator<Item = Member<K>>) {
        let core = &self.0;
        let old = core.members.load_full();
        let mut known: HashMap<&K, &Arc<Endpoint<K>>> = old.iter().map(|e| (&e.key, e)).collect();
        let mut seen = std::collections::HashSet::new();
        let mut next: Vec<Arc<Endpoint<K>>> = Vec::new();
        for Member { key, weight } in members {
            if !seen.insert(key.clone()) {
                continue;
            }
            let endpoint = match known.remove(&key) {
                Some(endpoint) => Arc::clone(endpoint),
                None => Arc::new(self.endpoint(key)),
            };
            endpoint.weight.store(weight, Ordering::Relaxed);
            next.push(endpoint);
        }
        core.group.size.store(
            u32::try_from(next.len()).unwrap_or(u32::MAX),
            Ordering::Relaxed,
        );
        core.members.store(Arc::new(next));
        for gone in known.into_values() {
            gone.health.release(&core.group);
        }
    }

    fn endpoint(&self, key: K) -> Endpoint<K> {
        Endpoint {
            key,
            weight: AtomicU32::new(1),
            pending: AtomicU32::new(0),
            picked: AtomicU64::new(0),
            picked_at: AtomicU64::new(0),
            ewma: PeakEwma::default(),
            health: Health::default(),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            group: Arc::clone(&self.0.group),
        }
    }

    /// Picks an endpoint for a call at `now`; `avoid` (the one just tried) only if no other is in.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::NoEndpoint`] if there are no members.
    pub fn pick(&self, now: Instant, avoid: Option<&K>) -> Result<Pick<K>, Rejected> {
        let (core, started) = (&self.0, Tick::at(now));
        let members = core.members.load();
        let endpoint = match members.as_slice() {
            [] => {
                // A second: the time in which discovery would show a new endpoint.
                let soon = Duration::from_secs(1);
                return Err(Rejected::after(Policy::Balancer, Reason::NoEndpoint, soon));
            }
            [only] => only,
            many => self.choose(many, avoid, started),
        };
        let picks = core.picks.fetch_add(1, Ordering::Relaxed);
        endpoint.picked.store(started.0, Ordering::Relaxed);
        endpoint.picked_at.store(picks, Ordering::Relaxed);
        endpoint.pending.fetch_add(1, Ordering::Relaxed);
        Ok(Pick {
            endpoint: Arc::clone(endpoint),
            started,
            done: false,
        })
    }

    fn choose<'a>(
        &self,
        members: &'a [Arc<Endpoint<K>>],
        avoid: Option<&K>,
        now: Tick,
    ) -> &'a Arc<Endpoint<K>> {
        let usable = |e: &Arc<Endpoint<K>>| {
            avoid != Some(&e.key) && !e.health.is_ejected(&self.0.group, now)
        };
        let first = self.0.rng.below(members.len() as u64) as usize;
        // A random neighbour distance keeps the two distinct in one draw each.
        let step = 1 + self.0.rng.below(members.len() as u64 - 1) as usize;
        let (a, b) = (&members[first], &members[(first + step) % members.len()]);
        let picks = self.0.picks.load(Ordering::Relaxed);
        match (usable(a), usable(b)) {
            (true, true) if a.is_forgotten(now, picks) => a,
            (true, true) if b.is_forgotten(now, picks) => b,
            // Alike: either, by the first draw.
            (true, true) if b.load(now) * NOISE < a.load(now) => b,
            (true, _) => a,
            (false, true) => b,
            (false, false) => members[first..]
                .iter()
                .chain(&members[..first])
                .find(|e| usable(e))
                // All are out or to be avoided: better a doubtful endpoint than none, and better
                // another than the one that has just failed.
                .unwrap_or(if avoid == Some(&a.key) { b } else { a }),
        }
    }

    /// Takes a new outlier configuration; verdicts stay.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, outlier: OutlierConfig) -> Result<(), PolicyError> {
        outlier.validate()?;
        self.0.group.config.store(Arc::new(outlier));
        Ok(())
    }

    /// Members at this moment.
    pub fn len(&self) -> usize {
        self.0.members.load().len()
    }

    /// Whether there is nobody to pick.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every endpoint as it stands at `now`.
    pub fn status(&self, now: Instant) -> Vec<EndpointStatus<K>> {
        let now = Tick::at(now);
        let members = self.0.members.load();
        let status = |e: &Arc<Endpoint<K>>| EndpointStatus {
            key: e.key.clone(),
            weight: e.weight.load(Ordering::Relaxed),
            pending: e.pending.load(Ordering::Relaxed),
            cost: Duration::from_nanos(e.ewma.read(now) as u64),
            ejected_for: e.health.ejected_for(now),
            succeeded: e.succeeded.load(Ordering::Relaxed),
            failed: e.failed.load(Ordering::Relaxed),
        };
        members.iter().map(status).collect()
    }

    /// Ejections so far, and those that `max_ejected` did not allow.
    pub fn ejections(&self) -> (u64, u64) {
        let group = &self.0.group;
        (
            group.ejections.load(Ordering::Relaxed),
            group.overflow.load(Ordering::Relaxed),
        )
    }
}

/// A call on its way to one endpoint. Complete it with the call's result; dropping it means
/// cancelled.
#[derive(Debug)]
#[must_use = "a pick that is dropped at once counts as a cancelled call"]
pub struct Pick<K> {
    endpoint: Arc<Endpoint<K>>,
    started: Tick,
    done: bool,
}

impl<K> Pick<K> {
    /// The endpoint's key.
    pub fn key(&self) -> &K {
        &self.endpoint.key
    }

    /// Ends the call: its latency and result count for the endpoint.
    pub fn complete(mut self, outcome: Outcome, now: Instant) {
        self.done = true;
        let (e, now) = (&self.endpoint, Tick::at(now));
        e.pending.fetch_sub(1, Ordering::Relaxed);
        let rtt = nanos(now.since(self.started)) as f64;
        match outcome {
            Outcome::Success | Outcome::Ignored | Outcome::RateLimited => {
                e.succeeded.fetch_add(1, Ordering::Relaxed);
                e.ewma.observe(now, rtt);
            }
            Outcome::Failure(_) => {
                e.failed.fetch_add(1, Ordering::Relaxed);
                // A quick refusal must not make a broken endpoint look fast.
                e.ewma.observe(now, rtt.max(e.ewma.read(now)));
            }
            Outcome::Cancelled => {}
        }
        e.health.record(&e.group, outcome, now);
    }
}

impl<K> Drop for Pick<K> {
    fn drop(&mut self) {
        if !self.done {
            self.endpoint.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
