//! The audit log: who changed what, when.
//!
//! Each accepted or refused write is one event of the tracing target `audit`, at info: a JSON line
//! among the others, or in a file of its own by a filter on the target. Renewals are no writes.
//! Documents, keys and tokens are not in it.

use std::{fmt::Display, net::SocketAddr};

use crate::auth::Caller;

/// Who is asking, from where.
#[derive(Debug, Clone)]
pub struct Who {
    /// By whose right.
    pub caller: Caller,
    /// From which address.
    pub from: SocketAddr,
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
    /// Says that it did `action` to `subject` (`orders`, `orders/orders-1`), or tried to;
    /// `outcome` is the answer's status.
    pub fn wrote(&self, action: &'static str, subject: &str, outcome: u16) {
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
}
