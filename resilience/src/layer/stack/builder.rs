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
    shared::Replaced,
};

/// Builds a [`Stack`]. See [`Stack::builder`].
#[derive(Debug)]
#[must_use = "nothing is built yet"]
pub struct StackBuilder<K> {
    policy: TrafficPolicy,
    origin: Origin,
    rng: Option<Rng>,
    label: Option<fn(&K) -> String>,
}

impl<K: Key> StackBuilder<K> {
    pub(super) fn new(policy: TrafficPolicy) -> Self {
        Self {
            policy,
            origin: Origin::default(),
            rng: None,
            label: None,
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

    /// What [events](Self::events) call an endpoint.
    pub fn label(mut self, label: fn(&K) -> String) -> Self {
        self.label = Some(label);
        self
    }

    /// The policies of a destination that has no endpoints yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the policy cannot work.
    pub fn build(self) -> Result<Stack<K>, PolicyError> {
        let rng = self.rng.unwrap_or_else(Rng::from_entropy);
        let (balance, outlier) = (BalanceConfig::default(), OutlierConfig::default());
        let mut balancer = Balancer::builder(balance, outlier)
            .rng(Rng::new(rng.next_u64()))
            .name(Arc::clone(&self.origin.name));
        if let Some(events) = &self.origin.events {
            balancer = balancer.events(events.clone());
        }
        if let Some(label) = self.label {
            balancer = balancer.label(label);
        }
        let balancer = balancer.build()?;
        let plan = Plan::new(self.policy, None, &balancer, (&self.origin, &rng), now())?;
        Ok(Stack(Arc::new(Shared {
            plan: Replaced::new(plan),
            balancer,
            origin: self.origin,
            commands: Commands::default(),
            lookout: parking_lot::Mutex::default(),
            rng,
            changing: parking_lot::Mutex::new(()),
        })))
    }
}
