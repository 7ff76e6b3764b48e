//! Messages in pieces that fit a datagram.
//!
//! chitchat fills datagrams up to 65,507 bytes, which the network cuts into some 45 packets: the
//! loss of any is the loss of all, and many networks drop such packets altogether. So messages
//! are cut here, into pieces that need no further cutting.
//!
//! # Guarantees
//! Whatever arrives in whatever order, at most [`MAX_PARTIAL`] messages of at most [`MAX_BYTES`]
//! together wait for their missing pieces, at most [`MAX_PER_SENDER`] of one sender, and none
//! longer than [`PATIENCE`].

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Bytes of a datagram, our headers included. Source: 1,280 is IPv6's least MTU, less its header,
/// UDP's and a tunnel's.
pub const MAX_DATAGRAM: usize = 1_200;
/// Bytes of a message. Source: the largest payload of a UDP datagram, what chitchat counts with.
pub const MAX_MESSAGE: usize = 65_507;
/// Messages that may be incomplete at once. A guess.
pub const MAX_PARTIAL: usize = 64;
/// Incomplete messages of one sender. A guess: it sends one after the other.
pub const MAX_PER_SENDER: usize = 4;
/// Bytes of incomplete messages.
pub const MAX_BYTES: usize = 2 << 20;
/// How long a message may be incomplete. A guess: all of it was sent at once.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes before each piece.
pub const HEADER: usize = 6;

/// A message's pieces, each with its header, of at most `room` bytes with it.
///
/// `message`: at most [`MAX_MESSAGE`] bytes; may be empty. `room`: at least 300 bytes.
pub fn cut(number: u32, message: &[u8], room: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let size = room - HEADER;
    let count = message.len().div_ceil(size).max(1);
    debug_assert!(u8::try_from(count).is_ok(), "room is at least 300 bytes");
    (0..count).map(move |index| {
        let start = index * size;
        let piece = &message[start..message.len().min(start + size)];
        let mut bytes = Vec::with_capacity(HEADER + piece.len());
        bytes.extend_from_slice(&number.to_be_bytes());
        // Both fit: see above.
        bytes.push(index as u8);
        bytes.push(count as u8);
        bytes.extend_from_slice(piece);
        bytes
    })
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// The message is whole.
    Whole(Vec<u8>),
    /// More is missing.
    Waiting,
    /// It fits nothing.
    Refused,
}

#[derive(Debug)]
struct Partial {
    pieces: Vec<Option<Vec<u8>>>,
    missing: usize,
    bytes: usize,
    since: Instant,
}

/// Puts messages of senders `S` together.
#[derive(Debug)]
pub struct Reassembly<S> {
    partial: HashMap<(S, u32), Partial>,
    bytes: usize,
    /// Messages given up.
    pub given_up: u64,
}

impl<S> Default for Reassembly<S> {
    fn default() -> Self {
        Self {
            partial: HashMap::new(),
            bytes: 0,
            given_up: 0,
        }
    }
}

impl<S: Copy + Eq + Hash> Reassembly<S> {
    /// Takes a piece, with its header, of `sender`.
    pub fn take(&mut self, sender: S, bytes: &[u8], now: Instant) -> Piece {
        let Some((header, piece)) = bytes.split_at_checked(HEADER) else {
            return Piece::Refused;
        };
        let number = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let (index, count) = (usize::from(header[4]), usize::from(header[5]));
        if index >= count {
            return Piece::Refused;
        }
        if count == 1 {
            return Piece::Whole(piece.to_vec());
        }
        self.expire(now);
        let key = (sender, number);
        if !self.partial.contains_key(&key) {
            self.make_room(sender);
        }
        let partial = self.partial.entry(key).or_insert_with(|| Partial {
            pieces: vec![None; count],
            missing: count,
            bytes: 0,
            since: now,
        });
        if partial.pieces.len() != count {
            return Piece::Refused;
        }
        if partial.pieces[index].is_some() {
            return Piece::Waiting;
        }
        partial.pieces[index] = Some(piece.to_vec());
        partial.missing -= 1;
        partial.bytes += piece.len();
        self.bytes += piece.len();
        if partial.bytes > MAX_MESSAGE {
            self.give_up(key);
            return Piece::Refused;
        }
        if partial.missing > 0 {
            while self.bytes > MAX_BYTES {
                self.give_up_oldest(|_| true);
            }
            return Piece::Waiting;
        }
        let Some(whole) = self.partial.remove(&key) else {
            return Piece::Refused;
        };
        self.bytes -= whole.bytes;
        Piece::Whole(whole.pieces.into_iter().flatten().flatten().collect())
    }

    /// Gives up what has waited too long at `now`.
    pub fn expire(&mut self, now: Instant) {
        let late = |partial: &Partial| now.saturating_duration_since(partial.since) >= PATIENCE;
        let over: Vec<(S, u32)> = self
            .partial
            .iter()
            .filter(|(_, partial)| late(partial))
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.give_up(key);
        }
    }

    fn make_room(&mut self, sender: S) {
        let of_sender = self.partial.keys().filter(|(s, _)| *s == sender).count();
        if of_sender >= MAX_PER_SENDER {
            self.give_up_oldest(|s| *s == sender);
        }
        if self.partial.len() >= MAX_PARTIAL {
            self.give_up_oldest(|_| true);
        }
    }

    fn give_up_oldest(&mut self, which: impl Fn(&S) -> bool) {
        let candidates = self.partial.iter().filter(|((s, _), _)| which(s));
        let oldest = candidates.min_by_key(|(_, partial)| partial.since);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.give_up(key);
        }
    }

    fn give_up(&mut self, key: (S, u32)) {
        if let Some(partial) = self.partial.remove(&key) {
            self.bytes -= partial.bytes;
            self.given_up += 1;
        }
    }

    /// Bytes of incomplete messages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_message_is_cut_and_put_together() {
        let message: Vec<u8> = (0..MAX_MESSAGE).map(|i| (i % 251) as u8).collect();
        let pieces: Vec<Vec<u8>> = cut(9, &message, 1_151).collect();
        assert_eq!(pieces.len(), 58);
        assert!(pieces.iter().all(|piece| piece.len() <= 1_151));
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        let (last, others) = pieces.split_last().expect("many");
        for piece in others {
            assert_eq!(reassembly.take(1u64, piece, now), Piece::Waiting);
            assert_eq!(reassembly.take(1u64, piece, now), Piece::Waiting, "twice");
        }
        assert_eq!(
            reassembly.take(2u64, last, now),
            Piece::Waiting,
            "another sender"
        );
        assert_eq!(reassembly.take(1u64, last, now), Piece::Whole(message));
        let over = now + PATIENCE;
        reassembly.expire(over);
        assert_eq!((reassembly.bytes(), reassembly.given_up), (0, 1));
    }

    #[test]
    fn what_fits_nothing_is_refused() {
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        for (what, bytes) in [
            ("short", &[0, 0, 0, 1, 0][..]),
            ("none of none", &[0, 0, 0, 1, 0, 0]),
            ("third of two", &[0, 0, 0, 1, 2, 2]),
        ] {
            assert_eq!(reassembly.take(1u64, bytes, now), Piece::Refused, "{what}");
        }
        assert_eq!(
            reassembly.take(1u64, &[0, 0, 0, 1, 0, 1], now),
            Piece::Whole(vec![])
        );
        assert_eq!(
            reassembly.take(1u64, &[0, 0, 0, 1, 0, 2, 7], now),
            Piece::Waiting
        );
        let other_count = [0, 0, 0, 1, 1, 3, 7];
        assert_eq!(reassembly.take(1u64, &other_count, now), Piece::Refused);
        // 255 pieces of more than a message holds.
        let mut refused = false;
        for index in 0..=253 {
            let mut piece = vec![0, 0, 0, 2, index, 255];
            piece.resize(1_151, 0);
            refused |= reassembly.take(1u64, &piece, now) == Piece::Refused;
        }
        assert!(refused && reassembly.bytes() < MAX_MESSAGE + 1);
    }

    proptest! {
        #[test]
        fn whatever_comes_memory_is_bounded(
            pieces in proptest::collection::vec(
                (0..100u64, 0..20u32, any::<u8>(), any::<u8>(), 0..1_195usize, 0..500u64),
                1..2_000,
            )
        ) {
            let (mut reassembly, start) = (Reassembly::default(), Instant::now());
            let mut at = start;
            for (sender, number, index, count, length, ms) in pieces {
                at += Duration::from_millis(ms);
                let mut bytes = number.to_be_bytes().to_vec();
                bytes.extend([index, count]);
                bytes.resize(HEADER + length, 0xab);
                reassembly.take(sender, &bytes, at);
                prop_assert!(reassembly.bytes() <= MAX_BYTES);
                prop_assert!(reassembly.partial.len() <= MAX_PARTIAL);
                let held: usize = reassembly.partial.values().map(|p| p.bytes).sum();
                prop_assert_eq!(held, reassembly.bytes());
            }
        }

        #[test]
        fn any_order_gives_the_message(
            message in proptest::collection::vec(any::<u8>(), 0..5_000), seed in any::<u64>()
        ) {
            let mut pieces: Vec<Vec<u8>> = cut(3, &message, 300).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut pieces);
            let (mut reassembly, now) = (Reassembly::default(), Instant::now());
            let last = pieces.pop().expect("at least one");
            for piece in pieces {
                prop_assert_eq!(reassembly.take(1u64, &piece, now), Piece::Waiting);
            }
            prop_assert_eq!(reassembly.take(1u64, &last, now), Piece::Whole(message));
        }
    }
}
