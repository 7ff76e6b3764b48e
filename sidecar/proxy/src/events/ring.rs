//! The latest events, by number.

use std::{collections::VecDeque, sync::Arc};

use super::record::Record;

/// Numbered from 1; a number that is missing is of an event that was lost.
#[derive(Debug)]
pub(super) struct Ring {
    records: VecDeque<Arc<Record>>,
    capacity: usize,
    last: u64,
}

/// What a reader has not read yet.
#[derive(Debug, PartialEq)]
pub(super) enum Unread {
    /// So many that nobody can read any more, up to this number.
    Lost {
        /// How many.
        events: u64,
        /// The number of the last of them.
        to: u64,
    },
    /// The next.
    Event(Arc<Record>),
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            records: VecDeque::with_capacity(capacity),
            capacity,
            last: 0,
        }
    }

    /// Adds the record that `make` makes of its number; the oldest goes where there is no room.
    pub(super) fn push(&mut self, make: impl FnOnce(u64) -> Record) {
        if self.records.len() == self.capacity {
            self.records.pop_front();
        }
        self.last += 1;
        self.records.push_back(Arc::new(make(self.last)));
    }

    /// So many have happened that nobody will ever see.
    pub(super) fn miss(&mut self, events: u64) {
        self.last += events;
    }

    /// The newest number; 0 before the first.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Everything after `seq`, in order, with gaps where they are.
    pub(super) fn after(&self, seq: u64) -> Vec<Unread> {
        let begin = self.records.partition_point(|record| record.seq <= seq);
        let (mut unread, mut known) = (Vec::new(), seq);
        let gap = |from: u64, to: u64, unread: &mut Vec<Unread>| {
            if to > from {
                let events = to - from;
                unread.push(Unread::Lost { events, to });
            }
        };
        for record in self.records.range(begin..) {
            gap(known, record.seq - 1, &mut unread);
            known = record.seq;
            unread.push(Unread::Event(Arc::clone(record)));
        }
        gap(known, self.last, &mut unread);
        unread
    }

    /// What is there, of which nobody can say what was before.
    pub(super) fn oldest(&self) -> u64 {
        self.records.front().map_or(self.last, |it| it.seq - 1)
    }
}
