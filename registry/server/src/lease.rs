//! Leases: who has renewed in time.
//!
//! Deadlines live in the memory of the server that takes the renewals, on its own monotonic clock:
//! no wall clock is compared with another's, and a renewal costs a map entry.
//!
//! # Guarantees
//! A lease ends when its time is over and not before. When this very process was stopped for a
//! while, the time it could not have heard anything in does not count.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use selvedge_registry::{InstanceId, ServiceName};

/// An instance.
pub type Key = (ServiceName, InstanceId);

/// Deadlines of instances.
#[derive(Debug, Default)]
pub struct Leases {
    deadlines: HashMap<Key, Instant>,
    last_sweep: Option<Instant>,
}

/// A sweep that comes this late means that the process stood still.
const STOOD_STILL: Duration = Duration::from_secs(1);

impl Leases {
    /// The instance has been heard of; it has `ttl` from `now`.
    pub fn renew(&mut self, key: Key, ttl: Duration, now: Instant) {
        self.deadlines.insert(key, now + ttl);
    }

    /// Gives it `ttl` from `now` unless it has a deadline already.
    pub fn adopt(&mut self, key: &Key, ttl: Duration, now: Instant) {
        if !self.deadlines.contains_key(key) {
            self.deadlines.insert(key.clone(), now + ttl);
        }
    }

    /// No longer this server's affair.
    pub fn release(&mut self, key: &Key) {
        self.deadlines.remove(key);
    }

    /// Whether this server keeps its time.
    pub fn holds(&self, key: &Key) -> bool {
        self.deadlines.contains_key(key)
    }

    /// How many this server keeps.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Takes out those whose time is over at `now`. `every`: how often this is called.
    pub fn expired(&mut self, now: Instant, every: Duration) -> Vec<Key> {
        let late = self
            .last_sweep
            .map_or(Duration::ZERO, |last| (now - last).saturating_sub(every));
        self.last_sweep = Some(now);
        if late > STOOD_STILL {
            for deadline in self.deadlines.values_mut() {
                *deadline += late;
            }
            return Vec::new();
        }
        let mut over: Vec<Key> = self
            .deadlines
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(key, _)| key.clone())
            .collect();
        // The same order everywhere: logs and tests can be compared.
        over.sort();
        for key in &over {
            self.deadlines.remove(key);
        }
        over
    }
}

/// The server among `candidates` that looks after `key` when its owner is gone: the same answer
/// everywhere without a word exchanged, and a fair share for each.
///
/// Source: Thaler and Ravishankar, rendezvous hashing, 1998.
pub fn guardian<'a>(key: &Key, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates.max_by_key(|node| {
        let text = format!("{}/{}/{node}", key.0, key.1);
        (xxhash_rust::xxh3::xxh3_64(text.as_bytes()), *node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(100);

    fn key(id: &str) -> Key {
        (
            ServiceName::new("s").expect("name"),
            InstanceId::new(id).expect("id"),
        )
    }

    #[test]
    fn ends_on_time_and_a_renewal_moves_the_end() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        leases.renew(key("a"), Duration::from_secs(1), start);
        leases.renew(key("b"), Duration::from_secs(1), start);
        for ms in (0..1000).step_by(100) {
            assert!(leases.expired(at(ms), EVERY).is_empty());
        }
        leases.renew(key("b"), Duration::from_secs(1), at(900));
        assert_eq!(leases.expired(at(1000), EVERY), [key("a")]);
        leases.adopt(&key("b"), Duration::from_secs(60), at(1000));
        assert_eq!(
            leases.expired(at(1900), EVERY),
            [key("b")],
            "adopting what is held changes nothing"
        );
        assert!(leases.is_empty());
    }

    #[test]
    fn a_process_that_stood_still_evicts_nobody_for_it() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.renew(key("a"), Duration::from_secs(3), start);
        leases.expired(start, EVERY);
        let woken = start + Duration::from_secs(60);
        assert!(leases.expired(woken, EVERY).is_empty());
        assert!(
            leases
                .expired(woken + Duration::from_secs(2), EVERY * 20)
                .is_empty()
        );
        assert_eq!(
            leases
                .expired(woken + Duration::from_secs(3), EVERY * 10)
                .len(),
            1
        );
    }

    #[test]
    fn guardians_share_fairly_and_only_orphans_move() {
        let all = ["n1", "n2", "n3"];
        let keys: Vec<_> = (0..3000).map(|i| key(&format!("i{i}"))).collect();
        let mut moved = 0;
        for key in &keys {
            let before = guardian(key, all.into_iter()).expect("some");
            let after = guardian(key, ["n1", "n3"].into_iter()).expect("some");
            moved += usize::from(before != after);
            assert!(before == "n2" || before == after);
        }
        assert!((850..1150).contains(&moved), "{moved}");
        assert_eq!(guardian(&keys[0], std::iter::empty()), None);
    }
}
