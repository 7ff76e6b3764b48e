//! What one circuit has seen, in counters that only grow.

use super::state::{Cause, State};
use crate::{
    outcome::{FailureClass, Outcome, Reason},
    sync::{AtomicU64, Ordering},
};

/// How often a circuit has gone from one state to another for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transitions {
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// Why.
    pub cause: Cause,
    /// How often, at least once.
    pub count: u64,
}

/// How the calls of a circuit ended, and what else was counted. All but the gauge `in_flight` only
/// grow.
///
/// When no call is under way: `admitted() == completed() + cancelled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Calls {
    /// Permits that are out now.
    pub in_flight: u64,
    /// Calls that succeeded.
    pub success: u64,
    /// Calls that failed, by class; a call cancelled after the slow threshold is a `Timeout` here.
    pub(super) failed: [u64; CLASSES.len()],
    /// Calls that were asked for less.
    pub rate_limited: u64,
    /// Calls that said nothing of the callee's health.
    pub ignored: u64,
    /// Calls that nobody waited for.
    pub cancelled: u64,
    /// Of the calls above, those that took longer than the slow threshold.
    pub slow: u64,
    /// Of the calls above, those whose epoch was over: they decided nothing.
    pub stale: u64,
    /// Calls refused because the circuit was open.
    pub rejected_open: u64,
    /// Calls refused because an operator forced the circuit open.
    pub rejected_forced: u64,
    /// Calls refused because every probe was out.
    pub rejected_probes: u64,
    /// Times a threshold was reached while the circuit only measured.
    pub exceeded: u64,
}

/// The classes that [`Calls::failed`] tells apart, in its order.
pub(crate) const CLASSES: [FailureClass; 6] = [
    FailureClass::Connect,
    FailureClass::Timeout,
    FailureClass::Reset,
    FailureClass::ServerError,
    FailureClass::Protocol,
    FailureClass::Other,
];

impl Calls {
    /// Calls that failed, of every class.
    pub fn failures(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// Calls that ended and were not cancelled.
    pub fn completed(&self) -> u64 {
        self.success + self.failures() + self.rate_limited + self.ignored
    }

    /// Calls let through.
    pub fn admitted(&self) -> u64 {
        self.completed() + self.cancelled + self.in_flight
    }

    /// Calls refused.
    pub fn rejected(&self) -> u64 {
        self.rejected_open + self.rejected_forced + self.rejected_probes
    }

    /// Failures of one class.
    pub fn failed_with(&self, class: FailureClass) -> u64 {
        self.failed[class_index(class)]
    }
}

fn class_index(class: FailureClass) -> usize {
    CLASSES
        .iter()
        .position(|&known| known == class)
        .unwrap_or(CLASSES.len() - 1)
}

/// The shared counters: everything but successes, which the window's lanes count.
#[derive(Debug)]
pub(super) struct Tally {
    /// Of the calls counted in windows, those that did not succeed.
    unsuccessful: AtomicU64,
    failed: [AtomicU64; CLASSES.len()],
    rate_limited: AtomicU64,
    ignored: AtomicU64,
    cancelled: AtomicU64,
    slow: AtomicU64,
    stale: AtomicU64,
    rejected: [AtomicU64; 3],
    exceeded: AtomicU64,
    /// By cause and state before; the state after follows from the cause, but for the operator's.
    transitions: [[AtomicU64; State::ALL.len()]; Cause::ALL.len()],
    by_operator: [[AtomicU64; State::ALL.len()]; State::ALL.len()],
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

fn up(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            unsuccessful: AtomicU64::new(0),
            failed: zeros(),
            rate_limited: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            rejected: zeros(),
            exceeded: AtomicU64::new(0),
            transitions: std::array::from_fn(|_| zeros()),
            by_operator: std::array::from_fn(|_| zeros()),
        }
    }

    /// A call ended; `counted` in the window or not. A success is counted elsewhere.
    pub(super) fn end(&self, outcome: Outcome, counted: bool) {
        match outcome {
            Outcome::Success => return,
            Outcome::Failure(class) => up(&self.failed[class_index(class)]),
            Outcome::RateLimited => up(&self.rate_limited),
            Outcome::Ignored => up(&self.ignored),
            Outcome::Cancelled => up(&self.cancelled),
        }
        if counted {
            up(&self.unsuccessful);
        }
    }

    pub(super) fn slow(&self) {
        up(&self.slow);
    }
    pub(super) fn stale(&self) {
        up(&self.stale);
    }
    pub(super) fn exceeded(&self) {
        up(&self.exceeded);
    }

    pub(super) fn reject(&self, reason: Reason) {
        up(&self.rejected[match reason {
            Reason::ForcedOpen => 1,
            Reason::ProbesTaken => 2,
            _ => 0,
        }]);
    }

    pub(super) fn transition(&self, from: State, to: State, cause: Cause) {
        if cause == Cause::Operator {
            up(&self.by_operator[from as usize][to as usize]);
        } else {
            up(&self.transitions[cause as usize][from as usize]);
        }
    }

    /// Every transition ever made, with how often.
    pub(super) fn transitions(&self) -> impl Iterator<Item = Transitions> + '_ {
        let automatic = Cause::ALL.into_iter().flat_map(move |cause| {
            let to = match cause {
                Cause::Waited => State::HalfOpen,
                Cause::ProbesPassed => State::Closed,
                _ => State::Open,
            };
            State::ALL.into_iter().map(move |from| {
                let count = &self.transitions[cause as usize][from as usize];
                Transitions {
                    from,
                    to,
                    cause,
                    count: count.load(Ordering::Relaxed),
                }
            })
        });
        let by_hand = State::ALL.into_iter().flat_map(move |from| {
            State::ALL.into_iter().map(move |to| {
                let count = &self.by_operator[from as usize][to as usize];
                Transitions {
                    from,
                    to,
                    cause: Cause::Operator,
                    count: count.load(Ordering::Relaxed),
                }
            })
        });
        automatic.chain(by_hand).filter(|made| made.count > 0)
    }

    /// `recorded`: calls counted in windows; `uncounted`: successes that were not.
    pub(super) fn read(&self, recorded: u64, uncounted: u64, in_flight: u64) -> Calls {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [open, forced, probes] = &self.rejected;
        Calls {
            in_flight,
            success: recorded.saturating_sub(of(&self.unsuccessful)) + uncounted,
            failed: std::array::from_fn(|i| of(&self.failed[i])),
            rate_limited: of(&self.rate_limited),
            ignored: of(&self.ignored),
            cancelled: of(&self.cancelled),
            slow: of(&self.slow),
            stale: of(&self.stale),
            rejected_open: of(open),
            rejected_forced: of(forced),
            rejected_probes: of(probes),
            exceeded: of(&self.exceeded),
        }
    }
}
