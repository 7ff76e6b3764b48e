//! Peak EWMA: a cost that jumps up at once and comes down slowly.
//!
//! An average forgives a slow answer before the next caller has felt it. This one takes every peak
//! as it is and lets it decay, so a callee that has just become slow is left alone until time,
//! not luck, has made it cheap again.
//!
//! Source: Finagle `PeakEwma.scala`; decay time 10 s as there.

use crate::{
    clock::Tick,
    sync::{AtomicU64, Ordering},
};

/// Time constant of the decay, in nanoseconds.
const DECAY: f64 = 10e9;
/// Younger costs are read as they are: the decay since then is below 1.6 %.
const FRESH: u64 = 160_000_000;

/// A cost in nanoseconds with the time it was last touched.
///
/// Cost and stamp are two words: a reader may see one new and one old, which skews one pick by one
/// sample and nothing else.
#[derive(Debug, Default)]
pub(super) struct PeakEwma {
    cost: AtomicU64,
    stamp: AtomicU64,
}

impl PeakEwma {
    pub(super) fn observe(&self, now: Tick, rtt: f64) {
        let cost = f64::from_bits(self.cost.load(Ordering::Relaxed));
        let next = if rtt > cost {
            rtt
        } else {
            let w = weight(now.0.saturating_sub(self.stamp.load(Ordering::Relaxed)));
            cost * w + rtt * (1.0 - w)
        };
        self.cost.store(next.to_bits(), Ordering::Relaxed);
        self.stamp.store(now.0, Ordering::Relaxed);
    }

    /// The cost at `now`; 0 without history.
    pub(super) fn read(&self, now: Tick) -> f64 {
        let cost = f64::from_bits(self.cost.load(Ordering::Relaxed));
        match now.0.saturating_sub(self.stamp.load(Ordering::Relaxed)) {
            age if age < FRESH || cost == 0.0 => cost,
            age => cost * weight(age),
        }
    }

    pub(super) fn has_history(&self) -> bool {
        self.stamp.load(Ordering::Relaxed) != 0
    }
}

fn weight(age: u64) -> f64 {
    (-(age as f64) / DECAY).exp()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lb_1_peaks_at_once_and_decays_with_time() {
        let ewma = PeakEwma::default();
        let second = 1_000_000_000;
        let cases = [
            (0, 100.0, 100.0),
            (1, 10.0, 91.435_368),
            (2, 10.0, 83.685_768),
            (10, 10.0, 43.109_15),
            (11, 200.0, 200.0),
            (21, 100.0, 136.787_944),
        ];
        for (t, rtt, want) in cases {
            ewma.observe(Tick((t + 1) * second), rtt);
            let got = f64::from_bits(ewma.cost.load(Ordering::Relaxed));
            assert!((got - want).abs() < 1e-4, "t = {t}: {got}, want {want}");
        }
    }
}
