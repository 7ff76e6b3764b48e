//! Leases behind one lock: each with its stage, its timer, and its zone's count of where it stands.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{catalogue::Key, lease::preserve::ZoneLeases};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Fresh,
    Late,
    Overdue,
    WrittenOff,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) deadline: u64,
    /// When its timer goes off. Older timers of it are void.
    pub(super) timer: u64,
    pub(super) ttl: u32,
    pub(super) stage: Stage,
    pub(super) incarnation: u64,
    pub(super) zone: Arc<Zone>,
    /// Kept for a server that is gone.
    pub(super) guarded: bool,
    /// The server that passed the last renewals on, by hash, and how many in a row.
    pub(super) via: (u32, u8),
}

#[derive(Debug)]
pub(super) struct Zone {
    pub(super) name: Arc<str>,
    pub(super) leases: AtomicUsize,
    pub(super) expected: AtomicUsize,
    pub(super) late: AtomicUsize,
    pub(super) overdue: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) leases: HashMap<Key, Lease>,
    pub(super) timers: BinaryHeap<Reverse<(u64, Key)>>,
    pub(super) overdue: HashSet<Key>,
}

impl Zone {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            leases: AtomicUsize::new(0),
            expected: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            overdue: AtomicUsize::new(0),
        }
    }

    pub(super) fn counted(&self) -> ZoneLeases {
        ZoneLeases {
            zone: Arc::clone(&self.name),
            leases: self.leases.load(Ordering::Relaxed),
            expected: self.expected.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            overdue: self.overdue.load(Ordering::Relaxed),
            active: false,
        }
    }
}

impl Lease {
    fn late_at(&self, ttl: u64) -> u64 {
        self.deadline.saturating_sub(ttl / 4)
    }

    /// Takes it out of its zone's count of where it stands.
    fn uncount(&self) {
        let zone = &self.zone;
        zone.leases.fetch_sub(1, Ordering::Relaxed);
        if self.stage != Stage::WrittenOff {
            zone.expected.fetch_sub(1, Ordering::Relaxed);
        }
        if matches!(self.stage, Stage::Late | Stage::Overdue) {
            zone.late.fetch_sub(1, Ordering::Relaxed);
        }
        if matches!(self.stage, Stage::Overdue | Stage::WrittenOff) {
            zone.overdue.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count(&self) {
        let zone = &self.zone;
        zone.leases.fetch_add(1, Ordering::Relaxed);
        if self.stage != Stage::WrittenOff {
            zone.expected.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(self.stage, Stage::Late | Stage::Overdue) {
            zone.late.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(self.stage, Stage::Overdue | Stage::WrittenOff) {
            zone.overdue.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.uncount();
        self.stage = stage;
        self.count();
    }
}

impl Shard {
    /// Sets the lease's deadline, and its timer if that would go off too late.
    pub(super) fn extend(&mut self, key: &Key, deadline: u64) {
        let Some(lease) = self.leases.get_mut(key) else {
            return;
        };
        lease.deadline = deadline;
        match lease.stage {
            Stage::Fresh => {}
            Stage::Late => lease.enter(Stage::Fresh),
            Stage::Overdue | Stage::WrittenOff => {
                lease.enter(Stage::Fresh);
                self.overdue.remove(key);
            }
        }
        let due = lease.late_at(u64::from(lease.ttl));
        if due < lease.timer {
            lease.timer = due;
            self.timers.push(Reverse((due, key.clone())));
        }
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        lease.uncount();
        self.overdue.remove(key);
        Some(lease)
    }

    /// The timer of `key` has gone off.
    fn look_at(&mut self, key: &Key, timer: u64, now: u64, score: u64, rebase_after: u64) {
        let Some(lease) = self.leases.get_mut(key) else {
            return;
        };
        if lease.timer != timer {
            return;
        }
        let ttl = u64::from(lease.ttl);
        // A slow server trusts its own impatience less.
        let over = lease.deadline + ttl * score;
        let (stage, next) = if now < lease.late_at(ttl) {
            (Stage::Fresh, lease.late_at(ttl))
        } else if now < over {
            (Stage::Late, over)
        } else if now < over + rebase_after {
            (Stage::Overdue, over + rebase_after)
        } else {
            (Stage::WrittenOff, u64::MAX)
        };
        lease.enter(stage);
        lease.timer = next;
        if matches!(stage, Stage::Overdue | Stage::WrittenOff) {
            self.overdue.insert(key.clone());
        }
        if next != u64::MAX {
            self.timers.push(Reverse((next, key.clone())));
        }
    }

    /// Lets the timers go off that are due at `now`.
    pub(super) fn advance(&mut self, now: u64, score: u64, rebase_after: u64) {
        while self.timers.peek().is_some_and(|t| t.0.0 <= now) {
            let Some(Reverse((timer, key))) = self.timers.pop() else {
                return;
            };
            self.look_at(&key, timer, now, score, rebase_after);
        }
    }
}
