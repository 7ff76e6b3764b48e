//! Circuit breaker: stop calling what keeps failing, and find out gently when it is back.
//!
//! A caller that keeps trying a broken callee spends its own threads and time on it, and keeps the
//! callee from recovering. A breaker counts results over a sliding window; when too large a share
//! fails it *opens* and refuses at once. After a while it lets a few probes through (*half-open*)
//! and their results decide whether it *closes*.
//!
//! # Guarantees
//! - The closed path is one load to enter and one compare-and-swap to leave: no lock, no
//!   allocation beyond the permit's `Arc` count.
//! - A result belongs to the state that admitted it. Each transition starts a new *epoch*; a
//!   straggler from an older epoch is counted as `stale` and decides nothing.
//! - Never stuck half-open: a probe's slot comes back when its permit is dropped, and a probe that
//!   hangs re-opens the circuit after `probe_wait`.
//! - A call cancelled after `slow_after` counts as failed, so a timeout around the breaker does not
//!   hide a callee that hangs.
//!
//! # What it does not do
//! It does not decide what a failure is (the caller's [`Outcome`] does), wait, or log.
//!
//! # Source
//! Nygard, *Release It!*; Hystrix for the window and its defaults; resilience4j for probes judged
//! by rate; epochs are ours (resilience4j #903, Polly #311 and opossum #276 are what happens
//! without them).

mod config;
mod window;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use self::window::TimeWindow;
pub use self::{config::BreakerConfig, window::Counts};
use crate::{
    clock::{Tick, nanos},
    keyed::Keep,
    outcome::{Outcome, Policy, Reason, Rejected},
    sync::{AtomicU32, AtomicU64, Ordering},
};

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
}

impl State {
    const ALL: [Self; 5] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::ForcedOpen,
        Self::Disabled,
    ];

    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
        }
    }
}

/// State (3 bits) and epoch (61 bits) in one word, so that both change together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ctl(u64);

impl Ctl {
    fn new(state: State, epoch: u64) -> Self {
        Self((epoch << 3) | state as u64)
    }
    fn state(self) -> State {
        State::ALL[(self.0 & 7) as usize % State::ALL.len()]
    }
    fn epoch(self) -> u64 {
        self.0 >> 3
    }
    fn next(self, state: State) -> Self {
        Self::new(state, self.epoch() + 1)
    }
}

/// Probes of one half-open epoch: `epoch 16 | issued 12 | done 12 | failed 12 | slow 12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probes(u64);

impl Probes {
    fn new(epoch: u64, [issued, done, failed, slow]: [u64; 4]) -> Self {
        Self((epoch & 0xFFFF) << 48 | issued << 36 | done << 24 | failed << 12 | slow)
    }
    /// The counts, all zero if the word is of another epoch.
    fn of(self, epoch: u64) -> [u64; 4] {
        if self.0 >> 48 == epoch & 0xFFFF {
            [
                self.0 >> 36 & 0xFFF,
                self.0 >> 24 & 0xFFF,
                self.0 >> 12 & 0xFFF,
                self.0 & 0xFFF,
            ]
        } else {
            [0; 4]
        }
    }
}

/// Counters and gauges of one breaker, read without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The state now.
    pub state: State,
    /// What the window holds.
    pub window: Counts,
    /// Time left before it probes; zero unless open.
    pub open_for: Duration,
    /// Times it opened.
    pub opened: u64,
    /// Calls refused.
    pub rejected: u64,
    /// Results that came after their epoch had ended.
    pub stale: u64,
}

#[derive(Debug)]
struct Core {
    config: ArcSwap<BreakerConfig>,
    window: ArcSwap<TimeWindow>,
    ctl: AtomicU64,
    open_until: AtomicU64,
    half_open_since: AtomicU64,
    probes: AtomicU64,
    consecutive: AtomicU32,
    /// Openings since the last time it closed: what the open time grows with.
    streak: AtomicU32,
    opened: AtomicU64,
    rejected: AtomicU64,
    stale: AtomicU64,
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
/// # Ok::<_, selvedge_resilience::config::PolicyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CircuitBreaker(Arc<Core>);

impl CircuitBreaker {
    /// A closed circuit.
    ///
    /// # Errors
    /// [`PolicyError`](crate::config::PolicyError) if the configuration cannot work.
    pub fn new(config: BreakerConfig) -> Result<Self, crate::config::PolicyError> {
        config.validate()?;
        Ok(Self(Arc::new(Core {
            window: ArcSwap::from_pointee(TimeWindow::new(config.over.0)),
            config: ArcSwap::from_pointee(config),
            ctl: AtomicU64::new(Ctl::new(State::Closed, 0).0),
            open_until: AtomicU64::new(0),
            half_open_since: AtomicU64::new(0),
            probes: AtomicU64::new(u64::MAX),
            consecutive: AtomicU32::new(0),
            streak: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        })))
    }

    /// Asks to make a call at `now`.
    ///
    /// Lock-free; closed it is one load. Complete the [`Permit`] when the call's *body* has ended.
    ///
    /// # Errors
    /// [`Rejected`] while open, forced open, or while every probe is out; with the time after which
    /// asking again makes sense where it is known.
    pub fn try_acquire(&self, now: Instant) -> Result<Permit, Rejected> {
        let tick = Tick::at(now);
        let ctl = Ctl(self.0.ctl.load(Ordering::Acquire));
        let admitted = match ctl.state() {
            State::Closed | State::Disabled => Ok(ctl),
            State::ForcedOpen => Err(Rejected::new(Policy::Breaker, Reason::ForcedOpen)),
            State::Open => self.0.try_half_open(ctl, tick),
            State::HalfOpen => self.0.try_probe(ctl, tick),
        };
        match admitted {
            Ok(ctl) => Ok(Permit {
                core: Arc::clone(&self.0),
                ctl,
                started: tick,
                done: false,
            }),
            Err(rejected) => {
                self.0.rejected.fetch_add(1, Ordering::Relaxed);
                Err(rejected)
            }
        }
    }

    /// The state at this moment. An open circuit whose time is over still says `Open` until the
    /// next call asks.
    pub fn state(&self) -> State {
        Ctl(self.0.ctl.load(Ordering::Acquire)).state()
    }

    /// Takes new thresholds; state, epoch and counts stay. A new window length starts it empty.
    ///
    /// # Errors
    /// [`PolicyError`](crate::config::PolicyError) if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: BreakerConfig) -> Result<(), crate::config::PolicyError> {
        config.validate()?;
        if config.over != self.0.config.load().over {
            self.0
                .window
                .store(Arc::new(TimeWindow::new(config.over.0)));
        }
        self.0.config.store(Arc::new(config));
        Ok(())
    }

    /// Refuses every call until [`reset`](Self::reset).
    pub fn force_open(&self) {
        self.0.force(State::ForcedOpen);
    }

    /// Lets every call pass uncounted until [`reset`](Self::reset).
    pub fn disable(&self) {
        self.0.force(State::Disabled);
    }

    /// Closes the circuit and forgets what it counted.
    pub fn reset(&self) {
        self.0.window.load().clear();
        self.0.consecutive.store(0, Ordering::Relaxed);
        self.0.streak.store(0, Ordering::Relaxed);
        self.0.force(State::Closed);
    }

    /// Counters and gauges at `now`.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let (core, tick) = (&self.0, Tick::at(now));
        let state = self.state();
        let until = Tick(core.open_until.load(Ordering::Relaxed));
        Snapshot {
            state,
            window: core.window.load().counts(tick),
            open_for: if state == State::Open {
                until.since(tick)
            } else {
                Duration::ZERO
            },
            opened: core.opened.load(Ordering::Relaxed),
            rejected: core.rejected.load(Ordering::Relaxed),
            stale: core.stale.load(Ordering::Relaxed),
        }
    }
}

impl Keep for CircuitBreaker {
    /// An open circuit stays until its time is over, a half-open one until its probes are, an
    /// overridden one until the operator takes that back.
    fn keep_for(&self, now: Instant) -> Duration {
        let tick = Tick::at(now);
        match self.state() {
            State::Closed => Duration::ZERO,
            // One more than until then: at its very deadline a circuit is still open.
            State::Open => Tick(self.0.open_until.load(Ordering::Acquire))
                .plus(Duration::from_nanos(1))
                .since(tick),
            State::HalfOpen => {
                let since = Tick(self.0.half_open_since.load(Ordering::Acquire));
                since.plus(self.0.config.load().probe_wait.0).since(tick)
            }
            State::ForcedOpen | State::Disabled => Duration::MAX,
        }
    }
}

impl Core {
    fn cas(&self, from: Ctl, to: Ctl) -> bool {
        self.ctl
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn force(&self, state: State) {
        loop {
            let ctl = Ctl(self.ctl.load(Ordering::Acquire));
            if self.cas(ctl, ctl.next(state)) {
                return;
            }
        }
    }

    /// Open: after its time (strictly), the first caller moves it to half-open and takes a probe.
    fn try_half_open(&self, ctl: Ctl, now: Tick) -> Result<Ctl, Rejected> {
        let until = Tick(self.open_until.load(Ordering::Acquire));
        if now <= until {
            // At least a nanosecond: "come back now" would be a lie.
            let wait = until.since(now).max(Duration::from_nanos(1));
            return Err(Rejected::after(Policy::Breaker, Reason::Open, wait));
        }
        self.half_open_since.store(now.0, Ordering::Release);
        let half_open = ctl.next(State::HalfOpen);
        // Whoever loses the race finds the winner's half-open epoch.
        let _lost_race_is_fine = self.cas(ctl, half_open);
        let ctl = Ctl(self.ctl.load(Ordering::Acquire));
        match ctl.state() {
            State::HalfOpen => self.try_probe(ctl, now),
            State::Closed | State::Disabled => Ok(ctl),
            State::Open => Err(Rejected::new(Policy::Breaker, Reason::Open)),
            State::ForcedOpen => Err(Rejected::new(Policy::Breaker, Reason::ForcedOpen)),
        }
    }

    fn try_probe(&self, ctl: Ctl, now: Tick) -> Result<Ctl, Rejected> {
        let config = self.config.load();
        let mut word = Probes(self.probes.load(Ordering::Acquire));
        loop {
            let [issued, done, failed, slow] = word.of(ctl.epoch());
            if issued >= u64::from(config.probes) {
                drop(config);
                return Err(self.probes_taken(ctl, now));
            }
            let next = Probes::new(ctl.epoch(), [issued + 1, done, failed, slow]);
            match self.probes.compare_exchange_weak(
                word.0,
                next.0,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(ctl),
                Err(seen) => word = Probes(seen),
            }
        }
    }

    /// Every probe is out. If they have been out for too long, the callee hangs: open again.
    fn probes_taken(&self, ctl: Ctl, now: Tick) -> Rejected {
        let wait = self.config.load().probe_wait.0;
        let since = Tick(self.half_open_since.load(Ordering::Acquire));
        if now.since(since) > wait {
            self.open(ctl, now, None);
        }
        Rejected::after(
            Policy::Breaker,
            Reason::ProbesTaken,
            since.plus(wait).since(now).min(wait),
        )
    }

    /// Opens the circuit if nobody else has changed it since `ctl`.
    fn open(&self, ctl: Ctl, now: Tick, retry_after: Option<Duration>) {
        let (open_for, max) = {
            let config = self.config.load();
            (config.open_for.0, config.open_for_max.0)
        };
        let streak = self.streak.load(Ordering::Relaxed).min(16);
        let grown = open_for.saturating_mul(1 << streak).min(max);
        let wait = retry_after.map_or(grown, |asked| asked.clamp(grown, max));
        let until = now.plus(wait);
        // Before the state, so that whoever sees `Open` sees until when.
        self.open_until.store(until.0, Ordering::Release);
        if self.cas(ctl, ctl.next(State::Open)) {
            self.streak.fetch_add(1, Ordering::Relaxed);
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn close(&self, ctl: Ctl) {
        self.window.load().clear();
        self.consecutive.store(0, Ordering::Relaxed);
        if self.cas(ctl, ctl.next(State::Closed)) {
            self.streak.store(0, Ordering::Relaxed);
        }
    }

    fn complete(
        &self,
        permit: Ctl,
        started: Tick,
        now: Tick,
        outcome: Outcome,
        hint: Option<Duration>,
    ) {
        let current = Ctl(self.ctl.load(Ordering::Acquire));
        if current != permit {
            self.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let config = self.config.load();
        let elapsed = now.0.saturating_sub(started.0);
        let slow = elapsed > nanos(config.slow_after.0);
        let outcome = match outcome {
            Outcome::Cancelled if slow => Outcome::Failure(crate::FailureClass::Timeout),
            other => other,
        };
        match current.state() {
            State::Closed => self.complete_closed(&config, current, now, outcome, slow, hint),
            State::HalfOpen => self.complete_probe(&config, current, now, outcome, slow, hint),
            State::Open | State::ForcedOpen | State::Disabled => {}
        }
    }

    fn complete_closed(
        &self,
        config: &BreakerConfig,
        ctl: Ctl,
        now: Tick,
        outcome: Outcome,
        slow: bool,
        hint: Option<Duration>,
    ) {
        if matches!(outcome, Outcome::Ignored | Outcome::Cancelled) {
            return;
        }
        let failed = outcome.is_failure();
        let window = self.window.load();
        window.record(now, failed, slow);
        let in_a_row = if failed {
            self.consecutive
                .fetch_add(1, Ordering::Relaxed)
                .saturating_add(1)
        } else {
            if outcome == Outcome::Success && self.consecutive.load(Ordering::Relaxed) != 0 {
                self.consecutive.store(0, Ordering::Relaxed);
            }
            0
        };
        if config.consecutive > 0 && in_a_row >= config.consecutive {
            return self.open(ctl, now, hint);
        }
        // A success can be the call that reaches `min_requests`, so every completion looks; but a
        // window without a failure cannot trip on failures, and that is the common case.
        if config.slow_rate.is_none() && !failed && !window.has_failures(now) {
            return;
        }
        let counts = window.counts(now);
        let trips = |ratio: Option<f64>, limit: f64| ratio.is_some_and(|r| r >= limit);
        if trips(
            counts.failure_ratio(config.min_requests),
            config.failure_rate.fraction(),
        ) || config
            .slow_rate
            .is_some_and(|limit| trips(counts.slow_ratio(config.min_requests), limit.fraction()))
        {
            self.open(ctl, now, hint);
        }
    }

    fn complete_probe(
        &self,
        config: &BreakerConfig,
        ctl: Ctl,
        now: Tick,
        outcome: Outcome,
        slow: bool,
        hint: Option<Duration>,
    ) {
        // Says nothing about health: the slot goes back to be used by another probe.
        let gives_back = matches!(outcome, Outcome::Ignored | Outcome::Cancelled);
        // "Less, please" must not close the circuit.
        let bad = u64::from(outcome.is_failure() || outcome == Outcome::RateLimited);
        let mut word = Probes(self.probes.load(Ordering::Acquire));
        let counts = loop {
            let [issued, done, failed, slows] = word.of(ctl.epoch());
            let next = if gives_back {
                [issued.saturating_sub(1), done, failed, slows]
            } else {
                [issued, done + 1, failed + bad, slows + u64::from(slow)]
            };
            match self.probes.compare_exchange_weak(
                word.0,
                Probes::new(ctl.epoch(), next).0,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => break next,
                Err(seen) => word = Probes(seen),
            }
        };
        let [_, done, failed, slows] = counts;
        // Half-open is a count window of `probes`: a verdict may come before all are used.
        if gives_back || done < u64::from(config.min_requests.min(config.probes)) {
            return;
        }
        let ratio = |part: u64| part as f64 / done as f64;
        let broken = ratio(failed) >= config.failure_rate.fraction()
            || config
                .slow_rate
                .is_some_and(|limit| ratio(slows) >= limit.fraction());
        if broken {
            self.open(ctl, now, hint)
        } else {
            self.close(ctl)
        }
    }
}

/// Leave to make one call. Complete it with the call's result; dropping it means cancelled.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once counts as a cancelled call"]
pub struct Permit {
    core: Arc<Core>,
    ctl: Ctl,
    started: Tick,
    done: bool,
}

impl Permit {
    /// Ends the call with its result.
    pub fn complete(self, outcome: Outcome, now: Instant) {
        self.complete_with(outcome, now, None);
    }

    /// The same, with the callee's own word (`Retry-After`) on how long to stay away should this
    /// result open the circuit. It is kept between the open time and `open_for_max`.
    pub fn complete_with(mut self, outcome: Outcome, now: Instant, retry_after: Option<Duration>) {
        self.done = true;
        self.core
            .complete(self.ctl, self.started, Tick::at(now), outcome, retry_after);
    }

    /// Ends the call as cancelled at `now`: after the slow threshold that is a failure.
    pub fn cancel(self, now: Instant) {
        self.complete(Outcome::Cancelled, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.done {
            // No clock here: a cancelled call that also was slow is told through `cancel`.
            self.core.complete(
                self.ctl,
                self.started,
                self.started,
                Outcome::Cancelled,
                None,
            );
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
