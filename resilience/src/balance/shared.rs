//! What all endpoints of one destination share: when to look at them, whom to tell, their places.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use super::{
    OutlierConfig, SlowStartConfig,
    outlier::{Cause, Places},
};
use crate::{
    clock::{Tick, nanos},
    due::is_astray,
    events::{Event, EventKind, Events},
    outcome::Policy,
    rng::Rng,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// When somebody must look at the endpoints again: a verdict's time is over, an interval ends, or
/// something has changed. One load a pick where there is nothing to do.
#[derive(Debug, Default)]
pub(super) struct Due {
    at: AtomicU64,
    /// How far off it was when it was set.
    most: AtomicU64,
}

/// In the place of a moment, while somebody looks.
const LOOKING: u64 = u64::MAX;

impl Due {
    /// Something has changed: whoever picks next looks.
    pub(super) fn request(&self) {
        // Swapped, not stored: a look that is just ending comes before it or sees it.
        self.at.swap(0, Ordering::AcqRel);
    }

    pub(super) fn is_due(&self, now: Tick) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        now.0 >= at || at != LOOKING && is_astray(at, self.most.load(Ordering::Relaxed), now)
    }

    /// A look begins: what is requested from now on it may miss.
    pub(super) fn begin(&self) {
        self.at.swap(LOOKING, Ordering::AcqRel);
    }

    /// It has ended at `now`; the next is due at `next`, or at once if one was requested meanwhile.
    pub(super) fn finish(&self, now: Tick, next: u64) {
        self.most
            .store(next.saturating_sub(now.0), Ordering::Relaxed);
        let missed = self
            .at
            .compare_exchange(
                LOOKING,
                next.min(LOOKING - 1),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_err();
        // Nothing but a request changes it meanwhile, and that stays.
        debug_assert!(!missed || self.at.load(Ordering::Relaxed) == 0);
    }
}

/// Whom a balancer tells what happens to its endpoints, and what it calls them.
pub(super) struct Teller<K> {
    pub(super) name: Arc<str>,
    pub(super) events: Events,
    pub(super) label: Option<fn(&K) -> String>,
}

impl<K> fmt::Debug for Teller<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller")
            .field("name", &self.name)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

/// What all endpoints of one destination share.
#[derive(Debug)]
pub(super) struct Shared<K> {
    pub(super) outlier: ArcSwap<OutlierConfig>,
    pub(super) places: Places,
    /// Ejections by cause, in the order of [`Cause::ALL`].
    pub(super) ejections: [AtomicU64; Cause::ALL.len()],
    /// Ejections that `max_ejected` did not allow.
    pub(super) overflow: AtomicU64,
    pub(super) due: Due,
    /// Time constant of the costs, in nanoseconds as bits of a float.
    decay: AtomicU64,
    /// 1 if latencies are compared.
    pub(super) timed: AtomicU32,
    /// Window of the slow start in nanoseconds; 0 is off.
    window: AtomicU64,
    /// From then on nobody is warming up.
    warm_at: AtomicU64,
    pub(super) rng: Rng,
    teller: Option<Teller<K>>,
}

impl<K> Shared<K> {
    pub(super) fn new(outlier: OutlierConfig, rng: Rng, teller: Option<Teller<K>>) -> Self {
        let timed = u32::from(outlier.latency.enforce);
        Self {
            outlier: ArcSwap::from_pointee(outlier),
            places: Places::default(),
            ejections: std::array::from_fn(|_| AtomicU64::new(0)),
            overflow: AtomicU64::new(0),
            due: Due::default(),
            decay: AtomicU64::new(0),
            timed: AtomicU32::new(timed),
            window: AtomicU64::new(0),
            warm_at: AtomicU64::new(0),
            rng,
            teller,
        }
    }

    /// Tells of an endpoint, or of all.
    pub(super) fn tell(&self, endpoint: Option<&K>, at: Tick, kind: impl FnOnce() -> EventKind) {
        if let Some(teller) = &self.teller {
            teller.events.emit(|| Event {
                name: Arc::clone(&teller.name),
                policy: Policy::Balancer,
                endpoint: endpoint
                    .zip(teller.label)
                    .map(|(key, label)| label(key).into()),
                at: at.instant(),
                kind: kind(),
            });
        }
    }

    pub(super) fn reconfigure(&self, outlier: OutlierConfig) {
        let timed = u32::from(outlier.latency.enforce);
        self.outlier.store(Arc::new(outlier));
        self.timed.store(timed, Ordering::Relaxed);
        self.due.request();
    }

    pub(super) fn set_pace(&self, decay: Duration, slow_start: Option<&SlowStartConfig>) {
        let decay = nanos(decay).max(1) as f64;
        self.decay.store(decay.to_bits(), Ordering::Relaxed);
        let window = slow_start.map_or(0, |slow| nanos(slow.window.0));
        self.window.store(window, Ordering::Relaxed);
        self.warm_at.store(0, Ordering::Relaxed);
    }

    pub(super) fn decay(&self) -> f64 {
        f64::from_bits(self.decay.load(Ordering::Relaxed))
    }

    /// Somebody warms up from `since` on.
    pub(super) fn warms(&self, since: Tick) {
        let window = self.window.load(Ordering::Relaxed);
        if window > 0 {
            let until = since.0.saturating_add(window);
            if is_astray(self.warm_at.load(Ordering::Relaxed), window, since) {
                self.warm_at.store(until, Ordering::Relaxed);
            }
            self.warm_at.fetch_max(until, Ordering::Relaxed);
        }
    }

    pub(super) fn is_anybody_warming(&self, now: Tick) -> bool {
        let warm_at = self.warm_at.load(Ordering::Relaxed);
        now.0 < warm_at && !is_astray(warm_at, self.window.load(Ordering::Relaxed), now)
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_change_is_seen_by_the_look_under_way_or_asks_for_another() {
        loom::model(|| {
            let all = Arc::new((Due::default(), AtomicU32::new(0)));
            let other = {
                let all = Arc::clone(&all);
                thread::spawn(move || {
                    all.1.store(1, Ordering::Release);
                    all.0.request();
                })
            };
            all.0.begin();
            let seen = all.1.load(Ordering::Acquire);
            all.0.finish(Tick(0), 100);
            other.join().expect("no panic");
            assert!(seen == 1 || all.0.is_due(Tick(0)));
        });
    }
}
