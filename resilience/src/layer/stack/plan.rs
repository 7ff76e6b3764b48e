//! A policy with the cores that enforce it, swapped as a whole.

use std::{sync::Arc, time::Instant};

use http::request::Parts;

use crate::{
    TrafficPolicy,
    adaptive::{AdaptiveLimit, Partition},
    balance::{Balancer, Key},
    breaker::{BreakerConfig, CircuitBreaker},
    bulkhead::Bulkhead,
    config::PolicyError,
    context::Priority,
    events::Events,
    fault::Faults,
    hedge::Hedge,
    layer::{Fixed, coalesce::Coalesce, keep::keep},
    rate_limit::RateLimit,
    retry::{RetryConfig, budget::Budget, cost::CostBucket},
    rng::Rng,
    throttle::Throttle,
};

/// What one load gives a call: the policy in force, and a core for each section that is written.
#[derive(Debug)]
pub(super) struct Plan {
    pub policy: TrafficPolicy,
    pub throttle: Option<Throttle>,
    pub breaker: Option<CircuitBreaker>,
    pub bulkhead: Option<Bulkhead>,
    pub concurrency: Option<AdaptiveLimit>,
    pub rate: Option<RateLimit>,
    pub budget: Option<Budget>,
    pub cost: Option<CostBucket>,
    pub hedge: Option<Hedge>,
    pub faults: Option<Faults>,
    pub coalesce: Option<Coalesce>,
    /// The fallback's answer, made once.
    pub instead: Option<Fixed>,
}

/// Who the cores are, for events and metrics.
#[derive(Debug, Default)]
pub(super) struct Origin {
    pub name: Arc<str>,
    pub events: Option<Events>,
}

impl Origin {
    fn breaker(&self, config: BreakerConfig) -> Result<CircuitBreaker, PolicyError> {
        let builder = CircuitBreaker::builder(config).name(Arc::clone(&self.name));
        match &self.events {
            Some(events) => builder.events(events.clone()).build(),
            None => builder.build(),
        }
    }
}

impl Plan {
    /// The plan of `policy`, with the state of `old` wherever both have a section.
    ///
    /// Nothing of `old` is touched unless the whole policy is good.
    pub(super) fn new<K: Key>(
        policy: TrafficPolicy,
        old: Option<&Self>,
        balancer: &Balancer<K>,
        (origin, rng): (&Origin, &Rng),
        now: Instant,
    ) -> Result<Self, PolicyError> {
        policy.validate()?;
        let seed = || Rng::new(rng.next_u64());
        let plan = Self {
            throttle: keep(
                policy.throttle.as_ref(),
                old.and_then(|old| old.throttle.as_ref()),
                |config| Throttle::new(config.clone(), seed()),
                |core, config| core.reconfigure(config.clone()),
            )?,
            breaker: keep(
                policy.breaker.as_ref(),
                old.and_then(|old| old.breaker.as_ref()),
                |config| origin.breaker(config.clone()),
                |core, config| core.reconfigure(config.clone()),
            )?,
            bulkhead: keep(
                policy.bulkhead.as_ref(),
                old.and_then(|old| old.bulkhead.as_ref()),
                Bulkhead::with_config,
                Bulkhead::reconfigure_with,
            )?,
            concurrency: keep(
                policy.concurrency.as_ref(),
                old.and_then(|old| old.concurrency.as_ref()),
                |config| AdaptiveLimit::new(config.clone(), seed()),
                |core, config| core.reconfigure(config.clone()),
            )?,
            rate: keep(
                policy.rate_limit.as_ref(),
                old.and_then(|old| old.rate.as_ref()),
                |rate| Ok(RateLimit::new(*rate)),
                |core, rate| {
                    core.reconfigure(*rate, now);
                    Ok(())
                },
            )?,
            budget: keep(
                // Hedges without retries have the budget that retries would have.
                budget_of(&policy).as_ref(),
                old.and_then(|old| old.budget.as_ref()),
                RetryConfig::new_budget,
                |core, retry| core.reconfigure(retry.budget, retry.in_flight),
            )?,
            cost: keep(
                policy.retry.as_ref().and_then(|retry| retry.cost.as_ref()),
                old.and_then(|old| old.cost.as_ref()),
                |config| CostBucket::new(*config),
                |core, config| core.reconfigure(*config),
            )?,
            hedge: keep(
                policy.hedge.as_ref(),
                old.and_then(|old| old.hedge.as_ref()),
                |config| Hedge::new(config.clone()),
                |core, config| core.reconfigure(config.clone()),
            )?,
            faults: keep(
                policy.fault.as_ref(),
                old.and_then(|old| old.faults.as_ref()),
                |config| Faults::new(config, seed()),
                Faults::reconfigure,
            )?,
            coalesce: match (
                policy.coalesce.as_ref(),
                old.and_then(|old| old.coalesce.as_ref()),
            ) {
                (None, _) => None,
                (Some(config), Some(old)) => Some(old.with(config)?),
                (Some(config), None) => Some(Coalesce::new(config)?),
            },
            instead: policy.fallback.as_ref().map(|it| Fixed::of(&it.answer)),
            policy,
        };
        let (balance, outlier) = (plan.policy.balance.clone(), plan.policy.outlier.clone());
        balancer.reconfigure(balance, outlier, now)?;
        Ok(plan)
    }
}

impl Plan {
    /// The class of the adaptive limit that a request is of, if it has any that the limit knows.
    pub(super) fn class(&self, limit: &AdaptiveLimit, head: &Parts) -> Option<Partition> {
        let config = self.policy.concurrency.as_ref()?;
        let priority = || {
            let own = head.extensions.get::<Priority>().copied();
            own.unwrap_or_else(|| Priority::extract(&head.headers))
        };
        limit.partition(config.class_of(priority, &head.headers)?)
    }
}

fn budget_of(policy: &TrafficPolicy) -> Option<RetryConfig> {
    match (&policy.retry, &policy.hedge) {
        (Some(retry), _) => Some(retry.clone()),
        (None, Some(_)) => Some(RetryConfig::default()),
        (None, None) => None,
    }
}
