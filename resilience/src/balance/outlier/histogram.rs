//! The latencies of one endpoint in one interval: what their quantiles are, to a fifth.

use std::time::Duration;

use crate::sync::{AtomicU32, Ordering};

/// Four buckets an octave, from 2¹⁰ ns (1 µs) to 2³⁷ ns (137 s); what is outside counts at the end.
const STEPS: usize = 4;
const FIRST: u32 = 10;
const OCTAVES: usize = 27;
const BUCKETS: usize = STEPS * OCTAVES;

/// A count for each bucket: one addition a call, nothing to lock.
#[derive(Debug)]
pub(in crate::balance) struct Histogram(Box<[AtomicU32]>);

impl Default for Histogram {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU32::new(0)).collect())
    }
}

fn bucket(nanos: u64) -> usize {
    let log = nanos.max(1).ilog2();
    if log < FIRST {
        return 0;
    }
    let step = (nanos >> (log - 2) & 3) as usize;
    ((log - FIRST) as usize * STEPS + step).min(BUCKETS - 1)
}

/// The middle of a bucket, in nanoseconds.
fn middle(bucket: usize) -> f64 {
    let low = 2f64.powi(FIRST as i32 + (bucket / STEPS) as i32);
    low * (1.0 + (bucket % STEPS) as f64 / STEPS as f64 + 0.5 / STEPS as f64)
}

impl Histogram {
    pub(in crate::balance) fn add(&self, nanos: u64) {
        self.0[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what was counted: how many, and the latency at `quantile` in (0, 1).
    pub(in crate::balance) fn take(&self, quantile: f64) -> (u64, Duration) {
        let counts: Vec<u64> = self
            .0
            .iter()
            .map(|c| u64::from(c.swap(0, Ordering::Relaxed)))
            .collect();
        let total: u64 = counts.iter().sum();
        let rank = (quantile * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (n, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return (total, Duration::from_nanos(middle(n) as u64));
            }
        }
        (total, Duration::ZERO)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_are_counted_and_taking_empties() {
        let h = Histogram::default();
        for nanos in [0, 1, 1023, u64::MAX] {
            h.add(nanos);
        }
        let (total, median) = h.take(0.5);
        assert_eq!((total, median.as_micros()), (4, 1));
        assert_eq!(h.take(0.5), (0, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn a_quantile_is_right_to_a_fifth(
            mut values in prop::collection::vec(2_000u64..60_000_000_000, 1..300),
            quantile in 0.01f64..0.99,
        ) {
            let h = Histogram::default();
            for &v in &values {
                h.add(v);
            }
            let (total, got) = h.take(quantile);
            prop_assert_eq!(total, values.len() as u64);
            values.sort_unstable();
            let rank = (quantile * values.len() as f64).ceil().max(1.0) as usize;
            let want = values[rank - 1] as f64;
            let got = got.as_nanos() as f64;
            prop_assert!((got / want - 1.0).abs() < 0.2, "{got}, want {want}");
        }
    }
}
