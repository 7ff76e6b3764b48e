//! How long to wait before the next try.
//!
//! Callers that fail together retry together, and fail together again. Jitter spreads them out;
//! growth makes room for the callee to recover.

use std::time::Duration;

use crate::{clock::nanos, config::BackoffRange, rng::Rng};

/// A wait before retry number `retry` (the first is 0): `rand[0, min(max, base·2ⁿ))`, full jitter.
///
/// Never more than `range.max`; the exponent saturates.
/// Source: "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter).
pub fn full_jitter(range: BackoffRange, retry: u32, rng: &Rng) -> Duration {
    Duration::from_nanos(rng.below(nanos(ceiling(range, retry))))
}

/// The upper end of the wait before retry number `retry`.
pub fn ceiling(range: BackoffRange, retry: u32) -> Duration {
    let factor = 1u32.checked_shl(retry).unwrap_or(u32::MAX);
    range.base.saturating_mul(factor).min(range.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bko_1_doubles_up_to_the_cap() {
        let secs = |base, max| BackoffRange {
            base: Duration::from_secs(base),
            max: Duration::from_secs(max),
        };
        let of = |range| {
            (0..5)
                .map(|n| ceiling(range, n).as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(of(secs(2, 99)), [2, 4, 8, 16, 32]);
        assert_eq!(of(secs(2, 15)), [2, 4, 8, 15, 15]);
        assert_eq!(ceiling(secs(2, 15), u32::MAX).as_secs(), 15);
    }

    #[test]
    fn jitter_stays_below_the_ceiling_and_uses_all_of_it() {
        let range = BackoffRange {
            base: Duration::from_millis(25),
            max: Duration::from_millis(250),
        };
        let rng = Rng::new(3);
        let waits: Vec<_> = (0..1000).map(|_| full_jitter(range, 9, &rng)).collect();
        assert!(waits.iter().all(|w| *w < range.max));
        assert!(waits.iter().any(|w| *w > range.max / 10 * 9));
        assert!(waits.iter().any(|w| *w < range.max / 10));
    }
}
