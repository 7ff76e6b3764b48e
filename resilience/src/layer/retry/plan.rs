//! What calls go by, and what they hold until they are over.
//!
//! A call must own its policy: it outlives the layer, and goes by the configuration that it began
//! with. But a count of references that all calls share is a word that all threads write to, twice a
//! call for each thing that is owned. So all of it is one [`Plan`], a call borrows it once, by its
//! thread's own handle, and the budget is counted through the plan instead of by a guard of its own.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use http::{Extensions, request::Parts};

use super::super::{Completes, Moment, keep::keep};
use crate::{
    config::PolicyError,
    context::AttemptNumber,
    outcome::Outcome,
    retry::{
        RetryConfig,
        budget::{Budget, Counted, Extra},
        cost::{Cost, CostBucket},
    },
    rng::Rng,
    shared::{Lent, Replaced},
    sync::{AtomicU64, Ordering},
};

/// What the next call begins with.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) plan: Replaced<Plan>,
    pub(super) core: Arc<Core>,
}

/// What one call goes by from its beginning to its end. It is lent to calls, so that their threads
/// do not meet at a count of references.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) config: RetryConfig,
    pub(super) cost: Option<CostBucket>,
    pub(super) core: Arc<Core>,
}

/// What stays when the configuration changes.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) budget: Budget,
    /// Whether anybody else can have the budget: a call need not say on which it is counted
    /// otherwise.
    pub(super) lent: AtomicBool,
    pub(super) rng: Rng,
    pub(super) stats: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) retries: AtomicU64,
    pub(super) recovered: AtomicU64,
    pub(super) overflow: AtomicU64,
    pub(super) body: AtomicU64,
    pub(super) deadline: AtomicU64,
    pub(super) refused: AtomicU64,
}

/// What retries came to so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryStats {
    /// Tries after the first.
    pub retries: u64,
    /// Calls that a retry turned into a success.
    pub recovered: u64,
    /// Retries not made because the service was not ready for another call.
    pub overflow: u64,
    /// Retries not made because the body was too long to be had again, or broke.
    pub body_not_replayable: u64,
    /// Retries not made because the wait would have outlasted the deadline.
    pub out_of_time: u64,
    /// Retries that the budget or the cost bucket did not pay for.
    pub exhausted: u64,
}

/// One more.
pub(super) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Current {
    /// `lent`: others share the budget.
    pub(super) fn new(
        config: RetryConfig,
        budget: Budget,
        lent: bool,
        rng: Rng,
    ) -> Result<Arc<Self>, PolicyError> {
        config.validate()?;
        let cost = config.cost.map(CostBucket::new).transpose()?;
        let core = Arc::new(Core {
            budget,
            lent: AtomicBool::new(lent),
            rng,
            stats: Counters::default(),
        });
        let plan = Plan {
            config,
            cost,
            core: Arc::clone(&core),
        };
        let plan = Replaced::new(plan);
        Ok(Arc::new(Self { plan, core }))
    }

    /// Calls that have begun keep the plan that they have.
    pub(super) fn reconfigure(&self, config: RetryConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let core = Arc::clone(&self.core);
        let cost = keep(
            config.cost.as_ref(),
            self.plan.lend().cost.as_ref(),
            |cost| CostBucket::new(*cost),
            |bucket, cost| bucket.reconfigure(*cost),
        )?;
        core.budget.reconfigure(config.budget, config.in_flight)?;
        self.plan.replace(Plan { config, cost, core });
        Ok(())
    }
}

impl Core {
    pub(super) fn stats(&self) -> RetryStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RetryStats {
            retries: of(&self.stats.retries),
            recovered: of(&self.stats.recovered),
            overflow: of(&self.stats.overflow),
            body_not_replayable: of(&self.stats.body),
            out_of_time: of(&self.stats.deadline),
            exhausted: of(&self.stats.refused),
        }
    }
}

/// What a call holds of its budget.
#[derive(Debug)]
pub struct RetryHeld {
    pub(super) begun: Begun,
    // Dropped with the rest when the call is over: that is all the budget wants to know.
    pub(super) _extra: Option<Extra>,
    pub(super) paid: Option<Cost>,
}

impl Completes for RetryHeld {
    fn complete(self, outcome: Outcome, _: &mut Moment, _: Option<Duration>) {
        if let (Some(bucket), Outcome::Success) = (&self.begun.plan.cost, outcome) {
            bucket.succeeded(self.paid);
        }
    }
}

/// A call under way, and what it goes by. The plan keeps the budget: a guard of the budget's own
/// would keep it a second time.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) plan: Lent<Plan>,
    /// Whether it is this layer that has told the budget of the call.
    counts: bool,
}

impl Begun {
    pub(super) fn new(plan: Lent<Plan>, extensions: &Extensions, now: Instant) -> Self {
        let budget = &plan.core.budget;
        let counts = !Counted::has_begun(budget, extensions);
        if counts {
            budget.enter(now);
        }
        Self { plan, counts }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.counts {
            self.plan.core.budget.leave();
        }
    }
}

impl RetryConfig {
    /// Says which try `head` is of, to layers further in and, if it is to, to the callee.
    pub(super) fn announce(&self, number: AttemptNumber, after_timeout: bool, head: &mut Parts) {
        if self.announce {
            number.inject(&mut head.headers, after_timeout);
        }
        number.announce(&mut head.extensions);
    }
}
