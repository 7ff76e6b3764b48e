//! What servers send each other: a JSON document a line.
//!
//! Records are sent as the text that they are kept as, so a line costs a copy and no encoding, a
//! server may keep and pass on what a newer one has added, and a capture can be read. Snapshots are
//! compressed on top of that.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::{
    catalogue::{BUCKETS, Entry, PolicyEntry, Record},
    server::Incoming,
};

/// A place in a server's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The server's life.
    pub(crate) generation: u64,
    /// The number of the next entry.
    pub(crate) next: u64,
}

/// Where servers stand, by name.
pub(crate) type Positions = BTreeMap<String, Position>;

/// What a server's catalogue looks like, for another to compare with its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sums {
    /// Hashes of what it owns, by bucket; as of the last position sent.
    pub(crate) own: Buckets,
    /// Hash of what it knows of each server that is gone.
    pub(crate) gone: BTreeMap<String, u64>,
    /// Hash of all policies.
    pub(crate) policies: u64,
    /// How far it has followed the one it tells this.
    pub(crate) heard: Option<Position>,
}

/// Hashes by bucket; in hexadecimal on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buckets(pub(crate) [u64; BUCKETS]);

impl Serialize for Buckets {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(BUCKETS * 16);
        for hash in self.0 {
            // Writing to a `String` does not fail.
            let _infallible = write!(text, "{hash:016x}");
        }
        s.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Buckets {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let bad = || serde::de::Error::custom(format!("expected {BUCKETS} hashes of 16 digits"));
        if text.len() != BUCKETS * 16 || !text.is_ascii() {
            return Err(bad());
        }
        let mut buckets = [0; BUCKETS];
        for (n, hash) in buckets.iter_mut().enumerate() {
            let digits = &text[n * 16..(n + 1) * 16];
            *hash = u64::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self(buckets))
    }
}

/// The first line of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// What its maker had followed of each server, itself included, before it began: all of that is
    /// in the snapshot, if it is in the part that was asked for.
    pub(crate) positions: Positions,
}

/// A line on its way out.
#[derive(Debug, Serialize)]
pub(crate) enum Out<'a> {
    #[serde(rename = "r")]
    Record(&'a Record),
    #[serde(rename = "p")]
    Policy(&'a PolicyEntry),
    #[serde(rename = "at")]
    At(Position),
    #[serde(rename = "gap")]
    Gap,
    #[serde(rename = "sums")]
    Sums(Box<Sums>),
    #[serde(rename = "head")]
    Head(Head),
    #[serde(rename = "end")]
    End { records: u64 },
}

impl<'a> Out<'a> {
    pub(crate) fn of(entry: &'a Entry) -> Self {
        match entry {
            Entry::Instance(record) => Self::Record(record),
            Entry::Policy(policy) => Self::Policy(policy),
        }
    }

    /// Appends it as a line.
    pub(crate) fn write(&self, line: &mut Vec<u8>) {
        // Writing to a `Vec` does not fail, and our frames always serialise.
        let _infallible = serde_json::to_writer(&mut *line, self);
        line.push(b'\n');
    }
}

/// A line that has come in.
#[derive(Debug, Deserialize)]
pub(crate) enum In {
    #[serde(rename = "r")]
    Record(Box<Record>),
    #[serde(rename = "p")]
    Policy(Box<PolicyEntry>),
    /// Everything up to here has been sent.
    #[serde(rename = "at")]
    At(Position),
    /// The log does not reach back so far.
    #[serde(rename = "gap")]
    Gap,
    #[serde(rename = "sums")]
    Sums(Box<Sums>),
    #[serde(rename = "head")]
    Head(Head),
    /// A snapshot is complete.
    #[serde(rename = "end")]
    End { records: u64 },
}

impl In {
    /// What it tells of the catalogue, if it does.
    pub(crate) fn entry(self) -> Result<Incoming, Self> {
        match self {
            Self::Record(record) => Ok(Incoming::Instance(record)),
            Self::Policy(policy) => Ok(Incoming::Policy(policy)),
            other => Err(other),
        }
    }
}

/// Longest line: a record with all that it may have, every byte escaped.
const MAX_LINE: usize = 1 << 20;

/// Puts lines together that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

/// Something that no server of ours says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFrame {
    #[error("a line of more than {MAX_LINE} bytes")]
    Long,
    #[error("a line that cannot be read")]
    Unreadable(#[from] serde_json::Error),
}

impl Lines {
    /// Takes a piece; hands back the lines that are complete by it.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<In>, BadFrame> {
        self.0.extend_from_slice(piece);
        let mut frames = Vec::new();
        let mut done = 0;
        while let Some(end) = self.0[done..].iter().position(|b| *b == b'\n') {
            frames.push(serde_json::from_slice(&self.0[done..done + end])?);
            done += end + 1;
        }
        self.0.drain(..done);
        if self.0.len() > MAX_LINE {
            return Err(BadFrame::Long);
        }
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_however_they_are_cut() {
        let mut buckets = [0; BUCKETS];
        (buckets[0], buckets[63]) = (u64::MAX, 7);
        let sums = Sums {
            own: Buckets(buckets),
            gone: BTreeMap::from([("n9".to_owned(), 1)]),
            policies: 3,
            heard: Some(Position {
                generation: 1,
                next: 2,
            }),
        };
        let mut text = Vec::new();
        Out::Gap.write(&mut text);
        Out::Sums(Box::new(sums.clone())).write(&mut text);
        for size in [1, 7, 4096] {
            let mut lines = Lines::default();
            let mut frames = Vec::new();
            for piece in text.chunks(size) {
                frames.extend(lines.push(piece).expect("readable"));
            }
            let [In::Gap, In::Sums(got)] = &frames[..] else {
                panic!("{frames:?}");
            };
            assert_eq!(**got, sums, "{size}");
        }
        assert!(Lines::default().push(b"{\"x\":1}\n").is_err());
        assert!(Lines::default().push(&vec![b' '; MAX_LINE + 1]).is_err());
    }
}
