//! A destination's state as an operator sees it.

use tokio::time::Instant;

use super::Stack;
use crate::{
    adaptive,
    balance::{EndpointStatus, Key},
    breaker, bulkhead, coalesce, fault,
    hedge::{Hedge, HedgeStats},
    rate_limit,
    retry::{budget::Budget, cost::CostBucket},
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
    /// Retries that the budget would pay for.
    pub retry_balance: Option<u64>,
    /// Calls under way, their answers' bodies included, and retries and hedges of them.
    pub retry_in_flight: Option<(u32, u32)>,
    /// Retries and hedges made, and those that the budget, or the bucket of costs, refused.
    pub retries: (u64, u64),
    /// Tokens in the bucket of costs.
    pub retry_tokens: Option<u32>,
    /// Ejections made, and those that the maximum share did not allow.
    pub ejections: (u64, u64),
    /// Every endpoint.
    pub endpoints: Vec<EndpointStatus<K>>,
}

impl<K: Key> Stack<K> {
    /// State and counters now.
    pub fn status(&self) -> StackStatus<K> {
        let (shared, now) = (&self.0, Instant::now().into_std());
        let plan = shared.plan.lend();
        let counts = plan.budget.as_ref().map(Budget::counts);
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
            retry_balance: plan.budget.as_ref().map(|budget| budget.balance(now)),
            retry_in_flight: plan.budget.as_ref().map(Budget::in_flight),
            retries: counts.map_or((0, 0), |counts| {
                let unpaid = plan.cost.as_ref().map_or(0, CostBucket::refused);
                (counts.withdrawn, counts.exhausted + counts.capped + unpaid)
            }),
            retry_tokens: plan.cost.as_ref().map(CostBucket::tokens),
            ejections: shared.balancer.ejections(),
            endpoints: shared.balancer.status(now),
        }
    }
}
