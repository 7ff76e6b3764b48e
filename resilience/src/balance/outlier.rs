//! Outlier ejection: an endpoint that keeps failing is left out for a while.
//!
//! The registry learns of a death by a missed renewal, seconds later. The callers know after the
//! first refused connection. Each balancer therefore keeps its own count and its own verdict.
//!
//! Source: Envoy's outlier detection (consecutive 5xx 5, base ejection 30 s, at most 300 s, growing
//! with each ejection). The share that may be out at once follows Envoy too, with one change that
//! its users asked for: of two or more endpoints at least one may always be ejected.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    clock::Tick,
    config::{Millis, PolicyError, Ratio, ensure},
    outcome::{FailureClass, Outcome},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// When an endpoint is left out, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct OutlierConfig {
    /// Failed answers in a row that eject; 0 is off. Default 5: Envoy `consecutive_5xx`.
    pub consecutive_5xx: u32,
    /// Failed connections in a row that eject; 0 is off. Default 1: nginx `max_fails`; a refused
    /// connection is a fact, not a symptom, and whoever restarts registers anew.
    pub consecutive_connect: u32,
    /// How long the first ejection lasts; the n-th lasts n times as long. Default "30s": Envoy
    /// `base_ejection_time`.
    pub eject: Millis,
    /// The longest an ejection lasts. Default "300s": Envoy `max_ejection_time`.
    pub eject_max: Millis,
    /// Share of endpoints that may be out at once, in [0, 1]; of two or more endpoints at least
    /// one may be. Default 50 %: a guess; Envoy's 10 % protects large clusters, ours are small.
    pub max_ejected: Ratio,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_connect: 1,
            eject: Millis::new(30_000),
            eject_max: Millis::new(300_000),
            max_ejected: Ratio::percent(50),
        }
    }
}

impl OutlierConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            !self.eject.0.is_zero(),
            "eject",
            self.eject,
            "more than \"0s\"",
        )?;
        let max = format!("at least eject = {}", self.eject);
        ensure(
            self.eject_max >= self.eject,
            "eject_max",
            self.eject_max,
            &max,
        )?;
        ensure(
            self.max_ejected.fraction() <= 1.0,
            "max_ejected",
            self.max_ejected,
            "0% to 100%",
        )
    }

    fn duration(&self, times: u32) -> Duration {
        self.eject
            .0
            .saturating_mul(times.max(1))
            .min(self.eject_max.0)
    }
}

/// What all endpoints of one destination share.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) config: arc_swap::ArcSwap<OutlierConfig>,
    pub(super) size: AtomicU32,
    pub(super) ejected: AtomicU32,
    pub(super) ejections: AtomicU64,
    /// Ejections that `max_ejected` did not allow.
    pub(super) overflow: AtomicU64,
}

impl Group {
    /// Takes one of the places for ejected endpoints.
    fn try_enter(&self, config: &OutlierConfig) -> bool {
        let size = self.size.load(Ordering::Relaxed);
        let share = (f64::from(size) * config.max_ejected.fraction()) as u32;
        let allowed = share.max(u32::from(size >= 2)).min(size.saturating_sub(1));
        let mut out = self.ejected.load(Ordering::Relaxed);
        while out < allowed {
            match self.ejected.compare_exchange_weak(
                out,
                out + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(seen) => out = seen,
            }
        }
        false
    }

    fn leave(&self) {
        self.ejected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The verdict on one endpoint.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// 0: in. Else the tick until which it is out.
    ejected_until: AtomicU64,
    failed_answers: AtomicU32,
    failed_connects: AtomicU32,
    times: AtomicU32,
}

impl Health {
    /// Takes the result of one call; `true` if it ejected the endpoint.
    pub(super) fn record(&self, group: &Group, outcome: Outcome, now: Tick) -> bool {
        let in_a_row = match outcome {
            Outcome::Success | Outcome::RateLimited => {
                self.clear();
                return false;
            }
            Outcome::Ignored | Outcome::Cancelled => return false,
            Outcome::Failure(FailureClass::Connect) => &self.failed_connects,
            Outcome::Failure(_) => &self.failed_answers,
        };
        let count = in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        let config = group.config.load();
        let limit = match outcome {
            Outcome::Failure(FailureClass::Connect) => config.consecutive_connect,
            _ => config.consecutive_5xx,
        };
        limit > 0 && count >= limit && self.eject(group, &config, now)
    }

    fn eject(&self, group: &Group, config: &OutlierConfig, now: Tick) -> bool {
        if self.ejected_until.load(Ordering::Acquire) != 0 {
            return false;
        }
        if !group.try_enter(config) {
            group.overflow.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let times = self.times.load(Ordering::Relaxed).saturating_add(1);
        let until = now.plus(config.duration(times)).0.max(1);
        let first = self
            .ejected_until
            .compare_exchange(0, until, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            self.times.store(times, Ordering::Relaxed);
            group.ejections.fetch_add(1, Ordering::Relaxed);
        } else {
            group.leave();
        }
        first
    }

    /// Whether the endpoint is out at `now`; one whose time is over comes back here.
    pub(super) fn is_ejected(&self, group: &Group, now: Tick) -> bool {
        match self.ejected_until.load(Ordering::Acquire) {
            0 => false,
            until if now.0 < until => true,
            until => {
                self.readmit(group, until);
                false
            }
        }
    }

    /// Brings it back, once, whoever notices; its counts start anew, its history of ejections not.
    fn readmit(&self, group: &Group, until: u64) {
        let first = self
            .ejected_until
            .compare_exchange(until, 0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            self.failed_answers.store(0, Ordering::Relaxed);
            // One more refused connection is enough to send it back.
            let limit = group.config.load().consecutive_connect;
            self.failed_connects
                .store(limit.saturating_sub(1), Ordering::Relaxed);
            group.leave();
        }
    }

    /// Brings it back whatever its time: it is no longer a member, or was found healthy.
    pub(super) fn release(&self, group: &Group) {
        let until = self.ejected_until.load(Ordering::Acquire);
        if until != 0 {
            self.readmit(group, until);
        }
    }

    fn clear(&self) {
        for count in [&self.failed_answers, &self.failed_connects] {
            if count.load(Ordering::Relaxed) != 0 {
                count.store(0, Ordering::Relaxed);
            }
        }
        // A healthy answer makes the next ejection shorter again.
        if self.times.load(Ordering::Relaxed) != 0
            && self.ejected_until.load(Ordering::Relaxed) == 0
        {
            self.times.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn ejected_for(&self, now: Tick) -> Duration {
        Tick(self.ejected_until.load(Ordering::Relaxed)).since(now)
    }
}
