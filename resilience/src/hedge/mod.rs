//! Hedging: a second try beside a first one that is late.
//!
//! Of a hundred calls, a few take far longer than the rest, for reasons that have nothing to do
//! with them: a queue that happened to be long, a pause, a lost packet. A page that makes fifty
//! calls waits for the slowest of them nearly always. A retry does not help, for nothing has failed
//! yet.
//!
//! # Idea
//! When a try has taken longer than nearly all others do, send another one beside it; the first
//! *good* answer wins and the rest is cancelled. "Nearly all others" is measured: a quantile of the
//! latencies of the last half minute, so that few calls are hedged whatever the callee's speed is.
//! But when a callee slows down for everybody, every call is late, and hedges double the load at the
//! worst moment. So they are paid for from the [budget](crate::retry::budget) that retries use, and
//! where the quantile itself is beyond bounds there are none.
//!
//! ```
//! # use std::time::{Duration, Instant};
//! # use selvedge_resilience::{hedge::{Hedge, HedgeConfig}, retry::{Safety, budget::Budget}};
//! # #[allow(clippy::disallowed_methods)]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let now = Instant::now();
//! let hedge = Hedge::new(HedgeConfig { after: "50ms".parse()?, ..HedgeConfig::default() })?;
//! let budget = Budget::new("20% min 3/s".parse()?)?;
//!
//! let call = budget.begin(now);
//! let mut race = hedge.begin(Safety::Always, now, None);
//! let due = race.due().expect("a first hedge");
//! assert_eq!(due - now, Duration::from_millis(50));
//! // Nothing has come by then: a hedge, if the budget pays.
//! let extra = race.send(&call, due)?;
//! race.won();
//! # drop(extra);
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! - Measured, at most `1 − quantile` of the calls of a window are late enough for a hedge, as long
//!   as latencies stay what they are; at most what the budget allows are hedged when they do not.
//! - No hedge for a call that is not idempotent, none at or after the deadline, none before enough
//!   latencies are known; and none after a long silence, for then none are known again.
//! - No call waits: [`Hedge::delay`] is two loads (now and then a walk over the buckets, by one
//!   caller, while the others take the old value), [`Hedge::record`] one compare-and-swap.
//!
//! # What it does not do
//! It does not send, wait or choose the winner: [`HedgeLayer`](crate::layer::HedgeLayer) does. It
//! does not hedge what has failed: that is a retry.
//!
//! # Source
//! Dean and Barroso, "The Tail at Scale", 2013 (hedge at the 95th percentile, cancel the loser);
//! Finagle `BackupRequestFilter` (window, bounds, refresh, which latencies count).

mod config;
mod latency;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub use self::config::{HedgeAfter, HedgeConfig};
pub(crate) use self::latency::Latencies;
use crate::{
    clock::{Tick, nanos},
    config::PolicyError,
    due::Due,
    outcome::{FailureClass, Outcome, Rejected},
    retry::{
        Safety,
        budget::{Extra, Logical},
    },
    sync::{AtomicU64, Mutex, Ordering},
};

/// No hedges for now.
const NONE: u64 = u64::MAX;
/// The delay is looked at again ten times a window. Source: Finagle (every 3 s of 30 s).
const REFRESHES: u64 = 10;

#[derive(Debug)]
struct Core {
    config: ArcSwap<HedgeConfig>,
    latencies: ArcSwap<Latencies>,
    /// Nanoseconds, or [`NONE`].
    delay: AtomicU64,
    /// The tick from which on `delay` is out of date; `u64::MAX` for a fixed one.
    refresh_at: Due,
    /// Held by whoever changes the two; no call waits for it.
    changing: Mutex<()>,
    stats: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    won: AtomicU64,
    wasted: AtomicU64,
    refused: AtomicU64,
    overflow: AtomicU64,
    body: AtomicU64,
}

/// What hedges came to so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HedgeStats {
    /// Hedges sent, those that a policy further in refused included.
    pub sent: u64,
    /// Those whose answer was good and the first.
    pub won: u64,
    /// Those whose answer was not: load for nothing. With none under way, `sent − won`.
    pub wasted: u64,
    /// Hedges not sent because the budget did not pay.
    pub exhausted: u64,
    /// Hedges not sent because the service was not ready for another call.
    pub overflow: u64,
    /// Hedges not sent because the body was too long to be had again, or not yet there.
    pub body_not_replayable: u64,
}

/// Why a hedge that was due is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsent {
    /// The service is not ready for another call.
    NotReady,
    /// The body cannot be had again, or is still being read.
    Body,
}

/// When to hedge calls to one destination. Clones share what it has measured.
#[derive(Debug, Clone)]
pub struct Hedge(Arc<Core>);

impl Hedge {
    /// A hedge that has measured nothing yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: HedgeConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let core = Core {
            latencies: ArcSwap::from_pointee(Latencies::new(config.window.0)),
            delay: AtomicU64::new(NONE),
            refresh_at: Due::new(),
            changing: Mutex::new(()),
            stats: Counters::default(),
            config: ArcSwap::from_pointee(config),
        };
        core.restart();
        Ok(Self(Arc::new(core)))
    }

    /// How long a try may take before a hedge is due; `None`: there are no hedges for now, because
    /// too little is known or the callee is slow for everybody.
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        let core = &*self.0;
        let tick = Tick::at(now);
        if core.refresh_at.is_now(tick) {
            core.refresh(tick);
        }
        match core.delay.load(Ordering::Relaxed) {
            NONE => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// A try had its answer, or was given up, after `latency`.
    ///
    /// [`Race`] decides which tries count, and calls this.
    pub fn record(&self, latency: Duration, now: Instant) {
        self.0.latencies.load().record(latency, now);
    }

    /// A call begins with its first try. See [`Race`].
    pub fn begin(&self, safety: Safety, now: Instant, deadline: Option<Instant>) -> Race {
        let measured = safety == Safety::Always;
        let mut race = Race {
            hedge: self.clone(),
            measured,
            delay: if measured { self.delay(now) } else { None },
            deadline,
            left: self.0.config.load().max,
            due: None,
            sent: 0,
            won: false,
        };
        race.schedule(now);
        race
    }

    /// The latency that a share of `quantile` of the window's calls stayed below, to an eighth;
    /// `None` if it holds none.
    pub fn quantile(&self, quantile: f64, now: Instant) -> Option<Duration> {
        let (total, latency) = self
            .0
            .latencies
            .load()
            .quantile(quantile.clamp(0.0, 1.0), Tick::at(now));
        (total > 0).then_some(latency)
    }

    /// Counters so far.
    pub fn stats(&self) -> HedgeStats {
        let (stats, of) = (&self.0.stats, |c: &AtomicU64| c.load(Ordering::Relaxed));
        HedgeStats {
            sent: of(&stats.sent),
            won: of(&stats.won),
            wasted: of(&stats.wasted),
            exhausted: of(&stats.refused),
            overflow: of(&stats.overflow),
            body_not_replayable: of(&stats.body),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<HedgeConfig> {
        self.0.config.load_full()
    }

    /// Takes a new configuration; latencies stay, unless the window's length changes.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: HedgeConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let core = &*self.0;
        let _one_at_a_time = core.changing.lock();
        if config.window != core.config.load().window {
            let fresh = Latencies::new(config.window.0);
            core.latencies.store(Arc::new(fresh));
        }
        core.config.store(Arc::new(config));
        core.restart();
        Ok(())
    }
}

impl Core {
    /// Puts the configuration in force; a quantile is looked at by the next call.
    fn restart(&self) {
        match self.config.load().after {
            HedgeAfter::Fixed(delay) => {
                self.refresh_at.set_never();
                self.delay.store(nanos(delay.0), Ordering::Relaxed);
            }
            HedgeAfter::Quantile(_) => self.refresh_at.set_now(),
        }
    }

    /// Measures anew. Of several callers that find it due one does it, the others take what there
    /// is.
    fn refresh(&self, now: Tick) {
        let Some(_mine) = self.changing.try_lock() else {
            return;
        };
        // Somebody was faster, or has changed the configuration.
        if !self.refresh_at.is_now(now) {
            return;
        }
        let config = self.config.load();
        let HedgeAfter::Quantile(quantile) = config.after else {
            return;
        };
        let latencies = self.latencies.load();
        let (total, latency) = latencies.quantile(quantile.fraction(), now);
        let known = total >= config.samples_for(quantile) && latency <= config.max_delay.0;
        let delay = if known {
            nanos(latency.max(config.min_delay.0))
        } else {
            NONE
        };
        self.delay.store(delay, Ordering::Relaxed);
        let every = (nanos(config.window.0) / REFRESHES).max(1);
        self.refresh_at.set(now, every);
    }
}

/// Source: Finagle `BackupRequestFilter.shouldRecord`.
fn counts(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Success | Outcome::Ignored | Outcome::Failure(FailureClass::Timeout)
    )
}

/// The hedges of one call. Dropped, the race is over.
#[derive(Debug)]
#[must_use = "dropped, the race is over"]
pub struct Race {
    hedge: Hedge,
    /// Whether its latencies are of the kind that hedges are for.
    measured: bool,
    delay: Option<Duration>,
    deadline: Option<Instant>,
    left: u32,
    due: Option<Instant>,
    sent: u32,
    won: bool,
}

impl Race {
    /// When the next hedge is due, unless an answer comes first; `None`: there is none.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Hedges sent so far.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Asks for the hedge that is due. Granted, it is sent, and the next one is due after the same
    /// time again. Refused, there are no more.
    ///
    /// # Errors
    /// The [budget](Logical::try_extra)'s refusal.
    pub fn send(&mut self, call: &Logical, now: Instant) -> Result<Extra, Rejected> {
        self.due = None;
        let extra = call.try_extra(now).inspect_err(|_| {
            add(&self.hedge.0.stats.refused, 1);
        })?;
        self.sent += 1;
        self.left = self.left.saturating_sub(1);
        add(&self.hedge.0.stats.sent, 1);
        self.schedule(now);
        Ok(extra)
    }

    /// The hedge that is due cannot be sent, nor can another one: the reason will not go away.
    pub fn skip(&mut self, why: Unsent) {
        self.due = None;
        let stats = &self.hedge.0.stats;
        match why {
            Unsent::NotReady => add(&stats.overflow, 1),
            Unsent::Body => add(&stats.body, 1),
        }
    }

    /// The deadline has passed before the hedge could be sent: there are no more.
    pub fn expire(&mut self) {
        self.due = None;
    }

    /// A hedge's answer is good, and the one that is used.
    pub fn won(&mut self) {
        self.won = true;
        self.due = None;
    }

    /// A try that began at `began` has ended at `now`. An answer worth having and a timeout say how
    /// long tries take; other failures are often the fastest answers of all, and do not.
    pub fn ended(&self, outcome: Outcome, began: Instant, now: Instant) {
        if self.measured && counts(outcome) {
            self.hedge.record(now.saturating_duration_since(began), now);
        }
    }

    /// A try is cancelled without an answer, because another one won or the whole call is given up.
    ///
    /// If that is late for a try, it counts with the time that it took. Without the losers, the
    /// slowest tries would vanish from the record, and the delay would shrink with every hedge; but
    /// a caller's impatience says nothing.
    pub fn cancelled(&self, began: Instant, now: Instant) {
        let took = now.saturating_duration_since(began);
        if self.measured && self.delay.is_some_and(|typical| took >= typical) {
            self.hedge.record(took, now);
        }
    }

    fn schedule(&mut self, now: Instant) {
        let due = match self.delay {
            Some(delay) if self.left > 0 => now.checked_add(delay),
            _ => None,
        };
        // An answer must come before the deadline: a hedge sent at it is for nobody.
        self.due = due.filter(|due| self.deadline.is_none_or(|deadline| *due < deadline));
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        if self.sent > 0 {
            let won = u64::from(self.won);
            add(&self.hedge.0.stats.won, won);
            add(&self.hedge.0.stats.wasted, u64::from(self.sent) - won);
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
