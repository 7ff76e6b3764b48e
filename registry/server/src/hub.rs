//! The watch hub: each change is written out once, however many watch.

use std::sync::Arc;

use bytes::Bytes;
use selvedge_registry::{ServiceName, wire::ServiceDelta};
use serde::Serialize;
use tokio::sync::broadcast;

/// Changes a watcher may be behind before it is given snapshots instead. A guess: two seconds at
/// 500 writes a second.
const BACKLOG: usize = 1024;

/// A change on its way to the watchers.
#[derive(Debug, Clone)]
pub struct Published {
    /// The service that changed.
    pub service: ServiceName,
    /// The catalogue's counter after it.
    pub counter: u64,
    /// The event as it goes over the wire.
    pub event: Bytes,
}

/// Hands changes to watchers; a slow one loses changes and is told so, nobody waits for it.
#[derive(Debug)]
pub struct Hub(broadcast::Sender<Arc<Published>>);

impl Default for Hub {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Hub {
    /// Tells every watcher.
    pub fn publish(&self, delta: &ServiceDelta) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let event = event("delta", &delta.revision, delta);
        let published = Published {
            service: delta.service.clone(),
            counter: delta.revision.counter,
            event,
        };
        let _nobody_watches = self.0.send(Arc::new(published));
    }

    /// Changes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.0.subscribe()
    }

    /// Watches open.
    pub fn watchers(&self) -> usize {
        self.0.receiver_count()
    }
}

/// One server-sent event.
pub fn event(kind: &str, id: &impl std::fmt::Display, data: &impl Serialize) -> Bytes {
    // Our documents always serialise, and JSON has no raw line ends.
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("event: {kind}\nid: {id}\ndata: {data}\n\n"))
}
