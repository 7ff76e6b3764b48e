//! One shard: an index of keys over a slab of entries, with a hand that looks for who may leave.

use std::borrow::Borrow;

use hashbrown::HashTable;

use super::Keep;
use crate::{
    clock::Tick,
    due::is_astray,
    sync::{AtomicU64, Ordering},
};

/// How stale the time of last use may be, so that hits on one key do not all write to its line.
const USED_GRAIN: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct Slot<K, C> {
    hash: u64,
    pub(super) key: K,
    pub(super) core: C,
    used: AtomicU64,
}

impl<K, C: Keep> Slot<K, C> {
    /// For how many nanoseconds nobody has used it.
    #[inline]
    fn idle(&self, now: Tick) -> u64 {
        let used = self.used.load(Ordering::Relaxed);
        if is_astray(used, 0, now) {
            // Of a clock that was set back since: it is idle from now on, not in a hundred years.
            self.used.store(now.0, Ordering::Relaxed);
        }
        now.0.saturating_sub(used)
    }

    fn touch(&self, now: Tick) {
        let used = self.used.load(Ordering::Relaxed);
        if now.0 > used.saturating_add(USED_GRAIN) {
            self.used.store(now.0, Ordering::Relaxed);
        }
    }

    fn expired(&self, at: Moment) -> bool {
        self.idle(at.tick) > at.idle && self.may_leave(at)
    }

    fn may_leave(&self, at: Moment) -> bool {
        self.core.keep_for(at.now).is_zero()
    }
}

/// The time of a lookup, in both of its forms, and the age at which an entry is idle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: std::time::Instant,
    pub(super) tick: Tick,
    /// In nanoseconds.
    pub(super) idle: u64,
}

/// What a scan for somebody to evict came to.
pub(super) struct Scan<K, C> {
    pub(super) victim: Option<Slot<K, C>>,
    /// Whether the victim had been idle for its whole time.
    pub(super) expired: bool,
    /// Entries looked at.
    pub(super) seen: usize,
}

#[derive(Debug)]
pub(super) struct Shard<K, C> {
    index: HashTable<usize>,
    slots: Vec<Option<Slot<K, C>>>,
    free: Vec<usize>,
    hand: usize,
}

impl<K, C> Default for Shard<K, C> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            hand: 0,
        }
    }
}

impl<K, C: Keep> Shard<K, C> {
    fn position<Q>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let same = |&at: &usize| {
            let slot = self.slots[at].as_ref();
            slot.is_some_and(|slot| slot.hash == hash && slot.key.borrow() == key)
        };
        self.index.find(hash, same).copied()
    }

    /// The entry of `key`, not counted as used.
    pub(super) fn peek<Q>(&self, hash: u64, key: &Q) -> Option<&C>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let at = self.position(hash, key)?;
        self.slots[at].as_ref().map(|slot| &slot.core)
    }

    /// The entry of `key`, marked as used; `None` also if its time was over: it is not revived.
    pub(super) fn hit<Q>(&self, hash: u64, key: &Q, at: Moment) -> Option<&C>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let slot = self.slots[self.position(hash, key)?].as_ref()?;
        if slot.expired(at) {
            return None;
        }
        slot.touch(at.tick);
        Some(&slot.core)
    }

    pub(super) fn insert(&mut self, hash: u64, key: K, core: C, now: Tick) {
        let slot = Slot {
            hash,
            key,
            core,
            used: AtomicU64::new(now.0),
        };
        let at = if let Some(at) = self.free.pop() {
            self.slots[at] = Some(slot);
            at
        } else {
            self.slots.push(Some(slot));
            self.slots.len() - 1
        };
        let slots = &self.slots;
        let hash_of = |&at: &usize| slots[at].as_ref().map_or(0, |slot| slot.hash);
        self.index.insert_unique(hash, at, hash_of);
    }

    pub(super) fn remove<Q>(&mut self, hash: u64, key: &Q) -> Option<Slot<K, C>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let at = self.position(hash, key)?;
        self.take(at)
    }

    fn take(&mut self, at: usize) -> Option<Slot<K, C>> {
        let slot = self.slots[at].take()?;
        if let Ok(entry) = self.index.find_entry(slot.hash, |&other| other == at) {
            entry.remove();
        }
        self.free.push(at);
        Some(slot)
    }

    /// Moves the hand over at most `limit` slots and takes out the one that was idle for longest of
    /// those that may leave; an expired one at once.
    ///
    /// Only the expired are taken if `only_expired`.
    pub(super) fn evict(&mut self, limit: usize, at: Moment, only_expired: bool) -> Scan<K, C> {
        let mut longest: Option<(u64, usize)> = None;
        let mut seen = 0;
        for _ in 0..limit.min(self.slots.len()) {
            let here = self.hand % self.slots.len();
            self.hand = here + 1;
            seen += 1;
            let Some(slot) = &self.slots[here] else {
                continue;
            };
            let idle = slot.idle(at.tick);
            if slot.expired(at) {
                let victim = self.take(here);
                return Scan {
                    victim,
                    expired: true,
                    seen,
                };
            }
            let longer = longest.is_none_or(|(most, _)| idle > most);
            if !only_expired && longer && slot.may_leave(at) {
                longest = Some((idle, here));
            }
        }
        Scan {
            victim: longest.and_then(|(_, here)| self.take(here)),
            expired: false,
            seen,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot<K, C>> {
        self.slots.iter().flatten()
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }
}
