//! Peak EWMA: a cost that jumps up at once and comes down slowly.
//!
//! An average forgives a slow answer before the next caller has felt it. This one takes every peak
//! as it is and lets it decay, so a callee that has just become slow is left alone until time,
//! not luck, has made it cheap again.
//!
//! Source: Finagle `PeakEwma.scala`.

use crate::{
    clock::Tick,
    due::age,
    sync::{AtomicU64, Ordering},
};

/// A cost in nanoseconds with the time it was last touched.
///
/// The cost is read before the stamp, and written after it. A race may then take an old cost for a
/// fresh one, and let it decay a little less; it never takes a fresh peak for an old one, which
/// would forget it.
#[derive(Debug, Default)]
pub(super) struct PeakEwma {
    cost: AtomicU64,
    stamp: AtomicU64,
}

impl PeakEwma {
    /// Takes one latency in nanoseconds; `decay` is the time constant, in nanoseconds.
    pub(super) fn observe(&self, now: Tick, rtt: f64, decay: f64) {
        let mut bits = self.cost.load(Ordering::Acquire);
        // 0 means "no history", so time begins at 1.
        let last = self.stamp.load(Ordering::Relaxed);
        self.stamp.store(now.0.max(1), Ordering::Relaxed);
        let mut w = weight(now.0.saturating_sub(last), decay);
        loop {
            let cost = f64::from_bits(bits);
            let next = if rtt > cost {
                rtt
            } else {
                cost * w + rtt * (1.0 - w)
            };
            match self.cost.compare_exchange_weak(
                bits,
                next.to_bits(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return,
                // Another's sample came between: what is there now has no age.
                Err(seen) => (bits, w) = (seen, if seen == bits { w } else { 1.0 }),
            }
        }
    }

    /// A call that was given up after `rtt`: its latency is at least that.
    pub(super) fn observe_at_least(&self, now: Tick, rtt: f64, decay: f64) {
        if rtt > self.read(now, decay) {
            self.observe(now, rtt, decay);
        }
    }

    /// The cost at `now`; 0 without history.
    pub(super) fn read(&self, now: Tick, decay: f64) -> f64 {
        let cost = f64::from_bits(self.cost.load(Ordering::Acquire));
        let age = age(self.stamp.load(Ordering::Relaxed), now);
        // Younger costs are read as they are: the decay since then is below 1.6 %.
        if (age as f64) < decay / 64.0 || cost == 0.0 {
            cost
        } else {
            cost * weight(age, decay)
        }
    }

    pub(super) fn has_history(&self) -> bool {
        self.stamp.load(Ordering::Relaxed) != 0
    }
}

fn weight(age: u64, decay: f64) -> f64 {
    (-(age as f64) / decay).exp()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn cost(ewma: &PeakEwma) -> f64 {
        f64::from_bits(ewma.cost.load(Ordering::Relaxed))
    }

    #[test]
    fn lb_1_peaks_at_once_and_decays_with_time() {
        let ewma = PeakEwma::default();
        let cases = [
            (0, 100.0, 100.0),
            (1, 10.0, 91.435_368),
            (2, 10.0, 83.685_768),
            (10, 10.0, 43.109_15),
            (11, 200.0, 200.0),
            (21, 100.0, 136.787_944),
        ];
        for (t, rtt, want) in cases {
            ewma.observe(Tick(t + 1), rtt, 10.0);
            let got = cost(&ewma);
            assert!((got - want).abs() < 1e-6, "t = {t}: {got}, want {want}");
        }
    }

    #[test]
    fn reading_decays_without_a_sample_and_history_is_known() {
        let ewma = PeakEwma::default();
        assert!(!ewma.has_history());
        assert!(ewma.read(Tick(u64::MAX), 10e9).abs() < f64::EPSILON);
        ewma.observe(Tick(0), 1e6, 10e9);
        assert!(ewma.has_history(), "a sample at time 0 is a sample");
        let after = ewma.read(Tick(10_000_000_000), 10e9);
        assert!((after - 1e6 / std::f64::consts::E).abs() < 1.0, "{after}");
        assert!(ewma.read(Tick(u64::MAX), 10e9) < 1.0);
        // Time that runs backwards is no time.
        ewma.observe(Tick(u64::MAX), 5.0, 10e9);
        ewma.observe(Tick(1), 3.0, 10e9);
        assert!((cost(&ewma) - 5.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_call_given_up_counts_only_if_it_was_longer_than_known() {
        let ewma = PeakEwma::default();
        ewma.observe(Tick(1), 100.0, 10.0);
        ewma.observe_at_least(Tick(1), 50.0, 10.0);
        assert!((cost(&ewma) - 100.0).abs() < f64::EPSILON);
        ewma.observe_at_least(Tick(1), 500.0, 10.0);
        assert!((cost(&ewma) - 500.0).abs() < f64::EPSILON);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_peak_is_never_lost() {
        loom::model(|| {
            let ewma = Arc::new(PeakEwma::default());
            ewma.observe(Tick(1), 50.0, 10.0);
            let other = {
                let ewma = Arc::clone(&ewma);
                thread::spawn(move || ewma.observe(Tick(100), 1000.0, 10.0))
            };
            ewma.observe(Tick(100), 1.0, 10.0);
            other.join().expect("no panic");
            // Whichever came last: it is the peak, or it let a peak without an age decay.
            let cost = f64::from_bits(ewma.cost.load(Ordering::Relaxed));
            assert!(cost >= 999.0, "{cost}");
        });
    }
}
