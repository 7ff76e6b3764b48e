//! What is looked after by the way: ejections that are over, and the interval at whose end endpoints
//! are compared.
//!
//! There is no task that does it: a pick that finds something due does, and only one at a time. A
//! timer may spare the picks that, through [`Balancer::tick`].

use std::time::{Duration, Instant};

use super::{
    Balancer, Key, OutlierConfig, Probe,
    outlier::{Sample, judge},
    view::View,
};
use crate::{
    clock::{Tick, nanos},
    due::is_astray,
    events::{EventKind, Return},
};

/// The interval over which endpoints are compared, and what was told of them last.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    began: Option<Tick>,
    panics: bool,
}

impl<K: Key> Balancer<K> {
    /// Does what is due at `now`: lets in whose time is over, and at the end of an interval compares
    /// the endpoints. Picks do it by the way; a timer that calls this spares them, and keeps
    /// the [status](Self::status) true where nobody calls.
    ///
    /// One load if nothing is due, O(n) otherwise; returns at once if another thread is at it.
    pub fn tick(&self, now: Instant) {
        let now = Tick::at(now);
        if self.0.shared.due.is_due(now) {
            self.look(now);
        }
    }

    #[cold]
    pub(super) fn look(&self, now: Tick) {
        let (view, shared) = (&self.0.view, &self.0.shared);
        let Some(mut sweeper) = self.0.sweeper.try_lock() else {
            return;
        };
        shared.due.begin();
        let (view, config) = (view.load(), shared.outlier.load());
        for slot in view.slots() {
            slot.endpoint.readmit_if_due(now);
        }
        let ends = sweeper.sweep(&view, &config, now);
        view.count(now);
        let (panics, (healthy, all)) = view.panics();
        if panics != std::mem::replace(&mut sweeper.panics, panics) {
            shared.tell(None, now, || EventKind::Panic {
                begun: panics,
                healthy,
                all,
            });
        }
        let out = view
            .slots()
            .filter_map(|slot| slot.endpoint.health.until())
            .map(|until| until.0);
        let next = out.min().unwrap_or(u64::MAX).min(ends);
        shared.due.finish(now, next);
    }

    /// Takes what an active health check found. Keys that are not known are ignored.
    pub fn report(&self, key: &K, probe: Probe, now: Instant) {
        let (view, now) = (self.0.view.load(), Tick::at(now));
        let Some(endpoint) = view.members.iter().find(|e| e.key == *key) else {
            return;
        };
        let passed = probe == Probe::Passed;
        let news = endpoint.health.set_unhealthy(!passed);
        if news {
            endpoint.tell(now, || EventKind::Checked { passed });
        }
        if passed {
            endpoint.readmit_now(Return::CheckPassed, now);
            if news {
                endpoint.is_back(now);
            }
        }
        if news {
            self.0.shared.due.request();
        }
    }
}

impl Sweeper {
    /// Ends the intervals that are over at `now`; the tick at which the next one ends.
    ///
    /// Judged as of the end of the first of them, as a timer would have: if nobody came for long,
    /// an ejection may be over already, and has only made the next one longer.
    fn sweep<K: Key>(&mut self, view: &View<K>, config: &OutlierConfig, now: Tick) -> u64 {
        let interval = nanos(config.interval.0).max(1);
        let began = self.began.filter(|began| !is_astray(began.0, 0, now));
        let began = *self.began.insert(began.unwrap_or(now));
        let ended = now.0.saturating_sub(began.0) / interval;
        if ended == 0 {
            return began.0.saturating_add(interval);
        }
        let last = began.0 + ended * interval;
        self.began = Some(Tick(last));
        let slots: Vec<_> = view.slots().collect();
        let mut samples = Vec::with_capacity(slots.len());
        for slot in &slots {
            let endpoint = &slot.endpoint;
            // Those ends of intervals that it has seen.
            let since = endpoint.since().0;
            let missed = since.saturating_sub(began.0) / interval;
            endpoint.health.forgive(ended.saturating_sub(missed));
            let (calls, failed) = endpoint.take_interval();
            let timed = if config.latency.enforce {
                endpoint.take_latencies(config.latency.quantile.fraction())
            } else {
                (0, Duration::ZERO)
            };
            samples.push(if endpoint.health.until().is_none() {
                Sample {
                    calls,
                    failed,
                    timed,
                }
            } else {
                Sample::default()
            });
        }
        let first = Tick(began.0 + interval);
        for (n, cause) in judge(&samples, config) {
            slots[n].endpoint.eject(cause, config, first);
        }
        last.saturating_add(interval)
    }
}
