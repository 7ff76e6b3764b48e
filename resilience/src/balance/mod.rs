//! Balancing: which endpoint takes the next call.
//!
//! Round robin sends as much to the slow endpoint as to the fast one, and a queue grows there.
//! Picking two at random and taking the cheaper one keeps queues short without any shared state
//! between callers; costing an endpoint by its peak latency times the calls under way there makes
//! "cheaper" mean what the next caller will feel. That is the default, and seldom wrong. The other
//! policies are for what it cannot know:
//!
//! | what goes wrong | what helps |
//! |---|---|
//! | one endpoint is slow, or its host is | [`PeakEwma`](BalancePolicy::PeakEwma) |
//! | calls differ so much that latency says nothing | [`LeastRequest`](BalancePolicy::LeastRequest) |
//! | few, long calls, and every endpoint must have its exact share | [`RoundRobin`](BalancePolicy::RoundRobin) |
//! | endpoints cache, and miss when a user comes to another one | [`RingHash`](BalancePolicy::RingHash), or [`Maglev`](BalancePolicy::Maglev) where evenness matters more than few moves |
//! | one hot key drowns its endpoint | the bound on their load, [`BalanceConfig::load_factor`] |
//! | one endpoint fails or is far slower than its peers | outlier ejection, [`OutlierConfig`] |
//! | everything fails, and the ejections make it worse | [`BalanceConfig::panic_threshold`] |
//! | a new endpoint is cold and gets its full share at once | [`SlowStartConfig`] |
//! | calls leave the zone, or a zone that lost half its endpoints loses the rest | [`LocalityConfig`] |
//! | thousands of callers hold connections to thousands of endpoints | [`BalanceConfig::subset`] |
//!
//! The balancer knows nothing of addresses: it is generic over a key.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use selvedge_resilience::{Outcome, Rng, balance::*};
//!
//! # #[expect(clippy::disallowed_methods, reason = "an example has to start somewhere")]
//! let now = Instant::now();
//! let balancer = Balancer::new(BalanceConfig::default(), OutlierConfig::default(), Rng::new(1))?;
//! balancer.set_members(["a:80", "b:80"].map(Member::new), now);
//! let pick = balancer.pick(&PickContext::at(now))?;
//! println!("calling {}", pick.key());
//! pick.complete(Outcome::Success, now + Duration::from_millis(3));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # How a pick is made
//! zone (by what each can carry) → policy (over those that are in, by weight, as far as they are
//! warm) → permit. A membership or a policy is arranged once, as it changes, and swapped as a whole.
//!
//! # Guarantees
//! - A pick takes no lock and allocates nothing. It looks at two endpoints, or follows a counter or
//!   a hash; only where most members are out does it look further. With `peak_ewma`, who was passed
//!   over for long is tried again: costs grow old, and endpoints die.
//! - An ejected member is not picked while any other is in, unless so few of its zone are in that
//!   their judge is doubted (panic).
//! - With `ring_hash` and `maglev`, a call goes to an endpoint only if that has less than
//!   `load_factor` times its even share of the calls under way; threads that race may exceed that by
//!   as many calls as they are.
//! - A membership update keeps what is known of the members that stay; calls under way end
//!   normally, and change nothing where their member is gone.
//! - The result of a call that began before an ejection does not count after it.
//!
//! # What it does not do
//! Probe (see [`Balancer::report`] for what a probe found), time anything by itself (intervals end
//! with the first pick after them, or by [`Balancer::tick`]), or agree with other callers: what one
//! has ejected another may still call.
//!
//! # Source
//! Mitzenmacher 2001 (two choices); Finagle (peak EWMA, aperture); Envoy (outlier detection, panic,
//! slow start, priorities); Mirrokni, Thorup and Zadimoghaddam 2017 (bounded loads); Eisenbud et al.
//! 2016 (Maglev).

mod builder;
mod calls;
mod choose;
mod config;
mod ewma;
mod hash;
mod locality;
mod maglev;
mod member;
mod outlier;
mod pick;
mod ring;
mod shared;
mod subset;
mod view;
mod weighted;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use self::{
    builder::Builder,
    config::{BalanceConfig, BalancePolicy, HashOn, LocalityConfig, SlowStartConfig},
    hash::stable_hash,
    locality::Locality,
    member::{EndpointState, EndpointStatus, Key, Member, Probe},
    outlier::{
        Cause, FailurePercentageConfig, LatencyOutlierConfig, OutlierConfig, SuccessRateConfig,
    },
    pick::Pick,
    subset::Client,
    view::Home,
};
use self::{
    hash::Draws,
    member::{Endpoint, Zone},
    outlier::{Sample, judge},
    shared::Shared,
    view::{Ask, View},
};
use crate::{
    clock::{Tick, nanos},
    config::PolicyError,
    due::is_astray,
    events::{EventKind, Return},
    outcome::{Policy, Reason, Rejected},
    rng::Rng,
    sync::{AtomicU64, Ordering},
};

/// What a pick is asked with.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PickContext<'a, K> {
    /// When the call is made.
    pub now: Instant,
    /// Those that it should not go to, because they have just been tried; taken if no other is in.
    pub avoid: &'a [K],
    /// What `ring_hash` and `maglev` place it by, as [`stable_hash`] of its session; by chance if
    /// not given.
    pub hash: Option<u64>,
    /// Where the call comes from, if not from the balancer's [`Home`].
    pub locality: Option<&'a Locality>,
}

impl<'a, K> PickContext<'a, K> {
    /// Anyone, now.
    pub fn at(now: Instant) -> Self {
        Self {
            now,
            avoid: &[],
            hash: None,
            locality: None,
        }
    }

    /// Not these, if it can be helped.
    #[must_use]
    pub fn avoid(mut self, keys: &'a [K]) -> Self {
        self.avoid = keys;
        self
    }

    /// Placed by this hash.
    #[must_use]
    pub fn hash(mut self, hash: u64) -> Self {
        self.hash = Some(hash);
        self
    }

    /// On behalf of a caller there.
    #[must_use]
    pub fn from(mut self, locality: &'a Locality) -> Self {
        self.locality = Some(locality);
        self
    }
}

/// The interval over which endpoints are compared, and what was told of them last.
#[derive(Debug, Default)]
struct Sweeper {
    began: Option<Tick>,
    panics: bool,
}

/// What changes a membership or its arrangement, one at a time.
#[derive(Debug)]
struct Setup {
    home: Home,
    zones: HashMap<Locality, Arc<Zone>>,
}

#[derive(Debug)]
struct Core<K> {
    view: ArcSwap<View<K>>,
    shared: Arc<Shared<K>>,
    seed: u64,
    picks: AtomicU64,
    /// Picks for which there was nobody.
    refused: AtomicU64,
    sweeper: Mutex<Sweeper>,
    setup: Mutex<Setup>,
}

/// Picks endpoints by one of the [policies](BalancePolicy). Clones share one membership.
#[derive(Debug)]
pub struct Balancer<K>(Arc<Core<K>>);

impl<K> Clone for Balancer<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Key> Balancer<K> {
    /// A balancer without members, at home anywhere, with a subset of its own.
    ///
    /// # Errors
    /// [`PolicyError`] if a configuration cannot work.
    pub fn new(
        config: BalanceConfig,
        outlier: OutlierConfig,
        rng: Rng,
    ) -> Result<Self, PolicyError> {
        Self::builder(config, outlier).rng(rng).build()
    }

    /// A balancer with more than its configurations.
    pub fn builder(config: BalanceConfig, outlier: OutlierConfig) -> Builder<K> {
        Builder::new(config, outlier)
    }

    /// Replaces the membership. A key given twice counts once, as first given. What is known of the
    /// keys that stay is kept, unless they moved to another locality.
    ///
    /// O(n log n), and what the policy's table costs; picks go on meanwhile.
    pub fn set_members(&self, members: impl IntoIterator<Item = Member<K>>, now: Instant) {
        let (core, now) = (&*self.0, Tick::at(now));
        let mut setup = core.setup.lock();
        let old = core.view.load_full();
        let mut known: HashMap<&K, &Arc<Endpoint<K>>> =
            old.members.iter().map(|e| (&e.key, e)).collect();
        let mut seen = HashSet::new();
        let mut next: Vec<Arc<Endpoint<K>>> = Vec::new();
        for member in members {
            if !seen.insert(member.key.clone()) {
                continue;
            }
            let stays = known
                .get(&member.key)
                .is_some_and(|e| e.zone.locality == member.locality && is_placed(e, &member));
            let endpoint = match known.remove(&member.key) {
                Some(endpoint) if stays => Arc::clone(endpoint),
                gone => {
                    if let Some(gone) = gone {
                        gone.retire(now);
                    }
                    let zone = setup.zone(&member.locality);
                    let weight = member.weight;
                    let new = Endpoint::new(member, zone, Arc::clone(&core.shared), now);
                    new.set_weight(weight);
                    next.push(Arc::new(new));
                    continue;
                }
            };
            endpoint.set_weight(member.weight);
            next.push(endpoint);
        }
        self.arrange(next, &setup.home, Arc::clone(&old.config), now);
        for gone in known.into_values() {
            gone.retire(now);
        }
        setup.forget_zones();
    }

    /// Makes a new arrangement the one that picks see.
    fn arrange(
        &self,
        members: Vec<Arc<Endpoint<K>>>,
        home: &Home,
        config: Arc<BalanceConfig>,
        now: Tick,
    ) {
        let core = &*self.0;
        let view = View::new(members, home, config);
        let chosen: HashSet<*const Endpoint<K>> =
            view.slots().map(|s| Arc::as_ptr(&s.endpoint)).collect();
        for (n, group) in view.groups.iter().enumerate() {
            // Callers that start together must not go the round together.
            let turn = hash::nth(core.seed, n as u64) >> 1;
            group.turn.store(turn, Ordering::Relaxed);
        }
        core.shared.places.hosts.store(
            u32::try_from(chosen.len()).unwrap_or(u32::MAX),
            Ordering::Relaxed,
        );
        // Who is not called any more holds no place among those that are out.
        for member in &view.members {
            if !chosen.contains(&Arc::as_ptr(member)) {
                member.readmit_now(Return::Left, now);
            }
        }
        core.view.store(Arc::new(view));
        core.shared.due.request();
        self.look(now);
    }

    /// Takes new configurations; members, costs and verdicts stay.
    ///
    /// # Errors
    /// [`PolicyError`] if one cannot work; nothing changes then.
    pub fn reconfigure(
        &self,
        config: BalanceConfig,
        outlier: OutlierConfig,
        now: Instant,
    ) -> Result<(), PolicyError> {
        config.validate()?;
        outlier.validate()?;
        let (core, now) = (&*self.0, Tick::at(now));
        let setup = core.setup.lock();
        core.shared.reconfigure(outlier);
        let old = core.view.load_full();
        if *old.config == config {
            self.look(now);
            return Ok(());
        }
        core.shared
            .set_pace(config.decay.0, config.slow_start.as_ref());
        for member in &old.members {
            core.shared.warms(member.since());
        }
        self.arrange(old.members.clone(), &setup.home, Arc::new(config), now);
        Ok(())
    }

    /// Says where this process is and which of the callers it is.
    pub fn set_home(&self, home: Home, now: Instant) {
        let core = &*self.0;
        let mut setup = core.setup.lock();
        if setup.home != home {
            setup.home = home;
            let old = core.view.load_full();
            let config = Arc::clone(&old.config);
            self.arrange(old.members.clone(), &setup.home, config, Tick::at(now));
        }
    }

    /// Says where this process is, and leaves which of the callers it is.
    pub fn set_locality(&self, locality: Locality, now: Instant) {
        let client = self.0.setup.lock().home.client;
        self.set_home(Home { locality, client }, now);
    }

    /// Picks an endpoint for a call.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::NoEndpoint`] if there are no members, or none is in and
    /// `panic_threshold` is 0.
    pub fn pick(&self, context: &PickContext<'_, K>) -> Result<Pick<K>, Rejected> {
        let (core, now) = (&*self.0, Tick::at(context.now));
        if core.shared.due.is_due(now) {
            self.look(now);
        }
        let view = core.view.load();
        let picks = core.picks.fetch_add(1, Ordering::Relaxed);
        let mut ask = Ask {
            now,
            avoid: context.avoid,
            hash: context.hash,
            locality: context.locality,
            picks,
            draws: Draws::new(core.seed, picks),
            decay: core.shared.decay(),
            panic: false,
            ramp: if core.shared.is_anybody_warming(now) {
                view.ramp(now)
            } else {
                None
            },
        };
        let Some(chosen) = view.choose(&mut ask) else {
            core.refused.fetch_add(1, Ordering::Relaxed);
            return Err(nobody(&view, now));
        };
        let endpoint = &chosen.slot.endpoint;
        let hashed = chosen.claimed;
        if hashed {
            endpoint.zone.hashed.fetch_add(1, Ordering::Relaxed);
        } else {
            endpoint.calls.begin();
        }
        endpoint.was_picked(now, picks);
        Ok(Pick::new(endpoint, now, hashed))
    }

    /// Does what is due at `now`: lets in whose time is over, and at the end of an interval compares
    /// the endpoints. Picks do it by the way; a timer that calls this spares them, and keeps
    /// the [status](Self::status) true where nobody calls.
    ///
    /// One load if nothing is due, O(n) otherwise; returns at once if another thread is at it.
    pub fn tick(&self, now: Instant) {
        let now = Tick::at(now);
        if self.0.shared.due.is_due(now) {
            self.look(now);
        }
    }

    #[cold]
    fn look(&self, now: Tick) {
        let (view, shared) = (&self.0.view, &self.0.shared);
        let Some(mut sweeper) = self.0.sweeper.try_lock() else {
            return;
        };
        shared.due.begin();
        let (view, config) = (view.load(), shared.outlier.load());
        for slot in view.slots() {
            slot.endpoint.readmit_if_due(now);
        }
        let ends = sweeper.sweep(&view, &config, now);
        view.count(now);
        let (panics, (healthy, all)) = view.panics();
        if panics != std::mem::replace(&mut sweeper.panics, panics) {
            shared.tell(None, now, || EventKind::Panic {
                begun: panics,
                healthy,
                all,
            });
        }
        let out = view
            .slots()
            .filter_map(|slot| slot.endpoint.health.until())
            .map(|until| until.0);
        let next = out.min().unwrap_or(u64::MAX).min(ends);
        shared.due.finish(now, next);
    }

    /// Takes what an active health check found. Keys that are not known are ignored.
    pub fn report(&self, key: &K, probe: Probe, now: Instant) {
        let (view, now) = (self.0.view.load(), Tick::at(now));
        let Some(endpoint) = view.members.iter().find(|e| e.key == *key) else {
            return;
        };
        let passed = probe == Probe::Passed;
        let news = endpoint.health.set_unhealthy(!passed);
        if news {
            endpoint.tell(now, || EventKind::Checked { passed });
        }
        if passed {
            endpoint.readmit_now(Return::CheckPassed, now);
            if news {
                endpoint.is_back(now);
            }
        }
        if news {
            self.0.shared.due.request();
        }
    }

    /// Members at this moment.
    pub fn len(&self) -> usize {
        self.0.view.load().members.len()
    }

    /// Whether there is nobody to pick.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every endpoint as it stands at `now`, in the order in which members were given.
    pub fn status(&self, now: Instant) -> Vec<EndpointStatus<K>> {
        let (now, view) = (Tick::at(now), self.0.view.load());
        let called: HashSet<*const Endpoint<K>> =
            view.slots().map(|s| Arc::as_ptr(&s.endpoint)).collect();
        let slow = view.config.slow_start.as_ref();
        let status = |e: &Arc<Endpoint<K>>| {
            let mut status = e.status(now, slow);
            if !called.contains(&Arc::as_ptr(e)) {
                status.state = EndpointState::OutsideSubset;
                status.weight_now = 0.0;
            }
            status
        };
        view.members.iter().map(status).collect()
    }

    /// Ejections so far, and those that `max_ejected` did not allow.
    pub fn ejections(&self) -> (u64, u64) {
        let shared = &self.0.shared;
        let made = shared
            .ejections
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .sum();
        (made, shared.overflow.load(Ordering::Relaxed))
    }

    /// Ejections so far, by what they were for.
    pub fn ejections_by_cause(&self) -> Vec<(Cause, u64)> {
        let count = |cause: Cause| self.0.shared.ejections[cause as usize].load(Ordering::Relaxed);
        let all = Cause::ALL.iter();
        all.map(|&cause| (cause, count(cause))).collect()
    }

    /// Endpoints that are out at this moment by their results.
    pub fn ejected(&self) -> u32 {
        self.0.shared.places.ejected()
    }

    /// Whether, as of the last look at the endpoints, so many are out that ejections are not
    /// believed.
    pub fn panics(&self) -> bool {
        self.0.view.load().panics().0
    }

    /// Picks for which there was nobody, so far.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Picks so far.
    pub fn picks(&self) -> u64 {
        self.0.picks.load(Ordering::Relaxed)
    }
}

/// Whether a member is still at its place on rings and in subsets.
fn is_placed<K: Key>(endpoint: &Endpoint<K>, member: &Member<K>) -> bool {
    let place = member.placed.unwrap_or_else(|| stable_hash(&member.key));
    endpoint.id == place
}

/// The refusal where nobody may take a call, and when the next one may.
fn nobody<K>(view: &View<K>, now: Tick) -> Rejected {
    // A second: the time in which discovery would show a new endpoint, or a probe pass.
    let soon = Duration::from_secs(1);
    let back = view.slots().map(|s| s.endpoint.health.out_for(now));
    let wait = match back.filter(|&wait| wait > 0).min() {
        Some(wait) => soon.min(Duration::from_nanos(wait)),
        None => soon,
    };
    Rejected::after(Policy::Balancer, Reason::NoEndpoint, wait)
}

impl Setup {
    fn zone(&mut self, locality: &Locality) -> Arc<Zone> {
        if let Some(zone) = self.zones.get(locality) {
            return Arc::clone(zone);
        }
        let zone = Arc::new(Zone {
            locality: locality.clone(),
            ..Zone::default()
        });
        self.zones.insert(locality.clone(), Arc::clone(&zone));
        zone
    }

    /// Drops the zones that no endpoint, nor any call under way, belongs to.
    fn forget_zones(&mut self) {
        self.zones.retain(|_, zone| Arc::strong_count(zone) > 1);
    }
}

impl Sweeper {
    /// Ends the intervals that are over at `now`; the tick at which the next one ends.
    ///
    /// Judged as of the end of the first of them, as a timer would have: if nobody came for long,
    /// an ejection may be over already, and has only made the next one longer.
    fn sweep<K: Key>(&mut self, view: &View<K>, config: &OutlierConfig, now: Tick) -> u64 {
        let interval = nanos(config.interval.0).max(1);
        let began = self.began.filter(|began| !is_astray(began.0, 0, now));
        let began = *self.began.insert(began.unwrap_or(now));
        let ended = now.0.saturating_sub(began.0) / interval;
        if ended == 0 {
            return began.0.saturating_add(interval);
        }
        let last = began.0 + ended * interval;
        self.began = Some(Tick(last));
        let slots: Vec<_> = view.slots().collect();
        let mut samples = Vec::with_capacity(slots.len());
        for slot in &slots {
            let endpoint = &slot.endpoint;
            // Those ends of intervals that it has seen.
            let since = endpoint.since().0;
            let missed = since.saturating_sub(began.0) / interval;
            endpoint.health.forgive(ended.saturating_sub(missed));
            let (calls, failed) = endpoint.take_interval();
            let timed = if config.latency.enforce {
                endpoint.take_latencies(config.latency.quantile.fraction())
            } else {
                (0, Duration::ZERO)
            };
            samples.push(if endpoint.health.until().is_none() {
                Sample {
                    calls,
                    failed,
                    timed,
                }
            } else {
                Sample::default()
            });
        }
        let first = Tick(began.0 + interval);
        for (n, cause) in judge(&samples, config) {
            slots[n].endpoint.eject(cause, config, first);
        }
        last.saturating_add(interval)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
