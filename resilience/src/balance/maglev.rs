//! Maglev: a table that maps keys to endpoints almost perfectly evenly, and moves few of them.
//!
//! A ring of a hundred points an endpoint is uneven by a tenth. Here each endpoint fills the table
//! by its own order of preference, all in turns, so each has its share to one place.
//!
//! Source: Eisenbud et al., "Maglev", NSDI 2016, §3.4; weights as Envoy's.

use super::hash::{mix, nth, scale};

/// Places in the table: a prime, and a hundred times as many as most services have endpoints.
/// Source: Maglev; Envoy's default.
const PLACES: usize = 65_537;

/// Who owns each place.
#[derive(Debug)]
pub(super) struct Maglev(Box<[u32]>);

impl Maglev {
    /// A table of the members given as `(id, weight)`, at least one. Costs 65,537 × members steps
    /// where one outweighs the rest together, a few times 65,537 otherwise.
    pub(super) fn new(members: &[(u64, u64)]) -> Self {
        const EMPTY: u32 = u32::MAX;
        let mut table = vec![EMPTY; PLACES];
        let heaviest = members.iter().map(|m| m.1).max().unwrap_or(1) as f64;
        // Where each looks next, how far its steps are, and the turns it has had × the heaviest.
        let mut seekers: Vec<(usize, usize, f64)> = members
            .iter()
            .map(|&(id, _)| {
                let offset = scale(nth(id, 0), PLACES as u64) as usize;
                let skip = scale(nth(id, 1), PLACES as u64 - 1) as usize + 1;
                (offset, skip, 0.0)
            })
            .collect();
        let (mut filled, mut turn) = (0, 0.0);
        while filled < PLACES && !members.is_empty() {
            turn += 1.0;
            for (n, (at, skip, had)) in seekers.iter_mut().enumerate() {
                if turn * (members[n].1 as f64) < *had {
                    continue;
                }
                *had += heaviest;
                while table[*at] != EMPTY {
                    *at = (*at + *skip) % PLACES;
                }
                table[*at] = n as u32;
                filled += 1;
                if filled == PLACES {
                    break;
                }
            }
        }
        Self(table.into())
    }

    /// The owner of `hash`'s place, then those of the places it goes on to: each place once, in an
    /// order of the hash's own, so that the load of a full endpoint is spread over all others.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let hash = mix(hash);
        let mut at = scale(hash, PLACES as u64) as usize;
        let step = scale(mix(hash), PLACES as u64 - 1) as usize + 1;
        (0..PLACES).map(move |_| {
            let owner = self.0[at] as usize;
            at += step;
            if at >= PLACES {
                at -= PLACES;
            }
            owner
        })
    }
}

// Tables and shares over thousands of keys: nothing that Miri could see.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;

    fn members(weights: &[u64]) -> Vec<(u64, u64)> {
        (1u64..).map(mix).zip(weights.iter().copied()).collect()
    }

    fn counts(table: &Maglev, n: usize) -> Vec<usize> {
        let mut counts = vec![0; n];
        table
            .0
            .iter()
            .for_each(|&owner| counts[owner as usize] += 1);
        counts
    }

    #[test]
    fn places_are_shared_to_one_each_or_by_weight() {
        for n in [1, 2, 3, 10, 100, 1000] {
            let got = counts(&Maglev::new(&members(&vec![1; n])), n);
            let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
            assert!(most - least <= 1, "{n}: {least}..{most}");
        }
        let weights = [1, 2, 3, 10];
        let got = counts(&Maglev::new(&members(&weights)), 4);
        for (n, &count) in got.iter().enumerate() {
            let want = weights[n] as f64 / 16.0 * PLACES as f64;
            assert!(
                (count as f64 - want).abs() < 8.0,
                "{n}: {count}, want {want}"
            );
        }
    }

    #[test]
    fn few_places_move_when_one_leaves() {
        let all = members(&[1; 50]);
        let (before, after) = (Maglev::new(&all), Maglev::new(&all[..49]));
        let moved = (0..PLACES)
            .filter(|&p| before.0[p] != 49 && before.0[p] != after.0[p])
            .count();
        // The paper's figure 12: below 1 % of places beyond those that must, for large tables.
        assert!(moved < PLACES / 50, "{moved} of {PLACES}");
    }

    #[test]
    fn a_walk_sees_every_place_once() {
        let table = Maglev::new(&members(&[1, 5, 2]));
        for hash in [0, 1, u64::MAX] {
            let mut seen = vec![0; 3];
            table.walk(hash).for_each(|owner| seen[owner] += 1);
            assert_eq!(seen, counts(&table, 3));
        }
    }
}
