//! What other servers have accepted, and say so.

use std::{sync::Arc, time::Duration};

use super::shared::{Shared, State, now};
use crate::{
    catalogue::{Body, Change, Entry, Key, Record},
    lease::Renewal,
};

impl Shared {
    /// Takes what another server has accepted; in one step, however much it is.
    pub fn accept(&self, entries: impl IntoIterator<Item = Incoming>) {
        let mut state = self.state.write();
        let wall_ms = self.wall_ms();
        for entry in entries {
            match entry {
                Incoming::Instance(record) => self.accept_record(&mut state, *record, wall_ms),
                Incoming::Policy(entry) => {
                    state.clock.observe(entry.hlc, wall_ms);
                    if let Change::Visible(visible) = state.store.merge_policy(*entry) {
                        self.hub.publish(&visible);
                    }
                }
            }
        }
    }

    fn accept_record(&self, state: &mut State, record: Record, wall_ms: u64) {
        state.clock.observe(record.stamp.hlc, wall_ms);
        let key = record.key();
        let foreign = record.stamp.owner != self.node;
        if foreign && self.knows_better(state, &record) {
            return;
        }
        let owner = Arc::clone(&record.stamp.owner);
        let live = record.is_live();
        match state.store.merge(record, self.uptime_ms()) {
            Change::None => return,
            Change::Hidden => {}
            Change::Visible(visible) => self.hub.publish(&visible),
        }
        match (foreign, live) {
            (true, true) => self.leases.moved(&key, now()),
            (true, false) => self.leases.release(&key),
            (false, _) => {}
        }
        // Ours from an earlier life, or of a server that is gone: somebody has to keep its time.
        let kept = if foreign {
            self.is_alive(&owner)
        } else {
            self.leases.holds(&key)
        };
        if live && !kept {
            self.orphans.lock().insert(key);
        }
    }

    /// Another server has evicted (not cancelled) an instance whose lease is good here: after a
    /// partition both are right in what they saw, and the one that has heard the instance knows
    /// better. It says so with a later word; no watcher sees the instance go.
    fn knows_better(&self, state: &mut State, evicted: &Record) -> bool {
        if !matches!(evicted.body, Body::Evicted { .. }) {
            return false;
        }
        let life = evicted.stamp.incarnation;
        let known = state
            .store
            .catalogue()
            .live_record(&evicted.service, &evicted.id);
        let Some(known) = known
            .filter(|known| known.stamp.incarnation == life)
            .cloned()
        else {
            return false;
        };
        if known.stamp >= evicted.stamp || !self.leases.is_alive(&known.key(), life, now()) {
            return false;
        }
        Self::count(&self.counters.reasserted);
        // Later than what it contradicts.
        let after = Record {
            stamp: evicted.stamp.clone(),
            ..Record::clone(&known)
        };
        self.write(state, &after, known.body.clone());
        true
    }

    /// A renewal that another server passes on; `true` if the instance is that server's by now.
    pub(crate) fn renew_for(&self, via: &str, key: &Key, incarnation: Option<u64>) -> bool {
        match self.leases.renew(key, incarnation, Some(via), now()) {
            Renewal::Renewed { .. } => false,
            Renewal::Moved { .. } | Renewal::Guarded | Renewal::NotHere | Renewal::OtherLife => {
                true
            }
        }
    }

    /// Takes a lease over from a server that leaves, with what remains of it.
    pub(crate) fn take_over(&self, key: &Key, incarnation: u64, remaining: Duration) -> bool {
        let mut state = self.state.write();
        let record = state.store.catalogue().live_record(&key.0, &key.1).cloned();
        let Some(record) = record.filter(|record| record.stamp.incarnation == incarnation) else {
            return false;
        };
        let Some(instance) = record.instance() else {
            return false;
        };
        let grant = super::writes::grant(&instance);
        self.leases
            .grant_rest(key.clone(), &grant, remaining, now());
        if record.stamp.owner != self.node {
            self.take_as_it_is(&mut state, &record);
        }
        true
    }
}

/// Something that another server has accepted.
#[derive(Debug)]
pub enum Incoming {
    /// About an instance.
    Instance(Box<Record>),
    /// About a policy.
    Policy(Box<crate::catalogue::PolicyEntry>),
}

impl Incoming {
    /// From an entry that somebody else may still hold.
    pub fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Instance(record) => Self::Instance(Box::new(Record::clone(record))),
            Entry::Policy(policy) => {
                Self::Policy(Box::new(crate::catalogue::PolicyEntry::clone(policy)))
            }
        }
    }
}
