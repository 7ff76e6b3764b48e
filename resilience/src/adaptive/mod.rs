//! Adaptive concurrency: a limit that finds itself.
//!
//! A bulkhead needs a number, and the right one changes with every release, every neighbour on the
//! machine, every slow disk. Little's law says where it lies: calls under way = rate × round trip,
//! and every call beyond what the callee works on at once only queues there. The round trip tells:
//! while it is that of an idle callee, there is room for more; when it grows, there is a queue. So
//! the limit follows the round trip, as a congestion window does, and drops (timeouts, refusals)
//! push it down.
//!
//! | algorithm | looks at | for |
//! |---|---|---|
//! | `aimd` | drops | callees whose round trip varies too much to say anything |
//! | `cubic` | drops, and the limit at the last one | the same, where `aimd` is too slow to come back |
//! | `vegas` | round trip over the best one known | steady callees |
//! | `gradient2` (default) | round trip over its own long average | most |
//! | `gradient` | round trip over one measured at a low limit | callees whose idle round trip drifts |
//!
//! ```
//! use std::time::Instant;
//! use selvedge_resilience::{Outcome, Rng, adaptive::{AdaptiveConfig, AdaptiveLimit}};
//!
//! let limit = AdaptiveLimit::new(AdaptiveConfig::default(), Rng::new(1))?;
//! let now = Instant::now();
//! let permit = limit.try_acquire(now).expect("nobody else calls");
//! permit.complete(Outcome::Success, now);
//! # Ok::<_, selvedge_resilience::config::PolicyError>(())
//! ```
//!
//! # Partitions
//! A limit shared by classes of calls is taken by the loudest. A class with a share is sure of
//! `max(1, ⌈limit × share⌉)` slots once the limit is reached; before that anybody may take any. So
//! the calls under way may exceed the limit by the shares of classes that come late.
//!
//! # Guarantees
//! - A call is two compare-and-swaps and one addition: no lock, no allocation. The limit is
//!   recomputed once a window by one caller, while the others go on. (The first window closes as
//!   soon as it holds its samples.)
//! - A sample counts only if it began after the last change of what is measured (its *epoch*): calls
//!   of a busy time say nothing about an idle callee. The others are counted as `stale`.
//! - Every algorithm lowers the limit when calls are dropped. A call that was cancelled is no
//!   sample, unless it had taken longer than `drop_after`.
//! - The limit stays between `min` and `max` (but while `gradient` measures), and changing it never
//!   cancels a call.
//!
//! # What it does not do
//! Two callers at the very edge of a full limit may each see a partition one call fuller than it
//! is, and be refused; no share is exceeded, no slot is lost. Calls of a partition do not wait in
//! the queue. No calls end, no limit moves: a callee that hangs is met by the timeout, whose
//! verdict is a drop. Fast failures are no samples: a callee that fails quickly is not one with room.
//!
//! # Source
//! Netflix concurrency-limits (AIMD, Vegas, Gradient2, windows, partitions); Envoy's adaptive
//! concurrency filter (gradient); RFC 9438 and the AWS SDKs (cubic). Gradient2 there ignores drops; Envoy's limit is exceeded by
//! racing requests; both are not so here.

mod algorithm;
mod config;
mod partition;
mod sampler;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use self::{
    algorithm::{Algorithm, Bounds, Next, Verdict},
    partition::{Share, shares},
    sampler::Sampler,
};
pub use self::{
    config::{
        AdaptiveConfig, AimdConfig, AlgorithmConfig, CubicConfig, Gradient2Config, GradientConfig,
        PartitionBy, VegasConfig,
    },
    partition::Partition,
};
use crate::{
    bulkhead::{
        Entry, Queued, Refusals,
        slots::{Rules, Slots},
        waiter,
    },
    clock::{Tick, nanos},
    config::PolicyError,
    due::Due,
    lanes::Lane,
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    rng::Rng,
    shared::{Lent, Shared},
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// What is asked once a window.
#[derive(Debug)]
struct Control {
    algorithm: Algorithm,
    bounds: Bounds,
    window: Duration,
    min_samples: u32,
}

#[derive(Debug)]
struct Core {
    slots: Slots,
    sampler: Sampler,
    /// Samples of an older epoch do not count.
    epoch: AtomicU32,
    /// When the window may close, and how many samples it must hold then.
    window_ends: Due,
    needed: AtomicU32,
    min_rtt: AtomicU64,
    drop_after: AtomicU64,
    control: Mutex<Control>,
    rules: ArcSwap<Rules>,
    shares: ArcSwap<Vec<Arc<Share>>>,
    refused: Refusals,
    dropped: AtomicU64,
    stale: AtomicU64,
    windows: AtomicU64,
    rng: Rng,
}

/// A limit on concurrent calls that adapts. Clones share one limit.
#[derive(Debug, Clone)]
pub struct AdaptiveLimit(Shared<Core>);

/// Gauges and counters, read without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Calls under way.
    pub in_flight: u32,
    /// The limit now.
    pub limit: u32,
    /// Calls that wait.
    pub waiting: u32,
    /// Refused because the limit was reached and nobody may wait.
    pub full: u64,
    /// Refused because as many waited as may.
    pub queue_full: u64,
    /// Refused after waiting.
    pub queue_timeout: u64,
    /// Calls that counted as dropped.
    pub dropped: u64,
    /// Samples that came after their epoch had ended.
    pub stale: u64,
    /// Windows that have moved the limit, or confirmed it.
    pub windows: u64,
}

impl AdaptiveLimit {
    /// A limit that begins at `initial`.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: AdaptiveConfig, rng: Rng) -> Result<Self, PolicyError> {
        config.validate()?;
        let bounds = config.bounds();
        let (algorithm, verdict) = Algorithm::start(&config.algorithm, bounds, &rng);
        let core = Core {
            slots: Slots::new(verdict.limit),
            sampler: Sampler::new(),
            epoch: AtomicU32::new(0),
            window_ends: Due::new(),
            needed: AtomicU32::new(config.min_samples),
            min_rtt: AtomicU64::new(nanos(config.min_rtt.0)),
            drop_after: AtomicU64::new(nanos(config.drop_after.0)),
            control: Mutex::new(Control {
                algorithm,
                bounds,
                window: config.window.0,
                min_samples: config.min_samples,
            }),
            rules: ArcSwap::from_pointee(rules(&config)),
            shares: ArcSwap::from_pointee(shares(&config, &[])),
            refused: Refusals::default(),
            dropped: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            windows: AtomicU64::new(0),
            rng,
        };
        core.begin(verdict, None, config.window.0, config.min_samples);
        Ok(Self(Shared::new(core)))
    }

    /// Takes a slot, now or not at all; whoever waits goes first.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Full`] if the limit is reached.
    pub fn try_acquire(&self, now: Instant) -> Result<Permit, Rejected> {
        match self.0.slots.try_take() {
            Some(in_flight) => Ok(self.begun(in_flight, now, None)),
            None => Err(self.full()),
        }
    }

    #[cold]
    fn full(&self) -> Rejected {
        self.0.refused.count(Reason::Full);
        Rejected::new(Policy::AdaptiveLimit, Reason::Full)
    }

    fn begun(&self, in_flight: u32, now: Instant, share: Option<Arc<Share>>) -> Permit {
        Permit {
            epoch: self.0.epoch.load(Ordering::Acquire),
            core: self.0.lend(Lane::here()),
            share,
            started: now,
            in_flight,
        }
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.0.slots.held()
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        self.0.slots.limit()
    }

    /// Whether it is low on purpose, to measure; also while somebody is just moving it.
    #[cfg_attr(not(feature = "tower"), expect(dead_code))]
    pub(crate) fn is_measuring(&self) -> bool {
        let control = self.0.control.try_lock();
        control.is_none_or(|control| control.algorithm.is_measuring())
    }

    /// Gauges and counters.
    pub fn status(&self) -> Status {
        let core = &self.0;
        let [full, queue_full, queue_timeout] = core.refused.read();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            in_flight: core.slots.held(),
            limit: core.slots.limit(),
            waiting: core.slots.waiting(),
            full,
            queue_full,
            queue_timeout,
            dropped: read(&core.dropped),
            stale: read(&core.stale),
            windows: read(&core.windows),
        }
    }

    /// Takes new parameters at once. The limit and what was learnt stay, within the new bounds;
    /// another algorithm begins at the limit of now. Calls under way and who waits stay.
    ///
    /// # Errors
    /// [`PolicyError`] if they cannot work; nothing changes then.
    pub fn reconfigure(&self, config: AdaptiveConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let core = &self.0;
        let mut control = core.control.lock();
        control.bounds = config.bounds();
        control.window = config.window.0;
        control.min_samples = config.min_samples;
        core.min_rtt
            .store(nanos(config.min_rtt.0), Ordering::Relaxed);
        core.drop_after
            .store(nanos(config.drop_after.0), Ordering::Relaxed);
        core.rules.store(Arc::new(rules(&config)));
        core.shares
            .store(Arc::new(shares(&config, &core.shares.load())));
        let limit = core.slots.limit().clamp(config.min, config.max);
        if control.algorithm.reconfigure(&config.algorithm) {
            if !control.algorithm.is_measuring() {
                core.slots.set_limit(limit);
            }
        } else {
            let bounds = Bounds {
                initial: f64::from(limit),
                ..control.bounds
            };
            let (algorithm, mut verdict) = Algorithm::start(&config.algorithm, bounds, &core.rng);
            control.algorithm = algorithm;
            // What the samples under way measure is no longer what is asked.
            if verdict.next == Next::Window {
                verdict.next = Next::FreshWindow;
            }
            core.begin(verdict, None, control.window, control.min_samples);
        }
        Ok(())
    }
}

fn rules(config: &AdaptiveConfig) -> Rules {
    let queue = config.queue.as_ref();
    queue.map_or(Rules::NO_QUEUE, crate::bulkhead::QueueConfig::rules)
}

impl Queued for AdaptiveLimit {
    type Permit = Permit;

    /// [`Reason::Full`] if the limit is reached and there is no queue, [`Reason::QueueFull`] if it
    /// is full too.
    fn acquire(&self, now: Instant) -> Result<Entry<Self>, Rejected> {
        if let Some(in_flight) = self.0.slots.try_take() {
            return Ok(Entry::Admitted(self.begun(in_flight, now, None)));
        }
        waiter::enter(self, &self.0.rules.load(), now)
    }

    const POLICY: Policy = Policy::AdaptiveLimit;

    fn slots(&self) -> &Slots {
        &self.0.slots
    }

    /// The round trip begins when the wait ends: a queue of our own is no queue of the callee's.
    fn permit(&self, now: Instant) -> Permit {
        self.begun(self.0.slots.held(), now, None)
    }

    fn refused(&self, reason: Reason) {
        self.0.refused.count(reason);
    }
}

impl Core {
    /// Begins a window as the algorithm says.
    fn begin(&self, verdict: Verdict, now: Option<Tick>, window: Duration, min_samples: u32) {
        let (now, needed, fresh) = match verdict.next {
            Next::Window => (now, min_samples, false),
            Next::FreshWindow => (now, min_samples, true),
            Next::Fresh(samples) => (None, samples, true),
        };
        match now {
            Some(now) => self.window_ends.set(now, nanos(window)),
            None => self.window_ends.set_now(),
        }
        self.needed.store(needed, Ordering::Relaxed);
        if fresh {
            self.epoch.fetch_add(1, Ordering::Release);
            self.sampler.close();
        }
        if self.slots.limit() != verdict.limit {
            self.slots.set_limit(verdict.limit);
        }
    }

    fn complete(&self, permit: &Permit, outcome: Outcome, now: Instant) {
        if permit.epoch != self.epoch.load(Ordering::Acquire) {
            self.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let rtt = nanos(now.saturating_duration_since(permit.started));
        let late = rtt > self.drop_after.load(Ordering::Relaxed);
        let dropped = match outcome {
            _ if late => true,
            Outcome::Success => false,
            Outcome::RateLimited
            | Outcome::Failure(
                FailureClass::Timeout | FailureClass::Connect | FailureClass::Reset,
            ) => true,
            Outcome::Failure(_) | Outcome::Ignored | Outcome::Cancelled => return,
        };
        let seen = if dropped {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.sampler.add_dropped(permit.in_flight)
        } else if rtt < self.min_rtt.load(Ordering::Relaxed) {
            return;
        } else {
            self.sampler.add(rtt, permit.in_flight)
        };
        if seen >= self.needed.load(Ordering::Relaxed) {
            let now = Tick::at(now);
            if self.window_ends.is_now(now) {
                self.close_window(permit.epoch, now);
            }
        }
    }

    /// Moves the limit. Whoever finds another at it goes on.
    #[cold]
    fn close_window(&self, epoch: u32, now: Tick) {
        let Some(mut control) = self.control.try_lock() else {
            return;
        };
        let raced = epoch != self.epoch.load(Ordering::Acquire) || !self.window_ends.is_now(now);
        if raced {
            return;
        }
        let sample = self.sampler.close();
        let bounds = control.bounds;
        let verdict = control.algorithm.update(&sample, bounds, now, &self.rng);
        self.windows.fetch_add(1, Ordering::Relaxed);
        self.begin(verdict, Some(now), control.window, control.min_samples);
    }
}

/// A slot with the time at which it was taken. Complete it with the call's result; dropping it
/// means cancelled, and is no sample.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once limits nothing"]
pub struct Permit {
    core: Lent<Core>,
    share: Option<Arc<Share>>,
    started: Instant,
    in_flight: u32,
    epoch: u32,
}

impl Permit {
    /// Ends the call with its result.
    pub fn complete(self, outcome: Outcome, now: Instant) {
        self.core.complete(&self, outcome, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(share) = &self.share {
            share.give_back();
        }
        self.core.slots.give_back();
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
