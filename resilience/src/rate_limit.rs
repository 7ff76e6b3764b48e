//! Rate limit: how many calls may begin in a span of time.
//!
//! A fixed window lets twice the rate through around its edge; a bucket with a refill task needs a
//! task. GCRA needs one number: the *theoretical arrival time* of the next call. A call conforms
//! if it does not come too early for it.
//!
//! # Guarantees
//! One compare-and-swap a call, no lock, no task. Over any span `d`, at most `burst + d × rate`
//! calls pass. A refusal says exactly when the call would conform. A live change of the rate keeps
//! the history.
//!
//! # Source
//! ITU-T I.371 (GCRA); governor 0.10 for the formulas, which its tests confirm.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    clock::{Tick, nanos},
    config::Rate,
    outcome::{Policy, Reason, Rejected},
    sync::{AtomicU64, Ordering},
};

#[derive(Debug, Clone, Copy)]
struct Quota {
    /// Nanoseconds in which one cell comes back.
    interval: u64,
    /// How far ahead of its time a call may come: `interval × (burst − 1)`.
    tolerance: u64,
    burst: u32,
}

impl Quota {
    fn new(rate: Rate) -> Self {
        let interval = (nanos(rate.per) / u64::from(rate.count.max(1))).max(1);
        let burst = rate.burst.max(1);
        Self {
            interval,
            tolerance: interval.saturating_mul(u64::from(burst) - 1),
            burst,
        }
    }
}

#[derive(Debug)]
struct Core {
    quota: ArcSwap<Quota>,
    /// Theoretical arrival time of the next cell.
    tat: AtomicU64,
    rejected: AtomicU64,
}

/// A rate limiter. Clones share one limit.
#[derive(Debug, Clone)]
pub struct RateLimit(Arc<Core>);

impl RateLimit {
    /// A limiter with its whole burst available.
    pub fn new(rate: Rate) -> Self {
        Self(Arc::new(Core {
            quota: ArcSwap::from_pointee(Quota::new(rate)),
            tat: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        }))
    }

    /// Takes one cell.
    ///
    /// # Errors
    /// As [`try_acquire_n`](Self::try_acquire_n).
    pub fn try_acquire(&self, now: Instant) -> Result<(), Rejected> {
        self.try_acquire_n(1, now)
    }

    /// Takes `cells` at once, or none.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Exhausted`] and the exact wait, or with
    /// [`Reason::InsufficientCapacity`] if `cells` is more than the burst will ever hold.
    pub fn try_acquire_n(&self, cells: u32, now: Instant) -> Result<(), Rejected> {
        let quota = **self.0.quota.load();
        let now = Tick::at(now).0;
        let reject = |rejected| {
            self.0.rejected.fetch_add(1, Ordering::Relaxed);
            Err(rejected)
        };
        if cells > quota.burst {
            return reject(Rejected::new(
                Policy::RateLimit,
                Reason::InsufficientCapacity,
            ));
        }
        let advance = quota.interval.saturating_mul(u64::from(cells));
        // The last of n cells comes (n − 1) intervals early.
        let early = advance.saturating_sub(quota.interval);
        let mut tat = self.0.tat.load(Ordering::Relaxed);
        loop {
            let earliest = tat.saturating_add(early).saturating_sub(quota.tolerance);
            if now < earliest && tat > now {
                let wait = Duration::from_nanos(earliest - now);
                return reject(Rejected::after(Policy::RateLimit, Reason::Exhausted, wait));
            }
            let next = tat.max(now).saturating_add(advance);
            match self
                .0
                .tat
                .compare_exchange_weak(tat, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(seen) => tat = seen,
            }
        }
    }

    /// Gives back cells that were taken and not used.
    pub fn refund(&self, cells: u32) {
        let back = self
            .0
            .quota
            .load()
            .interval
            .saturating_mul(u64::from(cells));
        let mut tat = self.0.tat.load(Ordering::Relaxed);
        while let Err(seen) = self.0.tat.compare_exchange_weak(
            tat,
            tat.saturating_sub(back),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            tat = seen;
        }
    }

    /// Cells left at `now`, and the time until the burst is whole again.
    pub fn remaining(&self, now: Instant) -> (u32, Duration) {
        let quota = self.0.quota.load();
        let ahead = self
            .0
            .tat
            .load(Ordering::Relaxed)
            .saturating_sub(Tick::at(now).0);
        let used = u32::try_from(ahead.div_ceil(quota.interval)).unwrap_or(u32::MAX);
        (
            quota.burst.saturating_sub(used),
            Duration::from_nanos(ahead),
        )
    }

    /// Calls refused so far.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// Takes a new rate at once; what was used stays used, up to the new burst.
    pub fn reconfigure(&self, rate: Rate, now: Instant) {
        let quota = Quota::new(rate);
        self.0.quota.store(Arc::new(quota));
        let latest = Tick::at(now)
            .0
            .saturating_add(quota.tolerance + quota.interval);
        self.0.tat.fetch_min(latest, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn wait(limit: &RateLimit, now: Instant) -> Option<Duration> {
        limit
            .try_acquire(now)
            .err()
            .map(|r| r.retry_after.expect("says when"))
    }

    #[test]
    fn rl_1_burst_then_one_each_interval_and_the_wait_is_exact() {
        let limit = RateLimit::new("5/s".parse().expect("rate"));
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
    fn more_than_the_burst_never_fits_and_says_so() {
        let limit = RateLimit::new("5/s".parse().expect("rate"));
        let now = Instant::now();
        for n in [6, 7, 15] {
            let rejected = limit.try_acquire_n(n, now).expect_err("too many");
            assert_eq!(
                (rejected.reason, rejected.retry_after),
                (Reason::InsufficientCapacity, None)
            );
        }
        assert!(limit.try_acquire_n(5, now).is_ok());
        assert_eq!(limit.remaining(now), (0, ms(1000)));
    }

    #[test]
    fn refund_and_live_change() {
        let limit = RateLimit::new("5/s".parse().expect("rate"));
        let now = Instant::now();
        assert!(limit.try_acquire_n(5, now).is_ok());
        limit.refund(1);
        assert_eq!(wait(&limit, now), None);
        limit.reconfigure("100/s".parse().expect("rate"), now);
        assert_eq!(
            wait(&limit, now + ms(10)),
            None,
            "the debt is capped at the new burst"
        );
    }

    #[test]
    fn two_threads_take_exactly_the_burst() {
        let limit = RateLimit::new("1/h burst 10000".parse().expect("rate"));
        let now = Instant::now();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        (0..10_000)
                            .filter(|_| limit.try_acquire(now).is_ok())
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum()
        });
        assert_eq!(taken, 10_000);
        assert_eq!(limit.rejected(), 10_000);
    }
}
