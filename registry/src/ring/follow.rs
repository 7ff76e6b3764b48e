//! The ring of a service, kept up to date with its watch.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::{sync::watch, task::AbortHandle};

use super::{HashRing, Member, POINTS};
use crate::{client::ServiceWatch, instance::Endpoint};

/// What an instance's points are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Labels {
    /// Its address, as Ringpop does unless told otherwise.
    #[default]
    Address,
    /// Its id: an instance that comes back elsewhere under the same id has the same keys again.
    InstanceId,
}

/// A ring that others may replace while it is being asked. Clones are the same ring.
#[derive(Debug, Clone)]
pub struct Ring {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Shared {
    ring: ArcSwap<HashRing>,
    changes: watch::Sender<u64>,
    follower: Option<AbortHandle>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

impl Ring {
    /// A ring that changes only by [`replace`](Self::replace).
    pub fn new(ring: HashRing) -> Self {
        Self::from_shared(ring, |_| None)
    }

    /// The ring of a service's instances that take calls. Follows `watch` until the last clone of
    /// it is dropped; empty until the service has been heard of.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn follow(watch: ServiceWatch, labels: Labels) -> Self {
        let first = ring_of(&watch, labels);
        Self::from_shared(first, |weak| {
            let (weak, mut watch) = (weak.clone(), watch);
            let task = tokio::spawn(async move {
                // What changed between the first look and this one is in the second.
                loop {
                    let ring = ring_of(&watch, labels);
                    let Some(shared) = weak.upgrade() else { return };
                    shared.store(ring);
                    drop(shared);
                    watch.changed().await;
                }
            });
            Some(task.abort_handle())
        })
    }

    fn from_shared(
        ring: HashRing,
        follower: impl FnOnce(&std::sync::Weak<Shared>) -> Option<AbortHandle>,
    ) -> Self {
        let (changes, seen) = watch::channel(0);
        let shared = Arc::new_cyclic(|weak| Shared {
            ring: ArcSwap::from_pointee(ring),
            changes,
            follower: follower(weak),
        });
        Self {
            shared,
            changes: seen,
        }
    }

    /// The ring as it is now. Cheap: a reference count.
    pub fn current(&self) -> Arc<HashRing> {
        self.shared.ring.load_full()
    }

    /// Puts another ring in its place; a ring that [follows](Self::follow) a service is replaced
    /// again at the service's next change.
    pub fn replace(&self, ring: HashRing) {
        self.shared.store(ring);
    }

    /// Resolves when the ring has another checksum than the last time this resolved. Cancel-safe.
    pub async fn changed(&mut self) {
        // The sender lives in what `self` holds.
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Shared {
    fn store(&self, ring: HashRing) {
        let before = self.ring.swap(Arc::new(ring));
        if before.replica_checksum() != self.ring.load().replica_checksum() {
            self.changes.send_modify(|n| *n += 1);
        }
    }
}

fn ring_of(watch: &ServiceWatch, labels: Labels) -> HashRing {
    let snapshot = watch.current();
    let member = |endpoint: &Endpoint| {
        let member = Member::new(endpoint.addr.to_string());
        match labels {
            Labels::Address => member,
            Labels::InstanceId => member.identity(endpoint.id.as_str()),
        }
    };
    HashRing::with_points(snapshot.endpoints.iter().map(member), POINTS)
}
