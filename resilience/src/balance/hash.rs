//! Hashes that mean the same in every process, and chance from one number.
//!
//! Two gateways that hash a session to different endpoints have no affinity at all, so nothing
//! here may depend on a per-process seed, as std's `RandomState` does.

use std::hash::{Hash, Hasher};

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads every bit of `z` over all 64. Source: SplitMix64's finaliser (Stafford's variant 13).
pub(super) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The `n`-th hash that belongs to `id`.
pub(super) const fn nth(id: u64, n: u64) -> u64 {
    mix(id ^ n.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA))
}

/// A hash as a number in `(0, 1]`.
pub(super) fn unit(hash: u64) -> f64 {
    ((hash >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// FNV-1a with a finaliser: stable over processes and builds for one architecture.
#[derive(Debug)]
struct Stable(u64);

impl Hasher for Stable {
    fn finish(&self) -> u64 {
        mix(self.0)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}

/// A hash of `value` that is the same in every process of one build: for
/// [`PickContext::hash`](super::PickContext::hash) and [`Member::placed`](super::Member::placed).
///
/// Not for secrets, nor against somebody who picks the values.
///
/// ```
/// use selvedge_resilience::balance::stable_hash;
/// assert_eq!(stable_hash("session-7"), stable_hash("session-7"));
/// assert_ne!(stable_hash("session-7"), stable_hash("session-8"));
/// ```
pub fn stable_hash<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = Stable(0xCBF2_9CE4_8422_2325);
    value.hash(&mut hasher);
    hasher.finish()
}

/// The draws of one pick: as many as it needs from one seed, without a shared word for each.
#[derive(Debug)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u64, picks: u64) -> Self {
        Self(mix(seed.wrapping_add(picks.wrapping_mul(GOLDEN_GAMMA))))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix(self.0)
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        scale(self.next(), bound as u64) as usize
    }

    /// A number in `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Maps a hash to `0..bound` without a division.
pub(super) const fn scale(hash: u64, bound: u64) -> u64 {
    ((hash as u128 * bound as u128) >> 64) as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_for_ever() {
        // Golden values: a change here moves every session of every user.
        assert_eq!(stable_hash(&7u64), 0xAE25_3598_B337_821E);
        assert_eq!(nth(1, 0), mix(1 ^ GOLDEN_GAMMA));
        assert_eq!(mix(GOLDEN_GAMMA), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn draws_stay_in_range_and_spread() {
        let mut counts = [0u32; 10];
        for n in 0..10_000 {
            let mut draws = Draws::new(3, n);
            counts[draws.below(10)] += 1;
            assert!((0.0..1.0).contains(&draws.unit()));
            assert_eq!(draws.below(0), 0);
        }
        assert!(counts.iter().all(|c| (900..1100).contains(c)), "{counts:?}");
        assert!(unit(0) > 0.0 && unit(u64::MAX) <= 1.0);
        assert_eq!((scale(0, 7), scale(u64::MAX, 7)), (0, 6));
    }
}
