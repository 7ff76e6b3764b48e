//! The limiter against the reference's case, against governor, and against its own law.

use std::num::NonZeroU32;

use governor::{
    Quota as GovernorQuota, RateLimiter,
    clock::{Clock, FakeRelativeClock},
};
use proptest::prelude::*;

use super::*;
use crate::keyed::KeyedConfig;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn limit(text: &str) -> RateLimit {
    RateLimit::new(text.parse().expect("rate"))
}

fn wait(limit: &RateLimit, now: Instant) -> Option<Duration> {
    limit
        .try_acquire(now)
        .err()
        .map(|r| r.retry_after.expect("says when"))
}

#[test]
fn rl_1_burst_then_one_each_interval_and_the_wait_is_exact() {
    let limit = limit("5/s");
    let start = Instant::now();
    assert!((0..5).all(|_| limit.try_acquire(start).is_ok()));
    assert_eq!(wait(&limit, start), Some(ms(200)));
    assert_eq!(wait(&limit, start + ms(199)), Some(ms(1)));
    assert_eq!(wait(&limit, start + ms(200)), None);
    assert_eq!(wait(&limit, start + ms(200)), Some(ms(200)));
    assert!((0..4).all(|_| limit.try_acquire(start + ms(1000)).is_ok()));
    assert_eq!(wait(&limit, start + ms(1000)), Some(ms(200)));
}

#[test]
fn rl_1_more_than_the_burst_never_fits_and_says_so() {
    let limit = limit("5/s");
    let now = Instant::now();
    for n in [6, 7, 15, u32::MAX] {
        let rejected = limit.try_acquire_n(n, now).expect_err("too many");
        assert_eq!(
            (rejected.reason, rejected.retry_after),
            (Reason::InsufficientCapacity, None)
        );
    }
    assert!(limit.try_acquire_n(5, now).is_ok());
    let status = limit.status(now);
    assert_eq!((status.remaining, status.reset), (0, ms(1000)));
    assert_eq!(limit.status(now + ms(201)).remaining, 1);
}

#[test]
fn governor_has_no_refund_ours_gives_back_what_time_has_not() {
    let limit = limit("5/s");
    let start = Instant::now();
    let all = limit.try_acquire_n(5, start).expect("full");
    limit.refund(all, start);
    assert_eq!(limit.status(start).remaining, 5);

    // 400 ms on, time has given two cells back by itself: only three are left to refund.
    let all = limit.try_acquire_n(5, start).expect("full again");
    limit.refund(all, start + ms(400));
    assert_eq!(limit.status(start + ms(400)).remaining, 5);
    let late = limit.try_acquire_n(5, start + ms(400)).expect("full");
    assert_eq!(wait(&limit, start + ms(400)), Some(ms(200)));
    limit.refund(all, start + ms(1400));
    limit.refund(late, start + ms(1400));
    assert_eq!(limit.status(start + ms(1400)).reset, Duration::ZERO);
}

#[test]
fn governor_quota_is_immutable_ours_changes_live_and_keeps_the_history() {
    let limit = limit("1/h burst 3");
    let now = Instant::now();
    assert!(limit.try_acquire_n(3, now).is_ok());
    limit.reconfigure("100/s burst 10".parse().expect("rate"), now);
    // Three hours of debt are capped at what the new rate could have made: ten cells.
    assert_eq!(wait(&limit, now), Some(ms(10)));
    assert_eq!(wait(&limit, now + ms(10)), None);
    limit.reconfigure("1/s burst 2".parse().expect("rate"), now + ms(10));
    assert!(
        wait(&limit, now + ms(10)).is_none(),
        "100 ms of debt fit in the new burst"
    );
    assert_eq!(limit.status(now).rate.burst, 2);
}

#[test]
fn a_clock_at_its_extremes_neither_panics_nor_locks_out() {
    let limit = limit("5/s");
    let now = Instant::now();
    assert!(limit.try_acquire_n(5, now + ms(1000)).is_ok());
    assert_eq!(wait(&limit, now), Some(ms(1200)), "a step back waits");
    let past = now.checked_sub(Duration::from_secs(100_000)).unwrap_or(now);
    assert!(limit.try_acquire(past).is_err());
    let future = now + Duration::from_secs(400 * 365 * 86_400);
    assert!(limit.try_acquire(future).is_ok());
    let slowest = RateLimit::new(Rate {
        count: 1,
        per: Duration::MAX,
        burst: 1,
    });
    assert!(slowest.try_acquire(now).is_ok());
    assert!(slowest.try_acquire(future).is_err());
}

#[test]
fn two_million_calls_from_two_threads_take_exactly_the_burst() {
    const CALLS: u64 = crate::sync::rounds(1_000_000, 500);
    let limit = limit(&format!("1/h burst {CALLS}"));
    let now = Instant::now();
    let taken: u64 = std::thread::scope(|scope| {
        let work = || {
            let taken = (0..CALLS).filter(|_| limit.try_acquire(now).is_ok());
            taken.count() as u64
        };
        let other = scope.spawn(work);
        work() + other.join().expect("no panic")
    });
    assert_eq!(taken, CALLS);
    assert_eq!(limit.rejected(), CALLS);
}

#[test]
fn each_key_has_its_own_limit_and_leaves_when_its_bucket_is_full() {
    let config = KeyedRateLimitConfig {
        rate: "2/s".parse().expect("rate"),
        keys: KeyedConfig {
            capacity: 100,
            idle: crate::config::Millis::new(100),
        },
    };
    let limit: KeyedRateLimit<String> = KeyedRateLimit::new(config).expect("valid");
    let now = Instant::now();
    for key in ["a", "b"] {
        assert!(limit.try_acquire_n(key, 2, now).is_ok(), "{key}");
        assert!(limit.try_acquire(key, now).is_err(), "{key}");
    }
    assert_eq!(limit.status("a", now).remaining, 0);
    assert_eq!(limit.status("never seen", now).remaining, 2);
    // Idle for longer than it need be, but in debt: to forget it would hand it a new burst.
    assert_eq!(limit.sweep(now + ms(500)), 0);
    assert!(limit.try_acquire_n("a", 2, now + ms(500)).is_err());
    assert_eq!(limit.sweep(now + ms(1601)), 2);
    assert_eq!((limit.keys().tracked, limit.rejected()), (0, 3));
    let grant = limit.try_acquire_n("a", 2, now + ms(1601)).expect("new");
    limit.refund("b", grant, now + ms(1601));
    assert_eq!(limit.status("a", now + ms(1601)).remaining, 0, "not b's");
    limit.refund("a", grant, now + ms(1601));
    assert_eq!(limit.status("a", now + ms(1601)).remaining, 2);
}

#[test]
fn a_refund_reaches_the_bucket_it_came_from_or_none() {
    let config = KeyedRateLimitConfig {
        rate: "2/s burst 2".parse().expect("a rate"),
        keys: KeyedConfig {
            capacity: 1,
            ..KeyedConfig::default()
        },
    };
    let limit: KeyedRateLimit<u64> = KeyedRateLimit::new(config).expect("valid");
    let now = Instant::now();
    let tracked = limit.try_acquire_n(&1, 2, now).expect("a burst");
    // No place for another key as long as the first is in debt: all others share one bucket.
    let shared = limit.try_acquire_n(&2, 2, now).expect("a burst");
    assert!(limit.try_acquire(&3, now).is_err());
    limit.refund(&2, shared, now);
    let shared = limit.try_acquire_n(&3, 2, now).expect("was given back");
    // Later the second key has a bucket of its own, and owes the shared one nothing.
    let later = now + Duration::from_secs(10);
    let own = limit.try_acquire_n(&2, 2, later).expect("a burst");
    limit.refund(&2, shared, now);
    limit.refund(&1, tracked, now);
    limit.refund(&2, tracked, now);
    assert!(limit.try_acquire(&2, later).is_err(), "of others' buckets");
    limit.refund(&2, own, later);
    assert!(limit.try_acquire_n(&2, 2, later).is_ok());
}

#[test]
fn governor_keyed_map_grows_without_bound_ours_does_not() {
    let config = KeyedRateLimitConfig {
        rate: "1/h burst 1".parse().expect("rate"),
        keys: KeyedConfig {
            capacity: 64,
            ..KeyedConfig::default()
        },
    };
    let limit: KeyedRateLimit<u64> = KeyedRateLimit::new(config).expect("valid");
    let now = Instant::now();
    let admitted = (0..10_000u64)
        .filter(|key| limit.try_acquire(key, now).is_ok())
        .count();
    assert_eq!(limit.keys().tracked, 64);
    // All in debt, so nobody may leave; those who come later share one bucket.
    assert_eq!(admitted, 65);
    limit
        .reconfigure(
            KeyedRateLimitConfig {
                rate: "1000/s burst 1".parse().expect("rate"),
                ..config
            },
            now,
        )
        .expect("valid");
    assert!(
        limit.try_acquire(&0, now + ms(1)).is_ok(),
        "an hour's debt is gone"
    );
}

/// The same calls on both; governor is the oracle where it can do what ours can.
fn same_as_governor(count: u32, burst: u32, calls: &[(u64, u32)]) -> Result<(), TestCaseError> {
    let clock = FakeRelativeClock::default();
    let quota = GovernorQuota::per_second(NonZeroU32::new(count).expect("not 0"))
        .allow_burst(NonZeroU32::new(burst).expect("not 0"));
    let oracle = RateLimiter::direct_with_clock(quota, clock.clone());
    let ours = RateLimit::new(Rate {
        count,
        per: Duration::from_secs(1),
        burst,
    });
    let start = Instant::now();
    let mut at = Duration::ZERO;
    for &(step, cells) in calls {
        at += Duration::from_micros(step);
        clock.advance(Duration::from_micros(step));
        let theirs = match oracle.check_n(NonZeroU32::new(cells).expect("not 0")) {
            Err(_never) => Err(None),
            Ok(Err(until)) => Err(Some(until.wait_time_from(clock.now()))),
            Ok(Ok(())) => Ok(()),
        };
        let mine = ours
            .try_acquire_n(cells, start + at)
            .map(|_| ())
            .map_err(|rejected| rejected.retry_after);
        prop_assert_eq!(mine, theirs, "{} cells at {:?}", cells, at);
    }
    Ok(())
}

/// A refund makes everything behind it come back earlier; a later refund of that must know.
#[test]
fn what_moved_up_by_one_refund_is_not_given_back_twice_by_another() {
    let limit = RateLimit::new(Rate {
        count: 10,
        per: Duration::from_secs(1),
        burst: 7,
    });
    let start = Instant::now();
    let take = |cells, at| limit.try_acquire_n(cells, start + ms(at));
    let first = take(3, 0).expect("room");
    let second = take(1, 0).expect("room");
    limit.refund(first, start + ms(14));
    for (at, cells) in [(67, 3), (243, 3), (295, 2)] {
        take(cells, at).expect("room");
    }
    // Its own hundred milliseconds were over at 100.
    limit.refund(second, start + ms(313));
    assert!(take(3, 427).is_err(), "eleven cells in 360 ms");
}

/// In whatever order those at the end are refunded at once, all of it is back.
#[test]
fn what_is_refunded_at_once_is_all_back() {
    for first_of in [0, 1] {
        let limit = RateLimit::new(Rate {
            count: 10,
            per: Duration::from_secs(1),
            burst: 7,
        });
        let start = Instant::now();
        let mut taken = [3, 4].map(|n| limit.try_acquire_n(n, start).expect("room"));
        taken.rotate_left(first_of);
        for grant in taken {
            limit.refund(grant, start);
        }
        assert_eq!(limit.status(start).remaining, 7);
    }
}

proptest! {
    #[test]
    fn every_decision_and_wait_is_governors(
        count in 1u32..2000,
        burst in 1u32..50,
        calls in prop::collection::vec((0u64..300_000, 1u32..60), 1..80),
    ) {
        same_as_governor(count, burst, &calls)?;
    }

    /// Over any span, no more than the burst and what the span brings, refunds or not.
    #[test]
    fn no_span_lets_more_through_than_burst_and_rate(
        burst in 1u32..8,
        calls in prop::collection::vec((0u64..400, 1u32..4, prop::option::of(0u64..600)), 1..60),
    ) {
        let limit = RateLimit::new(Rate { count: 10, per: Duration::from_secs(1), burst });
        let start = Instant::now();
        let (mut now, mut used) = (0u64, Vec::new());
        // Refunds by the time at which they happen.
        let mut due: Vec<(u64, Grant)> = Vec::new();
        for (step, cells, refund) in calls {
            let next = now + step;
            due.sort_by_key(|(at, _)| *at);
            while due.first().is_some_and(|(at, _)| *at <= next) {
                let (at, grant) = due.remove(0);
                limit.refund(grant, start + ms(at));
            }
            now = next;
            if let Ok(grant) = limit.try_acquire_n(cells, start + ms(now)) {
                match refund {
                    Some(after) => due.push((now + after, grant)),
                    None => used.push((now, cells)),
                }
            }
        }
        for (i, &(from, _)) in used.iter().enumerate() {
            let mut sum = 0;
            for &(to, cells) in &used[i..] {
                sum += u64::from(cells);
                prop_assert!(sum <= u64::from(burst) + (to - from) / 100, "{sum} in {from}..{to}");
            }
        }
    }
}
