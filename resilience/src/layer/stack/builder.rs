//! A stack with more than a policy: a name, a listener, a seed.

use std::sync::Arc;

use super::{Plan, Shared, Stack, now, plan::Origin};
use crate::{
    TrafficPolicy,
    balance::{BalanceConfig, Balancer, Key, OutlierConfig},
    config::PolicyError,
    events::Events,
    layer::commands::Commands,
    rng::Rng,
};

/// Builds a [`Stack`]. See [`Stack::builder`].
#[derive(Debug)]
#[must_use = "nothing is built yet"]
pub struct StackBuilder {
    policy: TrafficPolicy,
    origin: Origin,
    rng: Option<Rng>,
}

impl StackBuilder {
    pub(super) fn new(policy: TrafficPolicy) -> Self {
        Self {
            policy,
            origin: Origin::default(),
            rng: None,
        }
    }

    /// What events and metrics call the destination. Default "".
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.origin.name = name.into();
        self
    }

    /// Where its policies tell what happens to them.
    pub fn events(mut self, events: Events) -> Self {
        self.origin.events = Some(events);
        self
    }

    /// A source of chance that a test can replay. Default: a seed of its own.
    pub fn rng(mut self, rng: Rng) -> Self {
        self.rng = Some(rng);
        self
    }

    /// The policies of a destination that has no endpoints yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the policy cannot work.
    pub fn build<K: Key>(self) -> Result<Stack<K>, PolicyError> {
        let rng = self.rng.unwrap_or_else(Rng::from_entropy);
        let balancer = Balancer::new(
            BalanceConfig::default(),
            OutlierConfig::default(),
            Rng::new(rng.next_u64()),
        )?;
        let plan = Plan::new(self.policy, None, &balancer, (&self.origin, &rng), now())?;
        Ok(Stack(Arc::new(Shared {
            plan: arc_swap::ArcSwap::new(plan),
            balancer,
            origin: self.origin,
            commands: Commands::default(),
            rng,
            changing: parking_lot::Mutex::new(()),
        })))
    }
}
