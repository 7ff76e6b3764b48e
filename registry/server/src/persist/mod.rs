//! What survives a restart: the catalogue on disk.
//!
//! The other servers are a server's memory, and a better one than its disk. The disk is for the
//! day on which all of them are gone at once: then nobody is left to ask, and a registry that came
//! up empty would take every service out. So each server saves its catalogue every half minute and
//! when it leaves, and after a restart answers with what it remembers, *unconfirmed*: everybody in
//! it has at least [`restart_grace`](crate::lease::LeasesConfig::restart_grace) to be heard of.
//!
//! ```text
//!   catalogue.snapshot    the last one      SLVDREG1 │ length │ zstd of JSON lines │ xxh3 of those bytes
//!   catalogue.previous    the one before
//!   catalogue.tmp         being written: never read
//! ```
//!
//! # Guarantees
//! - A crash at any moment, a full disk included, leaves the last complete file: a new one is
//!   written beside it, synced, and put in its place in one step.
//! - A damaged file is not taken, whatever is damaged: not a record of it. The previous one is, or
//!   none.
//! - The hybrid clock goes on after its last saved stamp, even if the wall clock was set back.
//!
//! # What it does not do
//! Make a write durable before it is answered: the other servers have it within milliseconds.

mod file;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize};

pub use file::LoadError;

use crate::{
    catalogue::{Clock, Store},
    server::Shared,
};

/// `[storage]` of `registry.toml`; used where a `state_dir` is set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// How often the catalogue is saved. Default "30s": what a restart of all servers may lose.
    pub snapshot_every: Millis,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            snapshot_every: Millis::new(30_000),
        }
    }
}

impl StorageConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let every = self.snapshot_every.0.as_millis();
        if (100..=3_600_000).contains(&every) {
            return Ok(());
        }
        let (field, allowed) = ("storage.snapshot_every", "\"100ms\" to \"1h\"");
        Err(PolicyError::new(field, self.snapshot_every, allowed))
    }
}

/// A server's own word about what it has saved: the first line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its name.
    pub node: String,
    /// When, in Unix milliseconds.
    pub saved_ms: u64,
    /// The last stamp of its hybrid clock.
    pub hlc: u64,
    /// The addresses of the peers that served at that time.
    pub peers: Vec<(String, std::net::SocketAddr)>,
}

/// What an earlier life has left.
#[derive(Debug)]
pub struct Restored {
    /// Its own word about it.
    pub header: Header,
    /// The catalogue.
    pub store: Store,
}

const LAST: &str = "catalogue.snapshot";
const PREVIOUS: &str = "catalogue.previous";
const TEMPORARY: &str = "catalogue.tmp";

/// Reads what an earlier life has left in `dir`: the last that is whole. `epoch` is never used
/// twice.
pub fn load(dir: &Path, epoch: u64) -> Option<Restored> {
    for name in [LAST, PREVIOUS] {
        let path = dir.join(name);
        match file::read(&path, epoch) {
            Ok(restored) => return Some(restored),
            Err(LoadError::Missing) => {}
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a saved catalogue cannot be used");
            }
        }
    }
    None
}

/// Saves the catalogue of `shared` in `dir`. Blocks; takes no lock while it writes.
///
/// # Errors
/// If it cannot be written; what was there before is there still.
pub fn save(dir: &Path, shared: &Shared) -> std::io::Result<()> {
    let (catalogue, hlc) = shared.to_save();
    let header = Header {
        node: shared.node.to_string(),
        saved_ms: shared.wall_ms(),
        hlc,
        peers: shared
            .serving_peers()
            .into_iter()
            .map(|(node, addr)| (node.to_string(), addr))
            .collect(),
    };
    let paths = [TEMPORARY, LAST, PREVIOUS].map(|name| dir.join(name));
    file::write(&paths, &header, &catalogue)
}

/// Saves every so often. A failure is told, counted, and tried again next time.
pub(crate) async fn save_for_ever(shared: Arc<Shared>, dir: PathBuf, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.tick().await;
    loop {
        tick.tick().await;
        // A server that is catching up knows less than its file.
        if shared.is_serving() {
            save_now(&shared, &dir).await;
        }
    }
}

/// Saves once, beside everything else that runs.
pub(crate) async fn save_now(shared: &Arc<Shared>, dir: &Path) {
    let (sharing, to) = (Arc::clone(shared), dir.to_owned());
    let saved = tokio::task::spawn_blocking(move || save(&to, &sharing)).await;
    let error = match saved {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Shared::count(&shared.counters.save_failures);
    tracing::warn!(path = %dir.display(), %error, "saving the catalogue failed, the last one is kept");
}

/// The hybrid clock of a life that begins at `wall_ms` with `header` left by the one before. What
/// that one stamped after it had saved is not known: where the wall clock does not cover it, as it
/// was set back, a minute does (twice the default of `snapshot_every`).
pub(crate) fn resume_clock(header: &Header, wall_ms: u64) -> Clock {
    const UNSAVED_MS: u64 = 60_000;
    let set_back = wall_ms <= header.hlc >> 16;
    let margin = if set_back { UNSAVED_MS << 16 } else { 0 };
    Clock::resume(header.hlc.saturating_add(margin))
}

#[cfg(test)]
mod tests;
