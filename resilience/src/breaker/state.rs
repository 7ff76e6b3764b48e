//! The states of a circuit, the ways between them, and why one is taken.

use std::fmt;

/// The states of a circuit, in the field's words: closed is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are refused until the open time is over.
    Open,
    /// A few probes pass; their results decide.
    HalfOpen,
    /// An operator refuses every call.
    ForcedOpen,
    /// An operator lets every call pass, uncounted.
    Disabled,
    /// Every call passes and is counted; a threshold that is reached is only reported.
    MetricsOnly,
}

impl State {
    /// Every state, in the order of their metrics.
    pub const ALL: [Self; 6] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::ForcedOpen,
        Self::Disabled,
        Self::MetricsOnly,
    ];

    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
            Self::MetricsOnly => "metrics_only",
        }
    }

    /// Whether every call passes.
    pub fn admits_all(self) -> bool {
        matches!(self, Self::Closed | Self::Disabled | Self::MetricsOnly)
    }

    /// Whether results are counted in the window.
    pub(super) fn counts(self) -> bool {
        matches!(self, Self::Closed | Self::MetricsOnly)
    }

    /// Whether an operator may lead a circuit from here to `to`. Half-open is probing what was
    /// refused: where calls pass there is nothing to probe.
    pub fn may_become(self, to: Self) -> bool {
        to != Self::HalfOpen || !self.admits_all()
    }
}

/// Why a circuit changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Too large a share of calls failed.
    FailureRate,
    /// Too large a share of calls was slow.
    SlowRate,
    /// Too many failures in a row.
    Consecutive,
    /// The open time is over.
    Waited,
    /// Enough probes succeeded.
    ProbesPassed,
    /// Too many probes failed or were slow.
    ProbesFailed,
    /// The last probe took too long.
    ProbesHung,
    /// A result said so itself.
    Directed,
    /// An operator, or a new configuration, said so.
    Operator,
}

impl Cause {
    /// Every cause, in the order of their metrics.
    pub(super) const ALL: [Self; 9] = [
        Self::FailureRate,
        Self::SlowRate,
        Self::Consecutive,
        Self::Waited,
        Self::ProbesPassed,
        Self::ProbesFailed,
        Self::ProbesHung,
        Self::Directed,
        Self::Operator,
    ];

    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::SlowRate => "slow_rate",
            Self::Consecutive => "consecutive",
            Self::Waited => "waited",
            Self::ProbesPassed => "probes_passed",
            Self::ProbesFailed => "probes_failed",
            Self::ProbesHung => "probes_hung",
            Self::Directed => "directed",
            Self::Operator => "operator",
        }
    }
}

/// A transition that a circuit does not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IllegalTransition {
    /// The state that it is in, and stays in.
    pub from: State,
    /// The state that was asked for.
    pub to: State,
}

impl fmt::Display for IllegalTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lead a {} circuit to {}: only an open or forced-open one can be half-opened",
            self.from.as_str(),
            self.to.as_str()
        )
    }
}

impl std::error::Error for IllegalTransition {}

/// State (3 bits) and epoch (61 bits) in one word, so that both change together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ctl(pub(super) u64);

impl Ctl {
    pub(super) fn new(state: State, epoch: u64) -> Self {
        Self((epoch << 3) | state as u64)
    }
    pub(super) fn state(self) -> State {
        State::ALL[(self.0 & 7) as usize % State::ALL.len()]
    }
    pub(super) fn epoch(self) -> u64 {
        self.0 >> 3
    }
    pub(super) fn next(self, state: State) -> Self {
        Self::new(state, self.epoch().wrapping_add(1))
    }
}
