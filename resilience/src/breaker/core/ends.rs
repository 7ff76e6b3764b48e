//! The end of a call: what is counted, and whether that changes the state.

use std::time::{Duration, Instant};

use super::{
    super::{
        probes,
        state::{Cause, Ctl, State},
        window::{BANKS, Judged, Sample},
    },
    Core,
};
use crate::{
    clock::Tick,
    events::EventKind,
    lanes::Lane,
    outcome::{FailureClass, Outcome},
    sync::{AtomicU32, Ordering},
};

/// The end of a call.
#[derive(Debug, Clone, Copy)]
pub(in crate::breaker) struct End {
    pub(in crate::breaker) permit: Ctl,
    pub(in crate::breaker) started: Tick,
    pub(in crate::breaker) deadline: Option<Tick>,
    pub(in crate::breaker) outcome: Outcome,
    /// The callee's own word on how long to stay away.
    pub(in crate::breaker) retry_after: Option<Duration>,
    /// The result opens the circuit, whatever the thresholds say.
    pub(in crate::breaker) trips: bool,
}

impl Core {
    /// A call has ended.
    pub(in crate::breaker) fn complete(&self, end: &End, now: Instant) {
        let elapsed = Tick::at(now).0.saturating_sub(end.started.0);
        self.complete_otherwise(end, self.ctl(), now, elapsed);
    }

    /// A call has ended well: the common case by itself, so that it pays for nothing else. False
    /// if it is not that common, and has yet to be [`complete`](Self::complete)d.
    #[inline]
    pub(in crate::breaker) fn complete_good(
        &self,
        (permit, started): (Ctl, Tick),
        now: Instant,
        retry_after: Option<Duration>,
    ) -> bool {
        let (ctl, tick) = (self.ctl(), Tick::at(now));
        let elapsed = tick.0.saturating_sub(started.0);
        let common = ctl == permit
            && ctl.state() == State::Closed
            && elapsed <= self.hot.slow_after.load(Ordering::Relaxed);
        if common && let Some(cause) = self.count_good(ctl, tick) {
            self.open(ctl, now, cause, retry_after);
        }
        common
    }

    #[inline(never)]
    fn complete_otherwise(&self, end: &End, ctl: Ctl, now: Instant, elapsed: u64) {
        let tick = Tick::at(now);
        let slow_after = self.hot.slow_after.load(Ordering::Relaxed);
        let slow = elapsed > slow_after;
        let outcome = match end.outcome {
            Outcome::Cancelled => self.judge_cancelled(end, tick, elapsed >= slow_after),
            other => other,
        };
        if slow {
            self.tally.slow();
        }
        if ctl != end.permit {
            self.tally.stale();
            return self.end_uncounted(outcome);
        }
        let silent = matches!(outcome, Outcome::Ignored | Outcome::Cancelled);
        match ctl.state() {
            State::HalfOpen => {
                self.end_uncounted(outcome);
                if silent && !end.trips {
                    // Says nothing about health: the place is free for another probe.
                    return self.probes.give_back(ctl.epoch());
                }
                // "Less, please" must not close the circuit.
                let bad = outcome.is_failure() || outcome == Outcome::RateLimited;
                match self.probes.done(ctl.epoch(), bad, slow) {
                    Some(_) if end.trips => {
                        self.open(ctl, now, Cause::Directed, end.retry_after);
                    }
                    Some(tally) => {
                        self.judge_probes(ctl, tally, now, end.retry_after);
                    }
                    None => self.tally.stale(),
                }
            }
            state if state.counts() && !silent => {
                self.tally.end(outcome, true);
                let cause = self.count(ctl, tick, outcome, slow);
                self.judge(end, ctl, now, cause);
            }
            state => {
                self.end_uncounted(outcome);
                if end.trips && state.counts() {
                    self.judge(end, ctl, now, None);
                }
            }
        }
    }

    /// A permit was dropped: the call was cancelled, nobody says when.
    #[cold]
    pub(in crate::breaker) fn drop_call(&self, permit: Ctl) {
        self.tally.end(Outcome::Cancelled, false);
        if self.ctl() != permit {
            self.tally.stale();
        } else if permit.state() == State::HalfOpen {
            self.probes.give_back(permit.epoch());
        }
    }

    /// A cancelled call failed if it had been slow, or late, when it was cancelled.
    fn judge_cancelled(&self, end: &End, now: Tick, slow: bool) -> Outcome {
        let late = end.deadline.is_some_and(|deadline| now >= deadline);
        let judge = self.hot.judge_cancelled.load(Ordering::Relaxed) != 0;
        if judge && (slow || late) {
            Outcome::Failure(FailureClass::Timeout)
        } else {
            Outcome::Cancelled
        }
    }

    fn end_uncounted(&self, outcome: Outcome) {
        if outcome == Outcome::Success {
            self.window.pass_by(Lane::here());
        } else {
            self.tally.end(outcome, false);
        }
    }

    /// Counts a result; says which threshold is reached with it.
    fn count(&self, ctl: Ctl, now: Tick, outcome: Outcome, slow: bool) -> Option<Cause> {
        let failed = outcome.is_failure();
        let sample = Sample { failed, slow };
        let judged = self.window.record(Lane::here(), ctl.epoch(), now, sample);
        let in_a_row = &self.consecutive[(ctl.epoch() % BANKS) as usize];
        if failed {
            let limit = self.hot.consecutive.load(Ordering::Relaxed);
            let so_far = in_a_row.fetch_add(1, Ordering::AcqRel).saturating_add(1);
            if limit > 0 && so_far >= limit {
                return Some(Cause::Consecutive);
            }
        } else if outcome == Outcome::Success {
            end_row(in_a_row);
        }
        self.weigh(judged?)
    }

    /// The same for a success that was not slow.
    #[inline]
    fn count_good(&self, ctl: Ctl, now: Tick) -> Option<Cause> {
        let judged = self.window.record_good(Lane::here(), ctl.epoch(), now);
        end_row(&self.consecutive[(ctl.epoch() % BANKS) as usize]);
        self.weigh(judged?)
    }

    /// The threshold that is reached, if there are enough calls to say so.
    #[inline(never)]
    fn weigh(&self, judged: Judged) -> Option<Cause> {
        if judged.rates.calls < u64::from(self.hot.min_calls.load(Ordering::Relaxed)) {
            return None;
        }
        let reached = self.hot.reached(judged.rates);
        if reached.is_none() {
            self.window.is_well(judged);
        }
        reached
    }

    /// Opens a circuit whose threshold is reached, or reports that, if it only measures.
    fn judge(&self, end: &End, ctl: Ctl, now: Instant, cause: Option<Cause>) {
        let cause = if end.trips {
            Some(Cause::Directed)
        } else {
            cause
        };
        match cause {
            Some(cause) if ctl.state() == State::Closed => {
                self.open(ctl, now, cause, end.retry_after);
            }
            // Once, until it has been better.
            Some(cause) if self.exceeding.swap(1, Ordering::AcqRel) == 0 => {
                self.tally.exceeded();
                self.tell(Some(now), || EventKind::Exceeded { cause });
            }
            None if self.exceeding.load(Ordering::Relaxed) != 0 => {
                self.exceeding.store(0, Ordering::Release);
            }
            _ => {}
        }
    }

    /// Closes or opens if enough probes are done; says whether they were.
    pub(super) fn judge_probes(
        &self,
        ctl: Ctl,
        tally: probes::Tally,
        now: Instant,
        retry_after: Option<Duration>,
    ) -> bool {
        match self.hot.verdict(tally) {
            Some(true) => {
                let mut control = self.control.lock();
                if self.ctl() == ctl {
                    self.shift(&mut control, State::Closed, Cause::ProbesPassed, Some(now));
                }
            }
            Some(false) => self.open(ctl, now, Cause::ProbesFailed, retry_after),
            None => return false,
        }
        true
    }
}

/// A success ends a row of failures.
#[inline]
fn end_row(in_a_row: &AtomicU32) {
    if in_a_row.load(Ordering::Relaxed) != 0 {
        in_a_row.store(0, Ordering::Release);
    }
}
