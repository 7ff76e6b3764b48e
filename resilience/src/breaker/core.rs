//! The circuit itself: what a call does to it, and when it changes its state.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    config::{BreakerConfig, Mode, OnCancel},
    probes::{self, Issue, Probes},
    state::{Cause, Ctl, IllegalTransition, State},
    tally::Tally,
    window::{BANKS, Counts, Judged, Rates, Sample, Window},
};
use crate::{
    clock::{Tick, nanos},
    config::{PolicyError, Ratio},
    due::is_astray,
    events::{Event, EventKind, Events},
    lanes::Lane,
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    rng::Rng,
    sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering},
};

/// What each call reads of the configuration, published by the lock's owner.
#[derive(Debug)]
struct Hot {
    slow_after: AtomicU64,
    /// Bits of `f64`.
    failure_rate: AtomicU64,
    /// Infinite if slow calls do not count.
    slow_rate: AtomicU64,
    /// Zero if the failure rate judges probes.
    close_rate: AtomicU64,
    min_calls: AtomicU32,
    consecutive: AtomicU32,
    probes: AtomicU32,
    judge_cancelled: AtomicU32,
    probe_wait: AtomicU64,
    generation: AtomicU64,
}

impl Hot {
    fn new(config: &BreakerConfig) -> Self {
        let zero = || AtomicU64::new(0);
        let hot = Self {
            slow_after: zero(),
            failure_rate: zero(),
            slow_rate: zero(),
            close_rate: zero(),
            min_calls: AtomicU32::new(1),
            consecutive: AtomicU32::new(0),
            probes: AtomicU32::new(1),
            judge_cancelled: AtomicU32::new(0),
            probe_wait: zero(),
            generation: zero(),
        };
        hot.publish(config);
        hot
    }

    fn publish(&self, config: &BreakerConfig) {
        let set = |to: &AtomicU64, share: f64| to.store(share.to_bits(), Ordering::Relaxed);
        set(&self.failure_rate, config.failure_rate.fraction());
        let slow = config.slow_rate.map_or(f64::INFINITY, Ratio::fraction);
        set(&self.slow_rate, slow);
        set(
            &self.close_rate,
            config.close_rate.map_or(0.0, Ratio::fraction),
        );
        self.slow_after
            .store(nanos(config.slow_after.0), Ordering::Relaxed);
        self.min_calls.store(config.min_calls(), Ordering::Relaxed);
        self.consecutive
            .store(config.consecutive, Ordering::Relaxed);
        self.probes.store(config.probes, Ordering::Relaxed);
        let judge = u32::from(config.on_cancel == OnCancel::Judge);
        self.judge_cancelled.store(judge, Ordering::Relaxed);
        self.probe_wait
            .store(nanos(config.probe_wait.0), Ordering::Relaxed);
    }

    fn share(of: &AtomicU64) -> f64 {
        f64::from_bits(of.load(Ordering::Relaxed))
    }

    /// The threshold that `rates` of enough calls reach, if they do.
    fn reached(&self, rates: Rates) -> Option<Cause> {
        if rates.failed >= Self::share(&self.failure_rate) {
            Some(Cause::FailureRate)
        } else if rates.slow >= Self::share(&self.slow_rate) {
            Some(Cause::SlowRate)
        } else {
            None
        }
    }

    /// Whether the probes passed; `None` as long as too few are done.
    fn verdict(&self, tally: probes::Tally) -> Option<bool> {
        let limit = self.probes.load(Ordering::Relaxed);
        let needed = self.min_calls.load(Ordering::Relaxed).min(limit).max(1);
        if tally.done < u64::from(needed) {
            return None;
        }
        let share = |part: u64| part as f64 / tally.done as f64;
        let close_rate = Self::share(&self.close_rate);
        let failed = if close_rate > 0.0 {
            share(tally.done - tally.failed) < close_rate
        } else {
            share(tally.failed) >= Self::share(&self.failure_rate)
        };
        Some(!failed && share(tally.slow) < Self::share(&self.slow_rate))
    }
}

/// What only the lock's owner touches: transitions and configuration.
#[derive(Debug)]
pub(super) struct Control {
    config: Arc<BreakerConfig>,
    /// Openings since the last time it closed: what the open time grows with.
    streak: u32,
}

/// The end of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) permit: Ctl,
    pub(super) started: Tick,
    pub(super) deadline: Option<Tick>,
    pub(super) outcome: Outcome,
    /// The callee's own word on how long to stay away.
    pub(super) retry_after: Option<Duration>,
    /// The result opens the circuit, whatever the thresholds say.
    pub(super) trips: bool,
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

    /// A call has ended.
    pub(super) fn complete(&self, end: &End, now: Instant) {
        let elapsed = Tick::at(now).0.saturating_sub(end.started.0);
        self.complete_otherwise(end, self.ctl(), now, elapsed);
    }

    /// A call has ended well: the common case by itself, so that it pays for nothing else. False
    /// if it is not that common, and has yet to be [`complete`](Self::complete)d.
    #[inline]
    pub(super) fn complete_good(
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
    pub(super) fn drop_call(&self, permit: Ctl) {
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
    fn judge_probes(
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

    /// Opens the circuit if nobody else has changed it since `seen`.
    #[cold]
    #[inline(never)]
    fn open(&self, seen: Ctl, now: Instant, cause: Cause, retry_after: Option<Duration>) {
        let mut control = self.control.lock();
        if self.ctl() == seen {
            let time = self.next_open_time(&control, retry_after);
            self.shut(&mut control, time, cause, now);
        }
    }

    fn shut(
        &self,
        control: &mut MutexGuard<'_, Control>,
        time: Duration,
        cause: Cause,
        now: Instant,
    ) {
        self.open_until
            .store(Tick::at(now).plus(time).0, Ordering::Release);
        self.open_time.store(nanos(time), Ordering::Release);
        control.streak = control.streak.saturating_add(1);
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.shift(control, State::Open, cause, Some(now));
    }

    /// `open_for × multiplier^n` with jitter, or what the callee asks for if that is longer; never
    /// more than the maximum.
    fn next_open_time(&self, control: &Control, retry_after: Option<Duration>) -> Duration {
        let config = &control.config;
        let (base, max) = (config.open_for.0, config.open_for_max.0);
        let factor = config
            .open_multiplier
            .powi(control.streak.min(1_000) as i32);
        let grown = Duration::try_from_secs_f64(base.as_secs_f64() * factor)
            .unwrap_or(max)
            .clamp(base, max);
        let spread = grown.mul_f64(config.open_jitter.fraction());
        // At the maximum there is no room above: take away there, so that a fleet still spreads.
        let low = grown.min(max.saturating_sub(spread)).max(base);
        let time = if spread.is_zero() {
            grown
        } else {
            low.saturating_add(spread.mul_f64(self.rng.unit())).min(max)
        };
        retry_after.map_or(time, |asked| asked.clamp(time, max))
    }

    /// Changes the state. The one place that does, under the lock, so that transitions have one
    /// order and events come in it.
    fn shift(
        &self,
        control: &mut MutexGuard<'_, Control>,
        to: State,
        cause: Cause,
        at: Option<Instant>,
    ) {
        let seen = self.ctl();
        let (from, next) = (seen.state(), seen.next(to));
        if to.counts() {
            self.window.restart(next.epoch());
            let bank = (next.epoch() % BANKS) as usize;
            self.consecutive[bank].store(0, Ordering::Release);
            self.exceeding.store(0, Ordering::Release);
        }
        match to {
            State::HalfOpen => {
                let since = at.map_or(0, |at| Tick::at(at).0);
                self.probing_since.store(since, Ordering::Release);
                self.probes.begin(next.epoch());
            }
            State::Open => {}
            State::Closed | State::ForcedOpen | State::Disabled | State::MetricsOnly => {
                control.streak = 0;
            }
        }
        self.ctl.store(next.0, Ordering::Release);
        if from != to {
            self.tally.transition(from, to, cause);
            let time = Duration::from_nanos(self.open_time.load(Ordering::Relaxed));
            self.tell(at, || EventKind::Transition {
                from,
                to,
                cause,
                open_for: (to == State::Open).then_some(time),
            });
        }
    }

    /// An operator's hand.
    pub(super) fn lead(&self, to: State, now: Option<Instant>) -> Result<(), IllegalTransition> {
        let mut control = self.control.lock();
        let from = self.ctl().state();
        if !from.may_become(to) {
            return Err(IllegalTransition { from, to });
        }
        self.shift(&mut control, to, Cause::Operator, now);
        Ok(())
    }

    /// Opens for `time` whatever the state and the configuration, or for the next open time.
    pub(super) fn lead_open(&self, time: Option<Duration>, now: Instant) {
        let mut control = self.control.lock();
        let time = time.unwrap_or_else(|| self.next_open_time(&control, None));
        self.shut(&mut control, time, Cause::Operator, now);
    }

    pub(super) fn reconfigure(&self, config: BreakerConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let mut control = self.control.lock();
        let old = std::mem::replace(&mut control.config, Arc::new(config));
        let new = Arc::clone(&control.config);
        if (old.over, old.buckets) != (new.over, new.buckets) {
            self.window.reshape(new.over, new.buckets);
        }
        self.hot.publish(&new);
        self.window.judge_anew();
        let generation = self.hot.generation.fetch_add(1, Ordering::Release) + 1;
        if old.mode != new.mode {
            self.shift(&mut control, state_of(new.mode), Cause::Operator, None);
        }
        self.tell(None, || EventKind::Reconfigured { generation });
        Ok(())
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

    fn tell(&self, at: Option<Instant>, kind: impl FnOnce() -> EventKind) {
        if let Some(events) = &self.events {
            events.emit(|| self.event(at, kind()));
        }
    }

    fn event(&self, at: Option<Instant>, kind: EventKind) -> Event {
        Event {
            name: Arc::clone(&self.name),
            policy: Policy::Breaker,
            endpoint: None,
            at,
            kind,
        }
    }
}

/// A success ends a row of failures.
#[inline]
fn end_row(in_a_row: &AtomicU32) {
    if in_a_row.load(Ordering::Relaxed) != 0 {
        in_a_row.store(0, Ordering::Release);
    }
}

fn state_of(mode: Mode) -> State {
    match mode {
        Mode::Auto => State::Closed,
        Mode::ForcedOpen => State::ForcedOpen,
        Mode::Disabled => State::Disabled,
        Mode::MetricsOnly => State::MetricsOnly,
    }
}

#[cfg(all(test, loom))]
mod models;
