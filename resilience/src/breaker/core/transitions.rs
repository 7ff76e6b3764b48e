//! From one state to the next: under the lock, one at a time, and told to who listens.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        config::{BreakerConfig, Mode},
        state::{Cause, Ctl, IllegalTransition, State},
        window::BANKS,
    },
    Control, Core,
};
use crate::{
    clock::{Tick, nanos},
    config::PolicyError,
    events::{Event, EventKind},
    outcome::Policy,
    sync::{MutexGuard, Ordering},
};

impl Core {
    /// Opens the circuit if nobody else has changed it since `seen`.
    #[cold]
    #[inline(never)]
    pub(super) fn open(
        &self,
        seen: Ctl,
        now: Instant,
        cause: Cause,
        retry_after: Option<Duration>,
    ) {
        let mut control = self.control.lock();
        if self.ctl() == seen {
            let time = self.next_open_time(&control, retry_after);
            self.shut(&mut control, time, cause, now);
        }
    }

    pub(super) fn shut(
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
    pub(super) fn shift(
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
    pub(in crate::breaker) fn lead(
        &self,
        to: State,
        now: Option<Instant>,
    ) -> Result<(), IllegalTransition> {
        let mut control = self.control.lock();
        let from = self.ctl().state();
        if !from.may_become(to) {
            return Err(IllegalTransition { from, to });
        }
        self.shift(&mut control, to, Cause::Operator, now);
        Ok(())
    }

    /// Opens for `time` whatever the state and the configuration, or for the next open time.
    pub(in crate::breaker) fn lead_open(&self, time: Option<Duration>, now: Instant) {
        let mut control = self.control.lock();
        let time = time.unwrap_or_else(|| self.next_open_time(&control, None));
        self.shut(&mut control, time, Cause::Operator, now);
    }

    pub(in crate::breaker) fn reconfigure(&self, config: BreakerConfig) -> Result<(), PolicyError> {
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

    pub(super) fn tell(&self, at: Option<Instant>, kind: impl FnOnce() -> EventKind) {
        if let Some(events) = &self.events {
            events.emit(|| self.event(at, kind()));
        }
    }

    pub(super) fn event(&self, at: Option<Instant>, kind: EventKind) -> Event {
        Event {
            name: Arc::clone(&self.name),
            policy: Policy::Breaker,
            endpoint: None,
            at,
            kind,
        }
    }
}

pub(super) fn state_of(mode: Mode) -> State {
    match mode {
        Mode::Auto => State::Closed,
        Mode::ForcedOpen => State::ForcedOpen,
        Mode::Disabled => State::Disabled,
        Mode::MetricsOnly => State::MetricsOnly,
    }
}
