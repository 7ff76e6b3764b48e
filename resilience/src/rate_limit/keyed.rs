//! A limit for each key.
//!
//! One limit for everybody lets the loudest caller take all of it. A map that grows with its
//! callers is governor's keyed limiter: unbounded, because an idle key never leaves by itself. Yet
//! GCRA knows exactly when a key may go: once its arrival time has passed, its bucket is full, and
//! forgetting it changes nothing. So a key here costs one word, and leaves when the word says
//! nothing any more.

use std::{
    borrow::Borrow,
    fmt,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{LiveQuota, Status, gcra::Taken, gcra::Word};
use crate::{
    clock::Tick,
    config::{PolicyError, Rate},
    keyed::{Keep, Keyed, KeyedConfig, KeyedStats},
    outcome::Rejected,
    sync::Ordering,
};

/// A limit for each key, and how many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct KeyedRateLimitConfig {
    /// The limit of each key.
    pub rate: Rate,
    /// How many keys are told apart, and for how long; see [`KeyedConfig`]. A key whose bucket is
    /// not full again is never forgotten for being idle.
    #[serde(default)]
    pub keys: KeyedConfig,
}

impl KeyedRateLimitConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        self.keys.validate().map_err(|e| e.within("keys"))
    }
}

/// One key's word. A full bucket may be forgotten.
#[derive(Debug, Clone)]
struct Bucket {
    word: Arc<Word>,
    live: Arc<LiveQuota>,
    /// Which one of all that this limiter ever had.
    id: u64,
}

impl Bucket {
    fn new(live: &Arc<LiveQuota>) -> Self {
        Self {
            word: Arc::new(Word::new()),
            live: Arc::clone(live),
            id: live.buckets.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Keep for Bucket {
    fn keep_for(&self, now: Instant) -> Duration {
        let now = Tick::at(now);
        if self.word.is_astray(&self.live.quota(), now) {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.word.ahead(now))
    }
}

struct Core<K> {
    live: Arc<LiveQuota>,
    table: Keyed<K, Bucket>,
}

/// A rate limiter with a limit for each key. Clones share the keys.
///
/// When every place is taken by a key in debt, the keys that find none share one bucket: whoever
/// invents keys limits himself.
pub struct KeyedRateLimit<K>(Arc<Core<K>>);

impl<K> Clone for KeyedRateLimit<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What an admitted call took from its key's bucket; [`KeyedRateLimit::refund`] takes it back.
/// Dropping it does nothing: a call that began has begun.
#[derive(Debug, Clone, Copy)]
pub struct KeyedGrant {
    bucket: u64,
    taken: Taken,
}

impl<K: Eq + Hash> KeyedRateLimit<K> {
    /// A limiter that knows no key yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the bounds cannot work.
    pub fn new(config: KeyedRateLimitConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let live = Arc::new(LiveQuota::new(config.rate));
        let (overflow, of_key) = (Bucket::new(&live), Arc::clone(&live));
        let table = Keyed::new(config.keys, overflow, move |_| Bucket::new(&of_key))?;
        Ok(Self(Arc::new(Core { live, table })))
    }

    /// Takes `cells` of `key`'s at once, or none.
    ///
    /// A known key costs one hash, one shard's lock for reading and one compare-and-swap.
    ///
    /// # Errors
    /// As [`RateLimit::try_acquire_n`](super::RateLimit::try_acquire_n).
    pub fn try_acquire_n<Q>(
        &self,
        key: &Q,
        cells: u32,
        now: Instant,
    ) -> Result<KeyedGrant, Rejected>
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Eq + Hash + ToOwned + ?Sized,
    {
        let live = &self.0.live;
        self.0.table.with(key, now, |bucket| {
            let taken = live.take(&bucket.word, cells, now)?.0;
            Ok(KeyedGrant {
                bucket: bucket.id,
                taken,
            })
        })
    }

    /// Gives back the cells of a call of `key`'s that did not happen, as
    /// [`RateLimit::refund`](super::RateLimit::refund) does. A key that was forgotten since had a
    /// full bucket, and gets nothing; nor does any other than the one they were taken from.
    pub fn refund<Q>(&self, key: &Q, grant: KeyedGrant, now: Instant)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let overflow = self.0.table.overflow();
        let bucket = if grant.bucket == overflow.id {
            Some(overflow.clone())
        } else {
            self.0.table.peek(key)
        };
        if let Some(bucket) = bucket.filter(|bucket| bucket.id == grant.bucket) {
            bucket.word.give_back(grant.taken, Tick::at(now));
        }
    }

    /// Takes one cell of `key`'s.
    ///
    /// # Errors
    /// As [`try_acquire_n`](Self::try_acquire_n).
    pub fn try_acquire<Q>(&self, key: &Q, now: Instant) -> Result<KeyedGrant, Rejected>
    where
        K: Borrow<Q> + From<Q::Owned>,
        Q: Eq + Hash + ToOwned + ?Sized,
    {
        self.try_acquire_n(key, 1, now)
    }

    /// What is left of `key`'s limit; a key that is not known has all of it.
    pub fn status<Q>(&self, key: &Q, now: Instant) -> Status
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let (live, known) = (&self.0.live, self.0.table.peek(key));
        match known {
            Some(bucket) => live.status(&bucket.word, now),
            None => live.status(&Word::new(), now),
        }
    }

    /// Takes a new rate and new bounds at once; every key's history stays. O(keys).
    ///
    /// # Errors
    /// [`PolicyError`] if the bounds cannot work; nothing changes then.
    pub fn reconfigure(
        &self,
        config: KeyedRateLimitConfig,
        now: Instant,
    ) -> Result<(), PolicyError> {
        config.validate()?;
        self.0.table.reconfigure(config.keys)?;
        let quota = self.0.live.change(config.rate);
        let cap = |bucket: &Bucket| bucket.word.cap(&quota, Tick::at(now));
        self.0.table.for_each(|_, bucket| cap(bucket));
        cap(self.0.table.overflow());
        Ok(())
    }

    /// Forgets the idle keys whose buckets are full; returns how many left. For a timer: nothing
    /// but memory depends on it.
    pub fn sweep(&self, now: Instant) -> usize {
        self.0.table.sweep(now)
    }

    /// Counters of the keys.
    pub fn keys(&self) -> KeyedStats {
        self.0.table.stats()
    }

    /// Calls refused so far, of all keys.
    pub fn rejected(&self) -> u64 {
        self.0.live.rejected.load(Ordering::Relaxed)
    }
}

impl<K> fmt::Debug for KeyedRateLimit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedRateLimit")
            .field("table", &self.0.table)
            .finish_non_exhaustive()
    }
}
