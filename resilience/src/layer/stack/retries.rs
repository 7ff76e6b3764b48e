//! The tries that a call may still make, and what they hold of the budget.

use std::time::Duration;

use http::request::Parts;
use tokio::time::Instant;

use super::{
    attempt::Time,
    held::{Account, Paid},
    plan::Plan,
};
use crate::{
    context::AttemptNumber,
    hedge::{Hedge, Race},
    outcome::{FailureClass, Outcome},
    retry::{
        Judgement, RetryConfig, RetryContext, Safety, Tries,
        budget::{Extra, Logical},
    },
    rng::Rng,
};

/// The retries of one call: what they may be, and what they hold of the budget.
pub(super) struct Retries<'a> {
    pub(super) config: Option<&'a RetryConfig>,
    hedge: Option<&'a Hedge>,
    hedge_safety: Safety,
    tries: Option<Tries>,
    pub(super) logical: Option<Logical>,
    extra: Option<Extra>,
    account: Option<Account>,
    /// Whether the try before timed out.
    after_timeout: bool,
    /// Hedges sent so far, over all rounds.
    hedges: u32,
    replay: usize,
}

impl<'a> Retries<'a> {
    pub(super) fn new(plan: &'a Plan, head: &Parts, now: Instant) -> Self {
        let policy = &plan.policy;
        let config = policy.retry.as_ref().filter(|retry| retry.attempts > 0);
        let hedge = plan.hedge.as_ref().zip(policy.hedge.as_ref());
        let hedge_safety = hedge.map_or(Safety::Never, |(_, hedge)| {
            hedge.safety(&head.method, &head.headers, &head.extensions)
        });
        let budget = plan.budget.as_ref();
        let budget = budget.filter(|_| config.is_some() || hedge.is_some());
        let kept = config.map_or(0, |retry| retry.replay.as_usize());
        let kept_for_hedge = hedge
            .filter(|_| hedge_safety == Safety::Always)
            .map_or(0, |(_, hedge)| hedge.replay.as_usize());
        Self {
            config,
            hedge: hedge.map(|(core, _)| core),
            hedge_safety,
            tries: config.map(|retry| {
                let safety = retry.safety(&head.method, &head.headers, &head.extensions);
                Tries::new(retry, safety)
            }),
            logical: budget.map(|budget| budget.begin(now.into_std())),
            extra: None,
            account: config.and(plan.cost.as_ref()).map(Account::of),
            after_timeout: false,
            hedges: 0,
            replay: kept.max(kept_for_hedge),
        }
    }

    /// Bytes of the request's body to keep.
    pub(super) fn replay(&self) -> usize {
        self.replay
    }

    /// The number of the next try.
    pub(super) fn number(&self) -> u32 {
        self.hedges + self.tries.as_ref().map_or(1, Tries::made)
    }

    /// Says in `head` which try of the call it is.
    pub(super) fn announce(&self, head: &mut Parts) {
        let Some(config) = self.config else {
            return;
        };
        let number = AttemptNumber(self.number());
        if config.announce {
            number.inject(&mut head.headers, self.after_timeout);
        }
        number.announce(&mut head.extensions);
    }

    /// The race of the round that begins, if there are hedges for this call.
    pub(super) fn race(&self, time: Time) -> Option<Race> {
        let hedge = self.hedge.filter(|_| self.hedge_safety == Safety::Always)?;
        let deadline = time.deadline.map(Instant::into_std);
        Some(hedge.begin(self.hedge_safety, time.now.into_std(), deadline))
    }

    /// A round has ended with the try that paid `extra`, if it was a hedge.
    pub(super) fn hedged(&mut self, tries: u32, extra: Option<Extra>) {
        self.hedges += tries - 1;
        if extra.is_some() {
            self.extra = extra;
        }
    }

    /// Whether the try under way cannot be followed by another one.
    pub(super) fn is_last(&self) -> bool {
        match (&self.tries, self.config) {
            (Some(tries), Some(config)) => !tries.may_continue(config),
            _ => true,
        }
    }

    /// How long to wait before the next try, which is paid for; `None`: there is none.
    pub(super) fn next(
        &mut self,
        judgement: &Judgement,
        replayable: impl FnOnce() -> bool,
        elsewhere: impl FnOnce() -> bool,
        time: Time,
        rng: &Rng,
    ) -> Option<Duration> {
        let (config, tries) = (self.config?, self.tries.as_mut()?);
        if !judgement.worth_a_retry {
            return None;
        }
        let now = time.now.into_std();
        let deadline = time.deadline.map(Instant::into_std);
        let context = RetryContext::at(now)
            .deadline(deadline)
            .replayable(replayable())
            .elsewhere(elsewhere());
        let next = tries.next_wait(config, judgement, &context, rng);
        let wait = next.ok()?;
        // The last retry is over; its place is this one's.
        self.extra = None;
        let extra = self.logical.as_ref()?.try_extra(now).ok()?;
        if let Some(account) = &mut self.account
            && !account.pay(judgement.outcome)
        {
            extra.forgive();
            return None;
        }
        self.extra = Some(extra);
        self.after_timeout = judgement.outcome == Outcome::Failure(FailureClass::Timeout);
        tries.count();
        Some(wait)
    }

    /// The try that was paid for was not made.
    pub(super) fn forgive(&mut self) {
        if let Some(extra) = self.extra.take() {
            extra.forgive();
        }
        if let Some(account) = &mut self.account {
            account.give_back();
        }
    }

    /// What the call holds of the budget, to be kept until its answer has ended.
    pub(super) fn take_paid(&mut self) -> Paid {
        Paid {
            _logical: self.logical.take(),
            _extra: self.extra.take(),
            account: self.account.take(),
        }
    }
}
