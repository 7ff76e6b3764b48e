//! Renewals of leases that other servers keep, collected for a moment and passed on together.
//!
//! A load balancer in front of the servers spreads an instance's renewals over all of them. If
//! each server took the lease over with every renewal, the catalogue would see as many writes as
//! there are renewals. So a renewal goes on to the server that keeps the lease, a batch at a time.

use std::{collections::HashMap, sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalogue::{Key, NodeId};

/// Renewals waiting for one server. More means that it does not take them: the leases are taken
/// over instead. A guess: a second's worth at the highest rate we promise.
const LIMIT: usize = 10_000;

/// A renewal and the life it is for, if it says one.
pub(crate) type PassedRenewal = (Key, Option<u64>);

/// What is asked of the server that a renewal is passed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Errand {
    /// It keeps the lease.
    Renew,
    /// It knows who keeps the lease: this server leaves, or does not know everybody yet.
    Find,
}

/// What waits to be passed on.
#[derive(Debug, Default)]
pub(crate) struct PassedOn {
    waiting: Mutex<HashMap<(NodeId, Errand), Vec<PassedRenewal>>>,
    /// Those that were sent and not answered yet, and since when.
    under_way: Mutex<HashMap<Key, Instant>>,
    /// Wakes whoever sends.
    pub(crate) arrived: Notify,
}

impl PassedOn {
    /// Passes it on soon; `false` if too much waits for that server.
    pub(crate) fn push(&self, to: &NodeId, errand: Errand, renewal: PassedRenewal) -> bool {
        let mut waiting = self.waiting.lock();
        let queue = waiting.entry((Arc::clone(to), errand)).or_default();
        if queue.len() >= LIMIT {
            return false;
        }
        queue.push(renewal);
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    /// These are sent `at`.
    pub(crate) fn sent(&self, renewals: &[PassedRenewal], at: Instant) {
        let mut under_way = self.under_way.lock();
        under_way.extend(renewals.iter().map(|(key, _)| (key.clone(), at)));
    }

    /// What became of those that were sent `at` is known.
    pub(crate) fn settled(&self, renewals: &[PassedRenewal], at: Instant) {
        let mut under_way = self.under_way.lock();
        for (key, _) in renewals {
            if under_way.get(key).is_some_and(|sent| *sent <= at) {
                under_way.remove(key);
            }
        }
    }

    /// Since when a renewal of `key` has been under way, if one is.
    pub(crate) fn under_way_since(&self, key: &Key) -> Option<Instant> {
        self.under_way.lock().get(key).copied()
    }

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> HashMap<(NodeId, Errand), Vec<PassedRenewal>> {
        std::mem::take(&mut *self.waiting.lock())
    }
}
