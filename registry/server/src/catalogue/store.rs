//! The catalogue with what its keeper needs beside it: who owns what, and when the buried may be
//! forgotten.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::{BUCKETS, Catalogue, Change, Key, NodeId, PolicyEntry, Record, record::bucket};

/// What one server owns, as another sees it.
#[derive(Debug)]
pub struct Owned {
    /// Xor of the fingerprints of its live records, by bucket.
    pub buckets: [u64; BUCKETS],
    /// Its live instances.
    pub keys: HashSet<Key>,
}

impl Default for Owned {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            keys: HashSet::new(),
        }
    }
}

impl Owned {
    /// Xor of the fingerprints of all its live records.
    pub fn hash(&self) -> u64 {
        self.buckets.iter().fold(0, |all, bucket| all ^ bucket)
    }
}

/// Tombstones kept at most, whatever their age: they must not be a way to fill the memory.
/// A guess: five minutes of deregistrations at 500 writes a second beside an hour at 30.
const MAX_GRAVES: usize = 200_000;

/// The catalogue, and what is kept about it.
#[derive(Debug)]
pub struct Store {
    catalogue: Arc<Catalogue>,
    owners: HashMap<NodeId, Owned>,
    /// When each tombstone came, oldest first.
    graves: VecDeque<(u64, Arc<Record>)>,
}

impl Store {
    /// An empty one; `epoch` is never used twice.
    pub fn new(epoch: u64) -> Self {
        Self {
            catalogue: Arc::new(Catalogue::new(epoch)),
            owners: HashMap::new(),
            graves: VecDeque::new(),
        }
    }

    /// The catalogue as it is now; later changes do not touch what was handed out.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// What `node` owns.
    pub fn owned(&self, node: &str) -> Option<&Owned> {
        self.owners.get(node)
    }

    /// Every server that owns something.
    pub fn owners(&self) -> impl Iterator<Item = (&NodeId, &Owned)> {
        self.owners.iter()
    }

    /// Takes `record` if it is later than what is known. `now_ms`: on any clock that only grows.
    pub fn merge(&mut self, mut record: Record, now_ms: u64) -> Change {
        // One name for one server, however often it is said.
        if let Some((name, _)) = self.owners.get_key_value(&record.stamp.owner) {
            record.stamp.owner = Arc::clone(name);
        }
        let merged = Arc::make_mut(&mut self.catalogue).merge(record);
        let Some((before, now)) = merged.replaced else {
            return merged.change;
        };
        if let Some(before) = before.filter(|before| before.is_live()) {
            self.disown(&before);
        }
        if now.is_live() {
            self.own(&now);
        } else {
            self.graves.push_back((now_ms, now));
        }
        merged.change
    }

    fn own(&mut self, record: &Record) {
        let owned = self
            .owners
            .entry(Arc::clone(&record.stamp.owner))
            .or_default();
        owned.buckets[record.bucket()] ^= record.fingerprint();
        owned.keys.insert(record.key());
    }

    fn disown(&mut self, record: &Record) {
        let owner = &record.stamp.owner;
        let Some(owned) = self.owners.get_mut(owner) else {
            return;
        };
        owned.buckets[record.bucket()] ^= record.fingerprint();
        owned.keys.remove(&record.key());
        if owned.keys.is_empty() {
            self.owners.remove(&**owner);
        }
    }

    /// Takes a policy if it is later than what is known.
    pub fn merge_policy(&mut self, entry: PolicyEntry) -> Change {
        Arc::make_mut(&mut self.catalogue).merge_policy(entry)
    }

    /// Forgets tombstones that came before `before_ms`: no copy of what they bury is under way any
    /// more.
    pub fn forget_before(&mut self, before_ms: u64) {
        while let Some((came, grave)) = self.graves.front() {
            if *came >= before_ms && self.graves.len() <= MAX_GRAVES {
                return;
            }
            // Registered again since, or buried again: then this grave says nothing any more.
            let latest = self.catalogue.get(&grave.service, &grave.id);
            if latest.is_some_and(|latest| Arc::ptr_eq(latest, grave)) {
                Arc::make_mut(&mut self.catalogue).forget(grave);
            }
            self.graves.pop_front();
        }
    }

    /// Tombstones kept.
    pub fn graves(&self) -> usize {
        self.graves.len()
    }

    /// The keys of what `node` owns in these buckets.
    pub fn owned_in(&self, node: &str, buckets: &[usize]) -> impl Iterator<Item = &Key> {
        let keys = self
            .owners
            .get(node)
            .into_iter()
            .flat_map(|o| o.keys.iter());
        keys.filter(move |(service, id)| buckets.contains(&bucket(service, id)))
    }
}
