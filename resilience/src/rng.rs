//! A seeded source of chance that many threads may share.
//!
//! Cores never ask the environment for randomness: a seed in, the same run out, so that a failing
//! test can be replayed.

use crate::sync::{AtomicU64, Ordering};

/// SplitMix64 over an atomic counter: one `fetch_add` a draw, no lock.
///
/// Good enough to spread load and jitter; not for secrets.
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
#[derive(Debug)]
pub struct Rng(AtomicU64);

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

impl Rng {
    /// A generator that draws the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A generator with a seed of its own; only adapters call this.
    pub fn from_entropy() -> Self {
        Self::new(fastrand::u64(..))
    }

    /// The next 64 random bits.
    pub fn next_u64(&self) -> u64 {
        let mut z = self
            .0
            .fetch_add(GOLDEN_GAMMA, Ordering::Relaxed)
            .wrapping_add(GOLDEN_GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; 0 if `bound` is 0. The bias is below 2⁻³² for bounds below 2³².
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `[0, 1)`.
    pub fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_draws() {
        let (a, b) = (Rng::new(7), Rng::new(7));
        for _ in 0..100 {
            assert_eq!(a.next_u64(), b.next_u64());
        }
    }

    #[test]
    fn draws_stay_in_range() {
        let rng = Rng::new(1);
        assert_eq!(rng.below(0), 0);
        for bound in [1, 2, 3, 1000] {
            assert!((0..1000).all(|_| rng.below(bound) < bound));
        }
        assert!((0..1000).all(|_| (0.0..1.0).contains(&rng.unit())));
    }
}
