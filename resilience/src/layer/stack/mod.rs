//! All policies towards one destination, in the order that works.
//!
//! ```text
//! fallback → coalesce → total deadline → retry and hedge on one budget
//!   → each try: throttle → breaker → bulkhead, adaptive limit → rate limit
//!               → balancer + outlier → per-try timeout → fault → transport
//! ```
//!
//! Retry stands outside the breaker, so that every try counts and an open circuit ends the retries
//! at once. The per-try timeout stands inside it, so that a hang is recorded as a failure. The
//! total deadline stands outside retry, so that waiting is bounded too. The balancer is asked anew
//! for each try, and not for the endpoints that have just failed. Coalescing stands outside all of
//! them, because who waits for another's call makes no try, pays no budget and holds no slot; the
//! time that it may wait is its own deadline all the same.

mod attempt;
mod builder;
mod call;
mod client;
mod coalesced;
mod held;
mod hook;
mod look;
mod plan;
mod race;
mod retries;
mod samples;
mod send;
mod service;
mod status;
mod tick;

use std::sync::Arc;

use tokio::time::Instant;

use self::plan::{Origin, Plan};
pub use self::{
    builder::StackBuilder,
    client::StackClient,
    held::{Answer, Held},
    hook::{Attempt, HashKey, Hook, RequestTimeout},
    service::{StackFuture, StackLayer, StackService},
    status::{BudgetStatus, StackStatus},
};
use crate::{
    TrafficPolicy,
    balance::{Balancer, Home, Key, Locality, Member},
    breaker::CircuitBreaker,
    config::PolicyError,
    hystrix::Watch,
    layer::{commands::Commands, lookout::Lookout},
    rng::Rng,
    shared::Replaced,
};

/// The policies of one destination with their state. Clones share it; threads may too.
#[derive(Debug)]
pub struct Stack<K>(Arc<Shared<K>>);

impl<K> Clone for Stack<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<K> {
    plan: Replaced<Plan>,
    balancer: Balancer<K>,
    origin: Origin,
    /// Counted while somebody watches.
    commands: Commands,
    /// What was told last of what limits refuse.
    lookout: parking_lot::Mutex<Lookout>,
    rng: Rng,
    /// One change of the plan at a time: each is made from the one before.
    changing: parking_lot::Mutex<()>,
}

/// As [`Stack::new`].
impl<K: Key> TryFrom<TrafficPolicy> for Stack<K> {
    type Error = PolicyError;

    fn try_from(policy: TrafficPolicy) -> Result<Self, PolicyError> {
        Self::new(policy)
    }
}

impl<K: Key> Stack<K> {
    /// The policies of a destination that has no endpoints yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the policy cannot work.
    pub fn new(policy: TrafficPolicy) -> Result<Self, PolicyError> {
        Self::builder(policy).build()
    }

    /// The same with a source of chance that a test can replay.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_rng(policy: TrafficPolicy, rng: Rng) -> Result<Self, PolicyError> {
        Self::builder(policy).rng(rng).build()
    }

    /// A stack with a name, and with somebody who hears what happens to it.
    ///
    /// ```
    /// use selvedge_resilience::{TrafficPolicy, events::Events, layer::Stack};
    ///
    /// let (policy, events) = (TrafficPolicy::default(), Events::new());
    /// let heard = events.subscribe(64);
    /// let stack = Stack::<&str>::builder(policy).name("orders").events(events).build()?;
    /// assert_eq!((stack.name(), heard.dropped()), ("orders", 0));
    /// # Ok::<_, selvedge_resilience::config::PolicyError>(())
    /// ```
    pub fn builder(policy: TrafficPolicy) -> StackBuilder<K> {
        StackBuilder::new(policy)
    }

    /// What events and metrics call the destination.
    pub fn name(&self) -> &str {
        &self.0.origin.name
    }

    /// Counts calls for a [Hystrix dashboard](crate::hystrix) until the answer is dropped.
    pub fn watch(&self) -> Watch<K> {
        Watch::new(self.clone())
    }

    pub(crate) fn commands(&self) -> &Commands {
        &self.0.commands
    }

    /// Takes a new policy at once. Circuit, budget, limits and verdicts keep their state; a section
    /// that is no longer written loses it.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, policy: TrafficPolicy) -> Result<(), PolicyError> {
        let shared = &self.0;
        let _one_at_a_time = shared.changing.lock();
        let old = shared.plan.lend();
        if old.policy == policy {
            return Ok(());
        }
        let plan = Plan::new(
            policy,
            Some(&old),
            &shared.balancer,
            (&shared.origin, &shared.rng),
            now(),
        )?;
        shared.plan.replace(plan);
        Ok(())
    }

    /// Replaces the endpoints; what is known of those that stay is kept.
    pub fn set_members(&self, members: impl IntoIterator<Item = Member<K>>) {
        self.0.balancer.set_members(members, now());
    }

    /// Says where this process is: what `locality` and `subset` of the policy start from.
    pub fn set_home(&self, home: Home) {
        self.0.balancer.set_home(home, now());
    }

    /// Says where this process is, and leaves which of the callers it is: a number that was drawn,
    /// so that subsets of many callers overlap evenly.
    pub fn set_locality(&self, locality: Locality) {
        self.0.balancer.set_locality(locality, now());
    }

    /// The policy in force.
    pub fn policy(&self) -> TrafficPolicy {
        self.0.plan.lend().policy.clone()
    }

    /// Reads the policy in force without copying it.
    pub fn with_policy<T>(&self, read: impl FnOnce(&TrafficPolicy) -> T) -> T {
        read(&self.0.plan.lend().policy)
    }

    /// The circuit, for an operator's hand; `None` if the policy has none.
    pub fn breaker(&self) -> Option<CircuitBreaker> {
        self.0.plan.lend().breaker.clone()
    }

    /// Who takes the calls.
    pub fn balancer(&self) -> &Balancer<K> {
        &self.0.balancer
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
