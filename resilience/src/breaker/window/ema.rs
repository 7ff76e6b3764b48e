//! A window without an edge: each call counts a little less than the one after it.

use super::{BANKS, Counts, Sample};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Exponentially weighted shares of failed and slow calls, over about N calls.
///
/// One word holds both shares as `f32`, for each bank. The first call sets the shares; each later
/// one moves them by `1 − e^(−1/N)` of the way. Shares of nothing stay what they are, so as long as
/// nothing has failed or was slow, calls after the first need not be put in.
///
/// Source: Finagle `FailureAccrualPolicy.successRate` and its `Ema`.
#[derive(Debug)]
pub(crate) struct Ema {
    span: AtomicU32,
    /// Bits of `f32`.
    keep: AtomicU32,
    shares: [AtomicU64; BANKS as usize],
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
        let ema = Self {
            span: AtomicU32::new(0),
            keep: AtomicU32::new(0),
            shares: std::array::from_fn(|_| AtomicU64::new(EMPTY)),
        };
        ema.set_span(span);
        ema
    }

    /// The same shares, to be moved at another pace from now on.
    pub(crate) fn set_span(&self, span: u32) {
        let keep = (-1.0 / f64::from(span)).exp() as f32;
        self.span.store(span, Ordering::Relaxed);
        self.keep.store(keep.to_bits(), Ordering::Relaxed);
    }

    /// Begins anew in bank `at`.
    pub(crate) fn forget(&self, at: usize) {
        // Swapped, not stored: what a straggler is just writing must come before or fail.
        self.shares[at].swap(EMPTY, Ordering::AcqRel);
    }

    /// Puts a call in; returns the shares of failed and slow ones with it.
    pub(crate) fn record(&self, at: usize, sample: Sample) -> (f32, f32) {
        let keep = f32::from_bits(self.keep.load(Ordering::Relaxed));
        let share = |yes: bool| f32::from(u8::from(yes));
        let (failed, slow) = (share(sample.failed), share(sample.slow));
        let word = &self.shares[at];
        let mut seen = word.load(Ordering::Acquire);
        loop {
            let (f, s) = if seen == EMPTY {
                (failed, slow)
            } else {
                let mix = |old: f32, new: f32| old * keep + new * (1.0 - keep);
                let (f, s) = unpack(seen);
                (mix(f, failed), mix(s, slow))
            };
            let next = pack(f, s);
            if next == seen {
                return (f, s);
            }
            match word.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return (f, s),
                Err(now) => seen = now,
            }
        }
    }

    /// The shares as if of whole calls; of at most as many as it is about.
    pub(crate) fn counts(&self, at: usize, calls: u64) -> Counts {
        let (failed, slow) = unpack(self.shares[at].load(Ordering::Acquire));
        let total = calls.min(self.span.load(Ordering::Relaxed).into()) as u32;
        let of = |share: f32| (f64::from(share) * f64::from(total)).round() as u32;
        Counts {
            total,
            failed: of(failed),
            slow: of(slow),
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
                thread::spawn(move || ema.record(0, bad))
            };
            ema.record(0, bad);
            other.join().expect("no panic");
            let (failed, slow) = unpack(ema.shares[0].load(Ordering::Acquire));
            assert!((failed - 1.0).abs() < 1e-6 && slow <= 0.0);
        });
    }
}
