//! Moments to come, by clocks that may be set back.
//!
//! Whoever remembers "not before t" and asks `now < t` stands still for a hundred years after one
//! call from a hundred years ahead: a clock that was set back, or a caller's mistake. But a moment
//! was never further off than it was set; if it seems so now, the clock that set it is gone, and
//! with it the moment.

use crate::{
    clock::Tick,
    sync::{AtomicU64, Ordering},
};

/// A `now` this much earlier than it can be, in nanoseconds, is a clock that was set back and not a
/// late thread.
pub(crate) const SET_BACK: u64 = 60_000_000_000;

/// Whether `moment`, which was at most `most` ahead when it was set, is of a clock that was set
/// back since.
#[inline]
pub(crate) fn is_astray(moment: u64, most: u64, now: Tick) -> bool {
    moment.saturating_sub(now.0) > most.saturating_add(SET_BACK)
}

/// Nanoseconds since `moment`, which was never ahead when it was set. One of a clock that was set back
/// since is as good as forgotten.
#[inline]
pub(crate) fn age(moment: u64, now: Tick) -> u64 {
    match now.0.checked_sub(moment) {
        Some(age) => age,
        None if is_astray(moment, 0, now) => u64::MAX,
        // Another thread's clock is a little ahead.
        None => 0,
    }
}

/// When something is next to be done. Anew: at once.
#[derive(Debug)]
pub(crate) struct Due {
    at: AtomicU64,
    /// How far off it may seem.
    most: AtomicU64,
}

impl Due {
    pub(crate) fn new() -> Self {
        Self {
            at: AtomicU64::new(0),
            most: AtomicU64::new(0),
        }
    }

    /// Whether it is to be done at `now`.
    #[inline]
    pub(crate) fn is_now(&self, now: Tick) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        now.0 >= at || at - now.0 > self.most.load(Ordering::Relaxed)
    }

    /// To be done in `after` nanoseconds.
    pub(crate) fn set(&self, now: Tick, after: u64) {
        let most = after.saturating_add(SET_BACK);
        self.most.store(most, Ordering::Relaxed);
        self.at
            .store(now.0.saturating_add(after), Ordering::Relaxed);
    }

    /// Not to be done before the end of time.
    pub(crate) fn set_never(&self) {
        self.set(Tick(0), u64::MAX);
    }

    /// To be done at once.
    pub(crate) fn set_now(&self) {
        self.at.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn due_when_it_has_come_and_when_it_is_further_off_than_it_was_set() {
        const HOUR: u64 = 60 * SET_BACK;
        let cases: &[(&str, u64, u64, u64, bool)] = &[
            ("set, after, now, due", HOUR, 10, HOUR, false),
            ("the last moment before", HOUR, 10, HOUR + 9, false),
            ("the moment", HOUR, 10, HOUR + 10, true),
            ("long after", HOUR, 10, u64::MAX, true),
            ("a late thread", HOUR, 10, HOUR - SET_BACK, false),
            ("set back", HOUR, 10, HOUR - SET_BACK - 1, true),
            ("at the very beginning", 0, 10, 0, false),
            ("at once", 0, 0, 0, true),
            ("from the beginning to the end", 0, 10, u64::MAX, true),
            ("at the end of time", u64::MAX, 10, u64::MAX, true),
            ("just before it", u64::MAX - 1, 10, u64::MAX - 1, false),
            ("from its end to its beginning", u64::MAX, 10, 0, true),
            ("in ever so long", HOUR, u64::MAX, HOUR, false),
        ];
        for &(name, set, after, now, want) in cases {
            let due = Due::new();
            assert!(due.is_now(Tick(now)), "{name}: anew");
            due.set(Tick(set), after);
            assert_eq!(due.is_now(Tick(now)), want, "{name}");
            due.set_now();
            assert!(due.is_now(Tick(now)), "{name}: at once");
            due.set_never();
            assert_eq!(due.is_now(Tick(now)), now == u64::MAX, "{name}: never");
        }
    }

    #[test]
    fn astray_is_further_than_ever_set() {
        let now = Tick(SET_BACK);
        assert!(!is_astray(0, 0, now));
        assert!(!is_astray(2 * SET_BACK + 5, 5, now));
        assert!(is_astray(2 * SET_BACK + 6, 5, now));
        assert!(!is_astray(u64::MAX, u64::MAX, now));
        let ages = [(0, SET_BACK), (SET_BACK, 0), (2 * SET_BACK, 0)];
        assert!(ages.iter().all(|&(then, want)| age(then, now) == want));
        assert_eq!(age(2 * SET_BACK + 1, now), u64::MAX);
    }
}
