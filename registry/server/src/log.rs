//! What this server has accepted, in order, for the others to follow.
//!
//! A bounded ring: a follower that has fallen behind it, or followed an earlier life of this
//! server, takes a snapshot instead.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::Notify;

use crate::catalogue::Record;

/// Entries kept. A guess: at 500 writes a second it is two minutes of absence.
const CAPACITY: usize = 1 << 16;

/// An append-only log with a bounded past.
#[derive(Debug, Default)]
pub struct Log {
    entries: VecDeque<Arc<str>>,
    /// The number of the first entry kept.
    first: u64,
    /// Wakes followers.
    pub grown: Arc<Notify>,
}

impl Log {
    /// Appends what was accepted. The record is written out once, for every follower.
    pub fn append(&mut self, record: &Record) {
        // A record always serialises: its keys are strings.
        let line = serde_json::to_string(record).unwrap_or_default();
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
            self.first += 1;
        }
        self.entries.push_back(line.into());
        self.grown.notify_waiters();
    }

    /// The number that the next entry will have.
    pub fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Entries from number `from` on; `None` if they are no longer kept.
    pub fn since(&self, from: u64) -> Option<Vec<Arc<str>>> {
        let skip = from.checked_sub(self.first)?;
        Some(
            self.entries
                .iter()
                .skip(usize::try_from(skip).ok()?)
                .cloned()
                .collect(),
        )
    }
}
