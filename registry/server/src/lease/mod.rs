//! Leases: who has renewed in time.
//!
//! A renewal is by far the most frequent thing that happens to a registry, and it changes nothing
//! that anybody reads. So leases live beside the catalogue and not in it: in the memory of the one
//! server that takes the renewals, in shards with a lock each, on that server's own monotonic
//! clock. A renewal writes a deadline; no timer is moved. Each lease has one timer, and when that
//! goes off the deadline is looked at: is it later by now, the timer is set again.
//!
//! ```text
//!   fresh ──¾ of the lease silent──► late ──the lease is over──► overdue ──rebase_after──► written off
//!     ▲                               │                             │                          │
//!     └───────────── a renewal ───────┴─────────────────────────────┴──────────────────────────┘
//! ```
//!
//! An overdue lease is *offered* for eviction; whether it ends is the business of
//! [`preserve`]. What is late but not over yet warns it in time: when a zone falls silent, more
//! than 15 % are late before the first is overdue, as long as instances renew at least twice a
//! lease.
//!
//! # Guarantees
//! - A lease ends when its time is over and not before, on a [clock](clock::LeaseClock) that stands
//!   still while this process does.
//! - A renewal is O(1) but for one in a lease's time, which is O(log n) in one shard.
//! - Nothing here is proportional to the number of leases, whatever is asked.

pub mod clock;
pub mod config;
mod moved;
pub mod preserve;
mod shard;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use selvedge_registry::{InstanceId, ServiceName};

pub use self::{clock::LeaseClock, config::LeasesConfig};
use crate::{
    catalogue::{Key, name_hash},
    lease::{
        moved::Moved,
        preserve::ZoneLeases,
        shard::{Lease, Shard, Stage, Zone},
    },
};

/// Locks: so many that two renewals at once rarely want the same.
const SHARDS: usize = 64;

/// What a lease is given for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant<'a> {
    /// The instance's lease.
    pub ttl: Duration,
    /// Its life.
    pub incarnation: u64,
    /// Where it runs.
    pub zone: &'a str,
}

/// What a renewal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It has its whole lease again.
    Renewed {
        /// The lease.
        ttl: Duration,
    },
    /// As before, and the server that passed it on has done so twice in a row: the instance talks
    /// to that one now.
    Moved {
        /// The lease.
        ttl: Duration,
    },
    /// The lease is kept for a server that is gone: whoever hears the instance takes it over.
    Guarded,
    /// Another life of the instance has the lease.
    OtherLife,
    /// There is no lease here.
    NotHere,
}

/// A lease that has run out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// Whose.
    pub key: Key,
    /// Its zone.
    pub zone: Arc<str>,
    /// Silent for so long that it is no longer expected.
    pub written_off: bool,
    /// When it ran out, on the clock of the leases.
    pub deadline: u64,
    /// How long it was.
    pub ttl: Duration,
}

/// Renewals passed on in a row by one server after which the lease moves there.
const MOVES_AFTER: u8 = 2;

/// The leases that this server keeps.
#[derive(Debug)]
pub struct Leases {
    shards: Box<[Mutex<Shard>]>,
    moved: Moved,
    zones: RwLock<HashMap<Arc<str>, Arc<Zone>>>,
    clock: LeaseClock,
    rebase_after: u64,
    len: AtomicUsize,
}

impl Leases {
    /// None yet.
    pub fn new(now: Instant, config: &LeasesConfig) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            moved: Moved::default(),
            zones: RwLock::default(),
            clock: LeaseClock::new(now),
            rebase_after: config.rebase_after.0.as_millis() as u64,
            len: AtomicUsize::new(0),
        }
    }

    /// The clock that they are timed by.
    pub fn clock(&self) -> &LeaseClock {
        &self.clock
    }

    fn shard(&self, service: &ServiceName, id: &InstanceId) -> &Mutex<Shard> {
        &self.shards[name_hash(service, id) as usize % SHARDS]
    }

    fn zone(&self, name: &str) -> Arc<Zone> {
        if let Some(zone) = self.zones.read().get(name) {
            return Arc::clone(zone);
        }
        let name: Arc<str> = name.into();
        let zone = || Arc::new(Zone::new(Arc::clone(&name)));
        let mut zones = self.zones.write();
        Arc::clone(zones.entry(Arc::clone(&name)).or_insert_with(zone))
    }

    fn insert(&self, key: Key, grant: &Grant<'_>, guarded: bool, remaining: Duration, now: u64) {
        let zone = self.zone(grant.zone);
        let ttl = u32::try_from(grant.ttl.as_millis()).unwrap_or(u32::MAX);
        let deadline = now + remaining.as_millis() as u64;
        let mut shard = self.shard(&key.0, &key.1).lock();
        if shard.remove(&key).is_none() {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
        let lease = Lease {
            deadline,
            timer: u64::MAX,
            ttl,
            stage: Stage::Fresh,
            incarnation: grant.incarnation,
            zone,
            guarded,
            via: (0, 0),
        };
        lease.count();
        shard.leases.insert(key.clone(), lease);
        shard.extend(&key, deadline);
    }

    /// Gives it its whole lease from `now`.
    pub fn grant(&self, key: Key, grant: &Grant<'_>, now: Instant) {
        self.insert(key, grant, false, grant.ttl, self.clock.now(now));
    }

    /// Takes it over with what remains of its lease.
    pub fn grant_rest(&self, key: Key, grant: &Grant<'_>, remaining: Duration, now: Instant) {
        self.insert(key, grant, false, remaining, self.clock.now(now));
    }

    /// Gives it `remaining` on behalf of a server that is gone, unless it has a lease already.
    pub fn guard(&self, key: Key, grant: &Grant<'_>, remaining: Duration, now: Instant) {
        if !self.holds(&key) {
            self.insert(key, grant, true, remaining, self.clock.now(now));
        }
    }

    /// The instance has been heard of, here or (`via`) by another server.
    pub fn renew(
        &self,
        key: &Key,
        incarnation: Option<u64>,
        via: Option<&str>,
        now: Instant,
    ) -> Renewal {
        let now = self.clock.now(now);
        let mut shard = self.shard(&key.0, &key.1).lock();
        let Some(lease) = shard.leases.get_mut(key) else {
            return Renewal::NotHere;
        };
        if incarnation.is_some_and(|life| life != lease.incarnation) {
            return Renewal::OtherLife;
        }
        if lease.guarded {
            return Renewal::Guarded;
        }
        let ttl = Duration::from_millis(u64::from(lease.ttl));
        lease.via = match via {
            None => (0, 0),
            Some(node) => {
                let node = xxhash_rust::xxh3::xxh3_64(node.as_bytes()) as u32;
                let before = if lease.via.0 == node { lease.via.1 } else { 0 };
                (node, before.saturating_add(1))
            }
        };
        let moved = lease.via.1 >= MOVES_AFTER;
        let deadline = now + u64::from(lease.ttl);
        if lease.stage == Stage::Fresh && deadline >= lease.deadline {
            // The timer goes off before the new deadline, as it did before the old one.
            lease.deadline = deadline;
        } else {
            // Never shorter than it was: a restart, or a drain, may have given more.
            let deadline = deadline.max(lease.deadline);
            shard.extend(key, deadline);
        }
        if moved {
            Renewal::Moved { ttl }
        } else {
            Renewal::Renewed { ttl }
        }
    }

    /// It has been heard of elsewhere, and has so much left, if not more.
    pub fn prolong(&self, key: &Key, remaining: Duration, now: Instant) {
        let deadline = self.clock.now(now) + remaining.as_millis() as u64;
        let mut shard = self.shard(&key.0, &key.1).lock();
        if shard
            .leases
            .get(key)
            .is_some_and(|lease| lease.deadline < deadline)
        {
            shard.extend(key, deadline);
        }
    }

    /// No longer this server's affair.
    pub fn release(&self, key: &Key) {
        if self.shard(&key.0, &key.1).lock().remove(key).is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Another server keeps it now. What is left of it here still counts: see [`heard`](Self::heard).
    pub fn moved(&self, key: &Key, now: Instant) {
        let now = self.clock.now(now);
        let lease = self.shard(&key.0, &key.1).lock().remove(key);
        let Some(lease) = lease else {
            return;
        };
        self.len.fetch_sub(1, Ordering::Relaxed);
        if !lease.guarded && now < lease.deadline {
            self.moved.note(key, lease.incarnation, lease.deadline);
        }
    }

    /// No longer this server's affair if it was kept for another.
    pub fn release_guarded(&self, key: &Key) {
        let mut shard = self.shard(&key.0, &key.1).lock();
        if shard.leases.get(key).is_some_and(|lease| lease.guarded) {
            shard.remove(key);
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether this server keeps its time.
    pub fn holds(&self, key: &Key) -> bool {
        self.shard(&key.0, &key.1).lock().leases.contains_key(key)
    }

    /// Whether this server keeps its time as its own, and that is not over.
    pub fn is_alive(&self, key: &Key, incarnation: u64, now: Instant) -> bool {
        let now = self.clock.now(now);
        let shard = self.shard(&key.0, &key.1).lock();
        let lease = shard.leases.get(key);
        lease.is_some_and(|l| !l.guarded && l.incarnation == incarnation && now < l.deadline)
    }

    /// What remains of the lease by what was heard of this life here: it is kept here as this
    /// server's own, or was until it moved. `None` if that is over.
    pub fn heard(&self, key: &Key, incarnation: u64, now: Instant) -> Option<Duration> {
        let now = self.clock.now(now);
        let kept = {
            let shard = self.shard(&key.0, &key.1).lock();
            let lease = shard.leases.get(key);
            let lease = lease.filter(|l| !l.guarded && l.incarnation == incarnation);
            lease.map(|lease| lease.deadline)
        };
        let deadline = kept.max(self.moved.deadline(key, incarnation))?;
        let rest = deadline.checked_sub(now).filter(|rest| *rest > 0)?;
        Some(Duration::from_millis(rest))
    }

    /// What remains of its lease.
    pub fn remaining(&self, key: &Key, now: Instant) -> Option<Duration> {
        let now = self.clock.now(now);
        let shard = self.shard(&key.0, &key.1).lock();
        let lease = shard.leases.get(key)?;
        Some(Duration::from_millis(lease.deadline.saturating_sub(now)))
    }

    /// How many this server keeps.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything it keeps, at one moment for each shard: for a drain.
    pub fn keys(&self) -> Vec<Key> {
        let shards = self.shards.iter();
        shards
            .flat_map(|shard| shard.lock().leases.keys().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Lets the timers go off that are due at `now`.
    pub fn advance(&self, now: Instant) {
        let now = self.clock.now(now);
        let score = u64::from(self.clock.score());
        self.moved.advance(now);
        for shard in &self.shards {
            shard.lock().advance(now, score, self.rebase_after);
        }
    }

    /// The zones that have leases.
    pub fn zones(&self) -> Vec<ZoneLeases> {
        let zones = self.zones.read();
        let mut zones: Vec<_> = zones
            .values()
            .map(|zone| zone.counted())
            .filter(|zone| zone.leases > 0)
            .collect();
        zones.sort_by(|a, b| a.zone.cmp(&b.zone));
        zones
    }

    /// Leases that have run out and that `wanted` takes, in no order.
    pub fn overdue(&self, mut wanted: impl FnMut(&Overdue) -> bool) -> Vec<Overdue> {
        let mut taken = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            for key in &shard.overdue {
                let Some(lease) = shard.leases.get(key) else {
                    continue;
                };
                let overdue = Overdue {
                    key: key.clone(),
                    zone: Arc::clone(&lease.zone.name),
                    written_off: lease.stage == Stage::WrittenOff,
                    deadline: lease.deadline,
                    ttl: Duration::from_millis(u64::from(lease.ttl)),
                };
                if wanted(&overdue) {
                    taken.push(overdue);
                }
            }
        }
        taken
    }

    /// Ends the lease if it is still overdue; tells whether it was.
    pub fn end(&self, key: &Key) -> bool {
        let mut shard = self.shard(&key.0, &key.1).lock();
        let over = shard.overdue.contains(key) && shard.remove(key).is_some();
        if over {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        over
    }
}

/// The server among `candidates` that looks after `key` when its owner is gone: the same answer
/// everywhere without a word exchanged, and a fair share for each.
///
/// Source: Thaler and Ravishankar, rendezvous hashing, 1998.
pub fn guardian<'a>(key: &Key, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates.max_by_key(|node| {
        let text = format!("{}/{}/{node}", key.0, key.1);
        (xxhash_rust::xxh3::xxh3_64(text.as_bytes()), *node)
    })
}

#[cfg(test)]
mod tests;
