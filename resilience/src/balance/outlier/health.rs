//! The verdict on one endpoint, and the places for those that are out.

use super::{Cause, OutlierConfig};
use crate::{
    clock::{Tick, nanos},
    due::is_astray,
    outcome::{FailureClass, Outcome},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// How many of the endpoints are out, and how many there are.
#[derive(Debug, Default)]
pub(in crate::balance) struct Places {
    pub(in crate::balance) hosts: AtomicU32,
    ejected: AtomicU32,
}

impl Places {
    /// Takes one of the places, if fewer than `allowed` are taken.
    pub(super) fn try_enter(&self, allowed: u32) -> bool {
        let mut out = self.ejected.load(Ordering::Relaxed);
        while out < allowed {
            match self.ejected.compare_exchange_weak(
                out,
                out + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(seen) => out = seen,
            }
        }
        false
    }

    fn leave(&self) {
        self.ejected.fetch_sub(1, Ordering::AcqRel);
    }

    pub(in crate::balance) fn ejected(&self) -> u32 {
        self.ejected.load(Ordering::Acquire)
    }
}

/// What came of an attempt to eject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::balance) enum Verdict {
    /// It is out from now on.
    Ejected,
    /// It was out, or gone, or another is just judging it.
    Already,
    /// As many are out as may be.
    Overflow,
}

/// In.
const IN: u64 = 0;
/// In, while somebody asks for a place to eject it.
const JUDGED: u64 = 1;
/// No longer a member: nothing changes any more, and no place is held.
const GONE: u64 = u64::MAX;
// Any other value: the tick until which it is out.

/// Four counts of failures in a row, 16 bits each, in one word, so that a success clears them by
/// one load where there is nothing to clear.
const LANE: u32 = 16;
const ANSWERS: u32 = 0;
const GATEWAY: u32 = LANE;
const LOCAL: u32 = 2 * LANE;
const CONNECT: u32 = 3 * LANE;
const LANE_MAX: u64 = (1 << LANE) - 1;

fn lane(word: u64, at: u32) -> u32 {
    (word >> at & LANE_MAX) as u32
}

/// Adds one, up to what the lane holds.
fn add(word: u64, at: u32) -> u64 {
    if word >> at & LANE_MAX == LANE_MAX {
        word
    } else {
        word + (1 << at)
    }
}

fn clear(word: u64, at: u32) -> u64 {
    word & !(LANE_MAX << at)
}

/// The counts after one more failure.
fn after(word: u64, class: FailureClass) -> u64 {
    match class {
        // No answer: says nothing about answers.
        FailureClass::Connect => add(add(word, LOCAL), CONNECT),
        // It could be reached, and then no more.
        FailureClass::Timeout | FailureClass::Reset => {
            clear(add(add(add(word, LOCAL), ANSWERS), GATEWAY), CONNECT)
        }
        FailureClass::Gateway => clear(clear(add(add(word, ANSWERS), GATEWAY), LOCAL), CONNECT),
        FailureClass::ServerError | FailureClass::Protocol | FailureClass::Other => {
            clear(clear(clear(add(word, ANSWERS), GATEWAY), LOCAL), CONNECT)
        }
    }
}

/// The verdict on one endpoint.
#[derive(Debug, Default)]
pub(in crate::balance) struct Health {
    state: AtomicU64,
    /// How long the latest ejection lasts, in nanoseconds.
    lasts: AtomicU64,
    /// 1 while its health check fails.
    unhealthy: AtomicU32,
    /// How often it was let in again: a result of an earlier life says nothing about this one.
    epoch: AtomicU32,
    in_a_row: AtomicU64,
    /// Ejections that make the next one longer.
    times: AtomicU32,
}

impl Health {
    /// Takes the result of a call that was made in `epoch`; the cause if the endpoint should go.
    pub(in crate::balance) fn record(
        &self,
        outcome: Outcome,
        epoch: u32,
        config: impl FnOnce() -> arc_swap::Guard<std::sync::Arc<OutlierConfig>>,
    ) -> Option<Cause> {
        let class = match outcome {
            Outcome::Success | Outcome::RateLimited => {
                if self.in_a_row.load(Ordering::Relaxed) != 0 {
                    self.in_a_row.store(0, Ordering::Relaxed);
                }
                return None;
            }
            Outcome::Ignored | Outcome::Cancelled => return None,
            Outcome::Failure(class) => class,
        };
        if epoch != self.epoch() {
            return None;
        }
        let counts = self.count(class);
        let config = config();
        let reached = |at, limit: u32| limit > 0 && lane(counts, at) >= limit;
        if reached(CONNECT, config.consecutive_connect) {
            Some(Cause::ConsecutiveConnect)
        } else if reached(LOCAL, config.consecutive_local_origin) {
            Some(Cause::ConsecutiveLocalOrigin)
        } else if reached(GATEWAY, config.consecutive_gateway) {
            Some(Cause::ConsecutiveGateway)
        } else if reached(ANSWERS, config.consecutive_5xx) {
            Some(Cause::Consecutive5xx)
        } else {
            None
        }
    }

    /// Counts a failure; the counts with it.
    pub(super) fn count(&self, class: FailureClass) -> u64 {
        let mut word = self.in_a_row.load(Ordering::Relaxed);
        loop {
            let next = after(word, class);
            match self.in_a_row.compare_exchange_weak(
                word,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return next,
                Err(seen) => word = seen,
            }
        }
    }

    /// Puts it out if there is a place; `jitter` in `[0, 1)`.
    ///
    /// Only one of those who judge it at once goes on to ask for a place, so none is taken and
    /// given back meanwhile, which would refuse it to another endpoint.
    pub(in crate::balance) fn eject(
        &self,
        places: &Places,
        config: &OutlierConfig,
        now: Tick,
        jitter: f64,
    ) -> Verdict {
        let swap = |from, to| {
            self.state
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        };
        if !swap(IN, JUDGED) {
            return Verdict::Already;
        }
        let allowed = config.places(places.hosts.load(Ordering::Relaxed));
        if !places.try_enter(allowed) {
            // Fails only if it is gone by now, which is well.
            swap(JUDGED, IN);
            return Verdict::Overflow;
        }
        let times = config.more(self.times.load(Ordering::Relaxed));
        // Swapped, not stored, so that who forgives at this moment comes before or fails.
        self.times.swap(times, Ordering::Relaxed);
        let lasts = config
            .lasts(times)
            .saturating_add(config.eject_jitter.0.mul_f64(jitter));
        // Of the one who judges, and before anybody can see the end of it.
        self.lasts.store(nanos(lasts), Ordering::Relaxed);
        let until = now.plus(lasts).0.clamp(JUDGED + 1, GONE - 1);
        if swap(JUDGED, until) {
            Verdict::Ejected
        } else {
            places.leave();
            Verdict::Already
        }
    }

    /// Whether calls may go there at `now`; not before its time is over, nor while its check fails.
    pub(in crate::balance) fn is_available(&self, now: Tick) -> bool {
        let until = self.state.load(Ordering::Acquire);
        (until <= JUDGED || self.is_over(until, now)) && self.unhealthy.load(Ordering::Relaxed) == 0
    }

    /// Whether an ejection until then is over: also if it was reckoned by a clock that was set back
    /// since.
    fn is_over(&self, until: u64, now: Tick) -> bool {
        until <= now.0 || until != GONE && is_astray(until, self.lasts.load(Ordering::Relaxed), now)
    }

    /// Brings it back if its time is over; `true` to the one who did.
    pub(in crate::balance) fn readmit_if_due(&self, places: &Places, now: Tick) -> bool {
        let until = self.state.load(Ordering::Acquire);
        until > JUDGED && self.is_over(until, now) && self.readmit(places, until)
    }

    /// Brings it back whatever its time; `true` to the one who did.
    pub(in crate::balance) fn readmit_now(&self, places: &Places) -> bool {
        let until = self.state.load(Ordering::Acquire);
        until > JUDGED && self.readmit(places, until)
    }

    fn readmit(&self, places: &Places, until: u64) -> bool {
        if until == GONE {
            return false;
        }
        let first = self
            .state
            .compare_exchange(until, IN, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            self.epoch.fetch_add(1, Ordering::Relaxed);
            self.in_a_row.store(0, Ordering::Relaxed);
            places.leave();
        }
        first
    }

    /// It is no longer a member: calls under way there change nothing from now on. `true` if it was
    /// ejected.
    pub(in crate::balance) fn retire(&self, places: &Places) -> bool {
        let was = self.state.swap(GONE, Ordering::AcqRel);
        let was_out = was > JUDGED && was != GONE;
        if was_out {
            places.leave();
        }
        was_out
    }

    /// It was in for `intervals` on end: the next ejection is as many steps shorter. Only the one
    /// who sweeps calls this.
    pub(in crate::balance) fn forgive(&self, intervals: u64) {
        let mut times = self.times.load(Ordering::Relaxed);
        let steps = u32::try_from(intervals).unwrap_or(u32::MAX);
        while steps > 0 && times > 0 && self.state.load(Ordering::Acquire) == IN {
            match self.times.compare_exchange_weak(
                times,
                times.saturating_sub(steps),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(seen) => times = seen,
            }
        }
    }

    /// What its health check says; `true` if that is news.
    pub(in crate::balance) fn set_unhealthy(&self, unhealthy: bool) -> bool {
        let new = u32::from(unhealthy);
        self.unhealthy.swap(new, Ordering::AcqRel) != new
    }

    pub(in crate::balance) fn is_unhealthy(&self) -> bool {
        self.unhealthy.load(Ordering::Relaxed) != 0
    }

    pub(in crate::balance) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(in crate::balance) fn times(&self) -> u32 {
        self.times.load(Ordering::Relaxed)
    }

    /// The tick until which it is out; `None` if it is in.
    pub(in crate::balance) fn until(&self) -> Option<Tick> {
        match self.state.load(Ordering::Acquire) {
            IN | JUDGED | GONE => None,
            until => Some(Tick(until)),
        }
    }

    /// Nanoseconds until it comes back; 0 if it is in.
    pub(in crate::balance) fn out_for(&self, now: Tick) -> u64 {
        let until = self.until().filter(|until| !self.is_over(until.0, now));
        until.map_or(0, |until| nanos(until.since(now)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::config::{Millis, Ratio};

    fn config() -> OutlierConfig {
        OutlierConfig {
            consecutive_gateway: 3,
            eject: Millis::new(10_000),
            ..OutlierConfig::default()
        }
    }

    fn places(hosts: u32) -> Places {
        let places = Places::default();
        places.hosts.store(hosts, Ordering::Relaxed);
        places
    }

    const C: Outcome = Outcome::Failure(FailureClass::Connect);
    const T: Outcome = Outcome::Failure(FailureClass::Timeout);
    const G: Outcome = Outcome::Failure(FailureClass::Gateway);
    const E: Outcome = Outcome::Failure(FailureClass::ServerError);
    const S: Outcome = Outcome::Success;
    const L: Outcome = Outcome::RateLimited;
    const I: Outcome = Outcome::Ignored;
    const X: Outcome = Outcome::Cancelled;

    #[test]
    fn failures_in_a_row() {
        use Cause::*;
        let cases: &[(&str, &[Outcome], Option<Cause>)] = &[
            ("five", &[E, E, E, E, E], Some(Consecutive5xx)),
            ("four", &[E, E, E, E], None),
            ("a success among them", &[E, E, S, E, E, E], None),
            ("less, please, is an answer", &[E, E, E, E, L, E], None),
            (
                "ignored is none",
                &[E, E, E, E, I, X, E],
                Some(Consecutive5xx),
            ),
            ("gateway", &[G, T, G], Some(ConsecutiveGateway)),
            (
                "other 5xx among gateway errors",
                &[G, G, E, G, G],
                Some(Consecutive5xx),
            ),
            ("a refused connection", &[C], Some(ConsecutiveConnect)),
            ("answers between timeouts", &[T, T, S, T, T], None),
        ];
        for (name, outcomes, want) in cases {
            let health = Health::default();
            let shared = arc_swap::ArcSwap::from_pointee(config());
            let last = outcomes
                .iter()
                .map(|&o| health.record(o, 0, || shared.load()))
                .last()
                .expect("some");
            assert_eq!(last, *want, "{name}");
        }
        let health = Health::default();
        let mut config = config();
        (config.consecutive_connect, config.consecutive_gateway) = (0, 0);
        let shared = arc_swap::ArcSwap::new(Arc::new(config));
        for outcome in [C, T, C, T] {
            assert_eq!(health.record(outcome, 0, || shared.load()), None);
        }
        let fifth = health.record(C, 0, || shared.load());
        assert_eq!(fifth, Some(ConsecutiveLocalOrigin), "of any kind");
    }

    #[test]
    fn counts_stop_at_what_they_hold() {
        let health = Health::default();
        for _ in 0..70_000 {
            health.count(FailureClass::Timeout);
        }
        let word = health.count(FailureClass::Timeout);
        let want = (65_535, 65_535, 65_535, 0);
        let got = [ANSWERS, GATEWAY, LOCAL, CONNECT].map(|at| lane(word, at));
        assert_eq!((got[0], got[1], got[2], got[3]), want);
    }

    #[test]
    fn out_1_ejections_grow_shrink_by_healthy_intervals_and_are_capped() {
        let (health, places, config) = (Health::default(), places(3), config());
        let mut now = Tick(1_000);
        let eject = |now: &mut Tick| {
            let verdict = health.eject(&places, &config, *now, 0.0);
            assert_eq!(verdict, Verdict::Ejected);
            let lasts = Duration::from_nanos(health.out_for(*now));
            *now = now.plus(lasts);
            assert!(!health.readmit_if_due(&places, Tick(now.0 - 1)));
            assert!(health.readmit_if_due(&places, *now));
            lasts.as_secs()
        };
        assert_eq!([1, 2, 3].map(|_| eject(&mut now)), [10, 20, 30]);
        health.forgive(2);
        assert_eq!(eject(&mut now), 20);
        health.forgive(1_000_000);
        assert_eq!(eject(&mut now), 10);
        let all: Vec<_> = (0..40).map(|_| eject(&mut now)).collect();
        assert_eq!(all.iter().max(), Some(&300));
        // 300 s is the 30th; the count goes one further and no more (Envoy).
        health.forgive(3);
        assert_eq!(eject(&mut now), 290);
    }

    #[test]
    fn jitter_is_added_and_time_at_its_end_saturates() {
        let (health, places) = (Health::default(), places(3));
        let config = OutlierConfig {
            eject_jitter: Millis::new(1_000),
            ..config()
        };
        health.eject(&places, &config, Tick(0), 0.5);
        assert_eq!(health.until(), Some(Tick(10_500_000_000)));
        assert!(health.readmit_now(&places));
        let end = Tick(u64::MAX);
        assert_eq!(health.eject(&places, &config, end, 0.999), Verdict::Ejected);
        assert!(health.is_available(end), "and over at once");
        assert!(health.readmit_if_due(&places, end));
        assert_eq!(places.ejected(), 0);
    }

    #[test]
    fn a_straggler_of_an_earlier_life_counts_for_nothing() {
        let (health, places) = (Health::default(), places(3));
        let shared = arc_swap::ArcSwap::from_pointee(config());
        health.eject(&places, &config(), Tick(0), 0.0);
        assert!(health.readmit_now(&places));
        assert_eq!(health.record(C, 0, || shared.load()), None);
        let cause = health.record(C, 1, || shared.load());
        assert_eq!(cause, Some(Cause::ConsecutiveConnect));
    }

    #[test]
    fn who_is_gone_holds_no_place_and_takes_none() {
        let (health, places) = (Health::default(), places(3));
        health.eject(&places, &config(), Tick(0), 0.0);
        assert_eq!(places.ejected(), 1);
        assert!(health.retire(&places));
        assert!(!health.retire(&places));
        assert_eq!(places.ejected(), 0);
        let verdict = health.eject(&places, &config(), Tick(0), 0.0);
        assert_eq!((verdict, places.ejected()), (Verdict::Already, 0));
        assert!(!health.readmit_now(&places));
    }

    #[test]
    fn the_share_that_may_be_out_is_kept() {
        let places = places(4);
        let all: Vec<_> = (0..4).map(|_| Health::default()).collect();
        let config = OutlierConfig {
            max_ejected: Ratio::percent(50),
            ..config()
        };
        let verdicts: Vec<_> = all
            .iter()
            .map(|h| h.eject(&places, &config, Tick(0), 0.0))
            .collect();
        assert_eq!(
            verdicts,
            [
                Verdict::Ejected,
                Verdict::Ejected,
                Verdict::Overflow,
                Verdict::Overflow,
            ]
        );
        assert!(all[2].is_available(Tick(0)));
    }

    #[test]
    fn a_failed_check_keeps_it_out_without_a_place() {
        let (health, places) = (Health::default(), places(2));
        assert!(health.set_unhealthy(true) && !health.set_unhealthy(true));
        assert!(!health.is_available(Tick(u64::MAX)));
        assert_eq!(places.ejected(), 0);
        assert!(health.set_unhealthy(false) && health.is_available(Tick(0)));
    }
}
