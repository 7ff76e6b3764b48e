//! Calls under way and calls that have succeeded, in one word.
//!
//! Every call changes the first count twice and most change the second once, on a line that all
//! threads want. In one word, the end of a good call is one change instead of two, and who reads
//! both reads them as of one moment.

use crate::sync::{AtomicU64, Ordering};

/// Bits of the calls under way: sixteen million, which is more than there are sockets.
const PENDING: u32 = 24;
/// One that has succeeded. The others hold a million million; then they begin anew at 0.
const ONE_GOOD: u64 = 1 << PENDING;

/// See the [module page](self).
#[derive(Debug, Default)]
pub(super) struct Calls(AtomicU64);

impl Calls {
    /// One more is under way.
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The same if that makes no more than `limit`.
    pub(super) fn try_begin(&self, limit: u32) -> bool {
        let mut seen = self.0.load(Ordering::Relaxed);
        while pending(seen) < limit {
            let (to, order) = (seen + 1, Ordering::Relaxed);
            match self.0.compare_exchange_weak(seen, to, order, order) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// One that was under way has succeeded.
    pub(super) fn succeed(&self) {
        self.0.fetch_add(ONE_GOOD - 1, Ordering::Relaxed);
    }

    /// One that was under way has ended in another way.
    pub(super) fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn pending(&self) -> u32 {
        pending(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn succeeded(&self) -> u64 {
        self.0.load(Ordering::Relaxed) >> PENDING
    }
}

fn pending(word: u64) -> u32 {
    (word & (ONE_GOOD - 1)) as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn neither_count_runs_into_the_other() {
        let calls = Calls(AtomicU64::new(u64::MAX - (ONE_GOOD - 1)));
        let last = calls.succeeded();
        (0..3).for_each(|_| calls.begin());
        calls.succeed();
        // The count of the good has come to its end, and begins anew.
        assert_eq!((calls.pending(), calls.succeeded()), (2, 0));
        assert_eq!(last, (1 << 40) - 1);
        calls.end();
        calls.succeed();
        assert_eq!((calls.pending(), calls.succeeded()), (0, 1));
        assert!(!calls.try_begin(0) && calls.try_begin(1) && !calls.try_begin(1));
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn claims_never_exceed_the_limit_and_a_success_makes_room() {
        loom::model(|| {
            let calls = Arc::new(Calls::default());
            calls.begin();
            let other = {
                let calls = Arc::clone(&calls);
                thread::spawn(move || calls.try_begin(2))
            };
            calls.succeed();
            let mine = calls.try_begin(1);
            let theirs = other.join().expect("no panic");
            assert!(theirs);
            assert_eq!(calls.pending(), 1 + u32::from(mine));
            assert_eq!(calls.succeeded(), 1);
        });
    }

    #[test]
    fn the_last_place_is_taken_once() {
        loom::model(|| {
            let calls = Arc::new(Calls::default());
            let other = {
                let calls = Arc::clone(&calls);
                thread::spawn(move || calls.try_begin(1))
            };
            let mine = calls.try_begin(1);
            assert!(mine ^ other.join().expect("no panic"));
            assert_eq!(calls.pending(), 1);
        });
    }
}
