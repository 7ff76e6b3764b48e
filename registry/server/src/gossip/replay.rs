//! Each datagram counts once.
//!
//! A sealed datagram that was recorded opens as well the second time. So each carries the counter
//! of the life it was sent in, and a window remembers which of the last [`WIDTH`] counters have
//! been seen; what is older than the window is refused, seen or not.
//!
//! # Source
//! The sliding window of IPsec (RFC 4303, 3.4.3), as WireGuard uses it.

use std::collections::HashMap;

/// Counters a datagram may be late by. A guess: a full message is 57 datagrams.
pub const WIDTH: u32 = 1024;
/// Lives remembered. A guess: a hundred servers, restarted ten times each.
pub const MAX_LIVES: usize = 1024;

const WORDS: u32 = WIDTH / 64;

#[derive(Debug, Default)]
struct Window {
    /// One more than the highest counter seen.
    next: u32,
    /// Bit `counter % WIDTH`: seen, for counters in `next - WIDTH .. next`.
    seen: [u64; WORDS as usize],
}

impl Window {
    fn first_time(&mut self, counter: u32) -> bool {
        if counter >= self.next {
            let ahead = counter - self.next;
            if ahead >= WIDTH {
                self.seen = [0; WORDS as usize];
            } else {
                for skipped in self.next..counter {
                    self.set(skipped, false);
                }
            }
            self.next = counter + 1;
            self.set(counter, true);
            return true;
        }
        if self.next - counter > WIDTH || self.get(counter) {
            return false;
        }
        self.set(counter, true);
        true
    }

    fn word(&mut self, counter: u32) -> (&mut u64, u64) {
        let at = counter % WIDTH;
        (&mut self.seen[(at / 64) as usize], 1 << (at % 64))
    }

    fn set(&mut self, counter: u32, on: bool) {
        let (word, bit) = self.word(counter);
        if on {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    fn get(&mut self, counter: u32) -> bool {
        let (word, bit) = self.word(counter);
        *word & bit != 0
    }
}

/// What was made of a datagram's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Never before.
    FirstTime,
    /// Before, or too long ago to tell.
    Again,
    /// Too many lives are known to remember another. Whoever asks must make all that was sealed so
    /// far void, and [`clear`](Replay::clear).
    Full,
}

/// Windows for all lives that were heard.
#[derive(Debug, Default)]
pub struct Replay(HashMap<u64, Window>);

impl Replay {
    /// Notes datagram `counter` of life `boot`. The counter `u32::MAX` is never used.
    pub fn note(&mut self, boot: u64, counter: u32) -> Seen {
        if counter == u32::MAX {
            return Seen::Again;
        }
        if self.0.len() >= MAX_LIVES && !self.0.contains_key(&boot) {
            return Seen::Full;
        }
        if self.0.entry(boot).or_default().first_time(counter) {
            Seen::FirstTime
        } else {
            Seen::Again
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn early_late_and_again() {
        let mut replay = Replay::default();
        for (what, counter, want) in [
            ("first", 5, Seen::FirstTime),
            ("again", 5, Seen::Again),
            ("late", 0, Seen::FirstTime),
            ("late again", 0, Seen::Again),
            ("far ahead", 5_000, Seen::FirstTime),
            ("just in the window", 5_000 - WIDTH + 1, Seen::FirstTime),
            ("just out of it", 5_000 - WIDTH, Seen::Again),
            ("the last that is used", u32::MAX - 1, Seen::FirstTime),
            ("never used", u32::MAX, Seen::Again),
        ] {
            assert_eq!(replay.note(1, counter), want, "{what}");
        }
        assert_eq!(replay.note(2, 5), Seen::FirstTime, "another life");
    }

    #[test]
    fn the_number_of_lives_is_bounded() {
        let mut replay = Replay::default();
        for boot in 0..MAX_LIVES as u64 {
            assert_eq!(replay.note(boot, 0), Seen::FirstTime);
        }
        assert_eq!(replay.note(u64::MAX, 0), Seen::Full);
        assert_eq!(replay.note(0, 1), Seen::FirstTime, "those known go on");
        replay.clear();
        assert_eq!(replay.note(u64::MAX, 0), Seen::FirstTime);
    }

    proptest! {
        /// Against a set of all counters ever seen.
        #[test]
        fn nothing_counts_twice_and_nothing_recent_is_lost(
            counters in proptest::collection::vec(prop_oneof![0..3_000u32, 0..200_000u32], 1..400)
        ) {
            let mut replay = Replay::default();
            let mut model = HashSet::new();
            let mut highest = 0;
            for counter in counters {
                let recent = counter + WIDTH > highest;
                highest = highest.max(counter);
                let fresh = model.insert(counter);
                let want = if fresh && recent { Seen::FirstTime } else { Seen::Again };
                prop_assert_eq!(replay.note(7, counter), want, "{} of {}", counter, highest);
            }
        }
    }
}
