//! Classes of calls, each sure of a share of the limit.
//!
//! A limit that is reached refuses whoever comes next, and the busiest class comes next most often.
//! So each class may have what its share of the limit is even then: the limit is exceeded by at most
//! what the shares of the other classes allow, until calls end. A class does not wait in the limit's
//! queue: what it is sure of it has at once, and beyond that it is refused.

use std::{sync::Arc, time::Instant};

use super::{
    AdaptiveConfig, AdaptiveLimit, Permit,
    config::{MILLION, millionths},
};
use crate::{
    config::Ratio,
    outcome::Rejected,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// What one class of calls is sure of.
#[derive(Debug)]
pub(super) struct Share {
    name: Box<str>,
    millionths: AtomicU64,
    busy: AtomicU32,
}

impl Share {
    /// `max(1, ⌈limit × share⌉)`.
    fn of(&self, limit: u32) -> u32 {
        let share = self.millionths.load(Ordering::Relaxed);
        ((u64::from(limit) * share).div_ceil(MILLION) as u32).max(1)
    }

    /// Takes one more if fewer than its share are taken.
    fn take_below(&self, share: u32) -> bool {
        self.busy
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |busy| {
                (busy < share).then(|| busy + 1)
            })
            .is_ok()
    }

    pub(super) fn give_back(&self) {
        self.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One class of calls under an [`AdaptiveLimit`]; see the [module](super). A class that the
/// configuration no longer names is sure of one call.
#[derive(Debug, Clone)]
pub struct Partition {
    limit: AdaptiveLimit,
    share: Arc<Share>,
}

impl AdaptiveLimit {
    /// The class of calls that the configuration names so.
    pub fn partition(&self, name: &str) -> Option<Partition> {
        let shares = self.0.shares.load();
        let share = shares.iter().find(|share| &*share.name == name)?;
        Some(Partition {
            limit: self.clone(),
            share: Arc::clone(share),
        })
    }
}

impl Partition {
    /// Takes a slot: any while the limit is not reached, one of its share after that.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Full`](crate::Reason::Full) if the limit is reached and so is the share.
    pub fn try_acquire(&self, now: Instant) -> Result<Permit, Rejected> {
        let (slots, share) = (&self.limit.0.slots, &self.share);
        let begun = |in_flight| {
            let share = Some(Arc::clone(share));
            Ok(self.limit.begun(in_flight, now, share))
        };
        if slots.held() < slots.limit() {
            // The share first: whoever asks for one of its last must not find too few taken.
            share.busy.fetch_add(1, Ordering::AcqRel);
            if let Some(in_flight) = slots.try_take() {
                return begun(in_flight);
            }
            share.give_back();
        }
        if share.take_below(share.of(slots.limit())) {
            return begun(slots.take_beyond());
        }
        Err(self.limit.full())
    }

    /// Calls of this class under way.
    pub fn in_flight(&self) -> u32 {
        self.share.busy.load(Ordering::Relaxed)
    }

    /// What the class is sure of at the limit of now.
    pub fn share(&self) -> u32 {
        self.share.of(self.limit.limit())
    }
}

/// The shares as configured; those that `known` has under the same name keep who holds them. Those
/// no longer named are left with nothing.
pub(super) fn shares(config: &AdaptiveConfig, known: &[Arc<Share>]) -> Vec<Arc<Share>> {
    for share in known {
        let now = config.partitions.get(&*share.name);
        let now = now.map_or(0, |ratio| millionths(*ratio));
        share.millionths.store(now, Ordering::Relaxed);
    }
    let share = |(name, ratio): (&String, &Ratio)| {
        let kept = known.iter().find(|share| *share.name == **name);
        kept.cloned().unwrap_or_else(|| {
            Arc::new(Share {
                name: name.as_str().into(),
                millionths: AtomicU64::new(millionths(*ratio)),
                busy: AtomicU32::new(0),
            })
        })
    };
    config.partitions.iter().map(share).collect()
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    /// Two ask for the last of a share; `gives_back`: and return it at once.
    fn two_ask(gives_back: bool) -> (usize, u32) {
        let share = Arc::new(Share {
            name: "batch".into(),
            millionths: AtomicU64::new(MILLION / 2),
            busy: AtomicU32::new(1),
        });
        let threads = [(); 2].map(|()| {
            let share = Arc::clone(&share);
            thread::spawn(move || {
                let taken = share.take_below(share.of(4));
                if taken && gives_back {
                    share.give_back();
                }
                taken
            })
        });
        let taken = threads.map(|thread| thread.join().expect("no panic"));
        let busy = share.busy.load(Ordering::Acquire);
        (taken.iter().filter(|taken| **taken).count(), busy)
    }

    #[test]
    fn the_last_of_a_share_is_taken_once() {
        loom::model(|| assert_eq!(two_ask(false), (1, 2)));
    }

    #[test]
    fn what_was_given_back_may_be_taken_and_nothing_is_left_over() {
        loom::model(|| {
            let (taken, busy) = two_ask(true);
            assert!(taken >= 1, "one was free");
            assert_eq!(busy, 1);
        });
    }
}
