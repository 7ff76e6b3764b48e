//! Whether a process should get traffic, and what it waits for if not.
//!
//! Ready is not alive: a process that is catching up, or leaving, is fine and must not be killed
//! for it. Each part says for itself what it waits for; the process is ready when nobody waits.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// What the parts of a process wait for. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Part `name` is not ready until the guard says so; `why` is shown to operators.
    pub fn wait_for(&self, name: &'static str, why: impl Into<String>) -> ReadyGuard {
        let guard = ReadyGuard {
            readiness: self.clone(),
            name,
        };
        guard.not_ready(why);
        guard
    }

    /// Whether nobody waits.
    pub fn is_ready(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Who waits for what.
    pub fn waiting(&self) -> BTreeMap<&'static str, String> {
        self.0.lock().clone()
    }
}

/// One part's word; dropped, the part no longer counts.
#[derive(Debug)]
pub struct ReadyGuard {
    readiness: Readiness,
    name: &'static str,
}

impl ReadyGuard {
    /// This part is ready.
    pub fn ready(&self) {
        self.readiness.0.lock().remove(self.name);
    }

    /// This part is not, because of `why`.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.readiness.0.lock().insert(self.name, why.into());
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.ready();
    }
}
