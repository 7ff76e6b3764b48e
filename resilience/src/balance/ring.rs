//! A ring of virtual nodes: the same key to the same endpoint, and few keys move.
//!
//! Source: Karger et al. 1997; points per endpoint as libketama.

use super::hash::{mix, nth};

/// Points on the whole ring: more would not fit a cache.
const POINTS: u64 = 1 << 20;

/// Points on a circle of 2³², each owned by an index.
#[derive(Debug)]
pub(super) struct Ring {
    points: Box<[(u32, u32)]>,
    /// The first point at or after each 2^−bits of the circle: found without a search.
    starts: Box<[u32]>,
    shift: u32,
}

impl Ring {
    /// A ring of the members given as `(id, weight)`; `nodes` points for one of average weight.
    pub(super) fn new(members: &[(u64, u64)], nodes: u32) -> Self {
        let n = (members.len() as u64).max(1);
        let nodes = u64::from(nodes).min(POINTS / n).max(1);
        let mean = members.iter().map(|m| m.1).sum::<u64>() / n;
        // The power of two below the mean: a change of one weight leaves the points of the others
        // where they are, but for the rare time when the mean passes the next one.
        let unit = 1 << mean.max(1).ilog2();
        let mut points = Vec::new();
        for (index, &(id, weight)) in members.iter().enumerate() {
            let count = (nodes * weight).div_ceil(unit).clamp(1, POINTS);
            points.extend((0..count).map(|k| ((nth(id, k) >> 32) as u32, index as u32)));
        }
        points.sort_unstable_by_key(|&(at, index)| (at, members[index as usize].0));
        let bits = (points.len().max(2) as u32).ilog2();
        let shift = 32 - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut next = 0;
        for bucket in 0..1u32 << bits {
            while next < points.len() && points[next].0 >> shift < bucket {
                next += 1;
            }
            starts.push(next as u32);
        }
        Self {
            points: points.into(),
            starts: starts.into(),
            shift,
        }
    }

    /// The owners of the points from that of `hash` on, once around.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let at = (mix(hash) >> 32) as u32;
        let mut next = self.starts[(at >> self.shift) as usize] as usize;
        while self.points.get(next).is_some_and(|p| p.0 < at) {
            next += 1;
        }
        let (before, after) = self.points.split_at(next);
        after.iter().chain(before).map(|p| p.1 as usize)
    }
}

// Tables and shares over thousands of keys: nothing that Miri could see.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(weights: &[u64]) -> Vec<(u64, u64)> {
        (1u64..).map(mix).zip(weights.iter().copied()).collect()
    }

    fn owner(ring: &Ring, members: &[(u64, u64)], key: u64) -> u64 {
        members[ring.walk(key).next().expect("points")].0
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let all = members(&[1, 1, 1, 1, 4]);
        let ring = Ring::new(&all, 160);
        let mut counts = [0u32; 5];
        for key in 0..100_000 {
            counts[ring.walk(key).next().expect("points")] += 1;
        }
        for (n, count) in counts.iter().enumerate() {
            let want = if n == 4 { 50_000 } else { 12_500 };
            assert!(count.abs_diff(want) < want / 4, "{counts:?}");
        }
        assert_eq!(Ring::new(&[], 160).walk(1).next(), None);
        let crowd = members(&vec![1; 3_000]);
        assert!(Ring::new(&crowd, 4096).points.len() <= POINTS as usize);
    }

    proptest! {
        #[test]
        fn the_owner_is_that_of_the_slow_search(
            weights in prop::collection::vec(1u64..9, 1..20), nodes in 1u32..50, key: u64,
        ) {
            let all = members(&weights);
            let ring = Ring::new(&all, nodes);
            let at = (mix(key) >> 32) as u32;
            let slow = ring.points.iter().find(|p| p.0 >= at).unwrap_or(&ring.points[0]);
            prop_assert_eq!(ring.walk(key).next(), Some(slow.1 as usize));
            prop_assert_eq!(ring.walk(key).count(), ring.points.len());
        }

        #[test]
        fn only_keys_of_who_leaves_move_and_only_to_who_joins(n in 2usize..20, leaver: usize, seed: u64) {
            let all = members(&vec![3; n]);
            let gone = all[leaver % n].0;
            let rest: Vec<_> = all.iter().copied().filter(|m| m.0 != gone).collect();
            let (before, after) = (Ring::new(&all, 40), Ring::new(&rest, 40));
            for key in (0..500).map(|k| nth(seed, k)) {
                let (was, is) = (owner(&before, &all, key), owner(&after, &rest, key));
                prop_assert!(was == is || was == gone, "{key}");
            }
        }
    }
}
