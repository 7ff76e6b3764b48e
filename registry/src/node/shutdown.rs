//! When to leave: SIGTERM or SIGINT asks, a second one insists.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a process.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Begins to listen. From now on the process does not end by itself.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves at the next signal with its name. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
