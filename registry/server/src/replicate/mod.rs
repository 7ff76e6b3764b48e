//! How what one server accepts reaches the others.
//!
//! ```text
//!   a write here ──► own log ══ one HTTP/2 stream each ══► every follower
//!   too far behind, or new:  snapshot (zstd), of one owner or some buckets
//!   every ten seconds:       hashes by bucket; one that differs twice is fetched
//!   a stream that cannot be had:   what differs, from a server that has it
//!   a renewal here of a lease kept there:  passed on, a batch at a time
//!   a lease that is over:    the others are asked whether they have heard of it
//! ```
//!
//! A follower says how far it is. If the log still reaches back to there it gets what came since;
//! else it takes a snapshot of what that server owns first. Streams carry only what their server
//! has accepted itself, so each change crosses each link once. What may still be missed (a server
//! that died between telling one and telling the other, a fault of ours) is found by comparing
//! hashes: those of what a living server owns come on its own stream, together with the position
//! that they are of, and are therefore exact; those of servers that are gone are compared between
//! the ones that remember them.
//!
//! Merging is idempotent, so fetching too much costs time and no correctness.

mod by_another;
mod catch_up;
mod follow;
pub(crate) mod frame;
pub mod peer;
mod second_word;
mod serve;
mod turn_over;

use std::{collections::HashSet, sync::Arc, time::Duration};

pub use serve::router;
pub(crate) use {
    catch_up::{bootstrap, who_serves},
    follow::follow_everybody,
    second_word::ask_for_ever,
    turn_over::{hand_off, pass_on_for_ever},
};

use self::{
    frame::{In, Lines, Positions},
    peer::BoxError,
};
use crate::{
    catalogue::{Key, NodeId},
    server::Shared,
};

/// How often a stream says where the log stands.
const HEARTBEAT: Duration = Duration::from_secs(1);

impl Shared {
    /// How far this server has followed each, itself included.
    pub(crate) fn positions(&self) -> Positions {
        // Ours first: what the others say after that is in the catalogue all the more.
        let next = self.read_log(crate::log::Log::next);
        let generation = self.generation;
        let mut positions: Positions = {
            let followed = self.followed.lock();
            followed
                .iter()
                .map(|(node, position)| (node.clone(), *position))
                .collect()
        };
        let own = frame::Position { generation, next };
        positions.insert(self.node.to_string(), own);
        positions
    }

    fn followed_to(&self, node: &NodeId, position: frame::Position) {
        self.followed.lock().insert(node.to_string(), position);
    }

    /// Takes what lines say of the catalogue; hands back the rest.
    fn accept_lines(&self, lines: Vec<In>) -> Vec<In> {
        let mut rest = Vec::new();
        let mut entries = Vec::with_capacity(lines.len());
        for line in lines {
            match line.entry() {
                Ok(entry) => entries.push(entry),
                Err(other) => rest.push(other),
            }
        }
        if !entries.is_empty() {
            self.accept(entries);
        }
        rest
    }
}

/// Records that are taken in one step: readers and renewals wait for that long at most.
const STEP: usize = 128;

/// A snapshot as it comes in: unpacked, and taken piece by piece.
struct Unpacked<'a> {
    shared: &'a Arc<Shared>,
    lines: Lines,
    pending: Vec<In>,
    head: Option<Positions>,
    records: u64,
    /// What was in it, if that is asked for.
    seen: Option<HashSet<Key>>,
    complete: bool,
}

impl Unpacked<'_> {
    fn take(&mut self, piece: &[u8]) -> Result<(), BoxError> {
        for frame in self.lines.push(piece)? {
            match frame {
                In::Head(head) => self.head = Some(head.positions),
                In::End { records } => {
                    self.step();
                    if records != self.records {
                        let got = self.records;
                        return Err(format!("{got} records of {records} arrived").into());
                    }
                    self.complete = true;
                }
                entry => {
                    if let In::Record(record) = &entry {
                        self.records += 1;
                        if let Some(seen) = &mut self.seen {
                            seen.insert(record.key());
                        }
                    }
                    self.pending.push(entry);
                    if self.pending.len() >= STEP {
                        self.step();
                    }
                }
            }
        }
        Ok(())
    }

    fn step(&mut self) {
        self.shared.accept_lines(std::mem::take(&mut self.pending));
    }
}
