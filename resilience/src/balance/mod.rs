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
mod look;
mod maglev;
mod member;
mod members;
mod outlier;
mod pick;
mod ring;
mod shared;
mod status;
mod subset;
mod view;
mod weighted;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

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
    status::Ejections,
    subset::Client,
    view::Home,
};
use self::{
    hash::Draws,
    look::Sweeper,
    members::Setup,
    shared::Shared,
    view::{Ask, View},
};
use crate::{
    clock::Tick,
    config::PolicyError,
    outcome::{Policy, Reason, Rejected},
    rng::Rng,
    sync::{AtomicU64, Ordering, plain::Mutex},
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

#[cfg(all(test, not(loom)))]
mod tests;
