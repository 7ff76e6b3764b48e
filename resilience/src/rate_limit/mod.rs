//! Rate limit: how many calls may begin in a span of time.
//!
//! A fixed window lets twice the rate through around its edge; a bucket with a refill task needs a
//! task, and a log of calls needs memory. GCRA needs one number: the *theoretical arrival time* of
//! the next call. A call conforms if it does not come too early for it.
//!
//! | | for |
//! |---|---|
//! | [`RateLimit`] | one limit for everybody |
//! | [`KeyedRateLimit`] | one for each caller, tenant, address: bounded, the idle leave |
//! | [`headers`] | what a caller is told: `RateLimit`, `RateLimit-Policy`, `Retry-After` |
//!
//! # Guarantees
//! - One compare-and-swap a call, no lock, no task, no allocation. Over any span `d`, at most
//!   `burst + d × rate` calls pass.
//! - A refusal says exactly when the call would conform, or that it never will
//!   ([`Reason::InsufficientCapacity`]): whoever asks for more than the burst holds must not wait.
//! - A live change of the rate keeps the history: what was used stays used, but no debt outlives
//!   what the new rate could have made.
//! - A refund never makes more of a cell than time has left of it.
//!
//! # What it does not do
//! It counts in this process only. It does not queue: to smooth a burst, wait as long as the
//! refusal says. A clock that steps back makes calls wait, never pass.
//!
//! # Source
//! ITU-T I.371 (GCRA); governor 0.10 for the formulas, against which the tests compare each
//! decision. Live quota and refund are what governor lacks (its issues 39 and 273).

mod gcra;
pub mod headers;
mod keyed;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use self::gcra::{Published, Quota, Taken, Word};
pub use self::keyed::{KeyedGrant, KeyedRateLimit, KeyedRateLimitConfig};
use crate::{
    clock::Tick,
    config::Rate,
    lanes::Line,
    outcome::{Policy, Reason, Rejected},
    sync::{AtomicU64, Mutex, Ordering},
};

/// The quota in force.
#[derive(Debug)]
struct LiveQuota {
    quota: Published,
    /// The same as it was written, and for who finds it just being changed.
    rate: ArcSwap<(Quota, Rate)>,
    changing: Mutex<()>,
    rejected: AtomicU64,
    /// Buckets ever made, where there is one for each key.
    buckets: AtomicU64,
}

impl LiveQuota {
    fn new(rate: Rate) -> Self {
        let quota = Quota::new(rate, 0);
        Self {
            quota: Published::new(&quota),
            rate: ArcSwap::from_pointee((quota, rate)),
            changing: Mutex::new(()),
            rejected: AtomicU64::new(0),
            buckets: AtomicU64::new(0),
        }
    }

    fn quota(&self) -> Quota {
        self.quota.read().unwrap_or_else(|| self.rate.load().0)
    }

    fn take(&self, word: &Word, cells: u32, now: Instant) -> Result<Grant, Rejected> {
        let (quota, now) = (self.quota(), Tick::at(now));
        if cells > quota.burst {
            return Err(self.refuse(Rejected::new(
                Policy::RateLimit,
                Reason::InsufficientCapacity,
            )));
        }
        match word.take(&quota, cells, now) {
            Ok(taken) => {
                // The quota may have changed under the call: the step it took may be far longer
                // than any that the new quota takes, and would lock callers out for that long.
                if self.quota.generation() != quota.generation {
                    word.cap(&self.rate.load().0, now);
                }
                Ok(Grant(taken))
            }
            Err(wait) => {
                Err(self.refuse(Rejected::after(Policy::RateLimit, Reason::Exhausted, wait)))
            }
        }
    }

    #[cold]
    fn refuse(&self, rejected: Rejected) -> Rejected {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        rejected
    }

    /// Publishes a new quota; the words under it are to be capped *after* this.
    fn change(&self, rate: Rate) -> Quota {
        let _one_at_a_time = self.changing.lock();
        // Even: odd is "being changed".
        let quota = Quota::new(rate, self.rate.load().0.generation + 2);
        self.rate.store(Arc::new((quota, rate)));
        self.quota.write(&quota);
        quota
    }

    fn status(&self, word: &Word, now: Instant) -> Status {
        let (quota, rate) = **self.rate.load();
        let ahead = word.ahead(Tick::at(now));
        let used = u32::try_from(ahead.div_ceil(quota.interval)).unwrap_or(u32::MAX);
        Status {
            rate: Rate {
                burst: quota.burst,
                ..rate
            },
            remaining: quota.burst.saturating_sub(used),
            reset: Duration::from_nanos(ahead),
        }
    }
}

/// What an admitted call took; [`RateLimit::refund`] takes it back. Dropping it does nothing: a
/// call that began has begun.
#[derive(Debug, Clone, Copy)]
pub struct Grant(Taken);

/// What is left of a limit, for headers and dashboards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The limit itself.
    pub rate: Rate,
    /// Cells that may go at once, now.
    pub remaining: u32,
    /// Time until the whole burst is back.
    pub reset: Duration,
}

impl Status {
    /// Of a limit that is counted elsewhere.
    pub fn new(rate: Rate, remaining: u32, reset: Duration) -> Self {
        Self {
            rate,
            remaining,
            reset,
        }
    }
}

#[derive(Debug)]
struct Core {
    live: LiveQuota,
    word: Line<Word>,
}

/// A rate limiter. Clones share one limit.
#[derive(Debug, Clone)]
pub struct RateLimit(Arc<Core>);

impl RateLimit {
    /// A limiter with its whole burst available.
    pub fn new(rate: Rate) -> Self {
        Self(Arc::new(Core {
            live: LiveQuota::new(rate),
            word: Line(Word::new()),
        }))
    }

    /// Takes one cell.
    ///
    /// # Errors
    /// As [`try_acquire_n`](Self::try_acquire_n).
    pub fn try_acquire(&self, now: Instant) -> Result<Grant, Rejected> {
        self.try_acquire_n(1, now)
    }

    /// Takes `cells` at once, or none. Taking 0 asks whether one cell would conform.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Exhausted`] and the exact wait, or with
    /// [`Reason::InsufficientCapacity`] and no wait if `cells` is more than the burst ever holds.
    pub fn try_acquire_n(&self, cells: u32, now: Instant) -> Result<Grant, Rejected> {
        self.0.live.take(&self.0.word, cells, now)
    }

    /// Gives back the cells of a call that did not happen, as far as time has not brought them back
    /// already. Where other calls took theirs after it and were refunded before it, some may come
    /// back late; none comes back twice.
    pub fn refund(&self, grant: Grant, now: Instant) {
        self.0.word.give_back(grant.0, Tick::at(now));
    }

    /// What is left at `now`.
    pub fn status(&self, now: Instant) -> Status {
        self.0.live.status(&self.0.word, now)
    }

    /// Calls refused so far.
    pub fn rejected(&self) -> u64 {
        self.0.live.rejected.load(Ordering::Relaxed)
    }

    /// Takes a new rate at once; what was used stays used, up to the new burst.
    pub fn reconfigure(&self, rate: Rate, now: Instant) {
        let quota = self.0.live.change(rate);
        self.0.word.cap(&quota, Tick::at(now));
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
