//! What happened, as data, as a name and in words.

use std::{fmt, time::Duration};

use crate::{
    balance,
    breaker::{Cause, State},
    outcome::Reason,
};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// A circuit changed its state.
    Transition {
        /// The state before.
        from: State,
        /// The state after; never the same.
        to: State,
        /// Why.
        cause: Cause,
        /// Time until it probes, if it opened.
        open_for: Option<Duration>,
    },
    /// A circuit that only measures would have opened. Told once, until it has been better.
    Exceeded {
        /// Why it would have.
        cause: Cause,
    },
    /// A call was refused.
    Rejected {
        /// Why.
        reason: Reason,
    },
    /// A new configuration is in force.
    Reconfigured {
        /// How many there have been before it.
        generation: u64,
    },
    /// An endpoint is left out for a time, by its results.
    Ejected {
        /// Why.
        cause: balance::Cause,
        /// For how long.
        lasts: Duration,
    },
    /// An endpoint that was ejected is so no longer.
    Returned {
        /// Why.
        why: Return,
    },
    /// An endpoint's health check says something else than before.
    Checked {
        /// Whether it passed.
        passed: bool,
    },
    /// So many endpoints are out that ejections are not believed any more, or they are again.
    Panic {
        /// Whether they are not.
        begun: bool,
        /// Endpoints that are in.
        healthy: u32,
        /// Endpoints in all.
        all: u32,
    },
    /// A policy has begun to refuse calls.
    RefusalsBegan {
        /// Why: the reason of most of them.
        reason: Reason,
    },
    /// It has refused none for a while.
    RefusalsEnded {
        /// How many it refused in between.
        refused: u64,
    },
    /// A limit that finds itself is half of what it was, or less.
    LimitFell {
        /// What it was.
        from: u32,
        /// What it is.
        to: u32,
    },
    /// A limit that fell is near to what it was, or has been where it is for long.
    LimitSettled {
        /// What it was at its fall.
        from: u32,
        /// What it is.
        to: u32,
    },
}

/// Why an endpoint is no longer ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Return {
    /// Its time was over.
    TimeOver,
    /// Its health check passed.
    CheckPassed,
    /// It is no longer among those that are called.
    Left,
}

impl Return {
    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TimeOver => "time_over",
            Self::CheckPassed => "check_passed",
            Self::Left => "left",
        }
    }
}

impl EventKind {
    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Transition { .. } => "transition",
            Self::Exceeded { .. } => "exceeded",
            Self::Rejected { .. } => "rejected",
            Self::Reconfigured { .. } => "reconfigured",
            Self::Ejected { .. } => "ejected",
            Self::Returned { .. } => "returned",
            Self::Checked { .. } => "checked",
            Self::Panic { .. } => "panic",
            Self::RefusalsBegan { .. } => "refusals_began",
            Self::RefusalsEnded { .. } => "refusals_ended",
            Self::LimitFell { .. } => "limit_fell",
            Self::LimitSettled { .. } => "limit_settled",
        }
    }

    /// Whether calls are worse off than before.
    pub fn is_trouble(&self) -> bool {
        match self {
            Self::Transition { to, .. } => matches!(to, State::Open | State::ForcedOpen),
            Self::Checked { passed } => !passed,
            Self::Panic { begun, .. } => *begun,
            Self::Exceeded { .. }
            | Self::Ejected { .. }
            | Self::RefusalsBegan { .. }
            | Self::LimitFell { .. } => true,
            Self::Rejected { .. }
            | Self::Reconfigured { .. }
            | Self::Returned { .. }
            | Self::RefusalsEnded { .. }
            | Self::LimitSettled { .. } => false,
        }
    }

    /// Whether it changed something for the calls that follow; a single refusal did not.
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::Rejected { .. })
    }
}

/// In words, without the name of what it happened to.
impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transition {
                from,
                to,
                cause,
                open_for,
            } => {
                let (from, to, cause) = (from.as_str(), to.as_str(), cause.as_str());
                write!(f, "{to}, was {from}: {cause}")?;
                match open_for {
                    Some(time) => write!(f, ", for {:?}", whole(*time)),
                    None => Ok(()),
                }
            }
            Self::Exceeded { cause } => write!(f, "would have opened: {}", cause.as_str()),
            Self::Rejected { reason } => write!(f, "refused a call: {}", reason.as_str()),
            Self::Reconfigured { generation } => {
                write!(f, "new configuration, after {generation} others")
            }
            Self::Ejected { cause, lasts } => {
                let lasts = whole(*lasts);
                write!(f, "ejected for {lasts:?}: {}", cause.as_str())
            }
            Self::Returned { why } => write!(f, "no longer ejected: {}", why.as_str()),
            Self::Checked { passed: true } => f.write_str("health check passed"),
            Self::Checked { passed: false } => f.write_str("health check failed"),
            Self::Panic {
                begun,
                healthy,
                all,
            } => {
                let believed = if *begun { "no longer" } else { "again" };
                write!(
                    f,
                    "{healthy} of {all} endpoints are in, ejections are believed {believed}"
                )
            }
            Self::RefusalsBegan { reason } => write!(f, "began to refuse: {}", reason.as_str()),
            Self::RefusalsEnded { refused } => write!(f, "ceased to refuse, after {refused}"),
            Self::LimitFell { from, to } => write!(f, "the limit fell from {from} to {to}"),
            Self::LimitSettled { from, to } => {
                write!(f, "the limit is {to}, before its fall it was {from}")
            }
        }
    }
}

/// Whole milliseconds: the rest is chance's.
fn whole(time: Duration) -> Duration {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(ms)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_words() {
        let open_for = Some(Duration::from_micros(5_000_321));
        let lasts = Duration::from_secs(30);
        let opened = EventKind::Transition {
            from: State::Closed,
            to: State::Open,
            cause: Cause::FailureRate,
            open_for,
        };
        let reason = Reason::Full;
        let ejected = EventKind::Ejected {
            cause: balance::Cause::ConsecutiveConnect,
            lasts,
        };
        let panic = |begun, healthy| EventKind::Panic {
            begun,
            healthy,
            all: 4,
        };
        let table = [
            (opened, "transition: open, was closed: failure_rate, for 5s"),
            (
                EventKind::Exceeded {
                    cause: Cause::SlowRate,
                },
                "exceeded: would have opened: slow_rate",
            ),
            (
                EventKind::Rejected { reason },
                "rejected: refused a call: full",
            ),
            (
                EventKind::Reconfigured { generation: 2 },
                "reconfigured: new configuration, after 2 others",
            ),
            (ejected, "ejected: ejected for 30s: consecutive_connect"),
            (
                EventKind::Returned { why: Return::Left },
                "returned: no longer ejected: left",
            ),
            (
                EventKind::Checked { passed: false },
                "checked: health check failed",
            ),
            (
                panic(true, 1),
                "panic: 1 of 4 endpoints are in, ejections are believed no longer",
            ),
            (
                EventKind::RefusalsBegan { reason },
                "refusals_began: began to refuse: full",
            ),
            (
                EventKind::RefusalsEnded { refused: 13 },
                "refusals_ended: ceased to refuse, after 13",
            ),
            (
                EventKind::LimitFell { from: 98, to: 40 },
                "limit_fell: the limit fell from 98 to 40",
            ),
            (
                EventKind::LimitSettled { from: 98, to: 80 },
                "limit_settled: the limit is 80, before its fall it was 98",
            ),
        ];
        for (kind, want) in &table {
            assert_eq!(format!("{}: {kind}", kind.as_str()), *want);
        }
        assert_eq!(
            panic(false, 4).to_string(),
            "4 of 4 endpoints are in, ejections are believed again"
        );
        assert_eq!(
            EventKind::Checked { passed: true }.to_string(),
            "health check passed"
        );
        let names: std::collections::HashSet<_> = table.iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(names.len(), table.len());
    }
}
