//! Retry budget: how much extra load retries may add.
//!
//! A fixed attempt count multiplies load exactly when the callee can bear it least: three tries
//! over three tiers are twenty-seven calls. A budget ties retries to traffic instead: each call
//! deposits, each retry withdraws, and what was deposited more than `ttl` ago is forgotten.
//!
//! # Guarantees
//! - Over any `ttl`, retries ≤ ratio × calls + `min_per_second` × `ttl` (and one slice's worth).
//! - Any ratio is met to within one part in a thousand: deposits and withdrawals are fixed point.
//!   (tower 0.5's budget withdraws `(1/ratio) as isize`, so 0.34 allows 50 %.)
//! - One compare-and-swap to deposit; a withdrawal never takes what another withdrawal took.
//!
//! # Source
//! Finagle `RetryBudget`: ttl 10 s, 10 slices, scale 1000; ratio 20 % and a floor of 3 as Envoy.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    clock::{Tick, nanos},
    config::{BudgetSpec, PolicyError, ensure},
    outcome::{Policy, Reason, Rejected},
    sync::{AtomicU64, Ordering},
};

/// What one call deposits; a retry costs this divided by the ratio.
const SCALE: u64 = 1000;
const SLICES: u64 = 10;
/// How long a deposit lasts. Source: Finagle.
const TTL: Duration = Duration::from_secs(10);

/// Deposits and withdrawals of one slice: `slice id (24) | balance (40, biased)`.
///
/// The balance of a slice may be negative: a withdrawal is booked in the slice it happens in.
const BIAS: u64 = 1 << 39;
const BALANCE: u64 = (1 << 40) - 1;

#[derive(Debug)]
struct Core {
    spec: ArcSwap<BudgetSpec>,
    slices: [AtomicU64; SLICES as usize],
    /// Serialises withdrawals: 0 free, else the sum is being checked. Retries are rare.
    withdrawing: parking_lot::Mutex<()>,
    withdrawn: AtomicU64,
    exhausted: AtomicU64,
}

/// A retry budget. Clones share one balance.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Core>);

impl Budget {
    /// An empty budget with its floor available at once.
    ///
    /// # Errors
    /// [`PolicyError`] if the ratio is above 10 (a thousand per cent).
    pub fn new(spec: BudgetSpec) -> Result<Self, PolicyError> {
        validate(spec)?;
        Ok(Self(Arc::new(Core {
            spec: ArcSwap::from_pointee(spec),
            slices: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
            withdrawing: parking_lot::Mutex::new(()),
            withdrawn: AtomicU64::new(0),
            exhausted: AtomicU64::new(0),
        })))
    }

    /// Counts one logical call; retries and hedges of it do not deposit.
    pub fn deposit(&self, now: Instant) {
        book(&self.0.slices, slice(now), SCALE as i64);
    }

    /// Takes the cost of one retry or hedge.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Exhausted`] if the balance does not cover it.
    pub fn try_withdraw(&self, now: Instant) -> Result<(), Rejected> {
        let id = slice(now);
        let cost = cost(&self.0.spec.load());
        // A retry is rare and about to wait anyway; deposits stay lock-free.
        let _one_at_a_time = self.0.withdrawing.lock();
        if cost > 0 && self.balance_at(id) >= cost {
            book(&self.0.slices, id, -cost);
            self.0.withdrawn.fetch_add(1, Ordering::Relaxed);
            Ok(())
        } else {
            self.0.exhausted.fetch_add(1, Ordering::Relaxed);
            Err(Rejected::new(Policy::RetryBudget, Reason::Exhausted))
        }
    }

    /// Retries that the balance would cover at `now`.
    pub fn balance(&self, now: Instant) -> u64 {
        match cost(&self.0.spec.load()) {
            0 => 0,
            cost => (self.balance_at(slice(now)).max(0) / cost) as u64,
        }
    }

    /// Retries taken and refused so far.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.0.withdrawn.load(Ordering::Relaxed),
            self.0.exhausted.load(Ordering::Relaxed),
        )
    }

    /// Takes a new ratio and floor; the balance stays.
    ///
    /// # Errors
    /// [`PolicyError`] if they cannot work; nothing changes then.
    pub fn reconfigure(&self, spec: BudgetSpec) -> Result<(), PolicyError> {
        validate(spec)?;
        self.0.spec.store(Arc::new(spec));
        Ok(())
    }

    /// The floor plus what the living slices hold.
    fn balance_at(&self, id: u64) -> i64 {
        let spec = self.0.spec.load();
        let floor = i64::from(spec.min_per_second) * TTL.as_secs() as i64 * cost(&spec);
        let held: i64 = self
            .0
            .slices
            .iter()
            .map(|word| held(word.load(Ordering::Relaxed), id))
            .sum();
        floor + held
    }
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

/// What a retry costs; 0 means that no retry is ever paid for.
fn cost(spec: &BudgetSpec) -> i64 {
    match spec.ratio.fraction() {
        // No share: only the floor pays, one each.
        r if r <= 0.0 => i64::from(spec.min_per_second > 0),
        r => ((SCALE as f64 / r).round() as i64).max(1),
    }
}

fn slice(now: Instant) -> u64 {
    (Tick::at(now).0 / (nanos(TTL) / SLICES)) & 0xFF_FFFF
}

/// What a word is worth in slice `id`: nothing if its slice has passed.
fn held(word: u64, id: u64) -> i64 {
    let age = id.wrapping_sub(word >> 40) & 0xFF_FFFF;
    if word == u64::MAX || age >= SLICES {
        0
    } else {
        (word & BALANCE) as i64 - BIAS as i64
    }
}

fn book(slices: &[AtomicU64; SLICES as usize], id: u64, amount: i64) {
    let word = &slices[(id % SLICES) as usize];
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let current = if seen >> 40 == id { held(seen, id) } else { 0 };
        let balance = (current + amount + BIAS as i64).clamp(0, BALANCE as i64) as u64;
        match word.compare_exchange_weak(
            seen,
            id << 40 | balance,
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn budget(text: &str) -> Budget {
        Budget::new(text.parse().expect("spec")).expect("valid")
    }

    fn take(budget: &Budget, now: Instant) -> usize {
        (0..100_000)
            .take_while(|_| budget.try_withdraw(now).is_ok())
            .count()
    }

    #[test]
    fn every_ratio_counts_right() {
        let now = Instant::now();
        for (ratio, want) in [
            ("20%", 2000),
            ("34%", 3400),
            ("75%", 7500),
            ("99%", 9900),
            ("1%", 100),
            ("200%", 20_000),
        ] {
            let b = budget(ratio);
            (0..10_000).for_each(|_| b.deposit(now));
            let got = take(&b, now);
            assert!(
                got.abs_diff(want) <= want / 100 + 1,
                "{ratio}: {got}, want {want}"
            );
        }
    }

    #[test]
    fn bud_1_the_floor_is_there_without_traffic_and_an_empty_budget_never_pays() {
        let now = Instant::now();
        assert_eq!(take(&budget("0% min 1/s"), now), 10);
        assert_eq!(take(&budget("20% min 3/s"), now), 30);
        assert_eq!(take(&budget("0%"), now), 0);
        assert!(Budget::new("2000%".parse().expect("parses")).is_err());
    }

    #[test]
    fn bud_2_deposits_and_withdrawals_are_forgotten_after_the_ttl() {
        let start = Instant::now();
        let b = budget("100% min 1/s");
        assert_eq!(take(&b, start), 10);
        (0..5).for_each(|_| b.deposit(start));
        assert_eq!(take(&b, start), 5);
        assert_eq!(take(&b, start + Duration::from_secs(5)), 0);
        assert_eq!(
            take(&b, start + Duration::from_secs(11)),
            10,
            "the floor is back"
        );
        let b = budget("100%");
        (0..100).for_each(|_| b.deposit(start));
        assert!(b.try_withdraw(start).is_ok());
        assert!(b.try_withdraw(start + Duration::from_secs(11)).is_err());
    }

    #[test]
    fn two_threads_never_overdraw() {
        let now = Instant::now();
        let b = budget("50%");
        (0..10_000).for_each(|_| b.deposit(now));
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| take(&b, now))).collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum()
        });
        assert_eq!(taken, 5_000);
    }

    #[test]
    fn reconfigure_keeps_the_balance() {
        let now = Instant::now();
        let b = budget("10%");
        (0..1000).for_each(|_| b.deposit(now));
        assert_eq!(b.balance(now), 100);
        b.reconfigure("50%".parse().expect("spec")).expect("valid");
        assert_eq!(b.balance(now), 500);
    }
}
