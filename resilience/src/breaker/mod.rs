//! Circuit breaker: stop calling what keeps failing, and find out gently when it is back.
//!
//! A caller that keeps trying a broken callee spends its own threads and time on it, and keeps the
//! callee from recovering. A breaker counts results over a sliding window; when too large a share
//! fails it *opens* and refuses at once. After a while it lets a few probes through (*half-open*)
//! and their results decide whether it *closes*.
//!
//! ```text
//!            too many failed, slow, or in a row
//!   closed ─────────────────────────────────────▶ open ◀── open_for, open_until, trip
//!      ▲                                          │  ▲
//!      │ enough probes succeeded     open time over  │ probes failed, were slow, or hung
//!      └──────────────────────── half-open ◀──────┘──┘
//!
//!   by an operator, from anywhere: forced open, disabled, metrics only
//! ```
//!
//! # Guarantees
//! - The closed path is one load to enter; to leave, one addition on a line that few threads
//!   share. No lock, no allocation. A failure adds three more; only the first call in each bucket
//!   of a time window does more than that.
//! - A result belongs to the state that admitted it. Each transition starts a new *epoch*; a
//!   straggler from an older epoch is counted as `stale` and decides nothing.
//! - Windows really slide: one call or one bucket leaves as another comes, and after a gap, however
//!   long, a window is empty.
//! - Every completion is judged, a success too: it can be the call that reaches the minimum.
//! - Never stuck half-open: a probe's slot comes back when its permit is dropped or its result says
//!   nothing, and a probe that hangs re-opens the circuit after `probe_wait`.
//! - A call cancelled after `slow_after` or its deadline counts as failed, so a timeout around the
//!   breaker does not hide a callee that hangs.
//! - Reconfiguring keeps state, open time and epoch, and what the window holds where the new one
//!   can hold it.
//! - When no permit is out, `calls.admitted() == calls.completed() + calls.cancelled`.
//! - A clock that jumps, either way, costs a window; it opens no circuit and holds none open for
//!   longer than its open time and a minute.
//!
//! # What it does not do
//! It does not decide what a failure is (the caller's [`Outcome`](crate::Outcome) does), wait, or
//! log. It does not close by itself: the next call after the open time is the first probe, and
//! without calls there is nothing to find out. While threads race, a call may count in the bucket
//! next to its own, and a verdict may be a call late; when they are done every count is exact.
//!
//! # Source
//! Nygard, *Release It!*; Hystrix for the window and its defaults; resilience4j for probes judged
//! by rate, slow calls and the states by hand; Finagle for consecutive failures or a share; epochs
//! are ours (resilience4j #903, Polly #311 and opossum #276 are what happens without them).

mod config;
mod core;
mod permit;
mod probes;
mod state;
mod tally;
mod window;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use self::core::Core;
pub(crate) use self::tally::CLASSES;
pub use self::{
    config::{BreakerConfig, Mode, OnCancel, Window, WindowError},
    permit::Permit,
    state::{Cause, IllegalTransition, State},
    tally::{Calls, Transitions},
    window::Counts,
};
use crate::{
    clock::Tick,
    config::PolicyError,
    events::Events,
    keyed::Keep,
    lanes::Lane,
    metrics::{Emitter, Sample, Samples, cores},
    outcome::Rejected,
    rng::Rng,
    shared::Shared,
};

/// State and counters of one breaker, read without a lock.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state now.
    pub state: State,
    /// Transitions so far; results of earlier epochs decide nothing.
    pub epoch: u64,
    /// What the window holds; while half-open, the probes that are done.
    pub window: Counts,
    /// Share of failed calls in the window; `None` below the minimum of calls.
    pub failure_ratio: Option<f64>,
    /// Share of slow calls in the window; `None` below the minimum of calls.
    pub slow_ratio: Option<f64>,
    /// Time left before it probes; zero unless open.
    pub open_for: Duration,
    /// Times it opened.
    pub opened: u64,
    /// Calls refused.
    pub rejected: u64,
    /// Results that came after their epoch had ended.
    pub stale: u64,
    /// Every count of calls.
    pub calls: Calls,
    /// Configurations taken since the first.
    pub generation: u64,
}

/// A circuit breaker. Clones share one circuit.
///
/// ```
/// use std::time::Instant;
/// use selvedge_resilience::{breaker::{BreakerConfig, CircuitBreaker}, Outcome};
///
/// let breaker = CircuitBreaker::new(BreakerConfig::default())?;
/// let now = Instant::now();
/// let permit = breaker.try_acquire(now).expect("a new circuit is closed");
/// permit.complete(Outcome::Success, now);
/// assert_eq!(breaker.snapshot(now).calls.success, 1);
/// # Ok::<_, selvedge_resilience::config::PolicyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CircuitBreaker(Shared<Core>);

/// Builds a [`CircuitBreaker`] with a name, a listener or a seed.
#[derive(Debug)]
#[must_use = "nothing is built yet"]
pub struct Builder {
    config: BreakerConfig,
    name: Arc<str>,
    events: Option<Events>,
    rng: Option<Rng>,
}

impl Builder {
    /// What events and metrics call it. Default "": a circuit that nobody tells apart.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Where it tells what happens to it.
    pub fn events(mut self, events: Events) -> Self {
        self.events = Some(events);
        self
    }

    /// Where the jitter of its open time comes from. Default: a seed of its own.
    pub fn rng(mut self, rng: Rng) -> Self {
        self.rng = Some(rng);
        self
    }

    /// A circuit in the state that its `mode` says.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn build(self) -> Result<CircuitBreaker, PolicyError> {
        let rng = self.rng.unwrap_or_else(Rng::from_entropy);
        let core = Core::new(self.config, self.name, self.events, rng)?;
        Ok(CircuitBreaker(Shared::new(core)))
    }
}

impl CircuitBreaker {
    /// A closed circuit without a name.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: BreakerConfig) -> Result<Self, PolicyError> {
        Self::builder(config).build()
    }

    /// A circuit with more than a configuration.
    pub fn builder(config: BreakerConfig) -> Builder {
        Builder {
            config,
            name: Arc::from(""),
            events: None,
            rng: None,
        }
    }

    /// Asks to make a call at `now`.
    ///
    /// Lock-free and allocation-free while closed; opening, half-opening and closing take a lock
    /// for some nanoseconds. Complete the [`Permit`] when the call's *body* has ended.
    ///
    /// # Errors
    /// [`Rejected`] while open, forced open, or while every probe is out; with the time after which
    /// asking again makes sense where it is known.
    pub fn try_acquire(&self, now: Instant) -> Result<Permit, Rejected> {
        let ctl = self.0.admit(now)?;
        let core = self.0.lend(Lane::here());
        Ok(Permit::new(core, ctl, Tick::at(now)))
    }

    /// The state at this moment. An open circuit whose time is over still says `Open` until the
    /// next call asks.
    pub fn state(&self) -> State {
        self.0.ctl().state()
    }

    /// What events and metrics call it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<BreakerConfig> {
        self.0.config()
    }

    /// Takes a new configuration. State, open time, epoch and counters stay; so does what the
    /// window holds, unless it changes its kind. A new `mode` changes the state; the same `mode`
    /// leaves what an operator did since.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: BreakerConfig) -> Result<(), PolicyError> {
        self.0.reconfigure(config)
    }

    /// Refuses every call until an operator says otherwise.
    pub fn force_open(&self) {
        self.lead_anywhere(State::ForcedOpen);
    }

    /// Lets every call pass uncounted until an operator says otherwise.
    pub fn disable(&self) {
        self.lead_anywhere(State::Disabled);
    }

    /// Lets every call pass and counts it until an operator says otherwise; a threshold that is
    /// reached is reported once, until it has been better.
    pub fn metrics_only(&self) {
        self.lead_anywhere(State::MetricsOnly);
    }

    /// Closes the circuit and forgets what its window held.
    pub fn reset(&self) {
        self.lead_anywhere(State::Closed);
    }

    /// Opens the circuit for `time` from `now`, longer than `open_for_max` too.
    pub fn open_for(&self, time: Duration, now: Instant) {
        self.0.lead_open(Some(time), now);
    }

    /// Opens the circuit until `until`.
    pub fn open_until(&self, until: Instant, now: Instant) {
        self.open_for(until.saturating_duration_since(now), now);
    }

    /// Leads the circuit to `to`, as an operator would. To `Open`: for the configured time.
    ///
    /// # Errors
    /// [`IllegalTransition`] for half-opening a circuit that lets every call pass.
    pub fn transition_to(&self, to: State, now: Instant) -> Result<(), IllegalTransition> {
        if to == State::Open {
            self.0.lead_open(None, now);
            Ok(())
        } else {
            self.0.lead(to, Some(now))
        }
    }

    fn lead_anywhere(&self, to: State) {
        let led = self.0.lead(to, None);
        debug_assert!(led.is_ok(), "only half-open can be refused");
    }

    /// Counters and gauges at `now`. Takes no lock.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let (core, tick) = (&self.0, Tick::at(now));
        let ctl = core.ctl();
        let (window, min_calls) = core.counts(ctl, tick);
        let calls = self.calls();
        Snapshot {
            state: ctl.state(),
            epoch: ctl.epoch(),
            window,
            failure_ratio: window.failure_ratio(min_calls),
            slow_ratio: window.slow_ratio(min_calls),
            open_for: core.open_left(tick),
            opened: core.opened(),
            rejected: calls.rejected(),
            stale: calls.stale,
            calls,
            generation: core.generation(),
        }
    }

    /// Every count of calls. Takes no lock; exact when no call is just beginning or ending.
    pub fn calls(&self) -> Calls {
        let core = &*self.0;
        core.tally.read(
            core.window.recorded(),
            core.window.passed_by(),
            self.0.lent(),
        )
    }

    /// Every transition made so far. Takes no lock.
    pub fn transitions(&self) -> impl Iterator<Item = Transitions> + '_ {
        self.0.tally.transitions()
    }
}

impl Keep for CircuitBreaker {
    /// An open circuit stays until its time is over, a half-open one until its probes are, an
    /// overridden one until the operator takes that back.
    fn keep_for(&self, now: Instant) -> Duration {
        self.0.settles_in(Tick::at(now))
    }
}

impl Samples for CircuitBreaker {
    fn samples<'a>(&'a self, now: Instant, take: &mut dyn FnMut(Sample<'a>)) {
        cores::breaker(self, now, &mut Emitter::new(self.name(), take));
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
