//! What one peer is still to be told.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use http::StatusCode;
use selvedge_registry::{InstanceStatus, wire::InstanceRecord};
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use super::{
    super::{
        Eureka,
        batch::{Action, Answer, Item},
        model,
        record::Extra,
    },
    adopt, for_peers,
};
use crate::{
    catalogue::{Body, Key, Record},
    hub::{Kind, Published},
};

/// What a peer knows of an instance, as far as we have told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    /// All but the operator's word.
    body: u64,
    overridden: Option<InstanceStatus>,
}

/// Changes and heartbeats that one peer is owed.
pub(super) struct Outbox {
    eureka: Arc<Eureka>,
    hub: Receiver<Arc<Published>>,
    changed: BTreeSet<Key>,
    heartbeats: BTreeSet<Key>,
    told: HashMap<Key, Told>,
    /// What was there of instances whose departure is to be told.
    gone: HashMap<Key, Arc<Record>>,
}

/// What goes out at once; each item with its instance and what is known when it was taken.
pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    about: Vec<(Key, Option<Told>, Option<Arc<Record>>)>,
}

impl Outbox {
    pub(super) fn new(eureka: &Arc<Eureka>) -> Self {
        let mut outbox = Self {
            hub: eureka.shared.hub.listen(),
            eureka: Arc::clone(eureka),
            changed: BTreeSet::new(),
            heartbeats: BTreeSet::new(),
            told: HashMap::new(),
            gone: HashMap::new(),
        };
        outbox.changed = outbox.own();
        outbox
    }

    fn own(&self) -> BTreeSet<Key> {
        let shared = &self.eureka.shared;
        let state = shared.state.read();
        let owned = state.store.owned(&shared.node);
        owned.map_or_else(BTreeSet::new, |o| o.keys.iter().cloned().collect())
    }

    /// Takes what has happened since the last time.
    pub(super) fn collect(&mut self) {
        loop {
            match self.hub.try_recv() {
                Ok(published) if published.kind == Kind::Instances => {
                    let (service, delta) = (&published.service, &published.delta);
                    let changed = delta.changed.iter().map(|instance| &instance.id);
                    for id in changed.chain(&delta.removed) {
                        let key = (service.clone(), id.clone());
                        if let Some(before) = &published.before {
                            self.gone.insert(key.clone(), Arc::clone(before));
                        }
                        self.changed.insert(key);
                    }
                }
                Ok(_) => {}
                // What was missed is among these; a missed departure ends with its heartbeats.
                Err(TryRecvError::Lagged(_)) => self.changed.append(&mut self.own()),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Renews everything with the peer that this server speaks for.
    pub(super) fn queue_heartbeats(&mut self) {
        self.heartbeats = self.own();
        // What this server no longer keeps is another's to tell.
        self.told.retain(|key, _| self.heartbeats.contains(key));
    }

    /// What is to be sent next, `None` if nothing is.
    pub(super) fn next_batch(&mut self, limit: usize) -> Option<Batch> {
        let mut batch = Batch {
            items: Vec::new(),
            about: Vec::new(),
        };
        let mut later = Vec::new();
        // A change may take two items.
        while batch.items.len() + 1 < limit {
            let Some(key) = self.changed.pop_first() else {
                break;
            };
            match self.eureka.shared.is_heard_beside(&key) {
                Some(false) => self.add_change(&mut batch, key),
                Some(true) => {
                    self.told.remove(&key);
                }
                None => later.push(key),
            }
        }
        self.changed.extend(later);
        while batch.items.len() < limit {
            let Some(key) = self.heartbeats.pop_first() else {
                break;
            };
            self.add_heartbeat(&mut batch, key);
        }
        (!batch.items.is_empty()).then_some(batch)
    }

    fn add_change(&mut self, batch: &mut Batch, key: Key) {
        let gone = self.gone.remove(&key);
        let catalogue = self.eureka.shared.catalogue();
        let Some(record) = catalogue.get(&key.0, &key.1) else {
            return;
        };
        if record.stamp.owner != self.eureka.shared.node {
            self.told.remove(&key);
            return;
        }
        let Some(instance) = record.instance() else {
            // Eviction is everybody's own: a peer stops hearing heartbeats.
            if record.body == Body::Cancelled
                && let Some(gone) = gone
                && let Some(before) = gone.instance()
            {
                let whole = for_peers(&self.eureka, &key, &before);
                batch.items.push(Item {
                    action: Action::Cancel,
                    instance: whole,
                });
                batch.about.push((key, None, Some(gone)));
            }
            return;
        };
        let now = told(&instance);
        let before = self.told.get(&key).copied();
        if before == Some(now) {
            return;
        }
        let whole = for_peers(&self.eureka, &key, &instance);
        if before.is_none_or(|before| before.body != now.body) {
            batch.push(key.clone(), Action::Register, whole.clone(), Some(now));
        }
        let word = before.and_then(|before| before.overridden);
        if word != now.overridden {
            let action = match now.overridden {
                Some(_) => Action::StatusUpdate,
                None => Action::DeleteStatusOverride,
            };
            batch.push(key, action, whole, Some(now));
        }
    }

    fn add_heartbeat(&mut self, batch: &mut Batch, key: Key) {
        let catalogue = self.eureka.shared.catalogue();
        let Some(instance) = catalogue.live(&key.0, &key.1) else {
            return;
        };
        // A peer's client tells its own server.
        let from_peer = Extra::of(&instance).is_some_and(|extra| extra.from_peer);
        if from_peer || instance.owner != *self.eureka.shared.node {
            return;
        }
        let whole = for_peers(&self.eureka, &key, &instance);
        // That it lives tells the peer nothing else: a change in the same batch counts.
        batch.push(key, Action::Heartbeat, whole, None);
    }

    /// Notes what the peer has taken; tells whether it has taken all.
    pub(super) fn settle(&mut self, batch: Batch, answers: Vec<Answer>) -> bool {
        let mut all = true;
        let sent = batch.items.iter().zip(batch.about);
        for ((item, (key, told, gone)), answer) in sent.zip(answers) {
            match (answer.status, item.action) {
                (StatusCode::CONFLICT, _) => {
                    // The peer's client has said something newer.
                    if let Some(held) = answer.held {
                        adopt(&self.eureka, &held);
                    }
                }
                (StatusCode::NOT_FOUND, Action::Cancel) => {}
                (StatusCode::NOT_FOUND, _) => {
                    // With the next round, whole.
                    self.told.remove(&key);
                    self.changed.insert(key);
                    all = false;
                }
                (status, _) if status.is_success() => match told {
                    Some(told) => {
                        self.told.insert(key, told);
                    }
                    None if item.action == Action::Cancel => {
                        self.told.remove(&key);
                    }
                    None => {}
                },
                (status, _) => {
                    let instance = &key.1;
                    tracing::debug!(%status, service = %key.0, %instance, "a eureka peer refused");
                    all = false;
                    if status.is_server_error() && item.action != Action::Heartbeat {
                        if let Some(gone) = gone {
                            self.gone.entry(key.clone()).or_insert(gone);
                        }
                        self.changed.insert(key);
                    }
                }
            }
        }
        all
    }

    /// The peer has not been told after all.
    pub(super) fn take_back(&mut self, batch: Batch) {
        for (item, (key, _, gone)) in batch.items.iter().zip(batch.about) {
            if item.action != Action::Heartbeat {
                // Whether it took some of it is not known.
                self.told.remove(&key);
                if let Some(gone) = gone {
                    self.gone.entry(key.clone()).or_insert(gone);
                }
                self.changed.insert(key);
            }
        }
    }
}

impl Batch {
    fn push(
        &mut self,
        key: Key,
        action: Action,
        instance: Box<model::Instance>,
        told: Option<Told>,
    ) {
        self.items.push(Item { action, instance });
        self.about.push((key, told, None));
    }
}

/// What is compared: everything that an instance says of itself, and the operator's word.
fn told(instance: &InstanceRecord) -> Told {
    let own = InstanceRecord {
        overridden: None,
        status: instance.reported,
        registered_ms: 0,
        changed_ms: 0,
        owner: String::new(),
        ..instance.clone()
    };
    let text = serde_json::to_vec(&own).unwrap_or_default();
    Told {
        body: xxhash_rust::xxh3::xxh3_64(&text),
        overridden: instance.overridden,
    }
}
