//! The watch hub: each change is written out once, however many watch, and wakes only those who
//! asked for it.
//!
//! A thousand clients that watch a service each must not be woken by every change of fifteen
//! thousand others. So a watch names its services and has a mailbox of its own, which is bounded:
//! one that does not keep up loses what is in it and is told so, and nobody waits for it. Those
//! who want everything (dialects with caches) [`subscribe`](Hub::subscribe).

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use selvedge_registry::{
    Revision, ServiceName,
    wire::{PolicyRecord, ServiceDelta},
};
use serde::Serialize;
use tokio::sync::{Notify, broadcast};

use crate::catalogue::{Entry, Record, Visible};

/// Changes a watcher of everything may be behind before it is given snapshots instead. A guess:
/// two seconds at 500 writes a second.
const BACKLOG: usize = 1024;
/// Changes that a mailbox holds. A guess: a service that changes more often than that while its
/// watcher is away is better sent whole.
const MAILBOX: usize = 256;

/// What a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Instances of the service.
    Instances,
    /// Its policy.
    Policy,
}

/// A change on its way to the watchers.
#[derive(Debug, Clone)]
pub struct Published {
    /// The service that changed.
    pub service: ServiceName,
    /// The catalogue's counter after it.
    pub counter: u64,
    /// What about it.
    pub kind: Kind,
    /// The event as it goes over the wire.
    pub event: Bytes,
    /// The change; empty if it is about the policy.
    pub delta: Arc<ServiceDelta>,
    /// What was known of the instance before.
    pub before: Option<Arc<Record>>,
}

/// A policy's event.
#[derive(Debug, Serialize)]
struct PolicyEvent<'a> {
    service: &'a ServiceName,
    revision: Revision,
    /// `null` once it was withdrawn.
    policy: Option<&'a PolicyRecord>,
}

/// The watcher was too slow and has missed changes: what is true now must be read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged;

#[derive(Debug, Default)]
struct Mailbox {
    inside: Mutex<Inside>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    changes: VecDeque<Arc<Published>>,
    lagged: bool,
}

#[derive(Debug, Default)]
struct Watches {
    by_service: RwLock<HashMap<ServiceName, Vec<Arc<Mailbox>>>>,
    open: AtomicUsize,
}

/// Hands changes to watchers.
#[derive(Debug)]
pub struct Hub {
    all: broadcast::Sender<Arc<Published>>,
    /// Of those who get all, parts of this server.
    own: AtomicUsize,
    watches: Arc<Watches>,
    written: AtomicU64,
    snapshots: AtomicU64,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            all: broadcast::channel(BACKLOG).0,
            own: AtomicUsize::new(0),
            watches: Arc::default(),
            written: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
        }
    }
}

impl Hub {
    /// Tells every watcher.
    pub(crate) fn publish(&self, visible: &Visible) {
        let (service, kind) = match &visible.entry {
            Entry::Instance(record) => (&record.service, Kind::Instances),
            Entry::Policy(entry) => (&entry.service, Kind::Policy),
        };
        let watches = self.watches.by_service.read();
        let watching = watches.get(service);
        if watching.is_none() && self.all.receiver_count() == 0 {
            return;
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        let published = Arc::new(published(visible, service.clone(), kind));
        for mailbox in watching.into_iter().flatten() {
            let mut inside = mailbox.inside.lock();
            if inside.changes.len() == MAILBOX {
                inside.changes.clear();
                inside.lagged = true;
            }
            if !inside.lagged {
                inside.changes.push_back(Arc::clone(&published));
            }
            drop(inside);
            mailbox.arrived.notify_one();
        }
        let _nobody_wants_all = self.all.send(published);
    }

    /// Every change from now on, for a part of this server that lives as long as it: nobody's watch.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Published>> {
        self.own.fetch_add(1, Ordering::Relaxed);
        self.all.subscribe()
    }

    /// Every change from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.all.subscribe()
    }

    /// Changes of these services from now on.
    pub fn watch(&self, names: impl IntoIterator<Item = ServiceName>) -> Watching {
        let mailbox = Arc::new(Mailbox::default());
        let mut by_service = self.watches.by_service.write();
        let mut watched: Vec<ServiceName> = Vec::new();
        for name in names {
            if watched.contains(&name) {
                continue;
            }
            let mailboxes = by_service.entry(name.clone()).or_default();
            mailboxes.push(Arc::clone(&mailbox));
            watched.push(name);
        }
        self.watches.open.fetch_add(1, Ordering::Relaxed);
        Watching {
            names: watched,
            mailbox,
            watches: Arc::clone(&self.watches),
        }
    }

    /// Events that were written, each for all who watch.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Services that a watch was told of whole.
    pub fn snapshots(&self) -> u64 {
        self.snapshots.load(Ordering::Relaxed)
    }

    /// A watch is told of `n` services whole.
    pub(crate) fn told(&self, n: usize) {
        self.snapshots.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Watches open.
    pub fn watchers(&self) -> usize {
        let all = self.all.receiver_count();
        all.saturating_sub(self.own.load(Ordering::Relaxed))
            + self.watches.open.load(Ordering::Relaxed)
    }
}

fn published(visible: &Visible, service: ServiceName, kind: Kind) -> Published {
    let revision = visible.revision;
    let mut delta = ServiceDelta {
        service: service.clone(),
        revision,
        changed: Vec::new(),
        removed: Vec::new(),
    };
    let event = match &visible.entry {
        Entry::Instance(record) => {
            match record.instance() {
                Some(instance) => delta.changed.push(instance),
                None => delta.removed.push(record.id.clone()),
            }
            event("delta", &revision, &delta)
        }
        Entry::Policy(entry) => {
            let data = PolicyEvent {
                service: &service,
                revision,
                policy: entry.record.as_ref(),
            };
            event("policy", &revision, &data)
        }
    };
    Published {
        service,
        counter: revision.counter,
        kind,
        event,
        delta: Arc::new(delta),
        before: visible.before.clone(),
    }
}

/// A watch of some services; ends when dropped.
#[derive(Debug)]
pub struct Watching {
    names: Vec<ServiceName>,
    mailbox: Arc<Mailbox>,
    watches: Arc<Watches>,
}

impl Watching {
    /// What it watches, each once.
    pub fn names(&self) -> &[ServiceName] {
        &self.names
    }

    /// The next change. Cancel-safe.
    ///
    /// # Errors
    /// [`Lagged`], once, after changes were lost.
    pub async fn recv(&mut self) -> Result<Arc<Published>, Lagged> {
        loop {
            {
                let mut inside = self.mailbox.inside.lock();
                if std::mem::take(&mut inside.lagged) {
                    return Err(Lagged);
                }
                if let Some(change) = inside.changes.pop_front() {
                    return Ok(change);
                }
            }
            self.mailbox.arrived.notified().await;
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut by_service = self.watches.by_service.write();
        for name in &self.names {
            let Some(mailboxes) = by_service.get_mut(name) else {
                continue;
            };
            mailboxes.retain(|mailbox| !Arc::ptr_eq(mailbox, &self.mailbox));
            if mailboxes.is_empty() {
                by_service.remove(name);
            }
        }
        self.watches.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One server-sent event.
pub fn event(kind: &str, id: &impl std::fmt::Display, data: &impl Serialize) -> Bytes {
    // Our documents always serialise, and JSON has no raw line ends.
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("event: {kind}\nid: {id}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Body, Change, Record, Stamp, Store};

    fn change(store: &mut Store, service: &str, hlc: u64) -> Visible {
        let record = Record {
            service: service.parse().expect("name"),
            id: "i".parse().expect("id"),
            stamp: Stamp {
                incarnation: hlc,
                hlc,
                owner: "n".into(),
            },
            body: Body::Live(crate::catalogue::Live::of(&{
                let id = "i".parse().expect("id");
                let mut instance =
                    crate::catalogue::plain(&id, "10.0.0.1:80".parse().expect("address"));
                instance.incarnation = hlc;
                instance
            })),
        };
        match store.merge(record, 0) {
            Change::Visible(visible) => visible,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_watch_hears_of_its_services_only_and_of_having_been_too_slow() {
        let (hub, mut store) = (Hub::default(), Store::new(1));
        let names = ["a", "b", "a"].map(|name| name.parse().expect("name"));
        let mut watching = hub.watch(names);
        let mut all = hub.subscribe();
        for service in ["c", "a", "b"] {
            hub.publish(&change(&mut store, service, 1));
        }
        for service in ["a", "b"] {
            let got = watching.recv().await.expect("in time");
            assert_eq!(got.service.as_str(), service);
            assert!(got.event.starts_with(b"event: delta\nid: 1-"));
        }
        assert_eq!(all.try_recv().expect("everything").service.as_str(), "c");
        for hlc in 2..=MAILBOX as u64 + 2 {
            hub.publish(&change(&mut store, "a", hlc));
        }
        assert_eq!(watching.recv().await.expect_err("overrun"), Lagged);
        hub.publish(&change(&mut store, "a", 9999));
        let next = watching.recv().await.expect("goes on");
        assert_eq!(next.delta.changed[0].incarnation, 9999);
        assert_eq!(hub.watchers(), 2);
        drop((watching, all));
        assert_eq!(hub.watchers(), 0);
        assert!(hub.watches.by_service.read().is_empty());
    }
}
