//! Digests in a byte or two for each server, between servers that know the same.
//!
//! Two of the three messages of each exchange name every server of the cluster, with how often it
//! has shown itself and how far its facts have come: 41 bytes and a name, 6 after compression. So
//! the bytes of gossip grow with the number of servers, though nearly all of it is what the other
//! side knows already. Names do not change for hours, facts seldom, and the one number that always
//! changes is, at both ends, within a second or two of the same.
//!
//! So what travels is the name of the *list* of servers (a hash), and for each server on it the
//! last bits of its numbers. The receiver looks the list up among those it has used or heard
//! lately, and takes for each number the one nearest to what it knows itself that has these last
//! bits. A hash over the whole digest says whether that is what was meant.
//!
//! ```text
//! C5  kind:4 w1:4  w2:4 w3:4  list:4  check:4 │ w1 + w2 + w3 bits for each server │ delta
//! C5  3:4    0:4              check:4           again, please, and in full
//! ```
//!
//! It is not, if the receiver has another list (somebody has just joined), or knows much older or
//! newer numbers (it was cut off, or stopped). Then it asks for that very message again, and gets
//! it as chitchat wrote it: an exchange then takes one way there and back longer, and loses
//! nothing. How many bits are sent follows from how far incoming digests were from one's own.
//!
//! A short digest is only sent to who is known to understand it: a message in full is followed by
//! two bytes, which a server that does not know them skips, that say so of its sender. It is sent
//! while the peer is known to have the list (it has used it, or was told it in full), and no
//! longer than the peer answers: of two that are not answered, the third goes in full.
//!
//! # Guarantees
//! - chitchat receives what chitchat sent, byte for byte of meaning, or nothing: a digest that was
//!   put together wrongly passes its check once in four thousand million.
//! - Loss, repetition and overtaking do no more harm than they do to messages in full: a message
//!   depends on no other one, only on what both sides know.
//! - Servers of versions with and without this understand each other, also if one is replaced by an
//!   earlier version under its address.
//! - What is remembered is bounded: sixteen lists, a thousand peers, thirty-two messages. No length
//!   that is read decides how much is allocated.
//!
//! # What it does not do
//! Make deltas shorter: facts that change travel to everybody as before, and while they do, more
//! bits are sent of their versions. Help while the list of servers keeps changing: then digests
//! travel in full.
//!
//! # Source
//! Header compression of IP (RFC 5795, ROHC: last bits against a reference both have, a check
//! over what they give, and a repetition in full if it fails).

mod bits;
mod lists;
mod message;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::traffic::{DropReason, Form, Traffic};
use lists::Lists;
use message::{Digest, Kind, List, Message, Numbers, take};

/// What a short digest begins with, and what its understanding is announced with. A later form
/// takes another.
const SHORT: u8 = 0xC5;
/// Follows a message in full. Its second byte is for what a later version understands beyond.
const UNDERSTOOD: [u8; 2] = [SHORT, 1];
const AGAIN: u8 = 3;

/// Peers remembered. More are forgotten all at once, and told in full again.
const MAX_PEERS: usize = 1_024;
/// Messages kept to be sent again in full. A guess: what is sent while one answer comes.
const MAX_SENT: usize = 32;
/// The longest of those.
const MAX_SENT_BYTES: usize = 16 << 10;
/// How long an answer is waited for.
const AGAIN_WITHIN: Duration = Duration::from_secs(2);
/// Short digests in a row that may go unanswered. A guess: one in thirty goes in full if a tenth
/// of all messages is lost.
const UNANSWERED: u8 = 2;
/// Bits of each number that are sent at the least: heartbeats that are thirty apart, facts that one
/// server has changed once. What was forgotten last is the same nearly always.
const LEAST_WIDTHS: [u32; 3] = [6, 0, 2];

/// What a message that came in amounts to.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message for chitchat.
    Message(Vec<u8>),
    /// Something to send back.
    Answer(Vec<u8>),
    /// Nothing.
    Nothing,
}

#[derive(Debug, Default)]
struct Peer {
    understands: bool,
    /// The list that it used last.
    uses: Option<u32>,
    /// The list that it was told last.
    told: Option<u32>,
    /// Short digests that it was sent since it was last heard.
    unanswered: u8,
}

/// A message that was sent short.
#[derive(Debug)]
struct Sent {
    to: SocketAddr,
    check: u32,
    list: u32,
    full: Vec<u8>,
    since: Instant,
}

/// Makes one server's digests short, and those of its peers whole. It does no input or output and
/// reads no clock.
#[derive(Debug)]
pub struct Compactor {
    /// The cluster: lists and digests of others have other hashes.
    seed: u64,
    /// Its name as a SYN ends with it.
    name: Vec<u8>,
    lists: Lists,
    peers: HashMap<SocketAddr, Peer>,
    sent: VecDeque<Sent>,
    /// How far apart numbers were lately.
    apart: [f32; 3],
    traffic: Arc<Traffic>,
}

impl Compactor {
    /// For a server of `cluster`.
    pub fn new(cluster: &str, traffic: Arc<Traffic>) -> Self {
        // chitchat would not write a longer one either.
        let length = u16::try_from(cluster.len()).unwrap_or(u16::MAX);
        Self {
            seed: xxh3_64(cluster.as_bytes()),
            name: [&length.to_le_bytes(), cluster.as_bytes()].concat(),
            lists: Lists::default(),
            peers: HashMap::new(),
            sent: VecDeque::new(),
            apart: [0.0; 3],
            traffic,
        }
    }

    /// What to send to `to` for `message` of chitchat's.
    pub fn outgoing(&mut self, to: SocketAddr, message: &[u8], now: Instant) -> Vec<u8> {
        let Some(whole) = message::read(message, self.seed) else {
            return message.to_vec();
        };
        let Message {
            digest:
                Digest {
                    kind,
                    list,
                    numbers,
                },
            tail,
            ..
        } = whole;
        let list = self.lists.say(list, &numbers);
        let tail = match kind {
            // Who has the list is of this cluster: its tag and the check depend on its name.
            Kind::Syn if tail == self.name => &[],
            Kind::Syn => return self.in_full(to, message, list.tag),
            Kind::SynAck => tail,
        };
        let peer = self.peer(to);
        let has_it = [peer.uses, peer.told].contains(&Some(list.tag));
        if !(peer.understands && has_it && peer.unanswered < UNANSWERED) {
            return self.in_full(to, message, list.tag);
        }
        let entries = message::entries(list.iter(), &numbers);
        let check = self.check(kind, &entries);
        let short = short(kind, self.widths(), &list, check, &numbers, tail);
        let Some(short) = short.filter(|short| short.len() < message.len()) else {
            return self.in_full(to, message, list.tag);
        };
        self.peer(to).unanswered += 1;
        self.keep(to, check, list.tag, message, now);
        self.traffic.digest_sent(Form::Short);
        short
    }

    fn in_full(&mut self, to: SocketAddr, message: &[u8], list: u32) -> Vec<u8> {
        let peer = self.peer(to);
        peer.told = Some(list);
        self.traffic.digest_sent(Form::Full);
        [message, &UNDERSTOOD].concat()
    }

    fn keep(&mut self, to: SocketAddr, check: u32, list: u32, message: &[u8], since: Instant) {
        if message.len() > MAX_SENT_BYTES {
            return;
        }
        if self.sent.len() >= MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent {
            to,
            check,
            list,
            full: message.to_vec(),
            since,
        });
    }

    /// What `bytes` from `from` amount to.
    pub fn incoming(&mut self, from: SocketAddr, mut bytes: Vec<u8>, now: Instant) -> Incoming {
        match *bytes {
            [SHORT, again, ref check @ ..] if again == AGAIN << 4 => self.again(from, check, now),
            [SHORT, ..] => {
                let Some((list, numbers, message)) = self.unfold(&bytes) else {
                    return self.ask_again(from, &bytes);
                };
                self.heard(from, &list, &numbers, true);
                Incoming::Message(message)
            }
            _ => {
                if let Some(message) = message::read(&bytes, self.seed) {
                    let length = message.length;
                    let understands = bytes[length..].starts_with(&UNDERSTOOD[..1]);
                    let Digest { list, numbers, .. } = message.digest;
                    let list = self.lists.note(list);
                    self.heard(from, &list, &numbers, understands);
                    bytes.truncate(length);
                } else if Kind::of(&bytes).is_some() {
                    // chitchat may read what is not read here.
                    self.peer(from).understands = false;
                } else {
                    self.peer(from).unanswered = 0;
                }
                Incoming::Message(bytes)
            }
        }
    }

    /// The digest of a short message, and the message as chitchat reads it.
    fn unfold(&mut self, mut bytes: &[u8]) -> Option<(Arc<List>, Vec<Numbers>, Vec<u8>)> {
        let [_, kind_and_width, widths] = *take(&mut bytes)?;
        let kind = match kind_and_width >> 4 {
            0 => Kind::Syn,
            1 => Kind::SynAck,
            _ => return None,
        };
        let widths = [kind_and_width & 15, widths >> 4, widths & 15].map(u32::from);
        let tag = u32::from_be_bytes(*take(&mut bytes)?);
        let check = u32::from_be_bytes(*take(&mut bytes)?);
        let list = self.lists.find(tag)?;
        let bits = list.len() * widths.iter().sum::<u32>() as usize;
        let (columns, tail) = bytes.split_at_checked(bits.div_ceil(8))?;
        let mut columns = bits::Reader::new(columns);
        let mut numbers = Vec::with_capacity(list.len());
        for id in list.iter() {
            let mut known = self.lists.known(id)?;
            for (number, width) in known.iter_mut().zip(widths) {
                *number = bits::nearest(*number, columns.take(width)?, width);
            }
            numbers.push(known);
        }
        let entries = message::entries(list.iter(), &numbers);
        if self.check(kind, &entries) != check {
            return None;
        }
        let tail = match kind {
            Kind::Syn => &self.name,
            Kind::SynAck => tail,
        };
        let message = message::write(kind, &entries, tail);
        Some((list, numbers, message))
    }

    /// Sends again in full what was not understood.
    fn again(&mut self, from: SocketAddr, check: &[u8], now: Instant) -> Incoming {
        self.sent
            .retain(|sent| now.saturating_duration_since(sent.since) < AGAIN_WITHIN);
        let Ok(check) = <[u8; 4]>::try_from(check).map(u32::from_be_bytes) else {
            self.traffic.dropped(DropReason::Undecodable);
            return Incoming::Nothing;
        };
        let is_it = |sent: &Sent| sent.to == from && sent.check == check;
        let at = self.sent.iter().position(is_it);
        let Some(sent) = at.and_then(|at| self.sent.remove(at)) else {
            return Incoming::Nothing;
        };
        let peer = self.peer(from);
        (peer.uses, peer.unanswered) = (None, 0);
        self.traffic.digest_sent(Form::Again);
        Incoming::Answer(self.in_full(from, &sent.full, sent.list))
    }

    /// Asks for a short message in full.
    fn ask_again(&mut self, from: SocketAddr, short: &[u8]) -> Incoming {
        let Some(check) = short.get(7..11) else {
            self.traffic.dropped(DropReason::Undecodable);
            return Incoming::Nothing;
        };
        let peer = self.peer(from);
        (peer.understands, peer.unanswered) = (true, 0);
        Incoming::Answer([&[SHORT, AGAIN << 4], check].concat())
    }

    fn heard(&mut self, from: SocketAddr, list: &List, numbers: &[Numbers], understands: bool) {
        let apart = self.lists.hear(list, numbers);
        for (before, apart) in self.apart.iter_mut().zip(apart) {
            // Forgotten by half after some twenty digests, which is two seconds.
            *before = (*before * (1.0 - 1.0 / 32.0)).max(apart as f32);
        }
        let peer = self.peer(from);
        peer.understands = understands;
        peer.unanswered = 0;
        peer.uses = Some(list.tag);
    }

    /// How many bits of each number tell a peer what is meant: the other side is as far from this
    /// one as this one is from the other, and half as far again to be on the safe side.
    fn widths(&self) -> [u32; 3] {
        let mut widths = LEAST_WIDTHS;
        for (width, apart) in widths.iter_mut().zip(self.apart) {
            if apart >= 1.0 {
                *width = bits::width((apart * 1.5) as u64).max(*width);
            }
        }
        widths
    }

    fn check(&self, kind: Kind, entries: &[u8]) -> u32 {
        xxh3_64_with_seed(entries, self.seed ^ kind as u64) as u32
    }

    fn peer(&mut self, addr: SocketAddr) -> &mut Peer {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&addr) {
            self.peers.clear();
        }
        self.peers.entry(addr).or_default()
    }
}

/// `None` if the numbers are too far apart for it.
fn short(
    kind: Kind,
    widths: [u32; 3],
    list: &List,
    check: u32,
    numbers: &[Numbers],
    tail: &[u8],
) -> Option<Vec<u8>> {
    if widths.iter().any(|width| *width > bits::MAX_WIDTH) {
        return None;
    }
    let [w1, w2, w3] = widths.map(|width| width as u8);
    let mut bytes = vec![SHORT, (kind as u8) << 4 | w1, w2 << 4 | w3];
    bytes.extend(list.tag.to_be_bytes());
    bytes.extend(check.to_be_bytes());
    let mut columns = bits::Writer::default();
    for numbers in numbers {
        for (number, width) in numbers.iter().zip(widths) {
            columns.put(*number, width);
        }
    }
    bytes.extend(columns.finish());
    bytes.extend(tail);
    Some(bytes)
}

#[cfg(test)]
mod tests;
