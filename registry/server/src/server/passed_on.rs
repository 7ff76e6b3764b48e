//! Renewals of leases that other servers keep, collected for a moment and passed on together.
//!
//! A load balancer in front of the servers spreads an instance's renewals over all of them. If
//! each server took the lease over with every renewal, the catalogue would see as many writes as
//! there are renewals. So a renewal goes on to the server that keeps the lease, a batch at a time.

use std::{collections::HashMap, sync::Arc};

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

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> HashMap<(NodeId, Errand), Vec<PassedRenewal>> {
        std::mem::take(&mut *self.waiting.lock())
    }
}
