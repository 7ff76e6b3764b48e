//! The audit log: who changed what, when.
//!
//! Each accepted or refused write is one event of the tracing target `audit`, at info: a JSON line
//! among the others, or in a file of its own by a filter on the target. Whoever looks there in the
//! night wants to know who tried to do what, from where, and what came of it; so a write that was
//! refused before anybody knew what it was about (no right, too often, no such path, not to be
//! understood) has its line as well: `refused`, with the method and the path. Renewals are no
//! writes, unless there is no right to them; nor is what servers of a cluster tell each other.
//! Documents, keys and tokens are not in it.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::auth::Caller;

/// Who is asking, from where.
#[derive(Debug, Clone)]
pub struct Who {
    /// By whose right.
    pub caller: Caller,
    /// From which address.
    pub from: SocketAddr,
    /// There is a line about this request.
    written: Arc<AtomicBool>,
}

/// The same of what is done on the admin port, whose token has no name.
pub(crate) fn operator_wrote(action: &'static str, subject: &dyn Display, outcome: u16) {
    tracing::info!(
        target: "audit",
        client = "admin",
        action,
        subject = %subject,
        outcome,
        "write"
    );
}

impl Who {
    /// Who asks for something now.
    pub fn new(caller: Caller, from: SocketAddr) -> Self {
        Self {
            caller,
            from,
            written: Arc::default(),
        }
    }

    /// Says that it did `action` to `subject` (`orders`, `orders/orders-1`), or tried to;
    /// `outcome` is the answer's status.
    pub fn wrote(&self, action: &'static str, subject: &str, outcome: u16) {
        self.written.store(true, Ordering::Relaxed);
        tracing::info!(
            target: "audit",
            client = %self.caller.name(),
            from = %self.from,
            action,
            subject,
            outcome,
            "write"
        );
    }

    /// Says that its `method` on `path` was refused before it was known what it is about.
    pub(crate) fn was_refused(&self, method: &str, path: &str, outcome: u16) {
        self.written.store(true, Ordering::Relaxed);
        tracing::info!(
            target: "audit",
            client = %self.caller.name(),
            from = %self.from,
            action = "refused",
            method,
            subject = path,
            outcome,
            "write"
        );
    }

    /// Whether anything was said about this request, of whichever clone.
    pub(crate) fn has_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }
}
