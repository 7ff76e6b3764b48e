//! What a Eureka beside us has said, so that it is not told the same by us.
//!
//! It stands where the other parts of a server can reach it: what a peer says to one server is done
//! by the server that keeps the lease, and that one would otherwise tell the peer of it.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::now;
use crate::{
    catalogue::{Body, Key},
    server::Shared,
};

/// How long it is remembered what a peer has said of an instance that is gone. A guess: many times
/// what an event takes to arrive.
const REMEMBER: Duration = Duration::from_secs(60);

/// The states that came from a peer.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// There is somebody who could be told.
    has_peers: AtomicBool,
    heard: Mutex<HashMap<Key, Heard>>,
}

/// A state that came from a peer.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    /// `None` while it is being applied.
    state: Option<u64>,
}

impl Beside {
    /// From now on what peers say is remembered.
    pub(super) fn has_peers(&self) {
        self.has_peers.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// The state of an instance as a number: 0 if it is not live.
    fn state_of(&self, key: &Key) -> u64 {
        let catalogue = self.catalogue();
        match catalogue.get(&key.0, &key.1).map(|record| &record.body) {
            Some(Body::Live(live)) => xxhash_rust::xxh3::xxh3_64(live.text().as_bytes()).max(1),
            _ => 0,
        }
    }

    /// Applies what a peer says and remembers that it did.
    pub(crate) fn heard_beside<T>(&self, key: Key, apply: impl FnOnce() -> T) -> T {
        if !self.beside.has_peers.load(Ordering::Relaxed) {
            return apply();
        }
        let heard = |state| Heard { at: now(), state };
        let before = self.state_of(&key);
        // Before the change can be seen, or it could be sent back before it is marked.
        let known = self.beside.heard.lock().insert(key.clone(), heard(None));
        let done = apply();
        let state = self.state_of(&key);
        let mut all = self.beside.heard.lock();
        // It may have said nothing new, as with a heartbeat: a change of ours is still to be told.
        match known {
            // Something else is being applied, which says what it came to.
            Some(Heard { state: None, .. }) if state == before => {}
            Some(known) if state == before => drop(all.insert(key, known)),
            None if state == before => drop(all.remove(&key)),
            _ => drop(all.insert(key, heard(Some(state)))),
        }
        drop(all);
        done
    }

    /// Whether the present state of an instance came from a peer; `None` if that is not known yet.
    pub(super) fn is_heard_beside(&self, key: &Key) -> Option<bool> {
        match self.beside.heard.lock().get(key) {
            None => Some(false),
            Some(Heard { state: None, .. }) => None,
            Some(Heard {
                state: Some(state), ..
            }) => Some(*state == self.state_of(key)),
        }
    }

    pub(super) fn forget_heard_beside(&self) {
        let catalogue = self.catalogue();
        self.beside.heard.lock().retain(|(service, id), heard| {
            let recent = now().saturating_duration_since(heard.at) < REMEMBER;
            recent || catalogue.live_record(service, id).is_some()
        });
    }
}
