//! A window without an edge: each call counts a little less than the one after it.

use super::{Counts, Rates, Sample};
use crate::sync::{AtomicU64, Ordering};

/// Exponentially weighted shares of failed and slow calls, over about N calls.
///
/// One word holds both shares as `f32`, one more the number of calls. The first call sets the
/// shares; each later one moves them by `1 − e^(−1/N)` of the way.
///
/// Source: Finagle `FailureAccrualPolicy.successRate` and its `Ema`.
#[derive(Debug)]
pub(crate) struct Ema {
    span: u32,
    keep: f32,
    calls: AtomicU64,
    shares: AtomicU64,
}

/// No call yet: no pair of shares has these bits.
const EMPTY: u64 = u64::MAX;

fn pack(failed: f32, slow: f32) -> u64 {
    u64::from(failed.to_bits()) << 32 | u64::from(slow.to_bits())
}

fn unpack(word: u64) -> (f32, f32) {
    if word == EMPTY {
        (0.0, 0.0)
    } else {
        (
            f32::from_bits((word >> 32) as u32),
            f32::from_bits(word as u32),
        )
    }
}

impl Ema {
    pub(crate) fn new(span: u32) -> Self {
        Self {
            span,
            keep: (-1.0 / f64::from(span)).exp() as f32,
            calls: AtomicU64::new(0),
            shares: AtomicU64::new(EMPTY),
        }
    }

    pub(crate) fn span(&self) -> u32 {
        self.span
    }

    /// The same shares, to be moved at another pace from now on.
    pub(crate) fn respanned(&self, span: u32) -> Self {
        let other = Self::new(span);
        other
            .calls
            .store(self.calls.load(Ordering::Acquire), Ordering::Relaxed);
        other
            .shares
            .store(self.shares.load(Ordering::Acquire), Ordering::Relaxed);
        other
    }

    pub(crate) fn record(&self, sample: Sample) {
        let (failed, slow) = (
            f32::from(u8::from(sample.failed)),
            f32::from(u8::from(sample.slow)),
        );
        let mut seen = self.shares.load(Ordering::Acquire);
        loop {
            let next = if seen == EMPTY {
                pack(failed, slow)
            } else {
                let (f, s) = unpack(seen);
                let mix = |old: f32, new: f32| old * self.keep + new * (1.0 - self.keep);
                pack(mix(f, failed), mix(s, slow))
            };
            match self
                .shares
                .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        self.calls.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn rates(&self) -> Rates {
        let (failed, slow) = unpack(self.shares.load(Ordering::Acquire));
        Rates {
            calls: self.calls.load(Ordering::Acquire),
            failed: f64::from(failed),
            slow: f64::from(slow),
        }
    }

    /// The shares as if of whole calls.
    pub(crate) fn counts(&self) -> Counts {
        let rates = self.rates();
        let total = rates.calls.min(u64::from(self.span)) as u32;
        let of = |share: f64| (share * f64::from(total)).round() as u32;
        Counts {
            total,
            failed: of(rates.failed),
            slow: of(rates.slow),
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn no_sample_is_lost_between_two_writers() {
        loom::model(|| {
            let ema = Arc::new(Ema::new(1));
            let bad = Sample {
                failed: true,
                slow: false,
            };
            let other = {
                let ema = Arc::clone(&ema);
                thread::spawn(move || ema.record(bad))
            };
            ema.record(bad);
            other.join().expect("no panic");
            let rates = ema.rates();
            assert_eq!(rates.calls, 2);
            assert!((rates.failed - 1.0).abs() < 1e-6);
        });
    }
}
