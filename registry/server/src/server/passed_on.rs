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
    /// Those that wait, or were sent and not answered yet: how many of a key, and when the last of
    /// them was heard.
    under_way: Mutex<HashMap<Key, (usize, Instant)>>,
    /// Wakes whoever sends.
    pub(crate) arrived: Notify,
}

impl PassedOn {
    /// Passes it on soon, as heard `at`; `false` if too much waits for that server.
    pub(crate) fn push(
        &self,
        to: &NodeId,
        errand: Errand,
        renewal: PassedRenewal,
        at: Instant,
    ) -> bool {
        let mut waiting = self.waiting.lock();
        let queue = waiting.entry((Arc::clone(to), errand)).or_default();
        if queue.len() >= LIMIT {
            return false;
        }
        let mut under_way = self.under_way.lock();
        let (n, heard) = under_way.entry(renewal.0.clone()).or_insert((0, at));
        (*n, *heard) = (*n + 1, at);
        drop(under_way);
        queue.push(renewal);
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    /// What became of these is known.
    pub(crate) fn settled(&self, renewals: &[PassedRenewal]) {
        let mut under_way = self.under_way.lock();
        for (key, _) in renewals {
            let Some((n, _)) = under_way.get_mut(key) else {
                continue;
            };
            *n -= 1;
            if *n == 0 {
                under_way.remove(key);
            }
        }
    }

    /// When the last renewal of `key` was heard that is under way, if one is.
    pub(crate) fn heard(&self, key: &Key) -> Option<Instant> {
        self.under_way.lock().get(key).map(|(_, heard)| *heard)
    }

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> HashMap<(NodeId, Errand), Vec<PassedRenewal>> {
        std::mem::take(&mut *self.waiting.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use selvedge_registry::{InstanceId, ServiceName};

    use super::*;

    #[test]
    fn a_renewal_is_heard_from_its_arrival_until_all_of_it_is_settled() {
        let (passed_on, node) = (PassedOn::default(), NodeId::from("n1"));
        let service = ServiceName::new("s").expect("name");
        let key = (service, InstanceId::new("i").expect("id"));
        let (first, second) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let push = |at| passed_on.push(&node, Errand::Renew, (key.clone(), Some(1)), at);
        assert_eq!(passed_on.heard(&key), None);
        assert!(push(first));
        assert_eq!(passed_on.heard(&key), Some(first), "before it is sent");
        let one: Vec<_> = passed_on.take().into_values().flatten().collect();
        assert!(push(second));
        let two: Vec<_> = passed_on.take().into_values().flatten().collect();
        passed_on.settled(&one);
        assert_eq!(passed_on.heard(&key), Some(second), "another is under way");
        passed_on.settled(&two);
        assert_eq!(passed_on.heard(&key), None);
        assert!(passed_on.under_way.lock().is_empty());
    }
}
