//! Shares by weight: drawn by chance in one draw, or in turns by a fixed order.

use super::hash::{Draws, scale};

/// Draws an index with the odds of its weight: one number, one compare.
///
/// Source: Walker's alias method, built as Vose 1991.
#[derive(Debug)]
pub(super) struct Alias(Box<[(u32, u32)]>);

impl Alias {
    /// `None` if all weights are equal: then any index will do.
    pub(super) fn new(weights: &[u64]) -> Option<Self> {
        if weights.windows(2).all(|w| w[0] == w[1]) {
            return None;
        }
        let total: u64 = weights.iter().sum();
        let mean = total as f64 / weights.len() as f64;
        let mut odds: Vec<f64> = weights.iter().map(|&w| w as f64 / mean).collect();
        let mut table: Vec<(u32, u32)> = (0..weights.len() as u32).map(|n| (u32::MAX, n)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..odds.len()).partition(|&n| odds[n] < 1.0);
        while let (Some(s), Some(&l)) = (small.pop(), large.last()) {
            table[s] = ((odds[s] * f64::from(u32::MAX)) as u32, l as u32);
            odds[l] -= 1.0 - odds[s];
            if odds[l] < 1.0 {
                large.pop();
                small.push(l);
            }
        }
        Some(Self(table.into()))
    }

    pub(super) fn draw(&self, draws: &mut Draws) -> usize {
        let hash = draws.next();
        // The index is made of the high bits, the coin of the low ones.
        let n = scale(hash, self.0.len() as u64) as usize;
        let (odds, other) = self.0[n];
        if hash as u32 <= odds {
            n
        } else {
            other as usize
        }
    }
}

/// The longest order of turns. Longer ones are shortened: a share is then right to half a turn in
/// as many picks.
const TURNS: u64 = 65_536;

/// The order in which indices take turns: in a full round each as often as its weight says, its
/// turns spread evenly.
///
/// A schedule computed at each pick (nginx, Envoy's EDF) is a lock or a queue that all pickers
/// share. Computed once, it is a counter.
///
/// Source: earliest deadline first, as Envoy `EdfScheduler`; starts staggered so that light
/// endpoints do not follow one another.
#[derive(Debug)]
pub(super) struct Turns(Option<Box<[u32]>>);

impl Turns {
    pub(super) fn new(weights: &[u64]) -> Self {
        if weights.windows(2).all(|w| w[0] == w[1]) {
            return Self(None);
        }
        let counts = counts(weights);
        let mut turns: Vec<(f64, u32)> = Vec::with_capacity(counts.iter().sum::<u64>() as usize);
        for (n, &count) in counts.iter().enumerate() {
            // Multiples of the golden ratio are spread evenly, however many there are.
            let start = (n as f64 * 0.618_033_988_749_895 + 0.5).fract();
            turns.extend((0..count).map(|k| ((k as f64 + start) / count as f64, n as u32)));
        }
        turns.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Self(Some(turns.into_iter().map(|(_, n)| n).collect()))
    }

    /// Whose the `turn`-th turn is, of `len` indices.
    pub(super) fn at(&self, turn: u64, len: usize) -> usize {
        match &self.0 {
            None => (turn % len as u64) as usize,
            Some(order) => order[(turn % order.len() as u64) as usize] as usize,
        }
    }

    #[cfg(all(test, not(loom)))]
    fn round(&self, len: usize) -> usize {
        self.0.as_ref().map_or(len, |order| order.len())
    }
}

/// Turns in a round for each weight: the smallest whole numbers in the same proportion, or nearly
/// so where those are too many; at least 1.
fn counts(weights: &[u64]) -> Vec<u64> {
    let gcd = weights.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let total: u64 = weights.iter().sum::<u64>() / gcd;
    weights
        .iter()
        .map(|&w| match total {
            0..=TURNS => w / gcd,
            // Rounded half up.
            _ => ((w / gcd) * TURNS * 2).div_ceil(total).div_euclid(2).max(1),
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

// Tables and shares over thousands of keys: nothing that Miri could see.
#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turns_of_five_one_one() {
        let turns = Turns::new(&[5, 1, 1]);
        let round: Vec<_> = (0..7).map(|n| turns.at(n, 3)).collect();
        assert_eq!(round, [0, 1, 0, 0, 0, 2, 0], "each light one alone");
        let equal = Turns::new(&[7, 7, 7]);
        let round: Vec<_> = (0..6).map(|n| equal.at(n, 3)).collect();
        assert_eq!(round, [0, 1, 2, 0, 1, 2]);
        assert_eq!(Turns::new(&[1]).at(u64::MAX, 1), 0);
    }

    #[test]
    fn a_round_is_never_too_long_and_nobody_is_left_out() {
        let weights: Vec<u64> = (1..=1000).map(|n| n * 1024 + 1).collect();
        let turns = Turns::new(&weights);
        let round = turns.round(weights.len());
        assert!((65_000..67_000).contains(&round), "{round}");
        let mut counts = vec![0u64; weights.len()];
        (0..round as u64).for_each(|t| counts[turns.at(t, weights.len())] += 1);
        let total: u64 = weights.iter().sum();
        for (n, &count) in counts.iter().enumerate() {
            let want = weights[n] as f64 / total as f64;
            let got = count as f64 / round as f64;
            assert!(
                count > 0 && (got - want).abs() < 2.0 / 65_536.0,
                "{n}: {got} {want}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_round_holds_each_as_often_as_its_weight_and_spread_evenly(
            weights in prop::collection::vec(1u64..40, 1..30),
        ) {
            let turns = Turns::new(&weights);
            let round = turns.round(weights.len());
            let total: u64 = weights.iter().sum();
            let mut counts = vec![0u64; weights.len()];
            for turn in 0..round as u64 {
                counts[turns.at(turn, weights.len())] += 1;
                // The slow obvious model: a fair share of the turns so far, to within two turns
                // and what staggered starts may add.
                for (n, &count) in counts.iter().enumerate() {
                    let part = weights[n] as f64 / total as f64;
                    let fair = part * (turn + 1) as f64;
                    let slack = 2.0 + part * weights.len() as f64;
                    prop_assert!((count as f64 - fair).abs() <= slack, "{n}: {count}, fair {fair}");
                }
            }
            for (n, &count) in counts.iter().enumerate() {
                prop_assert_eq!(count * total, weights[n] * round as u64);
            }
        }

        #[test]
        fn an_alias_draws_by_weight(weights in prop::collection::vec(1u64..100, 2..20)) {
            let Some(alias) = Alias::new(&weights) else { return Ok(()) };
            // The exact odds that the table gives, by its own cells.
            let mut odds = vec![0.0; weights.len()];
            for (n, &(keep, other)) in alias.0.iter().enumerate() {
                let keep = f64::from(keep) / f64::from(u32::MAX);
                odds[n] += keep / weights.len() as f64;
                odds[other as usize] += (1.0 - keep) / weights.len() as f64;
            }
            let total: u64 = weights.iter().sum();
            for (n, odds) in odds.iter().enumerate() {
                let want = weights[n] as f64 / total as f64;
                prop_assert!((odds - want).abs() < 1e-6, "{n}: {odds}, want {want}");
            }
        }
    }

    #[test]
    fn draws_follow_the_odds() {
        let alias = Alias::new(&[1, 2, 7]).expect("not equal");
        let mut counts = [0u32; 3];
        for n in 0..100_000 {
            counts[alias.draw(&mut Draws::new(1, n))] += 1;
        }
        for (count, want) in counts.iter().zip([10_000u32, 20_000, 70_000]) {
            assert!(count.abs_diff(want) < 700, "{counts:?}");
        }
        assert!(Alias::new(&[3, 3]).is_none() && Alias::new(&[]).is_none());
    }
}
