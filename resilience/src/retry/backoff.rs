//! How long to wait before the next try.
//!
//! Callers that fail together retry together, and fail together again. Growth makes room for the
//! callee to recover; jitter spreads the callers out.
//!
//! | jitter | wait before retry n (from 0), with `top = min(max, base·2ⁿ)` | for |
//! |---|---|---|
//! | `full` | `[0, top)` | most: the least work in all for the same time to success |
//! | `equal` | `[top/2, top)` | where a wait of nothing is of no use |
//! | `decorrelated` | `[base, min(max, 3·last))` | where the count of tries should not show |
//! | `none` | `top` | tests, and callers that are one |
//!
//! Finagle's `exponentialJittered` multiplies the last *random* wait, so that one small draw keeps
//! all later ones small: not copied.
//!
//! Source: "Exponential Backoff And Jitter", AWS Architecture Blog.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{clock::nanos, config::BackoffRange, rng::Rng};

/// How waits are spread. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Jitter {
    /// Anything up to the growing top.
    #[default]
    Full,
    /// The upper half of that.
    Equal,
    /// From the base up to three times the last wait.
    Decorrelated,
    /// The top itself.
    None,
}

/// The waits of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    range: BackoffRange,
    jitter: Jitter,
    retry: u32,
    last: Duration,
}

impl Backoff {
    /// From the first wait on.
    pub const fn new(range: BackoffRange, jitter: Jitter) -> Self {
        Self {
            range,
            jitter,
            retry: 0,
            last: range.base,
        }
    }

    /// The next wait; never above `range.max`.
    pub fn next_wait(&mut self, rng: &Rng) -> Duration {
        let top = ceiling(self.range, self.retry);
        self.retry = self.retry.saturating_add(1);
        let wait = match self.jitter {
            Jitter::None => top,
            Jitter::Full => below(top, rng),
            Jitter::Equal => top / 2 + below(top.saturating_sub(top / 2), rng),
            Jitter::Decorrelated => {
                let top = self.last.saturating_mul(3).min(self.range.max);
                let base = self.range.base.min(self.range.max);
                base + below(top.saturating_sub(base), rng)
            }
        };
        self.last = wait;
        wait
    }
}

fn below(top: Duration, rng: &Rng) -> Duration {
    Duration::from_nanos(rng.below(nanos(top)))
}

/// The upper end of the wait before retry number `retry` (the first is 0): `min(max, base·2ⁿ)`.
pub fn ceiling(range: BackoffRange, retry: u32) -> Duration {
    let factor = 1u32.checked_shl(retry).unwrap_or(u32::MAX);
    range.base.saturating_mul(factor).min(range.max)
}

/// A wait that grows by the same step each time: `min(max, start + n·step)`.
pub fn linear(start: Duration, step: Duration, max: Duration, retry: u32) -> Duration {
    start.saturating_add(step.saturating_mul(retry)).min(max)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    const fn secs(base: u64, max: u64) -> BackoffRange {
        BackoffRange {
            base: Duration::from_secs(base),
            max: Duration::from_secs(max),
        }
    }

    #[test]
    fn bko_1_exponential_and_linear_up_to_the_cap() {
        let of = |range| {
            (0..5)
                .map(|n| ceiling(range, n).as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(of(secs(2, 99)), [2, 4, 8, 16, 32]);
        assert_eq!(of(secs(2, 15)), [2, 4, 8, 15, 15]);
        let s = Duration::from_secs;
        let linear: Vec<_> = (0..5)
            .map(|n| linear(s(9), s(30), s(99), n).as_secs())
            .collect();
        assert_eq!(linear, [9, 39, 69, 99, 99]);
    }

    #[test]
    fn the_exponent_and_the_product_saturate() {
        assert_eq!(ceiling(secs(2, 15), u32::MAX).as_secs(), 15);
        assert_eq!(
            ceiling(secs(u64::MAX, u64::MAX), 40),
            Duration::MAX.min(Duration::from_secs(u64::MAX))
        );
        let forever = Duration::MAX;
        assert_eq!(linear(forever, forever, forever, u32::MAX), forever);
    }

    #[test]
    fn each_jitter_uses_all_of_its_range_and_nothing_else() {
        const CASES: &[(Jitter, u64, u64)] = &[
            (Jitter::Full, 0, 250),
            (Jitter::Equal, 125, 250),
            (Jitter::Decorrelated, 25, 250),
        ];
        let range = BackoffRange {
            base: Duration::from_millis(25),
            max: Duration::from_millis(250),
        };
        let rng = Rng::new(3);
        for &(jitter, low, high) in CASES {
            let mut backoff = Backoff::new(range, jitter);
            let waits: Vec<_> = (0..4000)
                .map(|_| backoff.next_wait(&rng))
                .skip(20)
                .collect();
            let (low, high) = (Duration::from_millis(low), Duration::from_millis(high));
            let tenth = high.abs_diff(low) / 10;
            assert!(
                waits.iter().all(|w| (low..high).contains(w)),
                "{jitter:?} stays in"
            );
            assert!(waits.iter().any(|w| *w < low + tenth), "{jitter:?} low");
            assert!(waits.iter().any(|w| *w + tenth >= high), "{jitter:?} high");
        }
    }

    #[test]
    fn the_first_waits_are_small_and_one_seed_is_one_run() {
        for jitter in [Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
            let run = || {
                let (rng, mut backoff) = (Rng::new(8), Backoff::new(secs(1, 60), jitter));
                [(); 6].map(|()| backoff.next_wait(&rng))
            };
            let waits = run();
            assert_eq!(waits, run());
            let first = if jitter == Jitter::Decorrelated { 3 } else { 1 };
            assert!(
                waits[0] < Duration::from_secs(first),
                "{jitter:?}: {waits:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_wait_is_above_the_maximum(
            base in 0u64..10_000, max in 0u64..10_000, seed in any::<u64>(), pick in 0usize..4,
        ) {
            let range = BackoffRange {
                base: Duration::from_millis(base.min(max)),
                max: Duration::from_millis(max),
            };
            let jitter = [Jitter::Full, Jitter::Equal, Jitter::Decorrelated, Jitter::None][pick];
            let (rng, mut backoff) = (Rng::new(seed), Backoff::new(range, jitter));
            for _ in 0..50 {
                prop_assert!(backoff.next_wait(&rng) <= range.max);
            }
        }
    }
}
