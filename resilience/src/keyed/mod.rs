//! A policy for each key: a bounded table from keys to cores.
//!
//! One circuit for a whole host opens for every method when one of them is broken; one rate limit
//! for all callers lets the loudest take everything. A core per key is the answer, and the danger:
//! keys come from requests, so whoever sends requests decides how many there are. A map that grows
//! with them is a leak (governor's keyed map), and one that forgets at will forgets the open
//! circuit just when it is needed.
//!
//! So the table is bounded, forgets the idle first, and asks each core before it is forgotten: an
//! open circuit stays until its time is over, a rate limit until its bucket is full again, at which
//! point forgetting it changes nothing.
//!
//! # When it is full and nobody may leave
//! Then everything tracked is open or in debt, and a new key shares the *overflow* core with all
//! other new keys ([`Found::tracked`] is false, `untracked` counts it). The other answer would be a
//! core that permits everything; but then a caller who invents enough keys has no limit at all, and
//! a destination that fails under all names is called under new ones. A shared core errs towards
//! protecting the callee, and it recovers by itself as soon as one tracked key may leave. Who would
//! rather let untracked calls pass asks `tracked`.
//!
//! # Guarantees
//! - Never more entries than the capacity, from any number of threads. (A capacity lowered below
//!   what is tracked is debt: nothing new comes in until enough has left.)
//! - A hit allocates nothing and takes one shard's lock for reading; hits do not wait for each
//!   other. A miss looks at no more than 64 entries for somebody to evict, however large the table.
//! - A key idle for longer than `idle` is as if it had never been, whether or not anything has
//!   swept it out: asking for it makes a fresh core. Unless its core must be kept.
//! - A core is never forgotten while its [`Keep::keep_for`] is above zero, but by
//!   [`Keyed::remove`].
//! - A removed key dies with its last permit: permits own their core, so results that come later
//!   land in the core that admitted them and nowhere else.
//!
//! # What it does not do
//! It runs no task: the idle leave as others come, a few at each miss, and all at once in
//! [`Keyed::sweep`]. Eviction is by sampling, so it takes *an* idle key, not always the idlest.
//! A circuit that opens by the result of a call whose key was evicted in between opens for nobody.
//!
//! # Source
//! Redis' sampled eviction (`maxmemory-samples`); linkerd and Finagle for a breaker per endpoint
//! with expiry; the veto is ours.

mod config;
mod shard;
mod slots;

use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    time::{Duration, Instant},
};

pub use self::config::KeyedConfig;
use self::{
    shard::{Moment, Shard},
    slots::{Place, Slots},
};
use crate::{
    clock::{Tick, nanos},
    config::PolicyError,
    sync::{AtomicU64, Ordering, plain::RwLock},
};

/// A core that may live in a [`Keyed`] table. A clone is a handle on the same state.
pub trait Keep: Clone {
    /// For how long from `now` the core must not be forgotten; zero if it may go,
    /// [`Duration::MAX`] if that depends on something else than time (permits that are out, an
    /// operator's word).
    ///
    /// Asked under a shard's lock: answer from the core's own atomics.
    fn keep_for(&self, now: Instant) -> Duration;
}

/// What a lookup finds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Found<C> {
    /// The key's own core, or the overflow core.
    pub core: C,
    /// Whether it is the key's own.
    pub tracked: bool,
}

/// Counters of a table, read without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KeyedStats {
    /// Keys tracked now.
    pub tracked: u32,
    /// Keys that may be tracked.
    pub capacity: u32,
    /// Keys taken in.
    pub inserted: u64,
    /// Keys that left because they were idle for their whole time.
    pub expired: u64,
    /// Keys that left earlier, to make room.
    pub evicted: u64,
    /// Keys removed by hand.
    pub removed: u64,
    /// Lookups that got the overflow core.
    pub untracked: u64,
}

/// Slots that one miss looks at to find somebody to evict; one shard gets a quarter of them.
const SCAN: usize = 64;
/// Slots of its own shard that each miss looks at for the expired.
const TIDY: usize = 4;
const SHARDS_MAX: u32 = 64;
/// A shard with fewer entries than this is not worth its lock.
const SHARD_SIZE: u32 = 32;

/// A bounded table of cores by key; see the [module](self).
///
/// ```
/// use std::{sync::Arc, time::Instant};
/// use selvedge_resilience::{
///     Outcome,
///     breaker::{BreakerConfig, CircuitBreaker},
///     keyed::{Keyed, KeyedConfig},
/// };
///
/// let fresh = CircuitBreaker::new(BreakerConfig::default())?;
/// let breakers: Keyed<Arc<str>, CircuitBreaker> = Keyed::new(
///     KeyedConfig::default(),
///     fresh.clone(),
///     move |_key| CircuitBreaker::new(BreakerConfig::default()).expect("checked above"),
/// )?;
/// let now = Instant::now();
/// let permit = breakers.find("GET /orders", now).core.try_acquire(now).expect("closed");
/// permit.complete(Outcome::Success, now);
/// assert_eq!(breakers.stats().tracked, 1);
/// # Ok::<_, selvedge_resilience::config::PolicyError>(())
/// ```
pub struct Keyed<K, C, S = RandomState> {
    shards: Box<[RwLock<Shard<K, C>>]>,
    slots: Slots,
    idle: AtomicU64,
    overflow: C,
    make: Box<dyn Fn(&K) -> C + Send + Sync>,
    hasher: S,
    inserted: AtomicU64,
    expired: AtomicU64,
    evicted: AtomicU64,
    removed: AtomicU64,
    untracked: AtomicU64,
}

impl<K: Eq + Hash, C: Keep> Keyed<K, C> {
    /// An empty table. `make` builds the core of a new key; `overflow` is shared by the keys that
    /// find no place.
    ///
    /// # Errors
    /// [`PolicyError`] if the bounds cannot work.
    pub fn new(
        config: KeyedConfig,
        overflow: C,
        make: impl Fn(&K) -> C + Send + Sync + 'static,
    ) -> Result<Self, PolicyError> {
        Self::with_hasher(config, overflow, make, RandomState::new())
    }
}

impl<K: Eq + Hash, C: Keep, S: BuildHasher> Keyed<K, C, S> {
    /// The same with a hasher of the caller's. Keys that strangers choose need a keyed hash, as
    /// std's `RandomState` is.
    ///
    /// # Errors
    /// As [`new`](Keyed::new).
    pub fn with_hasher(
        config: KeyedConfig,
        overflow: C,
        make: impl Fn(&K) -> C + Send + Sync + 'static,
        hasher: S,
    ) -> Result<Self, PolicyError> {
        config.validate()?;
        let shards = (config.capacity / SHARD_SIZE).clamp(1, SHARDS_MAX);
        let shards = 1 << shards.ilog2();
        Ok(Self {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            slots: Slots::new(config.capacity),
            idle: AtomicU64::new(nanos(config.idle.0)),
            overflow,
            make: Box::new(make),
            hasher,
            inserted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            untracked: AtomicU64::new(0),
        })
    }

    /// The core of `key`, made if there is none yet.
    ///
    /// A hit: one hash, one shard's lock for reading, one clone of the core's handle, no
    /// allocation. A miss makes the key and its core (outside any lock), evicts if it must, and
    /// inserts: O(1), amortised over the growth of a shard.
    pub fn find<Q>(&self, key: &Q, now: Instant) -> Found<C>
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Eq + Hash + ToOwned + ?Sized,
    {
        let at = self.moment(now);
        let hash = self.hasher.hash_one(key);
        if let Some(core) = self.shard(hash).read().hit(hash, key, at) {
            return Found {
                core: core.clone(),
                tracked: true,
            };
        }
        self.miss(hash, key, at)
    }

    /// What `act` makes of the core of `key`, made if there is none yet: without a handle of its own,
    /// where that would be most of the cost. On a hit under its shard's lock for reading: `act` must
    /// be brief and not call back into the table.
    pub(crate) fn with<Q, R>(&self, key: &Q, now: Instant, act: impl FnOnce(&C) -> R) -> R
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Eq + Hash + ToOwned + ?Sized,
    {
        let at = self.moment(now);
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).read();
        if let Some(core) = shard.hit(hash, key, at) {
            return act(core);
        }
        drop(shard);
        act(&self.miss(hash, key, at).core)
    }

    #[cold]
    fn miss<Q>(&self, hash: u64, key: &Q, at: Moment) -> Found<C>
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Eq + Hash + ToOwned + ?Sized,
    {
        let Some(place) = self.make_room(hash, key, at) else {
            // Whoever else asked for the key may have taken the last place for it.
            if let Some(core) = self.shard(hash).read().hit(hash, key, at) {
                return Found {
                    core: core.clone(),
                    tracked: true,
                };
            }
            self.untracked.fetch_add(1, Ordering::Relaxed);
            return Found {
                core: self.overflow.clone(),
                tracked: false,
            };
        };
        let owned = K::from(key.to_owned());
        let core = (self.make)(&owned);
        let mut shard = self.shard(hash).write();
        if let Some(theirs) = shard.hit(hash, key, at) {
            let core = theirs.clone();
            drop(shard);
            return Found {
                core,
                tracked: true,
            };
        }
        // Still there and expired: another thread inserted it long ago by its own clock.
        let stale = shard.remove(hash, key);
        shard.insert(hash, owned, core.clone(), at.tick);
        drop(shard);
        place.keep();
        if stale.is_some() {
            self.left(true);
        }
        self.inserted.fetch_add(1, Ordering::Relaxed);
        Found {
            core,
            tracked: true,
        }
    }

    /// A place for a new entry, if need be by evicting another. Victims are dropped unlocked.
    fn make_room<Q>(&self, hash: u64, key: &Q, at: Moment) -> Option<Place<'_>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let mut shard = self.shard(hash).write();
        let stale = if shard.hit(hash, key, at).is_none() {
            shard.remove(hash, key)
        } else {
            None
        };
        let tidied = shard.evict(TIDY, at, true).victim;
        drop(shard);
        for _ in stale.iter().chain(&tidied) {
            self.left(true);
        }
        if let Some(place) = self.slots.reserve() {
            return Some(place);
        }
        let mut budget = SCAN;
        let first = self.shard_index(hash);
        for step in 0..self.shards.len() {
            let shard = &self.shards[(first + step) % self.shards.len()];
            loop {
                let scan = shard.write().evict(budget.min(SCAN / 4), at, false);
                budget = budget.saturating_sub(scan.seen);
                if scan.victim.is_none() {
                    break;
                }
                self.count_out(scan.expired);
                if let Some(place) = self.slots.inherit() {
                    return Some(place);
                }
                if budget == 0 {
                    break;
                }
            }
            if budget == 0 {
                break;
            }
        }
        // Somebody may have left by himself in the meantime.
        self.slots.reserve()
    }

    /// The core of `key` if it is tracked, without counting as a use of it.
    pub fn peek<Q>(&self, key: &Q) -> Option<C>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        self.shard(hash).read().peek(hash, key).cloned()
    }

    /// Forgets `key`, even if its core would rather stay. Permits that are out keep their core
    /// until they end; the next [`find`](Self::find) makes a fresh one.
    pub fn remove<Q>(&self, key: &Q) -> Option<C>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let slot = self.shard(hash).write().remove(hash, key)?;
        self.slots.release();
        self.removed.fetch_add(1, Ordering::Relaxed);
        Some(slot.core)
    }

    /// Forgets every key that has been idle for its time, and as many more as a lowered capacity
    /// asks for, if they may leave. Returns how many left.
    ///
    /// O(entries), one shard's lock at a time. For a timer of the adapter's; nothing depends on it
    /// but memory.
    pub fn sweep(&self, now: Instant) -> usize {
        let at = self.moment(now);
        let mut gone = 0;
        for shard in &self.shards {
            // By turns, so that nobody waits for a whole shard's sweep.
            let mut left = shard.read().slots();
            while left > 0 {
                let over = self.slots.taken() > self.slots.capacity();
                let span = if over { TIDY } else { SCAN };
                let scan = shard.write().evict(left.min(span), at, !over);
                left -= scan.seen.clamp(1, left);
                if scan.victim.is_some() {
                    self.left(scan.expired);
                    gone += 1;
                }
            }
        }
        gone
    }

    /// Calls `look` with every tracked key and core, one shard's lock (for reading) at a time, and
    /// with no promise about keys that come or go meanwhile. `look` must not call back into the
    /// table.
    pub fn for_each(&self, mut look: impl FnMut(&K, &C)) {
        for shard in &self.shards {
            for slot in shard.read().iter() {
                look(&slot.key, &slot.core);
            }
        }
    }

    /// The core that untracked keys share.
    pub fn overflow(&self) -> &C {
        &self.overflow
    }

    /// Takes new bounds at once. Nothing is forgotten by this call; see [`sweep`](Self::sweep).
    ///
    /// # Errors
    /// [`PolicyError`] if they cannot work; nothing changes then.
    pub fn reconfigure(&self, config: KeyedConfig) -> Result<(), PolicyError> {
        config.validate()?;
        self.slots.set_capacity(config.capacity);
        self.idle.store(nanos(config.idle.0), Ordering::Relaxed);
        Ok(())
    }

    /// Counters and gauges.
    pub fn stats(&self) -> KeyedStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KeyedStats {
            tracked: self.slots.taken(),
            capacity: self.slots.capacity(),
            inserted: read(&self.inserted),
            expired: read(&self.expired),
            evicted: read(&self.evicted),
            removed: read(&self.removed),
            untracked: read(&self.untracked),
        }
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment {
            now,
            tick: Tick::at(now),
            idle: self.idle.load(Ordering::Relaxed),
        }
    }

    /// The upper half of the hash: the index within a shard uses the lower.
    fn shard_index(&self, hash: u64) -> usize {
        (hash >> 40) as usize & (self.shards.len() - 1)
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard<K, C>> {
        &self.shards[self.shard_index(hash)]
    }

    /// An entry has left, and its place with it.
    fn left(&self, expired: bool) {
        self.slots.release();
        self.count_out(expired);
    }

    fn count_out(&self, expired: bool) {
        let counter = if expired {
            &self.expired
        } else {
            &self.evicted
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl<K, C, S> fmt::Debug for Keyed<K, C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("tracked", &self.slots.taken())
            .field("capacity", &self.slots.capacity())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
