//! The circuit itself: what a call does to it, and when it changes its state.

mod ends;
mod hot;
mod transitions;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) use self::ends::End;
use self::{hot::Hot, transitions::state_of};
use super::{
    config::BreakerConfig,
    probes::{Issue, Probes},
    state::{Cause, Ctl, State},
    tally::Tally,
    window::{BANKS, Counts, Window},
};
use crate::{
    clock::{Tick, nanos},
    config::PolicyError,
    due::is_astray,
    events::{EventKind, Events},
    outcome::{Policy, Reason, Rejected},
    rng::Rng,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// What only the lock's owner touches: transitions and configuration.
#[derive(Debug)]
pub(super) struct Control {
    config: Arc<BreakerConfig>,
    /// Openings since the last time it closed: what the open time grows with.
    streak: u32,
}

#[derive(Debug)]
pub(super) struct Core {
    ctl: AtomicU64,
    hot: Hot,
    /// Stored before the state that they belong to, under the lock.
    open_until: AtomicU64,
    open_time: AtomicU64,
    /// When the newest probe was let through.
    probing_since: AtomicU64,
    probes: Probes,
    /// Failures in a row, by bank.
    consecutive: [AtomicU32; BANKS as usize],
    /// Whether "exceeded" was told and has not been taken back.
    exceeding: AtomicU32,
    opened: AtomicU64,
    pub(super) tally: Tally,
    pub(super) window: Window,
    control: Mutex<Control>,
    pub(super) name: Arc<str>,
    events: Option<Events>,
    rng: Rng,
}

impl Core {
    pub(super) fn new(
        config: BreakerConfig,
        name: Arc<str>,
        events: Option<Events>,
        rng: Rng,
    ) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self {
            ctl: AtomicU64::new(Ctl::new(state_of(config.mode), 0).0),
            hot: Hot::new(&config),
            open_until: AtomicU64::new(0),
            open_time: AtomicU64::new(0),
            probing_since: AtomicU64::new(0),
            probes: Probes::new(),
            consecutive: std::array::from_fn(|_| AtomicU32::new(0)),
            exceeding: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            tally: Tally::new(),
            window: Window::new(config.over, config.buckets),
            control: Mutex::new(Control {
                config: Arc::new(config),
                streak: 0,
            }),
            name,
            events,
            rng,
        })
    }

    pub(super) fn ctl(&self) -> Ctl {
        Ctl(self.ctl.load(Ordering::Acquire))
    }

    /// Whether a call may be made at `now`, and in which epoch.
    pub(super) fn admit(&self, now: Instant) -> Result<Ctl, Rejected> {
        let ctl = self.ctl();
        if ctl.state().admits_all() {
            return Ok(ctl);
        }
        self.admit_some(now)
    }

    #[cold]
    fn admit_some(&self, now: Instant) -> Result<Ctl, Rejected> {
        let tick = Tick::at(now);
        // Each further round means that somebody else has changed the state.
        let rejected = loop {
            let ctl = self.ctl();
            match ctl.state() {
                State::Closed | State::Disabled | State::MetricsOnly => return Ok(ctl),
                State::ForcedOpen => break Rejected::new(Policy::Breaker, Reason::ForcedOpen),
                State::Open => {
                    if let Some(rejected) = self.still_open(ctl, tick) {
                        break rejected;
                    }
                    self.half_open(ctl, now);
                }
                State::HalfOpen => {
                    let limit = self.hot.probes.load(Ordering::Relaxed);
                    match self.probes.issue(ctl.epoch(), limit) {
                        Issue::Issued => {
                            self.probing_since.store(tick.0, Ordering::Relaxed);
                            return Ok(ctl);
                        }
                        Issue::Stale => {}
                        Issue::Taken => {
                            if let Some(rejected) = self.probes_taken(ctl, now) {
                                break rejected;
                            }
                        }
                    }
                }
            }
        };
        self.tally.reject(rejected.reason);
        if let Some(events) = &self.events {
            let reason = rejected.reason;
            events.emit_refusal(|| self.event(Some(now), EventKind::Rejected { reason }));
        }
        Err(rejected)
    }

    /// The refusal while the open time runs; `None` once it is over.
    fn still_open(&self, ctl: Ctl, now: Tick) -> Option<Rejected> {
        let (until, time) = (
            Tick(self.open_until.load(Ordering::Acquire)),
            Duration::from_nanos(self.open_time.load(Ordering::Acquire)),
        );
        if self.ctl() != ctl || now > until {
            return None;
        }
        let mut wait = until.since(now);
        if is_astray(until.0, nanos(time), now) {
            // The clock says that it has not even opened yet: it was set back since. Start over.
            let control = self.control.lock();
            if self.ctl() == ctl {
                self.open_until.store(now.plus(time).0, Ordering::Release);
                wait = time;
            }
            drop(control);
        }
        // At least a nanosecond: "come back now" would be a lie.
        let wait = wait.max(Duration::from_nanos(1));
        Some(Rejected::after(Policy::Breaker, Reason::Open, wait))
    }

    fn half_open(&self, seen: Ctl, now: Instant) {
        let mut control = self.control.lock();
        let over = Tick::at(now).0 > self.open_until.load(Ordering::Acquire);
        if self.ctl() == seen && over {
            self.shift(&mut control, State::HalfOpen, Cause::Waited, Some(now));
        }
    }

    /// Every probe is out or done: the refusal, or `None` if that has just changed.
    fn probes_taken(&self, ctl: Ctl, now: Instant) -> Option<Rejected> {
        let tick = Tick::at(now);
        let tally = self.probes.tally(ctl.epoch());
        if self.ctl() != ctl {
            return None;
        }
        // Nobody is out, so nobody will decide: the configuration asks for fewer than it did.
        if tally.issued == tally.done && self.judge_probes(ctl, tally, now, None) {
            return None;
        }
        let wait = Duration::from_nanos(self.hot.probe_wait.load(Ordering::Relaxed));
        let since = Tick(self.probing_since.load(Ordering::Relaxed));
        if is_astray(since.0, 0, tick) {
            self.probing_since.store(tick.0, Ordering::Relaxed);
        }
        let running = tick.since(since);
        if running > wait {
            self.open(ctl, now, Cause::ProbesHung, None);
            return None;
        }
        let left = wait.saturating_sub(running).max(Duration::from_nanos(1));
        Some(Rejected::after(Policy::Breaker, Reason::ProbesTaken, left))
    }

    pub(super) fn config(&self) -> Arc<BreakerConfig> {
        Arc::clone(&self.control.lock().config)
    }

    pub(super) fn generation(&self) -> u64 {
        self.hot.generation.load(Ordering::Acquire)
    }

    /// What is judged in the state of `ctl`, and how many calls that needs: the window, or the
    /// probes of a half-open circuit.
    pub(super) fn counts(&self, ctl: Ctl, now: Tick) -> (Counts, u32) {
        let min_calls = self.hot.min_calls.load(Ordering::Relaxed);
        if ctl.state() != State::HalfOpen {
            return (self.window.counts(now), min_calls);
        }
        let tally = self.probes.tally(ctl.epoch());
        let counts = Counts {
            total: tally.done as u32,
            failed: tally.failed as u32,
            slow: tally.slow as u32,
        };
        let probes = self.hot.probes.load(Ordering::Relaxed);
        (counts, min_calls.min(probes))
    }

    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// For how long from `now` it is refused for certain, or is being probed.
    pub(super) fn settles_in(&self, now: Tick) -> Duration {
        match self.ctl().state() {
            State::Closed => Duration::ZERO,
            // One more than until then: at its very deadline a circuit is still open.
            State::Open => Tick(self.open_until.load(Ordering::Acquire))
                .plus(Duration::from_nanos(1))
                .since(now),
            State::HalfOpen => {
                let since = Tick(self.probing_since.load(Ordering::Acquire));
                let wait = Duration::from_nanos(self.hot.probe_wait.load(Ordering::Relaxed));
                since.plus(wait).since(now)
            }
            State::ForcedOpen | State::Disabled | State::MetricsOnly => Duration::MAX,
        }
    }

    /// Time left of the open time; zero unless open.
    pub(super) fn open_left(&self, now: Tick) -> Duration {
        if self.ctl().state() == State::Open {
            Tick(self.open_until.load(Ordering::Acquire)).since(now)
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(all(test, loom))]
mod models;
