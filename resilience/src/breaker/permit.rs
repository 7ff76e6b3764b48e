//! Leave to make one call.

use std::time::{Duration, Instant};

use super::{
    core::{Core, End},
    state::Ctl,
};
use crate::{clock::Tick, outcome::Outcome, shared::Lent};

/// Leave to make one call. Complete it with the call's result; dropping it means cancelled.
///
/// It belongs to the epoch that admitted it: a result that comes after the circuit has changed its
/// state is counted as stale and decides nothing.
///
/// ```compile_fail,E0382
/// # use std::time::Instant;
/// # use selvedge_resilience::{breaker::{BreakerConfig, CircuitBreaker}, Outcome};
/// let breaker = CircuitBreaker::new(BreakerConfig::default()).unwrap();
/// let permit = breaker.try_acquire(Instant::now()).unwrap();
/// permit.complete(Outcome::Success, Instant::now());
/// permit.complete(Outcome::Success, Instant::now()); // one call, one result
/// ```
#[derive(Debug)]
#[must_use = "a permit that is dropped at once counts as a cancelled call"]
pub struct Permit {
    core: Lent<Core>,
    ctl: Ctl,
    started: Tick,
    /// [`NO_DEADLINE`] if there is none: one word is moved faster than an option of one.
    deadline: Tick,
    ended: bool,
}

/// The end of time.
const NO_DEADLINE: Tick = Tick(u64::MAX);

impl Permit {
    pub(super) fn new(core: Lent<Core>, ctl: Ctl, started: Tick) -> Self {
        Self {
            core,
            ctl,
            started,
            deadline: NO_DEADLINE,
            ended: false,
        }
    }

    /// The call's deadline: cancelled at it or later, the call counts as failed.
    #[must_use = "this is the permit"]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Tick::at(deadline);
        self
    }

    /// Ends the call with its result.
    pub fn complete(self, outcome: Outcome, now: Instant) {
        self.complete_with(outcome, now, None);
    }

    /// The same, with the callee's own word (`Retry-After`) on how long to stay away should this
    /// result open the circuit. It is kept between the open time and `open_for_max`.
    pub fn complete_with(mut self, outcome: Outcome, now: Instant, retry_after: Option<Duration>) {
        self.end(outcome, now, retry_after, false);
    }

    /// Ends the call with a result that opens the circuit, whatever the thresholds say: "come back
    /// tomorrow", a revoked credential. `open_for` is kept between the open time and
    /// `open_for_max`. A result of an earlier epoch opens nothing.
    pub fn trip(mut self, outcome: Outcome, now: Instant, open_for: Option<Duration>) {
        self.end(outcome, now, open_for, true);
    }

    /// Ends the call as cancelled at `now`: after the slow threshold or the call's deadline that
    /// is a failure, unless the configuration says otherwise.
    pub fn cancel(self, now: Instant) {
        self.complete(Outcome::Cancelled, now);
    }

    fn end(&mut self, outcome: Outcome, now: Instant, retry_after: Option<Duration>, trips: bool) {
        self.ended = true;
        let call = (self.ctl, self.started);
        if outcome == Outcome::Success && !trips && self.core.complete_good(call, now, retry_after)
        {
            return;
        }
        let end = End {
            permit: self.ctl,
            started: self.started,
            deadline: (self.deadline != NO_DEADLINE).then_some(self.deadline),
            outcome,
            retry_after,
            trips,
        };
        self.core.complete(&end, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.ended {
            // No clock here: a cancelled call that also was slow is told through `cancel`.
            self.core.drop_call(self.ctl);
        }
    }
}
