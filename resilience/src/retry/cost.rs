//! The cost bucket of the AWS SDKs: a client's own budget, in tokens that success earns back.
//!
//! The [budget](super::budget) ties retries to traffic. A client with little traffic (a command line
//! tool, a nightly job) has nothing to tie them to: it starts with a bucket of tokens, pays for each
//! retry, more for those that follow a timeout, and earns tokens by succeeding. A callee that is down
//! empties it within a hundred retries; one that is well fills it again.
//!
//! One atomic word; no window, no clock. A bucket that grows or shrinks while it is used keeps what
//! was spent.
//!
//! # Source
//! aws-smithy-runtime `client/retries`: 500 tokens; 5 a retry, 10 after a timeout; a success gives
//! back what its last retry took, and 1 if there was none.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    config::{AT_MOST, Field, PolicyError, ensure, ensure_order},
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// A cost bucket's size and prices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CostConfig {
    /// Tokens of a full bucket; at least 1. Default 500: AWS SDKs.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub tokens: u32,
    /// What a retry costs; at least 1, at most `tokens`. Default 5: AWS SDKs.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub retry: u32,
    /// What a retry after a timeout costs; at least 1, at most `tokens`. Default 10: AWS SDKs.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub after_timeout: u32,
    /// What a call that succeeds at the first try earns. Default 1: AWS SDKs.
    pub success: u32,
}

impl Default for CostConfig {
    fn default() -> Self {
        Self {
            tokens: 500,
            retry: 5,
            after_timeout: 10,
            success: 1,
        }
    }
}

impl CostConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        ensure(self.tokens > 0, "tokens", self.tokens, "at least 1")?;
        let default = Self::default();
        let tokens = Field::new("tokens", self.tokens, default.tokens);
        for (path, cost, default) in [
            ("retry", self.retry, default.retry),
            ("after_timeout", self.after_timeout, default.after_timeout),
        ] {
            ensure(cost > 0, path, cost, "at least 1")?;
            // What costs more than a full bucket holds would never be made.
            let cost = Field::new(path, cost, default);
            ensure_order(cost.value <= self.tokens, cost, tokens, AT_MOST)?;
        }
        Ok(())
    }
}

/// A bucket of tokens. Clones share it.
#[derive(Debug, Clone)]
pub struct CostBucket(Arc<Core>);

#[derive(Debug)]
struct Core {
    full: AtomicU32,
    retry: AtomicU32,
    after_timeout: AtomicU32,
    success: AtomicU32,
    tokens: AtomicU32,
    refused: AtomicU64,
}

impl CostBucket {
    /// A full bucket.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: CostConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self(Arc::new(Core {
            full: AtomicU32::new(config.tokens),
            retry: AtomicU32::new(config.retry),
            after_timeout: AtomicU32::new(config.after_timeout),
            success: AtomicU32::new(config.success),
            tokens: AtomicU32::new(config.tokens),
            refused: AtomicU64::new(0),
        })))
    }

    /// Takes other prices and another size at once; what was spent stays spent.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work; nothing changes then.
    pub fn reconfigure(&self, config: CostConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let core = &self.0;
        core.retry.swap(config.retry, Ordering::Relaxed);
        core.after_timeout
            .swap(config.after_timeout, Ordering::Relaxed);
        core.success.swap(config.success, Ordering::Relaxed);
        let before = core.full.swap(config.tokens, Ordering::Relaxed);
        self.change(|tokens| {
            if config.tokens >= before {
                Some(tokens.saturating_add(config.tokens - before))
            } else {
                Some(tokens.saturating_sub(before - config.tokens))
            }
        });
        Ok(())
    }

    /// Pays for a retry after a try that came to `after`.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Exhausted`] if the tokens do not cover it.
    pub fn try_take(&self, after: Outcome) -> Result<Cost, Rejected> {
        let core = &self.0;
        let price = match after {
            Outcome::Failure(FailureClass::Timeout) => &core.after_timeout,
            _ => &core.retry,
        };
        let cost = price.load(Ordering::Relaxed);
        if self.change(|tokens| tokens.checked_sub(cost)) {
            return Ok(Cost(cost));
        }
        core.refused.fetch_add(1, Ordering::Relaxed);
        Err(Rejected::new(Policy::RetryBudget, Reason::Exhausted))
    }

    /// A call succeeded; `last`: what its last retry took, if it had one.
    pub fn succeeded(&self, last: Option<Cost>) {
        self.add(last.map_or_else(|| self.0.success.load(Ordering::Relaxed), |cost| cost.0));
    }

    /// The retry was never made: a local policy refused it.
    pub fn give_back(&self, cost: Cost) {
        self.add(cost.0);
    }

    fn add(&self, amount: u32) {
        let full = self.0.full.load(Ordering::Relaxed);
        self.change(|tokens| (tokens < full).then(|| tokens.saturating_add(amount).min(full)));
    }

    /// Changes the tokens to what `to` makes of them; false if that is nothing.
    fn change(&self, to: impl Fn(u32) -> Option<u32>) -> bool {
        let tokens = &self.0.tokens;
        let mut seen = tokens.load(Ordering::Relaxed);
        while let Some(new) = to(seen) {
            match tokens.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Tokens that are there.
    pub fn tokens(&self) -> u32 {
        self.0.tokens.load(Ordering::Relaxed)
    }

    /// Retries that were not paid for.
    pub fn rejected(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

/// What a retry took. Dropped, it stays spent.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropped, it stays spent"]
pub struct Cost(u32);

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::retry::backoff::ceiling;

    fn bucket() -> CostBucket {
        CostBucket::new(CostConfig::default()).expect("valid")
    }

    const BROKEN: Outcome = Outcome::Failure(FailureClass::ServerError);
    const LATE: Outcome = Outcome::Failure(FailureClass::Timeout);

    #[test]
    fn bud_3_a_success_returns_what_the_last_retry_took() {
        let b = bucket();
        let first = b.try_take(BROKEN).expect("495");
        assert_eq!(b.tokens(), 495);
        let second = b.try_take(BROKEN).expect("490");
        assert_eq!(b.tokens(), 490);
        drop(first);
        b.succeeded(Some(second));
        assert_eq!(b.tokens(), 495);
        b.succeeded(None);
        assert_eq!(b.tokens(), 496);
        drop(b.try_take(LATE));
        assert_eq!(b.tokens(), 486);
    }

    #[test]
    fn bud_3_backoff_and_tokens_side_by_side() {
        let range = |max| crate::config::BackoffRange {
            base: Duration::from_secs(1),
            max: Duration::from_secs(max),
        };
        let b = bucket();
        for (retry, tokens) in [495, 490, 485, 480].into_iter().enumerate() {
            drop(b.try_take(BROKEN).expect("paid"));
            assert_eq!(b.tokens(), tokens);
            let wait = |max| ceiling(range(max), retry as u32).as_secs();
            assert_eq!(wait(20), [1, 2, 4, 8][retry]);
            assert_eq!(wait(3), [1, 2, 3, 3][retry]);
        }
    }

    #[test]
    fn an_empty_bucket_refuses_and_a_full_one_stays_full() {
        let b = bucket();
        let paid = (0..1000).filter(|_| b.try_take(BROKEN).is_ok()).count();
        assert_eq!((paid, b.tokens()), (100, 0));
        (0..10_000).for_each(|_| b.succeeded(None));
        assert_eq!(b.tokens(), 500);
        let taken = b.try_take(LATE).expect("paid");
        b.give_back(taken);
        assert_eq!(b.tokens(), 500);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, path) in [
            ("tokens = 0", "tokens"),
            ("retry = 0", "retry"),
            ("after_timeout = 0", "after_timeout"),
        ] {
            let config: CostConfig = toml::from_str(text).expect(text);
            assert_eq!(config.validate().expect_err(text).path, path);
        }
        assert!(toml::from_str::<CostConfig>("cost = 3").is_err());
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    #[test]
    fn the_last_tokens_are_taken_once_and_never_overfilled() {
        loom::model(|| {
            let config = CostConfig {
                tokens: 5,
                after_timeout: 5,
                ..CostConfig::default()
            };
            let bucket = CostBucket::new(config).expect("valid");
            let threads = [(); 2].map(|()| {
                let bucket = bucket.clone();
                thread::spawn(move || match bucket.try_take(Outcome::Cancelled) {
                    Ok(cost) => {
                        bucket.succeeded(Some(cost));
                        1
                    }
                    Err(_) => 0,
                })
            });
            let won: u32 = threads.map(|t| t.join().expect("no panic")).iter().sum();
            assert!(won >= 1);
            assert_eq!(bucket.tokens(), 5);
        });
    }

    #[test]
    fn a_bucket_that_shrinks_while_somebody_takes_keeps_what_was_spent() {
        loom::model(|| {
            let config = |tokens| CostConfig {
                tokens,
                retry: 2,
                after_timeout: 2,
                success: 0,
            };
            let bucket = CostBucket::new(config(6)).expect("valid");
            let other = bucket.clone();
            let taker = thread::spawn(move || other.try_take(Outcome::Cancelled).is_ok());
            bucket.reconfigure(config(4)).expect("valid");
            assert!(
                taker.join().expect("no panic"),
                "there was enough in any order"
            );
            assert_eq!(bucket.tokens(), 2);
        });
    }
}
