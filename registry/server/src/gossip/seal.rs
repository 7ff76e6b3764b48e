//! Messages into sealed datagrams and back: what an attacker on the network meets.
//!
//! chitchat authenticates nothing. One made-up datagram of a few bytes can rewrite what any server
//! says of itself, keep the dead alive, or draw an answer a thousand times its size towards a
//! victim. So nothing reaches chitchat, nothing is remembered and nothing is answered before the
//! datagram has proved that its sender has the cluster's key, that it was sealed for this very life
//! of this very server, and that it was not here before.
//!
//! ```text
//! sealed  E5 01 key:4 life:8 counter:4 to:8 │ what:1 number:4 index:1 count:1 piece… │ tag:16
//! plain   E5 00 cluster:8                   │        number:4 index:1 count:1 piece…
//! ```
//!
//! The nonce is `life ‖ counter`: a life is 64 random bits drawn at the start, a counter is never
//! used twice in it. (96 random bits for every datagram would meet themselves after 2^48; a
//! counter alone, after a restart.) The associated data is the cluster's name and the header.
//! Every piece is sealed by itself, so nothing of what is forged is kept to be put together.
//!
//! `to` is the life of the receiver. A sender does not know it at first: then the receiver answers
//! with a *hello*, sealed and never longer than what it answers, which tells its life, and the
//! sender repeats itself. A datagram recorded for another server or for an earlier life is
//! therefore refused, and within one life the counter is checked ([`replay`](super::replay)).
//!
//! # Guarantees
//! No state changes for a datagram without a key of the ring (but for counters), nor for one of
//! another cluster, nor for one that was seen before. Memory is bounded whoever sends what.
//!
//! # What it does not do
//! Distinguish servers: whoever has the key is trusted. Hide who talks to whom, how much and when.
//!
//! # Source
//! RFC 8439 (ChaCha20-Poly1305), chosen for its speed without hardware help; memberlist's
//! encryption, which it extends by freshness.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ring::{
    aead::{Aad, NONCE_LEN, Nonce},
    rand::{SecureRandom, SystemRandom},
};

use super::{
    fragment::{self, MAX_DATAGRAM, MAX_MESSAGE, Piece, Reassembly},
    keyring::{Key, Keyring, NoRandomness},
    replay::{Replay, Seen},
    traffic::{DropReason, Traffic},
};

const MAGIC: u8 = 0xE5;
const PLAIN: u8 = 0;
const SEALED: u8 = 1;
/// Magic, kind, key, life, counter, receiver's life.
const HEADER: usize = 2 + 4 + 8 + 4 + 8;
const TAG: usize = 16;
/// Magic, kind, cluster.
const PLAIN_HEADER: usize = 2 + 8;
const MESSAGE: u8 = 1;
const HELLO: u8 = 2;
/// The shortest sealed datagram there is; a hello is of this length.
const SHORTEST: usize = HEADER + 1 + fragment::HEADER + TAG;

/// Peers' lives remembered. More only costs a hello each.
const MAX_PEERS: usize = 1024;
/// Messages kept to be repeated after a hello. A guess: one for each seed, at the start.
const MAX_UNHEARD: usize = 32;
/// The longest message worth keeping: a first message is a digest.
const MAX_UNHEARD_BYTES: usize = 8 << 10;
/// How long a message is worth repeating.
const REPEAT_WITHIN: Duration = Duration::from_secs(1);
/// Hellos in a second. A guess: every server of a large cluster at once.
const MAX_HELLOS: u32 = 128;

/// Bytes of the datagrams that carry a message of `length` bytes.
pub fn sealed_len(length: usize) -> usize {
    let room = MAX_DATAGRAM - SHORTEST;
    length + SHORTEST * length.div_ceil(room).max(1)
}

/// What a datagram amounts to.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing: dropped and counted, or a piece of something.
    Nothing,
    /// A whole message.
    Message(Vec<u8>),
    /// Datagrams to send back: a hello, or what a hello asked to repeat.
    Answer(Vec<Vec<u8>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sender {
    Life(u64),
    Unproven(SocketAddr),
}

/// Seals and opens for one server. It does no input or output and reads no clock.
#[derive(Debug)]
pub struct Sealer {
    keys: Arc<Keyring>,
    traffic: Arc<Traffic>,
    cluster: String,
    cluster_hash: [u8; 8],
    random: SystemRandom,
    life: u64,
    counter: u32,
    message: u32,
    peers: HashMap<SocketAddr, u64>,
    unheard: VecDeque<(SocketAddr, Vec<u8>, Instant)>,
    replay: Replay,
    reassembly: Reassembly<Sender>,
    hellos: (Option<Instant>, u32),
}

impl Sealer {
    /// Begins a life.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new(
        cluster: &str,
        keys: Arc<Keyring>,
        traffic: Arc<Traffic>,
    ) -> Result<Self, NoRandomness> {
        let mut sealer = Self {
            keys,
            traffic,
            cluster: cluster.to_owned(),
            cluster_hash: xxhash_rust::xxh3::xxh3_64(cluster.as_bytes()).to_be_bytes(),
            random: SystemRandom::new(),
            life: 0,
            counter: 0,
            message: 0,
            peers: HashMap::new(),
            unheard: VecDeque::new(),
            replay: Replay::default(),
            reassembly: Reassembly::default(),
            hellos: (None, 0),
        };
        sealer.begin_life()?;
        Ok(sealer)
    }

    /// All that was sealed for this server so far is void from now on.
    fn begin_life(&mut self) -> Result<(), NoRandomness> {
        let mut life = [0; 8];
        // Zero means that a life is not known.
        while u64::from_be_bytes(life) == 0 || u64::from_be_bytes(life) == self.life {
            self.random.fill(&mut life).map_err(|_| NoRandomness)?;
        }
        self.life = u64::from_be_bytes(life);
        self.counter = 0;
        self.replay.clear();
        Ok(())
    }

    /// The datagrams that carry `message` (at most [`MAX_MESSAGE`] bytes) to `to`; none if it
    /// cannot be sealed.
    pub fn seal(&mut self, to: SocketAddr, message: &[u8], now: Instant) -> Vec<Vec<u8>> {
        if message.len() > MAX_MESSAGE {
            self.traffic.dropped(DropReason::SendFailed);
            return Vec::new();
        }
        self.message = self.message.wrapping_add(1);
        let Some(key) = self.keys.sealing() else {
            return self.plain(message);
        };
        if !self.peers.contains_key(&to) && message.len() <= MAX_UNHEARD_BYTES {
            self.unheard.retain(|(addr, _, since)| {
                *addr != to && now.saturating_duration_since(*since) < REPEAT_WITHIN
            });
            if self.unheard.len() >= MAX_UNHEARD {
                self.unheard.pop_front();
            }
            self.unheard.push_back((to, message.to_vec(), now));
        }
        self.seal_pieces(&key, to, message)
    }

    fn plain(&self, message: &[u8]) -> Vec<Vec<u8>> {
        let header = [&[MAGIC, PLAIN], self.cluster_hash.as_slice()].concat();
        fragment::cut(self.message, message, MAX_DATAGRAM - PLAIN_HEADER)
            .map(|piece| [header.as_slice(), &piece].concat())
            .collect()
    }

    fn seal_pieces(&mut self, key: &Key, to: SocketAddr, message: &[u8]) -> Vec<Vec<u8>> {
        let peer = self.peers.get(&to).copied().unwrap_or(0);
        let room = MAX_DATAGRAM - HEADER - 1 - TAG;
        let pieces: Vec<Vec<u8>> = fragment::cut(self.message, message, room).collect();
        let sealed = pieces
            .iter()
            .map(|piece| self.seal_one(key, peer, MESSAGE, piece));
        sealed.collect::<Option<_>>().unwrap_or_default()
    }

    fn seal_one(&mut self, key: &Key, to: u64, what: u8, piece: &[u8]) -> Option<Vec<u8>> {
        // The last counter is never used: see `replay`.
        if self.counter >= u32::MAX - 1 && self.begin_life().is_err() {
            self.traffic.dropped(DropReason::SendFailed);
            return None;
        }
        let counter = self.counter;
        self.counter += 1;
        let mut bytes = Vec::with_capacity(HEADER + 1 + piece.len() + TAG);
        bytes.extend([MAGIC, SEALED]);
        bytes.extend(key.id().0);
        bytes.extend(self.life.to_be_bytes());
        bytes.extend(counter.to_be_bytes());
        bytes.extend(to.to_be_bytes());
        let aad = self.aad(&bytes);
        let nonce = nonce_of(&bytes)?;
        let mut body = Vec::with_capacity(1 + piece.len() + TAG);
        body.push(what);
        body.extend(piece);
        let aead = key.aead();
        aead.seal_in_place_append_tag(nonce, Aad::from(aad), &mut body)
            .ok()?;
        bytes.extend(body);
        Some(bytes)
    }

    fn aad(&self, header: &[u8]) -> Vec<u8> {
        // The header's length is fixed, so the two cannot be confused.
        [b"selvedge gossip 1\0", self.cluster.as_bytes(), header].concat()
    }

    /// Opens what came from `from`.
    pub fn open(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant) -> Opened {
        let given_up = self.reassembly.given_up;
        let opened = self.try_open(from, datagram, now);
        let incomplete = self.reassembly.given_up - given_up;
        self.traffic.dropped_n(DropReason::Incomplete, incomplete);
        opened.unwrap_or_else(|reason| {
            self.traffic.dropped(reason);
            Opened::Nothing
        })
    }

    fn try_open(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Opened, DropReason> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(DropReason::Malformed);
        }
        match *datagram {
            [MAGIC, PLAIN, ..] => self.open_plain(from, datagram, now),
            [MAGIC, SEALED, ..] => self.open_sealed(from, datagram, now),
            _ => Err(DropReason::Malformed),
        }
    }

    fn open_plain(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Opened, DropReason> {
        let (header, piece) = datagram
            .split_at_checked(PLAIN_HEADER)
            .ok_or(DropReason::Malformed)?;
        if self.keys.verifies_incoming() {
            return Err(DropReason::Unsealed);
        }
        if header[2..] != self.cluster_hash {
            return Err(DropReason::OtherCluster);
        }
        self.put_together(Sender::Unproven(from), piece, now)
    }

    fn put_together(
        &mut self,
        sender: Sender,
        piece: &[u8],
        now: Instant,
    ) -> Result<Opened, DropReason> {
        match self.reassembly.take(sender, piece, now) {
            Piece::Whole(message) => Ok(Opened::Message(message)),
            Piece::Waiting => Ok(Opened::Nothing),
            Piece::Refused => Err(DropReason::BadFragment),
        }
    }

    fn open_sealed(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Opened, DropReason> {
        if datagram.len() < SHORTEST {
            return Err(DropReason::Malformed);
        }
        let (header, body) = datagram.split_at_mut(HEADER);
        let mut fields = header[2..].iter().copied();
        let mut number = |bytes: usize| {
            let field = fields.by_ref().take(bytes);
            field.fold(0u64, |number, byte| number << 8 | u64::from(byte))
        };
        let (_key, life, counter, to) = (number(4), number(8), number(4), number(8));
        let key_id = [header[2], header[3], header[4], header[5]];
        let key = self.keys.find(key_id).ok_or(DropReason::UnknownKey)?;
        let nonce = nonce_of(header).ok_or(DropReason::Malformed)?;
        let aad = Aad::from(self.aad(header));
        let opened = key.aead().open_in_place(nonce, aad, body);
        let plain = opened.map_err(|_| DropReason::Forged)?;
        // From here on the sender has the key.
        if life == self.life {
            return Err(DropReason::Reflected);
        }
        let (what, piece) = (plain[0], &plain[1..]);
        if to != self.life {
            self.traffic.dropped(DropReason::Misaddressed);
            return Ok(self.hello(&key, life, what, now));
        }
        let counter = u32::try_from(counter).map_err(|_| DropReason::Malformed)?;
        match self.replay.note(life, counter) {
            Seen::FirstTime => {}
            Seen::Again => return Err(DropReason::Replayed),
            Seen::Full => {
                // Peers learn the new life as they learned this one.
                self.begin_life().map_err(|_| DropReason::Replayed)?;
                return Err(DropReason::Misaddressed);
            }
        }
        self.remember(from, life);
        match what {
            HELLO => Ok(self.repeat(&key, from, now)),
            MESSAGE => self.put_together(Sender::Life(life), piece, now),
            _ => Err(DropReason::Malformed),
        }
    }

    /// Tells a peer this server's life. A hello is not answered: two servers would never stop.
    fn hello(&mut self, key: &Key, to: u64, what: u8, now: Instant) -> Opened {
        let (since, count) = &mut self.hellos;
        let second = Duration::from_secs(1);
        if since.is_none_or(|since| now.saturating_duration_since(since) >= second) {
            (*since, *count) = (Some(now), 0);
        }
        if what != MESSAGE || *count >= MAX_HELLOS {
            return Opened::Nothing;
        }
        *count += 1;
        let empty = [0, 0, 0, 0, 0, 1];
        let hello = self.seal_one(key, to, HELLO, &empty);
        hello.map_or(Opened::Nothing, |hello| Opened::Answer(vec![hello]))
    }

    fn remember(&mut self, from: SocketAddr, life: u64) {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&from) {
            self.peers.clear();
        }
        self.peers.insert(from, life);
    }

    /// What was said to `from` before its life was known.
    fn repeat(&mut self, key: &Key, from: SocketAddr, now: Instant) -> Opened {
        let at = self.unheard.iter().position(|(addr, ..)| *addr == from);
        let Some((_, message, since)) = at.and_then(|at| self.unheard.remove(at)) else {
            return Opened::Nothing;
        };
        if now.saturating_duration_since(since) >= REPEAT_WITHIN {
            return Opened::Nothing;
        }
        self.message = self.message.wrapping_add(1);
        Opened::Answer(self.seal_pieces(key, from, &message))
    }

    /// Gives up messages that wait too long for their missing pieces.
    pub fn expire(&mut self, now: Instant) {
        let before = self.reassembly.given_up;
        self.reassembly.expire(now);
        let given_up = self.reassembly.given_up - before;
        self.traffic.dropped_n(DropReason::Incomplete, given_up);
    }

    /// Bytes held for messages that are not whole or not heard.
    pub fn held_bytes(&self) -> usize {
        let unheard: usize = self
            .unheard
            .iter()
            .map(|(_, message, _)| message.len())
            .sum();
        self.reassembly.bytes() + unheard
    }
}

/// Life and counter, as they stand in the header.
fn nonce_of(header: &[u8]) -> Option<Nonce> {
    let bytes = header.get(6..6 + NONCE_LEN)?;
    Nonce::try_assume_unique_for_key(bytes).ok()
}

#[cfg(test)]
mod tests;
