//! Places for those who read a stream that does not end.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Readers of one stream at once. Source: Hystrix `stream.maxConcurrentConnections`.
pub(crate) const SEATS: usize = 5;

/// How many are taken.
#[derive(Debug, Default)]
pub(crate) struct Seats(AtomicUsize);

/// One of them; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<Seats>);

impl Seat {
    /// `None` if all are taken.
    pub(crate) fn take(of: &Arc<Seats>) -> Option<Self> {
        let more = |taken| (taken < SEATS).then_some(taken + 1);
        let taken =
            of.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self(Arc::clone(of)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
