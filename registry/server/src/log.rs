//! What this server has accepted, in order, for the others to follow.
//!
//! A ring, bounded in entries and in bytes: a follower that has fallen behind it, or that followed
//! an earlier life of this server, takes a snapshot instead. Entries are the catalogue's own
//! records; the ring keeps alive what has been replaced since, and no copy of what has not.

use std::{collections::VecDeque, sync::Arc};

use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::catalogue::Entry;

/// `[replication]` of `registry.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationConfig {
    /// Changes that the log holds for those who follow it. Default 65536: two minutes of absence
    /// at 500 writes a second.
    pub log_entries: usize,
    /// Bytes that it holds. Default 32 MiB: a guess, an eighth of what a server may take in all.
    pub log_bytes: usize,
    /// How often servers compare what they know. Default "10s": what was missed is found within
    /// two of these.
    pub compare_every: Millis,
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            log_entries: 1 << 16,
            log_bytes: 32 << 20,
            compare_every: Millis::new(10_000),
        }
    }
}

impl ReplicationConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for (field, value, least) in [
            ("replication.log_entries", self.log_entries, 16),
            ("replication.log_bytes", self.log_bytes, 64 << 10),
        ] {
            if value < least {
                return Err(PolicyError::new(field, value, format!("{least} or more")));
            }
        }
        let every = self.compare_every.0.as_millis();
        if !(100..=3_600_000).contains(&every) {
            let (field, allowed) = ("replication.compare_every", "\"100ms\" to \"1h\"");
            return Err(PolicyError::new(field, self.compare_every, allowed));
        }
        Ok(())
    }
}

/// An append-only log with a bounded past.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    /// The number of the first entry kept.
    first: u64,
    bytes: usize,
    limits: ReplicationConfig,
    /// Wakes followers.
    pub grown: Arc<Notify>,
}

impl Log {
    /// An empty one.
    pub fn new(limits: ReplicationConfig) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            bytes: 0,
            limits,
            grown: Arc::default(),
        }
    }

    /// Appends what was accepted.
    pub fn append(&mut self, entry: Entry) {
        self.bytes += entry.cost();
        self.entries.push_back(entry);
        while self.entries.len() > self.limits.log_entries || self.bytes > self.limits.log_bytes {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= oldest.cost();
            self.first += 1;
        }
        self.grown.notify_waiters();
    }

    /// The number that the next entry will have.
    pub fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// At most `most` entries from number `from` on; `None` if they are no longer kept, or not of
    /// this log.
    pub fn since(&self, from: u64, most: usize) -> Option<Vec<Entry>> {
        let skip = usize::try_from(from.checked_sub(self.first)?).ok()?;
        if skip > self.entries.len() {
            return None;
        }
        let rest = self.entries.range(skip..);
        Some(rest.take(most).cloned().collect())
    }

    /// Entries and bytes that it holds.
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Body, Record, Stamp};

    fn entry(hlc: u64) -> Entry {
        Entry::Instance(Arc::new(Record {
            service: "s".parse().expect("name"),
            id: "i".parse().expect("id"),
            stamp: Stamp {
                incarnation: 1,
                hlc,
                owner: "n".into(),
            },
            body: Body::Cancelled,
        }))
    }

    #[test]
    fn it_is_bounded_in_entries_and_in_bytes_and_says_what_it_lost() {
        let one = entry(0).cost();
        for (entries, bytes) in [(20, usize::MAX), (usize::MAX, one * 20)] {
            let mut log = Log::new(ReplicationConfig {
                log_entries: entries,
                log_bytes: bytes,
                ..ReplicationConfig::default()
            });
            for hlc in 0..50 {
                log.append(entry(hlc));
            }
            assert_eq!((log.next(), log.size()), (50, (20, one * 20)));
            for (from, want) in [
                (29, None),
                (30, Some(7)),
                (45, Some(5)),
                (50, Some(0)),
                (51, None),
            ] {
                assert_eq!(log.since(from, 7).map(|e| e.len()), want, "{from}");
            }
        }
    }
}
