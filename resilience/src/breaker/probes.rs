//! The probes of one half-open epoch, in one word.

use crate::sync::{AtomicU64, Ordering};

/// `epoch 16 | issued 12 | done 12 | failed 12 | slow 12`.
///
/// The epoch's low bits keep a straggler of an earlier half-open epoch from counting in this one.
#[derive(Debug)]
pub(super) struct Probes(AtomicU64);

/// What half-open knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) issued: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) slow: u64,
}

/// Whether there is a probe to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Issue {
    /// Yes.
    Issued,
    /// All are out or done.
    Taken,
    /// The epoch is over.
    Stale,
}

fn pack(epoch: u64, tally: Tally) -> u64 {
    (epoch & 0xFFFF) << 48 | tally.issued << 36 | tally.done << 24 | tally.failed << 12 | tally.slow
}

/// The counts of `epoch`; `None` in a word of another.
fn unpack(word: u64, epoch: u64) -> Option<Tally> {
    (word >> 48 == epoch & 0xFFFF).then_some(Tally {
        issued: word >> 36 & 0xFFF,
        done: word >> 24 & 0xFFF,
        failed: word >> 12 & 0xFFF,
        slow: word & 0xFFF,
    })
}

impl Probes {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A half-open epoch begins, with no probe out. Before its state can be seen.
    pub(super) fn begin(&self, epoch: u64) {
        // Swapped, not stored: what a straggler is just writing must come before or fail.
        self.0.swap(pack(epoch, Tally::default()), Ordering::AcqRel);
    }

    /// Changes the counts of `epoch` as `change` says; `None` if the epoch is over or `change`
    /// does not want to.
    fn update(&self, epoch: u64, change: impl Fn(Tally) -> Option<Tally>) -> Option<Tally> {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let next = change(unpack(seen, epoch)?)?;
            match self.0.compare_exchange_weak(
                seen,
                pack(epoch, next),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(next),
                Err(now) => seen = now,
            }
        }
    }

    pub(super) fn issue(&self, epoch: u64, limit: u32) -> Issue {
        let issued = self.update(epoch, |tally| {
            (tally.issued < u64::from(limit)).then_some(Tally {
                issued: tally.issued + 1,
                ..tally
            })
        });
        match issued {
            Some(_) => Issue::Issued,
            None if unpack(self.0.load(Ordering::Acquire), epoch).is_none() => Issue::Stale,
            None => Issue::Taken,
        }
    }

    /// A probe said nothing: its place is free for another.
    pub(super) fn give_back(&self, epoch: u64) {
        self.update(epoch, |tally| {
            (tally.issued > tally.done).then(|| Tally {
                issued: tally.issued - 1,
                ..tally
            })
        });
    }

    /// A probe is done. Returns what is known with it; `None` if its epoch is over.
    pub(super) fn done(&self, epoch: u64, failed: bool, slow: bool) -> Option<Tally> {
        self.update(epoch, |tally| {
            (tally.done < tally.issued).then(|| Tally {
                done: tally.done + 1,
                failed: tally.failed + u64::from(failed),
                slow: tally.slow + u64::from(slow),
                ..tally
            })
        })
    }

    pub(super) fn tally(&self, epoch: u64) -> Tally {
        unpack(self.0.load(Ordering::Acquire), epoch).unwrap_or_default()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_straggler_of_an_earlier_epoch_changes_nothing() {
        let probes = Probes::new();
        probes.begin(2);
        assert_eq!(probes.issue(2, 1), Issue::Issued);
        assert_eq!(probes.issue(2, 1), Issue::Taken);
        probes.begin(4);
        assert_eq!(probes.issue(4, 1), Issue::Issued);
        assert_eq!(probes.done(2, true, true), None);
        probes.give_back(2);
        assert_eq!(probes.issue(2, 9), Issue::Stale);
        assert_eq!(probes.issue(4, 1), Issue::Taken);
        assert_eq!(probes.done(4, false, false).map(|t| t.done), Some(1));
    }

    #[test]
    fn epochs_may_wrap_and_counts_fill_their_bits() {
        let probes = Probes::new();
        for epoch in [0xFFFE, 0x1_0000, 0x1_0002, 0x5_0000_0004] {
            probes.begin(epoch);
            for _ in 0..4095 {
                assert_eq!(probes.issue(epoch, 4095), Issue::Issued);
            }
            assert_eq!(probes.issue(epoch, 4095), Issue::Taken);
            for _ in 0..4095 {
                let _ = probes.done(epoch, true, true);
            }
            let full = Tally {
                issued: 4095,
                done: 4095,
                failed: 4095,
                slow: 4095,
            };
            assert_eq!(probes.tally(epoch), full);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn one_probe_goes_to_one_of_two_and_comes_back_once() {
        loom::model(|| {
            let probes = Arc::new(Probes::new());
            probes.begin(2);
            let try_one = |probes: &Probes| {
                let issued = probes.issue(2, 1) == Issue::Issued;
                if issued {
                    probes.give_back(2);
                }
                issued
            };
            let other = {
                let probes = Arc::clone(&probes);
                thread::spawn(move || try_one(&probes))
            };
            let mine = try_one(&probes);
            let theirs = other.join().expect("no panic");
            assert!(mine || theirs);
            assert_eq!(probes.tally(2), Tally::default(), "nothing is out");
            assert_eq!(probes.issue(2, 1), Issue::Issued);
        });
    }

    #[test]
    fn no_result_is_lost() {
        loom::model(|| {
            let probes = Arc::new(Probes::new());
            probes.begin(2);
            assert_eq!(probes.issue(2, 2), Issue::Issued);
            assert_eq!(probes.issue(2, 2), Issue::Issued);
            let other = {
                let probes = Arc::clone(&probes);
                thread::spawn(move || probes.done(2, true, false))
            };
            let mine = probes.done(2, false, true).expect("this epoch");
            let theirs = other.join().expect("no panic").expect("this epoch");
            assert_eq!(mine.done.max(theirs.done), 2, "one of them sees both");
            let tally = probes.tally(2);
            assert_eq!((tally.done, tally.failed, tally.slow), (2, 1, 1));
        });
    }

    #[test]
    fn a_straggler_never_undoes_the_new_epoch() {
        loom::model(|| {
            let probes = Arc::new(Probes::new());
            probes.begin(2);
            assert_eq!(probes.issue(2, 1), Issue::Issued);
            let straggler = {
                let probes = Arc::clone(&probes);
                thread::spawn(move || probes.done(2, true, false))
            };
            probes.begin(4);
            assert_eq!(probes.issue(4, 1), Issue::Issued);
            let _ = straggler.join().expect("no panic");
            let tally = probes.tally(4);
            assert_eq!((tally.issued, tally.done), (1, 0));
        });
    }
}
