//! What a delta is made of: everything that changed in the last three minutes.
//!
//! A client that polls every half minute applies the same change several times and compares a hash
//! afterwards, so a delta must hold each change at least once, its content may be newer than the
//! change, and its hash must be of the same moment as its content. Content and hash are therefore
//! taken from one snapshot of the catalogue; this only remembers which instances to look at.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use selvedge_registry::wire::InstanceRecord;
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use super::model::Action;
use crate::{
    catalogue::{Catalogue, Key, Record},
    hub::{Kind, Published},
};

/// How long a change stays in the delta. Source: Eureka's `retentionTimeInMSInDeltaQueue`.
pub(crate) const RETENTION: Duration = Duration::from_secs(180);

#[derive(Debug)]
struct Change {
    at: Instant,
    action: Action,
    /// What was there before it was taken out.
    gone: Option<Arc<Record>>,
}

/// The changes of the last [`RETENTION`], one for each instance.
#[derive(Debug)]
pub(crate) struct Feed {
    hub: Receiver<Arc<Published>>,
    changes: HashMap<Key, Change>,
    /// Oldest first; may name a key twice.
    order: VecDeque<(Instant, Key)>,
    /// Changes were lost: until then nobody may trust a delta.
    distrusted_until: Option<Instant>,
    /// Grows when old changes leave, as then the content differs.
    pruned: u64,
}

/// An instance in a delta.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) key: Key,
    pub(crate) record: InstanceRecord,
    pub(crate) action: Action,
}

impl Feed {
    pub(crate) fn new(hub: Receiver<Arc<Published>>) -> Self {
        Self {
            hub,
            changes: HashMap::new(),
            order: VecDeque::new(),
            distrusted_until: None,
            pruned: 0,
        }
    }

    /// Takes what has happened since the last time.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        loop {
            match self.hub.try_recv() {
                Ok(published) if published.kind == Kind::Instances => self.take(&published, now),
                Ok(_) => {}
                Err(TryRecvError::Lagged(_)) => self.distrusted_until = Some(now + RETENTION),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        while let Some((at, key)) = self.order.front() {
            if now.saturating_duration_since(*at) < RETENTION {
                break;
            }
            // Unless it has changed again since.
            if self.changes.get(key).is_some_and(|change| change.at == *at) {
                self.changes.remove(key);
            }
            self.order.pop_front();
            self.pruned += 1;
        }
        if self.distrusted_until.is_some_and(|until| until <= now) {
            self.distrusted_until = None;
        }
    }

    fn take(&mut self, published: &Published, now: Instant) {
        let (service, delta) = (&published.service, &published.delta);
        let before = published.before.as_ref().filter(|record| record.is_live());
        let action = match before {
            Some(_) => Action::Modified,
            None => Action::Added,
        };
        let changed = delta.changed.iter().map(|now| (&now.id, action));
        let removed = delta.removed.iter().map(|id| (id, Action::Deleted));
        for (id, action) in changed.chain(removed) {
            let key = (service.clone(), id.clone());
            let gone = (action == Action::Deleted)
                .then(|| before.cloned())
                .flatten();
            self.order.push_back((now, key.clone()));
            let change = Change {
                at: now,
                action,
                gone,
            };
            self.changes.insert(key, change);
        }
    }

    /// What makes two deltas of the same catalogue different.
    pub(crate) fn state(&self) -> u64 {
        self.pruned << 1 | u64::from(self.distrusted_until.is_some())
    }

    /// Whether changes were lost, so that clients must fetch everything.
    pub(crate) fn is_distrusted(&self) -> bool {
        self.distrusted_until.is_some()
    }

    /// What has changed, as `catalogue` has it. The changes may be ahead of it: then the next
    /// delta has the rest.
    pub(crate) fn changed(&self, catalogue: &Catalogue) -> Vec<Changed> {
        let look = |(key, change): (&Key, &Change)| {
            let live = catalogue.live(&key.0, &key.1);
            let (record, action) = match (live, change.action) {
                (Some(record), Action::Added) => (record, Action::Added),
                (Some(record), _) => (record, Action::Modified),
                (None, _) => (change.gone.as_ref()?.instance()?, Action::Deleted),
            };
            let key = key.clone();
            Some(Changed {
                key,
                record,
                action,
            })
        };
        let mut changed: Vec<_> = self.changes.iter().filter_map(look).collect();
        changed.sort_by(|a, b| a.key.cmp(&b.key));
        changed
    }
}
