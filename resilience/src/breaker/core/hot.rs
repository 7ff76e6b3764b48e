//! What each call reads of a configuration: words, so that no call takes a lock for it.

use super::super::{
    config::{BreakerConfig, OnCancel},
    probes,
    state::Cause,
    window::Rates,
};
use crate::{
    clock::nanos,
    config::Ratio,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// What each call reads of the configuration, published by the lock's owner.
#[derive(Debug)]
pub(super) struct Hot {
    pub(super) slow_after: AtomicU64,
    /// Bits of `f64`.
    pub(super) failure_rate: AtomicU64,
    /// Infinite if slow calls do not count.
    pub(super) slow_rate: AtomicU64,
    /// Zero if the failure rate judges probes.
    pub(super) close_rate: AtomicU64,
    pub(super) min_calls: AtomicU32,
    pub(super) consecutive: AtomicU32,
    pub(super) probes: AtomicU32,
    pub(super) judge_cancelled: AtomicU32,
    pub(super) probe_wait: AtomicU64,
    pub(super) generation: AtomicU64,
}

impl Hot {
    pub(super) fn new(config: &BreakerConfig) -> Self {
        let zero = || AtomicU64::new(0);
        let hot = Self {
            slow_after: zero(),
            failure_rate: zero(),
            slow_rate: zero(),
            close_rate: zero(),
            min_calls: AtomicU32::new(1),
            consecutive: AtomicU32::new(0),
            probes: AtomicU32::new(1),
            judge_cancelled: AtomicU32::new(0),
            probe_wait: zero(),
            generation: zero(),
        };
        hot.publish(config);
        hot
    }

    pub(super) fn publish(&self, config: &BreakerConfig) {
        let set = |to: &AtomicU64, share: f64| to.store(share.to_bits(), Ordering::Relaxed);
        set(&self.failure_rate, config.failure_rate.fraction());
        let slow = config.slow_rate.map_or(f64::INFINITY, Ratio::fraction);
        set(&self.slow_rate, slow);
        set(
            &self.close_rate,
            config.close_rate.map_or(0.0, Ratio::fraction),
        );
        self.slow_after
            .store(nanos(config.slow_after.0), Ordering::Relaxed);
        self.min_calls.store(config.min_calls(), Ordering::Relaxed);
        self.consecutive
            .store(config.consecutive, Ordering::Relaxed);
        self.probes.store(config.probes, Ordering::Relaxed);
        let judge = u32::from(config.on_cancel == OnCancel::Judge);
        self.judge_cancelled.store(judge, Ordering::Relaxed);
        self.probe_wait
            .store(nanos(config.probe_wait.0), Ordering::Relaxed);
    }

    pub(super) fn share(of: &AtomicU64) -> f64 {
        f64::from_bits(of.load(Ordering::Relaxed))
    }

    /// The threshold that `rates` of enough calls reach, if they do.
    pub(super) fn reached(&self, rates: Rates) -> Option<Cause> {
        if rates.failed >= Self::share(&self.failure_rate) {
            Some(Cause::FailureRate)
        } else if rates.slow >= Self::share(&self.slow_rate) {
            Some(Cause::SlowRate)
        } else {
            None
        }
    }

    /// Whether the probes passed; `None` as long as too few are done.
    pub(super) fn verdict(&self, tally: probes::Tally) -> Option<bool> {
        let limit = self.probes.load(Ordering::Relaxed);
        let needed = self.min_calls.load(Ordering::Relaxed).min(limit).max(1);
        if tally.done < u64::from(needed) {
            return None;
        }
        let share = |part: u64| part as f64 / tally.done as f64;
        let close_rate = Self::share(&self.close_rate);
        let failed = if close_rate > 0.0 {
            share(tally.done - tally.failed) < close_rate
        } else {
            share(tally.failed) >= Self::share(&self.failure_rate)
        };
        Some(!failed && share(tally.slow) < Self::share(&self.slow_rate))
    }
}
