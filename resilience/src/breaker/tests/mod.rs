//! The breaker against the public cases, its peers' defects, a slow model, threads and odd clocks.

pub(super) use super::*;
pub(super) use crate::{
    FailureClass,
    config::{Millis, Ratio},
    events::{EventKind, Events},
    outcome::{Outcome, Reason},
};

mod cases;
mod clock;
mod laws;
// A million calls each on one thread: nothing that Miri could see.
#[cfg(not(miri))]
mod peers;
mod reconfigure;
mod threads;
mod windows;

pub(super) const OK: Outcome = Outcome::Success;
pub(super) const ERR: Outcome = Outcome::Failure(FailureClass::ServerError);

/// Failure ≥ 50 %, slow > 4 s, slow rate ≥ 50 %, window 20 s, min 5, open 5 s, probes 4.
pub(super) fn setup() -> BreakerConfig {
    BreakerConfig {
        failure_rate: Ratio::percent(50),
        slow_rate: Some(Ratio::percent(50)),
        slow_after: Millis::new(4_000),
        over: Window::Time(Millis::new(20_000)),
        min_requests: 5,
        open_for: Millis::new(5_000),
        probes: 4,
        ..BreakerConfig::default()
    }
}

pub(super) struct Bench {
    pub(super) breaker: CircuitBreaker,
    pub(super) now: Instant,
}

impl Bench {
    pub(super) fn new(config: BreakerConfig) -> Self {
        let breaker = CircuitBreaker::new(config).expect("valid");
        let now = Instant::now();
        // Ticks count from the first instant that a process sees; it must not be a far one.
        let _seen = breaker.snapshot(now);
        Self { breaker, now }
    }
    pub(super) fn wait(&mut self, ms: u64) -> &mut Self {
        self.now += Duration::from_millis(ms);
        self
    }
    pub(super) fn call(&mut self, outcome: Outcome) -> &mut Self {
        self.call_for(outcome, 0)
    }
    pub(super) fn call_for(&mut self, outcome: Outcome, ms: u64) -> &mut Self {
        let permit = self.breaker.try_acquire(self.now).expect("admitted");
        permit.complete(outcome, self.now + Duration::from_millis(ms));
        self
    }
    pub(super) fn state(&self) -> State {
        self.breaker.state()
    }
    pub(super) fn open(mut self) -> Self {
        for _ in 0..5 {
            self.call(ERR);
        }
        assert_eq!(self.state(), State::Open);
        self
    }
    pub(super) fn half_open(self) -> Self {
        let mut b = self.open();
        b.wait(6_000);
        b
    }
}
