//! chitchat's messages as bytes: as much of them as a digest needs.
//!
//! ```text
//! 53 B0 version:1 kind:1 │ blocks (id heartbeat:8 gc:8 max:8)… │ cluster (SYN) or delta (SYN-ACK)
//! ```
//!
//! Numbers are little-endian. Only version 1 is read, which compresses its blocks: it is what
//! our servers speak ([`ProtocolVersion::V1`](chitchat::ProtocolVersion)). A test holds this
//! against what chitchat itself writes and reads.

use xxhash_rust::xxh3::xxh3_64_with_seed;

const START: [u8; 3] = [0x53, 0xB0, 1];
/// Bytes of entries in one of chitchat's blocks. Source: its `DIGEST_BLOCK_THRESHOLD`.
const BLOCK: usize = 16_384;
/// Written as they are, up to here: it is for loopback. Beyond, chitchat's own reader might not
/// have the room.
const UNCOMPRESSED: usize = 2 * BLOCK;
/// Entries of a digest that is made short. chitchat itself stops at some three thousand.
pub(super) const MAX_ENTRIES: usize = 2_048;
/// Their bytes, with names of a hundred characters.
const MAX_ENTRY_BYTES: usize = MAX_ENTRIES * 144;

/// Heartbeat, version of what was last forgotten, version of the last change.
pub(super) type Numbers = [u64; 3];

/// Which of the two messages with a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Syn = 0,
    SynAck = 1,
}

impl Kind {
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        match message.strip_prefix(&START)?.first()? {
            0 => Some(Self::Syn),
            1 => Some(Self::SynAck),
            _ => None,
        }
    }
}

/// Whom a digest is about: names, lives and addresses, in its order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    ids: Vec<u8>,
    ends: Vec<usize>,
    /// What it is called between servers of one cluster.
    pub(super) tag: u32,
}

impl List {
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let id = &self.ids[start..*end];
            start = *end;
            id
        })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// A digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) kind: Kind,
    pub(super) list: List,
    pub(super) numbers: Vec<Numbers>,
}

/// A message with a digest.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) digest: Digest,
    /// The cluster's name or the delta.
    pub(super) tail: &'a [u8],
    /// How long the message is.
    pub(super) length: usize,
}

/// Reads a message that has a digest, and no more of it than that; `None` if it has none, or one
/// that is not understood. What follows the message is left alone, as chitchat does.
pub(super) fn read(bytes: &[u8], seed: u64) -> Option<Message<'_>> {
    let kind = Kind::of(bytes)?;
    let mut rest = bytes.get(START.len() + 1..)?;
    let entries = blocks(&mut rest)?;
    let (list, numbers) = read_entries(&entries, seed)?;
    let from_tail = rest;
    match kind {
        Kind::Syn => {
            let length = u16::from_le_bytes(*take(&mut rest)?);
            take_slice(&mut rest, usize::from(length))?;
        }
        Kind::SynAck => skip_blocks(&mut rest)?,
    }
    Some(Message {
        digest: Digest {
            kind,
            list,
            numbers,
        },
        tail: &from_tail[..from_tail.len() - rest.len()],
        length: bytes.len() - rest.len(),
    })
}

/// The message of `entries`, as [`entries`] writes them.
pub(super) fn write(kind: Kind, entries: &[u8], tail: &[u8]) -> Vec<u8> {
    let mut bytes = START.to_vec();
    bytes.push(kind as u8);
    for block in entries.chunks(BLOCK) {
        let compressed = (entries.len() > UNCOMPRESSED)
            .then(|| zstd::bulk::compress(block, 1).ok())
            .flatten()
            .filter(|compressed| compressed.len() < block.len());
        let (how, block) = compressed.as_deref().map_or((2, block), |c| (1, c));
        bytes.push(how);
        // At most `BLOCK`.
        bytes.extend((block.len() as u16).to_le_bytes());
        bytes.extend(block);
    }
    bytes.push(0);
    bytes.extend(tail);
    bytes
}

/// A digest's entries as chitchat writes them before it compresses.
pub(super) fn entries<'a>(ids: impl Iterator<Item = &'a [u8]>, numbers: &[Numbers]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, numbers) in ids.zip(numbers) {
        bytes.extend(id);
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    bytes
}

fn read_entries(mut entries: &[u8], seed: u64) -> Option<(List, Vec<Numbers>)> {
    let (mut ids, mut ends, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    while !entries.is_empty() {
        if ends.len() == MAX_ENTRIES {
            return None;
        }
        let id = id(&mut entries)?;
        ids.extend(id);
        ends.push(ids.len());
        let mut number = || take(&mut entries).map(|bytes| u64::from_le_bytes(*bytes));
        numbers.push([number()?, number()?, number()?]);
    }
    let tag = xxh3_64_with_seed(&ids, seed) as u32;
    Some((List { ids, ends, tag }, numbers))
}

/// A name, a life and an address.
fn id<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut rest = *bytes;
    let name = u16::from_le_bytes(*take(&mut rest)?);
    take_slice(&mut rest, usize::from(name) + 8)?;
    let address = match take::<1>(&mut rest)? {
        [4] => 4,
        [6] => 16,
        _ => return None,
    };
    take_slice(&mut rest, address + 2)?;
    take_slice(bytes, bytes.len() - rest.len())
}

fn blocks(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let how = take::<1>(bytes)?;
        if *how == [0] {
            return Some(all);
        }
        let length = u16::from_le_bytes(*take(bytes)?);
        let block = take_slice(bytes, usize::from(length))?;
        match how {
            [1] => all.extend(zstd::bulk::decompress(block, BLOCK).ok()?),
            [2] => all.extend(block),
            _ => return None,
        }
        if all.len() > MAX_ENTRY_BYTES {
            return None;
        }
    }
}

fn skip_blocks(bytes: &mut &[u8]) -> Option<()> {
    while *take::<1>(bytes)? != [0] {
        let length = u16::from_le_bytes(*take(bytes)?);
        take_slice(bytes, usize::from(length))?;
    }
    Some(())
}

pub(super) fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

fn take_slice<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}
