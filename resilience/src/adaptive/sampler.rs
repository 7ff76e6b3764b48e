//! What calls cost, gathered by many threads and read once a window.
//!
//! ```text
//! word: AtomicU64 = samples (16 bits) | sum of round trips in ns (48 bits)
//! ```
//!
//! One addition a call. Round trips are clipped at 2³³ ns (8.6 s) and a window stops counting at
//! 2¹⁴ samples, so the sum stays below 2⁴⁷ and can neither overflow nor run into the count. For a
//! median the last samples also go into a ring; a writer that is preempted between its count and
//! its store leaves an older sample there, which no median of dozens notices.

use super::algorithm::Sample;
use crate::lanes::Line;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const COUNT_SHIFT: u32 = 48;
const SUM: u64 = (1 << COUNT_SHIFT) - 1;
const CLIP: u64 = 1 << 33;
/// Samples after which a window has seen enough.
const ENOUGH: u32 = 1 << 14;
const RING: usize = 256;

#[derive(Debug)]
pub(super) struct Sampler {
    word: Line<AtomicU64>,
    dropped: AtomicU32,
    in_flight: AtomicU32,
    ring: Box<[AtomicU64]>,
}

impl Sampler {
    pub(super) fn new() -> Self {
        Self {
            word: Line(AtomicU64::new(0)),
            dropped: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            ring: (0..RING).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// A call that took `rtt` ns; `in_flight` with it were under way. Returns how many samples the
    /// window holds.
    pub(super) fn add(&self, rtt: u64, in_flight: u32) -> u32 {
        self.most(in_flight);
        let seen = (self.word.load(Ordering::Relaxed) >> COUNT_SHIFT) as u32;
        if seen >= ENOUGH {
            return seen;
        }
        let rtt = rtt.clamp(1, CLIP);
        let before = self
            .word
            .fetch_add((1 << COUNT_SHIFT) | rtt, Ordering::Relaxed);
        let index = (before >> COUNT_SHIFT) as usize;
        self.ring[index % RING].store(rtt, Ordering::Relaxed);
        index as u32 + 1 + self.dropped.load(Ordering::Relaxed)
    }

    /// A call that was dropped.
    pub(super) fn add_dropped(&self, in_flight: u32) -> u32 {
        self.most(in_flight);
        let seen = (self.word.load(Ordering::Relaxed) >> COUNT_SHIFT) as u32;
        self.dropped
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1)
            .saturating_add(seen)
    }

    fn most(&self, in_flight: u32) {
        if self.in_flight.load(Ordering::Relaxed) < in_flight {
            self.in_flight.fetch_max(in_flight, Ordering::Relaxed);
        }
    }

    /// Ends the window and begins the next.
    pub(super) fn close(&self) -> Sample {
        let word = self.word.swap(0, Ordering::Relaxed);
        let (count, sum) = ((word >> COUNT_SHIFT) as usize, word & SUM);
        let dropped = self.dropped.swap(0, Ordering::Relaxed) > 0;
        let in_flight = self.in_flight.swap(0, Ordering::Relaxed);
        Sample {
            mean: sum as f64 / count.max(1) as f64,
            median: self.median(count.min(RING)),
            in_flight,
            dropped,
        }
    }

    fn median(&self, count: usize) -> f64 {
        if count == 0 {
            return 0.0;
        }
        let mut sorted = [0; RING];
        for (to, from) in sorted.iter_mut().zip(&self.ring[..count]) {
            *to = from.load(Ordering::Relaxed);
        }
        let (_, median, _) = sorted[..count].select_nth_unstable((count - 1) / 2);
        *median as f64
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::float_cmp, reason = "whole numbers below 2⁵³ are exact")]
mod tests {
    use super::*;
    use crate::sync::rounds;

    #[test]
    fn adp_4_median_of_one_to_five_is_three() {
        let sampler = Sampler::new();
        for ms in [5u64, 1, 4, 2, 3] {
            sampler.add(ms * 1_000_000, 7);
        }
        let sample = sampler.close();
        assert_eq!((sample.median, sample.mean), (3e6, 3e6));
        assert_eq!((sample.in_flight, sample.dropped), (7, false));
        assert_eq!(sampler.close().median, 0.0, "the next window is empty");
    }

    #[test]
    fn the_longest_calls_and_the_fullest_window_do_not_run_over() {
        let sampler = Sampler::new();
        for _ in 0..2 * ENOUGH {
            sampler.add(u64::MAX, u32::MAX);
        }
        assert_eq!(sampler.add(1, 1), ENOUGH);
        let sample = sampler.close();
        assert_eq!(sample.mean, CLIP as f64);
        assert_eq!(sample.in_flight, u32::MAX);
    }

    #[test]
    fn a_window_of_drops_has_no_round_trip() {
        let sampler = Sampler::new();
        assert_eq!(sampler.add_dropped(3), 1);
        assert_eq!(sampler.add(5, 1), 2);
        assert_eq!(sampler.add_dropped(1), 3);
        let sample = sampler.close();
        assert!(sample.dropped);
        assert_eq!((sample.mean, sample.in_flight), (5.0, 3));
    }

    #[test]
    fn two_threads_lose_no_sample() {
        let sampler = Sampler::new();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..rounds(5_000, 50) {
                        sampler.add(10, 1);
                    }
                });
            }
        });
        assert_eq!(u64::from(sampler.add(10, 1)), 2 * rounds(5_000, 50) + 1);
        assert_eq!(sampler.close().mean, 10.0);
    }
}
