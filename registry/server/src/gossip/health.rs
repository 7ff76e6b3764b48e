//! How well this very server does, so that it does not blame others for its own slowness.
//!
//! A server that the scheduler starves, that swaps or that was stopped hears everybody late, and a
//! failure detector that trusts its own clock then declares the healthy dead. Lifeguard's idea: let
//! a server notice its own lateness, and be slower to judge while it lasts.
//!
//! # Guarantees
//! The score is in 0 to [`MAX_SCORE`]. It rises when the server's own tick comes more than twice
//! as late as it should, by as many ticks as were missed, and falls by one with each timely tick.
//!
//! # Source
//! Lifeguard: Local Health Awareness for More Accurate Failure Detection (arXiv 1707.00788);
//! memberlist's `AwarenessMaxMultiplier` of 8.

use std::time::{Duration, Instant};

/// The worst score: deadlines are then eight times as long.
pub const MAX_SCORE: u32 = 7;

/// This server's own lateness.
#[derive(Debug)]
pub struct LocalHealth {
    interval: Duration,
    last: Instant,
    score: u32,
}

impl LocalHealth {
    /// A healthy server that ticks every `interval`, from `now` on.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            last: now,
            score: 0,
        }
    }

    /// The server runs at `now`; `tick`: because its tick was due. Returns for how long it has
    /// stood still, zero if it has not.
    pub fn observe(&mut self, now: Instant, tick: bool) -> Duration {
        let elapsed = now.saturating_duration_since(self.last);
        if elapsed > self.interval * 2 {
            let missed = elapsed.as_nanos() / self.interval.as_nanos().max(1) - 1;
            let missed = u32::try_from(missed).unwrap_or(u32::MAX);
            self.score = self.score.saturating_add(missed).min(MAX_SCORE);
            self.last = now;
            return elapsed.saturating_sub(self.interval);
        }
        if tick {
            self.score = self.score.saturating_sub(1);
            self.last = now;
        }
        Duration::ZERO
    }

    /// 0 is healthy; deadlines are to be multiplied by one more than this.
    pub fn score(&self) -> u32 {
        self.score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_raises_the_score_and_timely_ticks_lower_it() {
        let start = Instant::now();
        let mut health = LocalHealth::new(Duration::from_millis(500), start);
        let mut at = start;
        for (what, ms, tick, score, still_ms) in [
            ("in time", 500, true, 0, 0),
            ("late, but not too late", 1_000, true, 0, 0),
            ("more than twice as late", 1_100, true, 1, 600),
            ("woken between two ticks", 100, false, 1, 0),
            ("in time again", 400, true, 0, 0),
            ("three missed", 2_000, true, 3, 1_500),
            (
                "stopped for a minute, woken by a datagram",
                60_000,
                false,
                7,
                59_500,
            ),
            ("and its tick", 0, true, 6, 0),
            ("in time", 500, true, 5, 0),
        ] {
            at += Duration::from_millis(ms);
            let still = health.observe(at, tick);
            assert_eq!(
                (health.score(), still.as_millis()),
                (score, still_ms),
                "{what}"
            );
        }
        assert_eq!(health.observe(start, true), Duration::ZERO, "never back");
    }
}
