//! What goes on, from counters that are looked at from time to time.
//!
//! That a limit refused a call is no news where it refuses a thousand a second; that it has begun
//! to is, and that it has ceased to. Nobody on the path of a call knows either. Whoever looks at
//! the counters does: they have moved, or they have not moved for a while.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    adaptive::AdaptiveLimit,
    bulkhead::Bulkhead,
    events::{Event, EventKind, Events},
    outcome::{Policy, Reason},
};

/// Without a refusal for so long, refusals have ended. A guess: what is refused every few seconds is
/// one trouble, not many.
const QUIET: Duration = Duration::from_secs(10);
/// How fast it is forgotten that a limit was higher. A guess: a limit that has stayed low for a
/// minute is what it is.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// A limit of few calls is no news when it has one less.
const LEAST_FALL: f64 = 4.0;
/// As many reasons as a policy has.
const REASONS: usize = 3;

/// What was told last of one destination.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    /// By policy; from its first refusal on.
    episodes: Vec<(Policy, Episode)>,
    level: Level,
}

/// One look at everything.
pub(super) struct Look<'a> {
    lookout: &'a mut Lookout,
    now: Instant,
    tell: &'a dyn Fn(Policy, EventKind),
}

/// Looks, if anybody listens to `events`: `at` shows the counters, and what they come to is told of
/// `name`.
pub(super) fn look(
    lookout: &Mutex<Lookout>,
    (events, name): (Option<&Events>, &Arc<str>),
    now: Instant,
    at: impl FnOnce(Look<'_>),
) {
    let Some(events) = events.filter(|events| events.has_listeners()) else {
        return;
    };
    let tell = |policy: Policy, kind: EventKind| {
        events.emit(|| Event {
            name: Arc::clone(name),
            policy,
            endpoint: None,
            at: Some(now),
            kind,
        });
    };
    at(lookout.lock().begin(now, &tell));
}

impl Lookout {
    fn begin<'a>(&'a mut self, now: Instant, tell: &'a dyn Fn(Policy, EventKind)) -> Look<'a> {
        Look {
            lookout: self,
            now,
            tell,
        }
    }
}

impl Look<'_> {
    /// What `policy` has refused so far, by reason; `None` if there is no such section.
    pub(super) fn refusals(&mut self, policy: Policy, counts: Option<&[(Reason, u64)]>) {
        let counts = counts.unwrap_or_default();
        let episodes = &mut self.lookout.episodes;
        let at = episodes.iter().position(|(known, _)| *known == policy);
        let at = match at {
            Some(at) => at,
            None if counts.iter().all(|(_, count)| *count == 0) => return,
            None => {
                episodes.push((policy, Episode::default()));
                episodes.len() - 1
            }
        };
        if let Some(kind) = episodes[at].1.look(counts, self.now) {
            (self.tell)(policy, kind);
        }
    }

    /// The same of a policy with one reason.
    pub(super) fn one(&mut self, policy: Policy, reason: Reason, count: Option<u64>) {
        let counts = count.map(|count| [(reason, count)]);
        self.refusals(policy, counts.as_ref().map(<[_; 1]>::as_slice));
    }

    pub(super) fn bulkhead(&mut self, core: Option<&Bulkhead>) {
        let counts = core.map(|core| {
            let status = core.status();
            by_reason(status.full, status.queue_full, status.queue_timeout)
        });
        self.refusals(Policy::Bulkhead, counts.as_ref().map(<[_; 3]>::as_slice));
    }

    pub(super) fn adaptive(&mut self, core: Option<&AdaptiveLimit>) {
        let counts = core.map(|core| {
            let status = core.status();
            by_reason(status.full, status.queue_full, status.queue_timeout)
        });
        let policy = Policy::AdaptiveLimit;
        self.refusals(policy, counts.as_ref().map(<[_; 3]>::as_slice));
        let Some(core) = core else {
            self.lookout.level = Level::default();
            return;
        };
        // While it measures, it is low on purpose.
        if !core.is_measuring()
            && let Some(kind) = self.lookout.level.look(core.limit(), self.now)
        {
            (self.tell)(policy, kind);
        }
    }
}

fn by_reason(full: u64, queue_full: u64, queue_timeout: u64) -> [(Reason, u64); REASONS] {
    [
        (Reason::Full, full),
        (Reason::QueueFull, queue_full),
        (Reason::QueueTimeout, queue_timeout),
    ]
}

/// Refusals of one policy, as one trouble.
#[derive(Debug, Default)]
struct Episode {
    /// The counters as they were seen last.
    seen: [u64; REASONS],
    /// When they moved last, and how many there had been when it began.
    going_on: Option<(Instant, u64)>,
}

impl Episode {
    fn look(&mut self, counts: &[(Reason, u64)], now: Instant) -> Option<EventKind> {
        let total: u64 = counts.iter().map(|(_, count)| count).sum();
        let before: u64 = self.seen.iter().sum();
        if total < before {
            // The section is gone, or has a new core: what began has ended, and all begins anew.
            self.seen = [0; REASONS];
            let (_, began_with) = self.going_on.take()?;
            let refused = before - began_with;
            return Some(EventKind::RefusalsEnded { refused });
        }
        let mut most = None;
        for (seen, (reason, count)) in self.seen.iter_mut().zip(counts) {
            let moved = count.saturating_sub(std::mem::replace(seen, *count));
            if moved > most.map_or(0, |(moved, _)| moved) {
                most = Some((moved, *reason));
            }
        }
        match (most, self.going_on) {
            (Some((_, reason)), None) => {
                self.going_on = Some((now, before));
                Some(EventKind::RefusalsBegan { reason })
            }
            (Some(_), Some((_, began_with))) => {
                self.going_on = Some((now, began_with));
                None
            }
            (None, Some((last, began_with))) if now.saturating_duration_since(last) >= QUIET => {
                self.going_on = None;
                let refused = total - began_with;
                Some(EventKind::RefusalsEnded { refused })
            }
            (None, _) => None,
        }
    }
}

/// Where a limit that finds itself has been.
#[derive(Debug, Default)]
struct Level {
    /// The highest of late, slowly forgotten; and when that was reckoned.
    high: Option<(f64, Instant)>,
    /// What it was before it fell.
    fell_from: Option<u32>,
}

impl Level {
    fn look(&mut self, limit: u32, now: Instant) -> Option<EventKind> {
        let is = f64::from(limit);
        let high = self.high.map_or(is, |(high, then)| {
            let since = now.saturating_duration_since(then);
            let kept = (-since.as_secs_f64() / FORGOTTEN.as_secs_f64()).exp();
            is + (high - is).max(0.0) * kept
        });
        self.high = Some((high, now));
        match self.fell_from {
            None if is * 2.0 <= high && high - is >= LEAST_FALL => {
                let from = high.round() as u32;
                self.fell_from = Some(from);
                Some(EventKind::LimitFell { from, to: limit })
            }
            Some(from) if is * 4.0 >= high * 3.0 => {
                self.fell_from = None;
                Some(EventKind::LimitSettled { from, to: limit })
            }
            _ => None,
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "lookout_tests.rs"]
mod tests;
