//! How many connections there may be, in all and from one address.
//!
//! A process that runs out of descriptors fails everybody; one that counts refuses those who take
//! more than their share. A seat is taken before anything is read and given back on drop.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Seats {
    all: usize,
    per_source: usize,
    taken: AtomicUsize,
    sources: Mutex<HashMap<IpAddr, usize>>,
}

/// Which limit was reached; also the reason in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSeat {
    All,
    Source,
}

impl NoSeat {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::All => "connections",
            Self::Source => "connections-per-source",
        }
    }
}

impl Seats {
    pub(crate) fn new(all: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            per_source,
            taken: AtomicUsize::new(0),
            sources: Mutex::default(),
        })
    }

    /// A seat for a connection from `source`.
    pub(crate) fn take(self: &Arc<Self>, source: IpAddr) -> Result<Seat, NoSeat> {
        let source = source.to_canonical();
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.all {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return Err(NoSeat::All);
        }
        let mut sources = self.sources.lock();
        let held = sources.entry(source).or_default();
        if *held >= self.per_source {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return Err(NoSeat::Source);
        }
        *held += 1;
        Ok(Seat {
            seats: Arc::clone(self),
            source,
        })
    }

    #[cfg(test)]
    fn counts(&self) -> (usize, usize) {
        (
            self.taken.load(Ordering::Relaxed),
            self.sources.lock().len(),
        )
    }
}

/// A connection's seat; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    source: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::Relaxed);
        let mut sources = self.seats.sources.lock();
        if let Some(held) = sources.get_mut(&self.source) {
            *held -= 1;
            if *held == 0 {
                // The map is bounded by the connections that there are.
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_by_source_and_in_all_and_given_back() {
        let seats = Seats::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("an address");
        let first = seats.take(a).expect("a seat");
        let second = seats.take(mapped).expect("a seat");
        assert_eq!(seats.take(a).err(), Some(NoSeat::Source));
        let third = seats.take(b).expect("a seat");
        assert_eq!(seats.take(b).err(), Some(NoSeat::All));
        assert_eq!(seats.counts(), (3, 2));
        drop((first, second, third));
        assert_eq!(seats.counts(), (0, 0));
    }
}
