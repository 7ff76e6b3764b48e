//! Subsetting: which few of many endpoints this process calls at all.
//!
//! A thousand callers of a thousand endpoints are a million connections, most of them idle, each
//! with its health checks and handshakes. Each caller needs only a few; but if each takes any few,
//! some endpoints end up with none, and if a restart shuffles them, every deploy reconnects
//! everything.
//!
//! Two ways, both stable:
//! - *Rendezvous*: a caller that knows only its own name takes the `size` endpoints whose hash with
//!   it is smallest. One endpoint more or less changes at most one place of a caller. Evenness is
//!   that of chance: an endpoint has callers × size ÷ endpoints ± its square root of them.
//! - *Deterministic aperture*: a caller that knows it is the i-th of n takes its arc of a circle
//!   that the endpoints share by weight; arcs tile the circle, so the load is exactly even. A change
//!   shifts the arcs a little.
//!
//! # Source
//! Thaler and Ravishankar 1996 (rendezvous), weighted by −ln(u) ÷ w (Efraimidis and Spirakis 2006);
//! Finagle's deterministic aperture.

use super::hash::{nth, unit};

/// What a caller knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Client {
    /// Its own number, as the [`stable_hash`](super::stable_hash) of its instance id: rendezvous.
    Id(u64),
    /// Its place among all callers: deterministic aperture.
    Peer {
        /// From 0.
        index: u32,
        /// How many callers there are; at least 1.
        peers: u32,
    },
}

/// Weights are scaled by this where a subset gives an endpoint only a part of its own.
const SCALE: f64 = 1024.0;

/// Chooses at least `size` of the endpoints given as `(id, weight)`: their indices, each with its
/// weight within the subset. All of them, with their own weights, if there are no more than that.
pub(super) fn choose(members: &[(u64, u32)], size: usize, client: Client) -> Vec<(usize, u64)> {
    if size == 0 || members.len() <= size {
        let own = |(n, &(_, weight)): (usize, &(u64, u32))| (n, u64::from(weight.max(1)));
        return members.iter().enumerate().map(own).collect();
    }
    match client {
        Client::Id(id) => rendezvous(members, size, id),
        Client::Peer { index, peers } => aperture(members, size, index, peers.max(1)),
    }
}

/// The `size` members that come first in a race where each runs at its weight.
///
/// A heavy one is in more subsets than a light one; what of its weight that does not account for
/// it has within them, so that over all callers each is called by its weight.
fn rendezvous(members: &[(u64, u32)], size: usize, client: u64) -> Vec<(usize, u64)> {
    let weight = |n: usize| f64::from(members[n].1.max(1));
    let finish = |n: usize| -unit(nth(members[n].0, client)).ln() / weight(n);
    let mut order: Vec<(f64, usize)> = (0..members.len()).map(|n| (finish(n), n)).collect();
    order.select_nth_unstable_by(size - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    order.truncate(size);
    let time = race_time(members, size);
    let mut chosen: Vec<_> = order
        .into_iter()
        .map(|(_, n)| {
            let odds = 1.0 - (-time * weight(n)).exp();
            (
                n,
                scaled(weight(n) / odds * size as f64 / members.len() as f64),
            )
        })
        .collect();
    chosen.sort_unstable();
    chosen
}

/// When `size` of the members have finished, on average: Σ (1 − e^(−t·w)) = size.
fn race_time(members: &[(u64, u32)], size: usize) -> f64 {
    let finished = |t: f64| -> f64 {
        let odds = |&(_, w): &(u64, u32)| 1.0 - (-t * f64::from(w.max(1))).exp();
        members.iter().map(odds).sum()
    };
    let (mut low, mut high) = (0.0, 1.0);
    while finished(high) < size as f64 && high < 1e6 {
        high *= 2.0;
    }
    // 2⁻⁵² of the first range: as exact as a float.
    for _ in 0..52 {
        let middle = f64::midpoint(low, high);
        if finished(middle) < size as f64 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The members on the caller's arc; those at its ends with the part of them that is on it.
fn aperture(members: &[(u64, u32)], size: usize, index: u32, peers: u32) -> Vec<(usize, u64)> {
    let mut circle: Vec<usize> = (0..members.len()).collect();
    circle.sort_unstable_by_key(|&n| (nth(members[n].0, 0), n));
    let total: f64 = members.iter().map(|m| f64::from(m.1.max(1))).sum();
    let peers = f64::from(peers);
    // A whole number of steps, so that the arcs of all callers cover every point equally often.
    let steps = (size as f64 / members.len() as f64 * peers).ceil().max(1.0);
    let width = (steps / peers).min(1.0);
    let start = (f64::from(index) / peers).fract();
    let mut chosen = Vec::new();
    let mut at = 0.0;
    for n in circle {
        let arc = f64::from(members[n].1.max(1)) / total;
        let within = overlap(at, arc, start, width) + overlap(at, arc, start - 1.0, width);
        // Less than a millionth of an endpoint is the rounding of the arcs' ends.
        if within > arc * 1e-6 {
            chosen.push((n, scaled(within / width * members.len() as f64)));
        }
        at += arc;
    }
    chosen.sort_unstable();
    chosen
}

fn overlap(a: f64, a_len: f64, b: f64, b_len: f64) -> f64 {
    ((a + a_len).min(b + b_len) - a.max(b)).max(0.0)
}

fn scaled(weight: f64) -> u64 {
    (weight * SCALE).round().max(1.0) as u64
}

// Tables and shares over thousands of keys: nothing that Miri could see.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::balance::hash::mix;

    fn members(weights: &[u32]) -> Vec<(u64, u32)> {
        (0u64..).map(mix).zip(weights.iter().copied()).collect()
    }

    /// What each member gets of `callers` callers that call equally much.
    fn load(
        members: &[(u64, u32)],
        size: usize,
        callers: u32,
        client: fn(u32, u32) -> Client,
    ) -> Vec<f64> {
        let mut load = vec![0.0; members.len()];
        for caller in 0..callers {
            let chosen = choose(members, size, client(caller, callers));
            let sum: u64 = chosen.iter().map(|c| c.1).sum();
            for (n, weight) in chosen {
                load[n] += weight as f64 / sum as f64;
            }
        }
        load
    }

    fn by_id(n: u32, _: u32) -> Client {
        Client::Id(mix(u64::from(n) + 1_000_000))
    }

    fn by_place(index: u32, peers: u32) -> Client {
        Client::Peer { index, peers }
    }

    #[test]
    fn few_members_are_all_called() {
        let all = members(&[1, 2, 0]);
        for client in [Client::Id(7), by_place(1, 3), by_place(9, 0)] {
            assert_eq!(choose(&all, 3, client), [(0, 1), (1, 2), (2, 1)]);
            assert_eq!(choose(&all, 0, client).len(), 3);
            assert_eq!(choose(&[], 3, client), []);
        }
    }

    #[test]
    fn rendezvous_is_even_within_chance_and_honours_weights() {
        let all = members(&[1; 100]);
        let got = load(&all, 20, 1_000, by_id);
        // 200 callers each, standard deviation √(1000·0.2·0.8) = 12.6, each a twentieth: 10 ± 0.63.
        assert!(got.iter().all(|l| (10.0 - l).abs() < 5.0 * 0.63), "{got:?}");
        let mut weights = [1; 100];
        weights[..10].fill(8);
        let got = load(&members(&weights), 20, 2_000, by_id);
        let heavy: f64 = got[..10].iter().sum::<f64>() / 2_000.0;
        assert!((heavy - 80.0 / 170.0).abs() < 0.03, "{heavy}");
    }

    #[test]
    fn the_aperture_is_exactly_even() {
        let all = members(&[1; 30]);
        let got = load(&all, 7, 11, by_place);
        assert!(
            got.iter().all(|l| (l - 11.0 / 30.0).abs() < 0.01),
            "{got:?}"
        );
        let weights: Vec<u32> = (1..=30).collect();
        let got = load(&members(&weights), 7, 11, by_place);
        for (n, load) in got.iter().enumerate() {
            let want = 11.0 * f64::from(weights[n]) / 465.0;
            assert!((load - want).abs() < 0.01, "{n}: {load}, want {want}");
        }
    }

    proptest! {
        #[test]
        fn one_member_more_changes_one_place(
            n in 12usize..80, size in 2usize..10, client: u64, weight in 1u32..5,
        ) {
            let mut all = members(&vec![1; n]);
            let before: HashSet<u64> = ids(&all, &choose(&all, size, Client::Id(client)));
            all.push((mix(999_999), weight));
            let after: HashSet<u64> = ids(&all, &choose(&all, size, Client::Id(client)));
            prop_assert_eq!(after.len(), size);
            prop_assert!(before.difference(&after).count() <= 1);
        }

        #[test]
        fn one_member_more_shifts_an_aperture_by_a_little(
            n in 12usize..80, size in 2usize..10, peers in 1u32..20, at: u32,
        ) {
            let mut all = members(&vec![1; n]);
            let client = Client::Peer { index: at % peers, peers };
            let before = ids(&all, &choose(&all, size, client));
            prop_assert!(before.len() >= size);
            all.push((mix(999_999), 1));
            let after = ids(&all, &choose(&all, size, client));
            // Positions shift by less than one member, arcs widen by at most one step.
            let step = (n as f64 / f64::from(peers)).ceil() as usize + 1;
            prop_assert!(before.difference(&after).count() <= 2 + step, "{before:?} {after:?}");
        }

        #[test]
        fn every_subset_has_its_size_and_no_one_twice(
            weights in prop::collection::vec(0u32..1000, 1..60), size in 1usize..20, client: u64,
        ) {
            let all = members(&weights);
            let chosen = choose(&all, size, Client::Id(client));
            prop_assert_eq!(chosen.len(), size.min(weights.len()));
            prop_assert!(chosen.windows(2).all(|w| w[0].0 < w[1].0));
            prop_assert!(chosen.iter().all(|c| c.1 > 0));
        }
    }

    fn ids(members: &[(u64, u32)], chosen: &[(usize, u64)]) -> HashSet<u64> {
        chosen.iter().map(|&(n, _)| members[n].0).collect()
    }
}
