//! The latencies of a sliding window, and any quantile of them, without a lock.
//!
//! Buckets are eighths of an octave, so a quantile is right to an eighth. Each bucket is a ring of
//! [slices](crate::slices) of its own: what is too old is not counted, and nobody resets anything.

use std::time::{Duration, Instant};

use crate::{
    clock::{Tick, nanos},
    slices::Slices,
};

/// Slices of the window. Source: Finagle `WindowedPercentileHistogram` (3).
const LIVES: u64 = 3;
const RING: usize = 4;

/// From 2¹⁶ ns (66 µs; what is faster is nothing that a hedge could better) to 2³⁶ ns (69 s).
const FIRST: u32 = 16;
const STEP_BITS: u32 = 3;
const STEPS: usize = 1 << STEP_BITS;
#[cfg(not(loom))]
const OCTAVES: usize = 20;
/// What a model checker can walk through.
#[cfg(loom)]
const OCTAVES: usize = 1;
const BUCKETS: usize = STEPS * OCTAVES;

#[derive(Debug)]
pub(crate) struct Latencies {
    /// Nanoseconds of a slice.
    slice: u64,
    buckets: Box<[Slices<RING>]>,
}

fn bucket(nanos: u64) -> usize {
    let log = nanos.max(1).ilog2();
    if log < FIRST {
        return 0;
    }
    let step = (nanos >> (log - STEP_BITS)) as usize & (STEPS - 1);
    ((log - FIRST) as usize * STEPS + step).min(BUCKETS - 1)
}

/// Where the next bucket begins, in nanoseconds.
fn upper_edge(bucket: usize) -> u64 {
    let (octave, step) = (bucket / STEPS, bucket % STEPS);
    let low = 1u64 << (FIRST as usize + octave);
    low + (low >> STEP_BITS) * (step as u64 + 1)
}

impl Latencies {
    pub(crate) fn new(window: Duration) -> Self {
        let slice = (nanos(window) / LIVES).max(1);
        Self {
            slice,
            buckets: (0..BUCKETS).map(|_| Slices::new(slice)).collect(),
        }
    }

    fn id(&self, at: Tick) -> u64 {
        at.0 / self.slice + 1
    }

    pub(crate) fn record(&self, latency: Duration, now: Instant) {
        let id = self.id(Tick::at(now));
        self.buckets[bucket(nanos(latency))].add(id, 1);
    }

    /// How many latencies the window holds, and one that at most `1 − quantile` of them exceed;
    /// too high by an eighth at most. Reads every bucket.
    pub(crate) fn quantile(&self, quantile: f64, at: Tick) -> (u64, Duration) {
        let counts = self.counts(at);
        let total = counts.iter().sum();
        (total, quantile_of(&counts, total, quantile))
    }

    /// The mean and some quantiles of the window, each too high by an eighth at most; zero if it is
    /// empty.
    #[cfg(any(test, feature = "tower"))]
    pub(crate) fn summary<const N: usize>(
        &self,
        quantiles: &[f64; N],
        at: Tick,
    ) -> (Duration, [Duration; N]) {
        let counts = self.counts(at);
        let total: u64 = counts.iter().sum();
        let edges = counts.iter().enumerate();
        let sum: u128 = edges
            .map(|(n, count)| u128::from(*count) * u128::from(upper_edge(n)))
            .sum();
        let mean = sum.checked_div(total.into()).unwrap_or(0);
        let mean = Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX));
        (mean, quantiles.map(|q| quantile_of(&counts, total, q)))
    }

    fn counts(&self, at: Tick) -> [u64; BUCKETS] {
        let id = self.id(at);
        let mut counts = [0; BUCKETS];
        for (count, bucket) in counts.iter_mut().zip(&*self.buckets) {
            *count = bucket.sum(id, LIVES, None);
        }
        counts
    }
}

fn quantile_of(counts: &[u64; BUCKETS], total: u64, quantile: f64) -> Duration {
    let rank = (quantile * total as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (n, count) in counts.iter().enumerate() {
        seen += count;
        if seen >= rank {
            return Duration::from_nanos(upper_edge(n));
        }
    }
    Duration::ZERO
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(3);

    #[test]
    fn buckets_meet_and_the_ends_are_counted() {
        for n in 1..BUCKETS {
            let low = upper_edge(n - 1);
            assert_eq!((bucket(low - 1), bucket(low)), (n - 1, n), "bucket {n}");
        }
        for (nanos, want) in [(0, 0), (1, 0), (65_535, 0), (u64::MAX, BUCKETS - 1)] {
            assert_eq!(bucket(nanos), want, "{nanos} ns");
        }
    }

    #[test]
    fn a_summary_is_of_the_window() {
        let (all, start) = (Latencies::new(WINDOW), Instant::now());
        let at = |now| all.summary(&[0.0, 0.5, 1.0], Tick::at(now));
        assert_eq!(at(start), (Duration::ZERO, [Duration::ZERO; 3]));
        for ms in [10, 20, 90] {
            all.record(Duration::from_millis(ms), start);
        }
        let (mean, quantiles) = at(start);
        for (got, want) in [mean].into_iter().chain(quantiles).zip([40, 10, 20, 90]) {
            let (got, want) = (got.as_secs_f64(), f64::from(want) / 1e3);
            assert!((want..=want * 1.126).contains(&got), "{got}, want {want}");
        }
        assert_eq!(at(start + WINDOW * 2).0, Duration::ZERO);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten_and_never_comes_back() {
        let (all, start) = (Latencies::new(WINDOW), Instant::now());
        let ms = Duration::from_millis;
        all.record(ms(10), start);
        all.record(ms(900), start + ms(1_000));
        let at = |after| all.quantile(0.5, Tick::at(start + after));
        let is = |got: Duration, want: u64| got >= ms(want) && got <= ms(want) * 9 / 8;
        let (total, median) = at(ms(1_000));
        assert!(total == 2 && is(median, 10), "{total} {median:?}");
        let (total, median) = at(ms(3_000));
        assert!(total == 1 && is(median, 900), "{total} {median:?}");
        for days in [1, 200, 20_000] {
            let later = Duration::from_secs(days * 86_400);
            assert_eq!(at(later), (0, Duration::ZERO), "after {days} days");
        }
    }

    proptest! {
        #[test]
        fn at_most_the_rest_exceeds_a_quantile_and_it_is_right_to_an_eighth(
            mut values in prop::collection::vec(70_000u64..60_000_000_000, 1..300),
            quantile in 0.5f64..0.999,
        ) {
            let (all, now) = (Latencies::new(WINDOW), Instant::now());
            for &v in &values {
                all.record(Duration::from_nanos(v), now);
            }
            let (total, got) = all.quantile(quantile, Tick::at(now));
            prop_assert_eq!(total, values.len() as u64);
            let got = got.as_nanos() as u64;
            let above = values.iter().filter(|&&v| v > got).count() as f64;
            prop_assert!(above <= (1.0 - quantile) * total as f64 + 1e-9, "{above} of {total}");
            values.sort_unstable();
            let rank = (quantile * total as f64).ceil().max(1.0) as usize;
            let want = values[rank - 1];
            prop_assert!(got >= want && got <= want + want / 8 + 1, "{got}, want {want}");
        }
    }
}
