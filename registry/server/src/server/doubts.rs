//! Leases that are over, and whose end waits for a word of the other servers.
//!
//! An instance may have been heard elsewhere: another server took its renewals, passed them on or
//! took the lease over, and a bad network has let nothing of that through yet. To evict it then is
//! wrong; every watcher sees it go, and come back when the truth arrives. So the keeper of a lease
//! that is over asks the others first. Where the network works that is a millisecond.
//!
//! # Guarantees
//! - A lease that another server keeps as its own, or that it is passing a renewal on of, does not
//!   end here if that server can be asked.
//! - A server that is there and does not answer holds an end up for one lease, and for
//!   [`PATIENCE`], at most; one that is gone holds nothing up.
//!
//! # Source
//! SWIM's indirect probe (Das, Gupta, Motivala 2002): who hears nothing asks others before it
//! accuses.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{catalogue::Key, lease::Overdue};

/// The longest that silence of other servers holds an end up. Source: the default lease.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a word holds. A guess: an end that has to wait for its turn asks again.
const HOLDS: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be asked about.
    Raised,
    /// Others are being asked.
    Asked,
    /// Nobody else has heard of it.
    Cleared(Instant),
    /// Its end was permitted.
    Ended(Instant),
}

#[derive(Debug)]
struct Doubt {
    /// Of which end of the lease.
    deadline: u64,
    since: Instant,
    stage: Stage,
}

/// What is being asked, by lease.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    open: Mutex<HashMap<Key, Doubt>>,
    /// Wakes whoever asks.
    pub(crate) raised: Notify,
}

impl Doubts {
    /// Whether `lease` may end: nobody else has heard of it, or nobody could be asked for too long.
    /// If not, that is found out.
    pub(crate) fn may_end(&self, lease: &Overdue, at: Instant) -> bool {
        let mut open = self.open.lock();
        let new = || Doubt {
            deadline: lease.deadline,
            since: at,
            stage: Stage::Raised,
        };
        let doubt = open.entry(lease.key.clone()).or_insert_with(new);
        if doubt.deadline != lease.deadline {
            *doubt = new();
        }
        let is_fresh = |when: Instant| at.saturating_duration_since(when) < HOLDS;
        let waited = at.saturating_duration_since(doubt.since);
        match doubt.stage {
            Stage::Ended(when) if is_fresh(when) => return false,
            Stage::Cleared(when) if is_fresh(when) => {}
            Stage::Raised | Stage::Asked if waited >= PATIENCE.min(lease.ttl) => {
                tracing::warn!(service = %lease.key.0, instance = %lease.key.1, "a lease ends, and not every server could be asked about it");
            }
            Stage::Asked => return false,
            Stage::Raised | Stage::Cleared(_) | Stage::Ended(_) => {
                doubt.stage = Stage::Raised;
                self.raised.notify_one();
                return false;
            }
        }
        doubt.stage = Stage::Ended(at);
        true
    }

    /// What is to be asked about now.
    pub(crate) fn take(&self, at: Instant) -> Vec<Key> {
        let mut open = self.open.lock();
        open.retain(|_, doubt| at.saturating_duration_since(doubt.since) < PATIENCE * 2);
        let raised = open.iter_mut().filter(|(_, d)| d.stage == Stage::Raised);
        raised
            .map(|(key, doubt)| {
                doubt.stage = Stage::Asked;
                key.clone()
            })
            .collect()
    }

    /// Nobody else has heard of these.
    pub(crate) fn clear<'a>(&self, keys: impl Iterator<Item = &'a Key>, at: Instant) {
        self.answer(keys, Stage::Cleared(at));
    }

    /// Not everybody has answered: these are asked about again.
    pub(crate) fn ask_again<'a>(&self, keys: impl Iterator<Item = &'a Key>) {
        self.answer(keys, Stage::Raised);
        self.raised.notify_one();
    }

    fn answer<'a>(&self, keys: impl Iterator<Item = &'a Key>, stage: Stage) {
        let mut open = self.open.lock();
        for key in keys {
            if let Some(doubt) = open.get_mut(key).filter(|d| d.stage == Stage::Asked) {
                doubt.stage = stage;
            }
        }
    }

    /// Somebody else has: there is nothing to end.
    pub(crate) fn forget(&self, key: &Key) {
        self.open.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(deadline: u64, ttl: u64) -> Overdue {
        Overdue {
            key: ("s".parse().expect("name"), "i".parse().expect("id")),
            zone: "z".into(),
            written_off: false,
            deadline,
            ttl: Duration::from_secs(ttl),
        }
    }

    #[test]
    fn an_end_waits_for_a_word_and_not_for_ever() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let doubts = Doubts::default();
        let one = lease(7, 3);
        let key = one.key.clone();
        assert!(!doubts.may_end(&one, at(0)), "first it is asked about");
        assert_eq!(doubts.take(at(0)), std::slice::from_ref(&key));
        assert!(doubts.take(at(0)).is_empty(), "once");
        assert!(!doubts.may_end(&one, at(100)), "no answer yet");
        doubts.clear([&key].into_iter(), at(200));
        assert!(doubts.may_end(&one, at(300)), "nobody has heard of it");
        assert!(!doubts.may_end(&one, at(400)), "and it ends once");
        assert!(doubts.take(at(400)).is_empty(), "nothing is asked of it");
        // Renewed meanwhile, and over again: another end.
        let two = lease(8, 3);
        assert!(!doubts.may_end(&two, at(500)));
        assert_eq!(doubts.take(at(500)).len(), 1);
        doubts.clear([&key].into_iter(), at(600));
        assert!(!doubts.may_end(&two, at(1_700)), "that word is too old");
        assert_eq!(doubts.take(at(1_700)).len(), 1);
        doubts.ask_again([&key].into_iter());
        assert!(
            !doubts.may_end(&two, at(1_800)),
            "somebody has not answered"
        );
        assert_eq!(doubts.take(at(1_800)).len(), 1);
        assert!(!doubts.may_end(&two, at(3_400)));
        assert!(doubts.may_end(&two, at(3_500)), "one lease is enough");
        assert!(doubts.take(at(60_000)).is_empty() && doubts.open.lock().is_empty());
    }

    #[test]
    fn a_word_is_of_what_was_asked_and_who_was_heard_elsewhere_is_asked_about_anew() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let doubts = Doubts::default();
        let (one, two) = (lease(7, 3), lease(8, 3));
        let key = [&one.key];
        assert!(!doubts.may_end(&one, at(0)));
        assert_eq!(doubts.take(at(0)).len(), 1);
        // Renewed while the others were asked, and over again: their word is of the end before.
        assert!(!doubts.may_end(&two, at(100)));
        doubts.clear(key.into_iter(), at(200));
        assert!(!doubts.may_end(&two, at(300)), "nobody was asked about it");
        assert_eq!(doubts.take(at(300)).len(), 1);
        doubts.clear(key.into_iter(), at(400));
        // Somebody has heard of it all the same.
        doubts.forget(&one.key);
        assert!(!doubts.may_end(&two, at(500)), "that word is forgotten");
        assert_eq!(doubts.take(at(500)).len(), 1);
        // An answer about what nobody doubts is none.
        doubts.forget(&one.key);
        doubts.clear(key.into_iter(), at(600));
        doubts.ask_again(key.into_iter());
        assert!(doubts.take(at(600)).is_empty());
    }

    #[test]
    fn a_long_lease_does_not_make_a_long_wait() {
        let start = Instant::now();
        let (doubts, one) = (Doubts::default(), lease(1, 3_600));
        assert!(!doubts.may_end(&one, start));
        assert!(!doubts.may_end(&one, start + PATIENCE / 10 * 9));
        assert!(doubts.may_end(&one, start + PATIENCE));
    }
}
