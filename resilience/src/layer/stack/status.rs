//! A destination's state as an operator sees it.

use tokio::time::Instant;

use super::Stack;
use crate::{
    adaptive,
    balance::{Ejections, EndpointStatus, Key},
    breaker, bulkhead, coalesce, fault,
    hedge::{Hedge, HedgeStats},
    rate_limit,
    retry::{
        budget::{Budget, InFlight},
        cost::CostBucket,
    },
};

/// What a [`Stack`] is doing. Sections that the policy does not have are `None`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StackStatus<K> {
    /// The circuit.
    pub breaker: Option<breaker::Snapshot>,
    /// Tries under way, waiting, refused.
    pub bulkhead: Option<bulkhead::Status>,
    /// The same for the limit that finds itself.
    pub concurrency: Option<adaptive::Status>,
    /// What is left of the rate.
    pub rate_limit: Option<rate_limit::Status>,
    /// Probability with which the next call is kept back because the callee refuses so many.
    pub throttle: Option<f64>,
    /// Hedges sent, and what became of them.
    pub hedge: Option<HedgeStats>,
    /// Calls under way for many, and what became of those who waited.
    pub coalesce: Option<coalesce::Status>,
    /// Faults that were injected.
    pub fault: Option<fault::Status>,
    /// Retries, hedges, and what they are paid from; `None` if the policy has neither.
    pub budget: Option<BudgetStatus>,
    /// Ejections of endpoints.
    pub ejections: Ejections,
    /// Every endpoint.
    pub endpoints: Vec<EndpointStatus<K>>,
}

/// Retries and hedges, and what they are paid from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BudgetStatus {
    /// Retries and hedges that it would pay for.
    pub balance: u64,
    /// Calls under way, and retries and hedges of them.
    pub in_flight: InFlight,
    /// Retries and hedges made.
    pub made: u64,
    /// Those that it, or the bucket of costs, refused.
    pub rejected: u64,
    /// Tokens in the bucket of costs, if there is one.
    pub tokens: Option<u32>,
}

impl<K: Key> Stack<K> {
    /// State and counters now.
    pub fn status(&self) -> StackStatus<K> {
        let (shared, now) = (&self.0, Instant::now().into_std());
        let plan = shared.plan.lend();
        let cost = plan.cost.as_ref();
        let budget = |budget: &Budget| {
            let counts = budget.counts();
            BudgetStatus {
                balance: budget.balance(now),
                in_flight: budget.in_flight(),
                made: counts.withdrawn,
                rejected: counts.exhausted + counts.capped + cost.map_or(0, CostBucket::rejected),
                tokens: cost.map(CostBucket::tokens),
            }
        };
        StackStatus {
            breaker: plan.breaker.as_ref().map(|core| core.snapshot(now)),
            bulkhead: plan.bulkhead.as_ref().map(bulkhead::Bulkhead::status),
            concurrency: plan
                .concurrency
                .as_ref()
                .map(adaptive::AdaptiveLimit::status),
            rate_limit: plan.rate.as_ref().map(|core| core.status(now)),
            throttle: plan.throttle.as_ref().map(|core| core.probability(now)),
            hedge: plan.hedge.as_ref().map(Hedge::stats),
            coalesce: plan.coalesce.as_ref().map(|it| it.core.status()),
            fault: plan.faults.as_ref().map(fault::Faults::status),
            budget: plan.budget.as_ref().map(budget),
            ejections: shared.balancer.ejections(),
            endpoints: shared.balancer.status(now),
        }
    }
}
