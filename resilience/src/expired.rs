//! Refusing, on arrival, the work that nobody waits for any more.
//!
//! Under overload requests wait in queues until their callers have given up. A server that takes
//! them in order then works for nobody: each answer comes too late, and the next request ages
//! meanwhile. A request whose deadline has passed should be refused before it costs anything.
//!
//! But a deadline is somebody else's word. A caller that counts in the wrong unit, a clock that is
//! a minute off, and everything has "expired": the check becomes the outage. So refusals are paid
//! for by requests that were accepted: where everything has expired, most of it is served.
//!
//! ```
//! # use std::time::{Duration, Instant};
//! # use selvedge_resilience::{context::Deadline, expired::{ExpiredConfig, ExpiredFilter}};
//! # #[allow(clippy::disallowed_methods)]
//! # let now = Instant::now();
//! let filter = ExpiredFilter::new(ExpiredConfig::default())?;
//! // One that has passed: five requests in time pay for refusing it.
//! let passed = Some(Deadline(now));
//! assert!(filter.admit(passed, now).is_ok());
//! (0..5).for_each(|_| assert!(filter.admit(None, now).is_ok()));
//! assert!(filter.admit(passed, now).is_err());
//! # Ok::<_, selvedge_resilience::config::PolicyError>(())
//! ```
//!
//! # Guarantees
//! In the `over` before any refusal, it included, refused ≤ `max_rejected` × accepted, exactly.
//! Lock-free, no allocation: one compare-and-swap a request.
//!
//! # What it does not do
//! It does not end a request whose deadline passes *while* it is worked on: that is
//! [`TimeoutLayer`](crate::layer::TimeoutLayer).
//!
//! # Source
//! Finagle `DeadlineFilter` (a fifth, over 10 s, accepted requests deposit, dark mode).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::{
    config::{Millis, PolicyError, Ratio, ensure},
    context::Deadline,
    outcome::{Policy, Reason, Rejected},
    retry::budget::{Budget, DEFAULT_SHARE},
    sync::{AtomicU64, Mutex, Ordering},
};

/// How many expired requests may be refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExpiredConfig {
    /// Refusals for each accepted request, more than 0% and at most 1000%. Default "20%": Finagle.
    pub max_rejected: Ratio,
    /// How long an accepted request pays, "1s" to "60s". Default "10s": Finagle.
    pub over: Millis,
    /// Only count: what would be refused is served. Default false.
    pub dark: bool,
}

impl Default for ExpiredConfig {
    fn default() -> Self {
        Self {
            max_rejected: Ratio::percent(20),
            over: Millis::new(10_000),
            dark: false,
        }
    }
}

impl ExpiredConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let share = self.max_rejected.fraction();
        ensure(
            share > 0.0 && share <= 10.0,
            "max_rejected",
            self.max_rejected,
            "more than 0% and at most 1000%",
        )?;
        ensure(
            (Duration::from_secs(1)..=Duration::from_secs(60)).contains(&self.over.0),
            "over",
            self.over,
            "\"1s\" to \"60s\"",
        )
    }

    fn budget(&self) -> Result<Budget, PolicyError> {
        // No floor: with nothing accepted, nothing is refused.
        Budget::with_reserve(self.max_rejected, 0, DEFAULT_SHARE, self.over)
    }
}

/// What arrived so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpiredStats {
    /// Requests that had a deadline.
    pub with_deadline: u64,
    /// Those whose deadline had passed.
    pub expired: u64,
    /// Those of them that were refused; in dark mode, that would have been.
    pub rejected: u64,
}

#[derive(Debug)]
struct Plan {
    config: ExpiredConfig,
    budget: Budget,
}

#[derive(Debug)]
struct Core {
    plan: ArcSwap<Plan>,
    changing: Mutex<()>,
    with_deadline: AtomicU64,
    expired: AtomicU64,
    rejected: AtomicU64,
}

/// Refuses what has expired. Clones share one account.
#[derive(Debug, Clone)]
pub struct ExpiredFilter(Arc<Core>);

impl ExpiredFilter {
    /// A filter that has accepted nothing yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: ExpiredConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let budget = config.budget()?;
        Ok(Self(Arc::new(Core {
            plan: ArcSwap::from_pointee(Plan { config, budget }),
            changing: Mutex::new(()),
            with_deadline: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        })))
    }

    /// A request arrives, or comes to its turn.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Expired`] if `deadline` has passed and the refusal is paid for.
    pub fn admit(&self, deadline: Option<Deadline>, now: Instant) -> Result<(), Rejected> {
        let core = &*self.0;
        let plan = core.plan.load();
        if deadline.is_some() {
            core.with_deadline.fetch_add(1, Ordering::Relaxed);
        }
        if deadline.is_some_and(|deadline| deadline.has_passed(now)) {
            core.expired.fetch_add(1, Ordering::Relaxed);
            if plan.budget.try_withdraw(now).is_ok() {
                core.rejected.fetch_add(1, Ordering::Relaxed);
                if plan.config.dark {
                    return Ok(());
                }
                return Err(Rejected::new(Policy::Deadline, Reason::Expired));
            }
        }
        plan.budget.deposit(now);
        Ok(())
    }

    /// Counters so far.
    pub fn stats(&self) -> ExpiredStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExpiredStats {
            with_deadline: of(&self.0.with_deadline),
            expired: of(&self.0.expired),
            rejected: of(&self.0.rejected),
        }
    }

    /// Takes a new configuration. What was accepted and refused stays, unless `over` changes.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: ExpiredConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let core = &*self.0;
        let _one_at_a_time = core.changing.lock();
        let old = core.plan.load();
        let budget = if config.over == old.config.over {
            let spec = crate::config::BudgetSpec {
                ratio: config.max_rejected,
                min_per_second: 0,
            };
            old.budget.reconfigure(spec, DEFAULT_SHARE)?;
            old.budget.clone()
        } else {
            config.budget()?
        };
        core.plan.store(Arc::new(Plan { config, budget }));
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> ExpiredFilter {
        ExpiredFilter::new(toml::from_str(text).expect(text)).expect(text)
    }

    fn refused(filter: &ExpiredFilter, calls: u32, now: Instant) -> usize {
        let passed = Some(Deadline(now));
        (0..calls)
            .filter(|_| filter.admit(passed, now).is_err())
            .count()
    }

    #[test]
    fn one_in_five_at_most_and_none_before_anything_was_accepted() {
        let (filter, now) = (filter(""), Instant::now());
        let later = Deadline::after(now, Duration::from_millis(1));
        assert!(filter.admit(later, now).is_ok());
        // Each of them that is served pays a fifth of the next refusal.
        assert_eq!(refused(&filter, 600, now), 100);
        let want = ExpiredStats {
            with_deadline: 601,
            expired: 600,
            rejected: 100,
        };
        assert_eq!(filter.stats(), want);
        (0..1_000).for_each(|_| assert!(filter.admit(None, now).is_ok()));
        assert_eq!(
            refused(&filter, 100, now),
            100,
            "a few among many, all of them"
        );
    }

    #[test]
    fn what_was_accepted_long_ago_does_not_pay() {
        let (filter, now) = (filter(""), Instant::now());
        (0..1_000).for_each(|_| assert!(filter.admit(None, now).is_ok()));
        for days in [1, 200, 20_000] {
            let later = now + Duration::from_secs(days * 86_400);
            assert_eq!(refused(&filter, 4, later), 0, "after {days} days");
        }
    }

    #[test]
    fn dark_it_counts_the_same_and_refuses_nothing() {
        let (filter, now) = (filter("dark = true"), Instant::now());
        assert_eq!(refused(&filter, 600, now), 0);
        assert_eq!(filter.stats().rejected, 100, "as if it had");
    }

    #[test]
    fn what_cannot_work_is_refused_and_changes_nothing() {
        let (filter, now) = (filter("max_rejected = \"100%\""), Instant::now());
        for (text, path) in [
            ("max_rejected = \"0%\"", "max_rejected"),
            ("max_rejected = \"1001%\"", "max_rejected"),
            ("over = \"999ms\"", "over"),
            ("over = \"61s\"", "over"),
        ] {
            let config: ExpiredConfig = toml::from_str(text).expect(text);
            let error = filter.reconfigure(config).expect_err(text);
            assert_eq!(error.path, path, "{text}");
        }
        assert!(toml::from_str::<ExpiredConfig>("share = \"20%\"").is_err());
        (0..10).for_each(|_| assert!(filter.admit(None, now).is_ok()));
        assert_eq!(refused(&filter, 4, now), 4, "one for one");
        let config = ExpiredConfig::default();
        filter.reconfigure(config).expect("valid");
        assert_eq!(
            refused(&filter, 6, now),
            0,
            "ten accepted paid for two, and there were four"
        );
    }

    #[test]
    fn two_threads_refuse_exactly_what_is_paid_for() {
        const CALLS: u32 = crate::sync::rounds(100_000, 120) as u32;
        let (filter, now) = (filter("max_rejected = \"50%\""), Instant::now());
        (0..2 * CALLS).for_each(|_| assert!(filter.admit(None, now).is_ok()));
        let refused: usize = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(|| refused(&filter, CALLS, now)));
            threads
                .map(|thread| thread.join().expect("no panic"))
                .iter()
                .sum()
        });
        // 200 000 accepted pay for 100 000; from then on, two that are served for each one.
        let paid = (CALLS + (CALLS / 3)) as usize;
        assert!(refused.abs_diff(paid) <= 2, "{refused}, {paid}");
        assert_eq!(filter.stats().rejected, refused as u64);
    }

    proptest! {
        /// The law, against a list of everything that happened.
        #[test]
        fn no_span_holds_more_refusals_than_the_share_of_what_was_accepted(
            percent in 1u32..300,
            steps in proptest::collection::vec((0u64..400, any::<bool>()), 1..400),
        ) {
            let filter = filter(&format!("max_rejected = \"{percent}%\"\nover = \"2s\""));
            let over = Duration::from_secs(2);
            let (mut at, mut accepted, mut refused) = (Instant::now(), Vec::new(), Vec::new());
            for (ms, expired) in steps {
                at += Duration::from_millis(ms);
                let deadline = expired.then_some(Deadline(at));
                if filter.admit(deadline, at).is_ok() {
                    accepted.push(at);
                    continue;
                }
                prop_assert!(expired);
                refused.push(at);
                let within = |times: &[Instant]| {
                    times.iter().filter(|&&t| t + over > at).count() as u64
                };
                prop_assert!(within(&refused) * 100 <= within(&accepted) * u64::from(percent));
            }
        }
    }
}
