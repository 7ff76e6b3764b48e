//! Retry budget: how much extra load retries and hedges may add.
//!
//! A fixed attempt count multiplies load exactly when the callee can bear it least: three tries
//! over three tiers are twenty-seven calls. A budget ties extra tries to traffic instead, twice:
//!
//! - **over time**: each call deposits, each retry or hedge withdraws, and what happened more than
//!   `ttl` ago is forgotten;
//! - **at once**: retries and hedges under way, those that wait in backoff included, are at most a
//!   share of the calls under way. Without it a budget that was saved up in good times is spent in
//!   one moment of a bad one.
//!
//! ```
//! # use std::time::Instant;
//! # use selvedge_resilience::retry::budget::Budget;
//! # #[allow(clippy::disallowed_methods)]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let now = Instant::now();
//! let budget = Budget::new("20% min 3/s".parse()?)?;
//! let call = budget.begin(now); // deposits once, however many tries there will be
//! let retry = call.try_extra(now)?; // one more try: paid for, and counted while it is held
//! drop(retry);
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! - In any span of `ttl`, retries ≤ ratio × calls in that span + `min_per_second` × `ttl`, exactly,
//!   at every ratio (tower 0.5's budget withdraws `(1/ratio) as isize`, so 0.34 allows 50 % and
//!   everything above one half allows 100 %).
//! - No retry or hedge begins that would make them more than max(floor, share × calls under way).
//! - Lock-free, no allocation: a call deposits and counts itself in lines of its thread's own, where
//!   it meets no other; a retry reads the lines of all and makes two compare-and-swaps that others
//!   see.
//! - A try that a local policy refused costs nothing: [`Extra::forgive`].
//!
//! # What it does not do
//! It does not know whether a retry is safe or worth it: that is [`RetryConfig`](super::RetryConfig).
//!
//! # Source
//! Finagle `RetryBudget`: ttl 10 s, 10 slices. Share under way: Envoy `retry_budget`, failsafe-go
//! `budget` (retries and hedges together).

use std::{
    fmt,
    time::{Duration, Instant},
};

use http::Extensions;

use super::window::{Slip, TokenWindow};
use crate::{
    config::{BudgetSpec, Millis, PolicyError, Ratio, ShareSpec, ensure},
    lanes::{Lane, Lanes, Line},
    outcome::{Policy, Reason, Rejected},
    shared::{Lent, Shared},
    sync::{AtomicU64, Ordering},
};

/// How long a deposit lasts. Source: Finagle.
pub const DEFAULT_TTL: Millis = Millis::new(10_000);

/// Ratios are kept in parts per thousand million: fixed point, exact for what a person writes.
const PARTS: u64 = 1_000_000_000;

/// Half of the calls under way, at least ten.
///
/// Where one of two instances dies, half of the calls under way need a retry at that moment; Envoy's
/// own default (20 %, at least 3) would fail most of them.
pub const DEFAULT_SHARE: ShareSpec = ShareSpec {
    ratio: Ratio::percent(50),
    min: 10,
};

struct Core {
    ttl: Duration,
    window: TokenWindow,
    ratio: AtomicU64,
    reserve: AtomicU64,
    share_ratio: AtomicU64,
    share_min: AtomicU64,
    /// Calls that have begun, and that have ended.
    calls: Lanes<[AtomicU64; 2]>,
    /// Retries and hedges under way.
    extra: Line<AtomicU64>,
    withdrawn: AtomicU64,
    exhausted: AtomicU64,
    capped: AtomicU64,
}

/// A retry budget. Clones share one balance.
#[derive(Clone)]
pub struct Budget(Shared<Core>);

/// What is under way on a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InFlight {
    /// Calls, their answers' bodies included.
    pub calls: u32,
    /// Retries and hedges of them.
    pub extra: u32,
}

/// What has been taken and refused so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Retries and hedges that were paid for.
    pub withdrawn: u64,
    /// Those that the balance did not cover.
    pub exhausted: u64,
    /// Those that would have been too many at once.
    pub capped: u64,
}

impl Budget {
    /// A budget with its floor available at once and the [default share](DEFAULT_SHARE).
    ///
    /// # Errors
    /// [`PolicyError`] if the ratio is above 10 (a thousand per cent).
    pub fn new(spec: BudgetSpec) -> Result<Self, PolicyError> {
        Self::with(spec, DEFAULT_SHARE, DEFAULT_TTL)
    }

    /// A budget whose deposits last for `ttl`, with a share of its own.
    ///
    /// # Errors
    /// [`PolicyError`] if `ttl` is not within 1 s to 60 s, or a ratio is above 10.
    pub fn with(spec: BudgetSpec, share: ShareSpec, ttl: Millis) -> Result<Self, PolicyError> {
        validate(spec)?;
        let whole = u64::from(spec.min_per_second) * ttl.0.as_millis() as u64 / 1000;
        Self::with_reserve(spec.ratio, whole, share, ttl)
    }

    /// A budget whose floor is `reserve` tokens for each `ttl`, instead of so many a second.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn with_reserve(
        ratio: Ratio,
        reserve: u64,
        share: ShareSpec,
        ttl: Millis,
    ) -> Result<Self, PolicyError> {
        let spec = BudgetSpec {
            ratio,
            min_per_second: 0,
        };
        validate(spec)?;
        validate_share(share)?;
        ensure(
            (Duration::from_secs(1)..=Duration::from_secs(60)).contains(&ttl.0),
            "ttl",
            ttl,
            "\"1s\" to \"60s\"",
        )?;
        Ok(Self(Shared::new(Core {
            ttl: ttl.0,
            window: TokenWindow::new(ttl.0),
            ratio: AtomicU64::new(parts(ratio)),
            reserve: AtomicU64::new(reserve),
            share_ratio: AtomicU64::new(parts(share.ratio)),
            share_min: AtomicU64::new(u64::from(share.min)),
            calls: Lanes::new(|| [AtomicU64::new(0), AtomicU64::new(0)]),
            extra: Line(AtomicU64::new(0)),
            withdrawn: AtomicU64::new(0),
            exhausted: AtomicU64::new(0),
            capped: AtomicU64::new(0),
        })))
    }

    /// A logical call begins: it deposits once, and counts as under way until the guard is dropped.
    pub fn begin(&self, now: Instant) -> Logical {
        self.enter(now);
        Logical {
            core: self.0.lend(Lane::here()),
            counts: true,
        }
    }

    /// A part of a logical call that somebody further out has begun on this budget: it deposits
    /// nothing and is not counted again.
    pub fn join(&self) -> Logical {
        Logical {
            core: self.0.lend(Lane::here()),
            counts: false,
        }
    }

    /// [`begin`](Self::begin) for a caller that keeps the budget itself while its call is under way
    /// and then says `leave`: it needs no guard that keeps it too.
    pub(crate) fn enter(&self, now: Instant) {
        self.deposit(now);
        self.0.count(BEGUN);
    }

    /// Only the deposit of [`begin`](Self::begin), for callers that do not track calls under way.
    pub fn deposit(&self, now: Instant) {
        self.0.window.deposit(now);
    }

    /// Only the withdrawal of [`Logical::try_extra`]: the share under way is not asked.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Exhausted`] if the balance does not cover it.
    pub fn try_withdraw(&self, now: Instant) -> Result<(), Rejected> {
        self.0.withdraw(now).map(|_| ())
    }

    /// Retries that the balance would cover at `now`.
    pub fn balance(&self, now: Instant) -> u64 {
        let core = &self.0;
        core.window.balance(now, |deposits| core.allowed(deposits))
    }

    /// What is under way.
    pub fn in_flight(&self) -> InFlight {
        let cap = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let extra = self.0.extra.load(Ordering::Relaxed);
        InFlight {
            calls: cap(self.0.under_way()),
            extra: cap(extra),
        }
    }

    /// Taken and refused so far.
    pub fn counts(&self) -> Counts {
        let core = &self.0;
        Counts {
            withdrawn: core.withdrawn.load(Ordering::Relaxed),
            exhausted: core.exhausted.load(Ordering::Relaxed),
            capped: core.capped.load(Ordering::Relaxed),
        }
    }

    /// Whether `other` is a clone of this one.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }

    /// Takes a new ratio, floor and share; what was deposited and withdrawn stays.
    ///
    /// # Errors
    /// [`PolicyError`] if they cannot work; nothing changes then.
    pub fn reconfigure(&self, spec: BudgetSpec, share: ShareSpec) -> Result<(), PolicyError> {
        validate(spec)?;
        validate_share(share)?;
        let core = &self.0;
        let reserve = u64::from(spec.min_per_second) * core.ttl.as_millis() as u64 / 1000;
        core.ratio.store(parts(spec.ratio), Ordering::Relaxed);
        core.reserve.store(reserve, Ordering::Relaxed);
        core.share_ratio
            .store(parts(share.ratio), Ordering::Relaxed);
        core.share_min
            .store(u64::from(share.min), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(feature = "tower")]
impl Budget {
    /// A call that [`enter`](Self::enter)ed is over.
    pub(crate) fn leave(&self) {
        self.0.count(ENDED);
    }

    /// [`Logical::try_extra`] for a call that [`enter`](Self::enter)ed.
    pub(crate) fn try_extra(&self, now: Instant) -> Result<Extra, Rejected> {
        self.0.lend(Lane::here()).try_extra(now)
    }
}

impl Core {
    #[inline]
    fn count(&self, what: usize) {
        let lane = Lane::here();
        lane.add(&self.calls.of(lane)[what], 1);
    }

    /// Calls under way; rather too few than too many while others begin and end, as the ended are
    /// looked at after the begun.
    fn under_way(&self) -> u64 {
        let begun = self.calls.sum(|lane| &lane[BEGUN]);
        let ended = self.calls.sum(|lane| &lane[ENDED]);
        // Below zero if one has begun and ended in between.
        (begun.wrapping_sub(ended) as i64).max(0) as u64
    }

    fn allowed(&self, deposits: u64) -> u64 {
        times(deposits, self.ratio.load(Ordering::Relaxed))
            .saturating_add(self.reserve.load(Ordering::Relaxed))
    }

    fn withdraw(&self, now: Instant) -> Result<Slip, Rejected> {
        let taken = self
            .window
            .try_withdraw(now, |deposits| self.allowed(deposits));
        if let Ok(slip) = taken {
            self.withdrawn.fetch_add(1, Ordering::Relaxed);
            return Ok(slip);
        }
        self.exhausted.fetch_add(1, Ordering::Relaxed);
        Err(Rejected::new(Policy::RetryBudget, Reason::Exhausted))
    }

    /// One more retry or hedge under way, if the share has room: checked and taken in one step.
    fn enter(&self) -> Result<(), Rejected> {
        let mut seen = self.extra.load(Ordering::Acquire);
        loop {
            let share = times(self.under_way(), self.share_ratio.load(Ordering::Relaxed));
            let cap = share.max(self.share_min.load(Ordering::Relaxed));
            if seen >= cap {
                self.capped.fetch_add(1, Ordering::Relaxed);
                return Err(Rejected::new(Policy::RetryBudget, Reason::Full));
            }
            match self.extra.compare_exchange_weak(
                seen,
                seen + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }
}

/// A logical call under way: however many tries it takes, it deposited once.
#[must_use = "dropped, the call is over"]
pub struct Logical {
    core: Lent<Core>,
    counts: bool,
}

impl Logical {
    /// Asks for one more try: a retry, from the beginning of its backoff, or a hedge.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Full`] if too many are under way, [`Reason::Exhausted`] if the
    /// balance does not cover it.
    pub fn try_extra(&self, now: Instant) -> Result<Extra, Rejected> {
        self.core.clone().try_extra(now)
    }
}

impl Lent<Core> {
    fn try_extra(self, now: Instant) -> Result<Extra, Rejected> {
        self.enter()?;
        let mut extra = Extra {
            core: self,
            slip: None,
        };
        // Refused here, dropping `extra` gives its place back.
        extra.slip = Some(extra.core.withdraw(now)?);
        Ok(extra)
    }
}

impl Drop for Logical {
    fn drop(&mut self) {
        if self.counts {
            self.core.count(ENDED);
        }
    }
}

/// A request extension: this call has been counted on that budget, so that a retry inside a hedge
/// does not deposit a second time.
#[derive(Debug, Clone)]
pub struct Counted(pub Budget);

impl Counted {
    /// Begins a logical call, or joins the one that `extensions` say has begun.
    pub fn begin(budget: &Budget, extensions: &Extensions, now: Instant) -> Logical {
        if Self::has_begun(budget, extensions) {
            budget.join()
        } else {
            budget.begin(now)
        }
    }

    /// Whether somebody further out has begun the call on this budget.
    pub(crate) fn has_begun(budget: &Budget, extensions: &Extensions) -> bool {
        let counted = extensions.get::<Self>();
        counted.is_some_and(|Self(counted)| counted.is_same(budget))
    }
}

/// A retry or hedge under way. Hold it until its answer's body has ended; dropping it makes room
/// for another, but what it cost stays spent.
#[must_use = "dropped, the retry no longer counts as under way"]
pub struct Extra {
    core: Lent<Core>,
    slip: Option<Slip>,
}

impl Extra {
    /// The try never reached the callee, because a local policy (an open breaker, a full bulkhead)
    /// refused it: it costs nothing.
    pub fn forgive(mut self) {
        if let Some(slip) = self.slip.take() {
            self.core.window.take_back(slip);
            self.core.withdrawn.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        self.core.extra.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Places in [`Core::calls`].
const BEGUN: usize = 0;
const ENDED: usize = 1;

fn parts(ratio: Ratio) -> u64 {
    (ratio.fraction() * PARTS as f64).round() as u64
}

/// `count` × `parts`, rounded down.
fn times(count: u64, parts: u64) -> u64 {
    (u128::from(count) * u128::from(parts) / u128::from(PARTS)) as u64
}

/// Refuses ratios that are no budget.
pub(crate) fn validate(spec: BudgetSpec) -> Result<(), PolicyError> {
    ensure(
        spec.ratio.fraction() <= 10.0,
        "budget",
        spec,
        "a share of at most 1000%",
    )
}

/// Refuses shares that are no cap.
pub(crate) fn validate_share(share: ShareSpec) -> Result<(), PolicyError> {
    ensure(
        share.ratio.fraction() <= 10.0,
        "in_flight",
        share,
        "a share of at most 1000%",
    )
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("in_flight", &self.in_flight())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Logical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logical").finish_non_exhaustive()
    }
}

impl fmt::Debug for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extra").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
