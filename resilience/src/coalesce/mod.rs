//! Coalescing: one call for all who ask the same at the same time.
//!
//! When a popular entry falls out of a cache, every request for it misses at once, and the callee,
//! sized for the misses of an ordinary minute, gets a thousand copies of one question. They would
//! all have the same answer; so the first one asks, and the others wait for what it is told.
//!
//! The trap is whose call it is. Where the first caller owns it, all the others fail when that one
//! goes away. Here nobody owns it: [`Lead`] is the right to make the call, and a lead that is
//! dropped without an answer passes to whoever waits and looks first. (The alternative, a task that
//! outlives its callers, spends work on an answer that perhaps nobody waits for.)
//!
//! # Guarantees
//! At most one lead for a key at a time. A follower's wait ends with the answer, with the lead, or
//! with the word to make a call of its own; never with silence, whoever is dropped, in whichever
//! order. A leader that panics ends the flight: a request that kills its handler does not go on to
//! kill one caller after the other. Memory is bounded by the number of keys and of calls under way.
//!
//! # What it does not do
//! It does not cache: an answer is for those who waited for it. It does not spawn, and knows no
//! clock: a follower that has no more time drops its [`Follow`].
//!
//! # Source
//! Go's `singleflight` (where a panic or a cancelled leader reaches everybody); nginx
//! `proxy_cache_lock`; RFC 9111 §4 on what may be answered twice. tower-resilience's coalescing spins
//! while it waits, and fails its followers with its leader.

mod config;
mod key;
#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    sync::Arc,
    task::{Poll, Waker},
};

pub use self::{
    config::{CoalesceConfig, OnError},
    key::{Key, KeyRules},
};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Enough that two threads seldom want the same one.
#[cfg(not(loom))]
const SHARDS: usize = 16;
#[cfg(loom)]
const SHARDS: usize = 1;

/// The calls under way, by key. Clones share them.
pub struct Coalescer<T>(Arc<Shared<T>>);

impl<T> Clone for Coalescer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

type Table<T> = HashMap<Key, Arc<Flight<T>>>;

struct Shared<T> {
    hasher: RandomState,
    shards: Box<[Mutex<Table<T>>]>,
    /// Keys there may be, and keys there are.
    max: AtomicU64,
    keys: AtomicU64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    waiting: AtomicU64,
    led: AtomicU64,
    followed: AtomicU64,
    promoted: AtomicU64,
    answered: AtomicU64,
    released: AtomicU64,
    broken: AtomicU64,
    full: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One call under way. Its state is changed only by who holds the lock of its shard too, but for a
/// vacant lead that a follower takes.
struct Flight<T> {
    key: Key,
    state: Mutex<State<T>>,
}

struct State<T> {
    phase: Phase<T>,
    next: u64,
    /// In the order in which they came: who has waited longest is woken first.
    waiting: BTreeMap<u64, Option<Waker>>,
}

impl<T> State<T> {
    fn wakers(&mut self) -> Vec<Waker> {
        self.waiting.values_mut().filter_map(Option::take).collect()
    }
}

enum Phase<T> {
    /// Somebody makes the call.
    Led,
    /// Nobody does; the first follower that looks will.
    Vacant,
    /// It is over, and no longer in the table.
    Done(End<T>),
}

#[derive(Clone)]
enum End<T> {
    Answer(T),
    Alone,
    Broken,
}

/// What a call that asks for a key is.
#[derive(Debug)]
#[must_use]
pub enum Joined<T: Clone> {
    /// The one that is made.
    Lead(Lead<T>),
    /// One that waits for the one that is made.
    Follow(Follow<T>),
    /// By itself: as many keys are under way as may be.
    Alone,
}

/// How a follower's wait ends.
#[derive(Debug)]
#[must_use]
pub enum Turn<T: Clone> {
    /// With the leader's answer.
    Answer(T),
    /// The leader has gone away: make the call, others may be waiting for it.
    Lead(Lead<T>),
    /// The answer is the leader's alone: make a call of one's own.
    Alone,
    /// The leader panicked.
    Broken,
}

/// Counters and gauges of a [`Coalescer`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Keys under way.
    pub in_flight: u64,
    /// Followers that wait.
    pub waiting: u64,
    /// Calls that were made for all who asked, those of promoted followers too.
    pub led: u64,
    /// Calls that began to wait for another one.
    pub followed: u64,
    /// Followers that took the lead over.
    pub promoted: u64,
    /// Followers that got the leader's answer.
    pub answered: u64,
    /// Followers that were told to make a call of their own.
    pub released: u64,
    /// Followers whose leader panicked.
    pub broken: u64,
    /// Calls that went by themselves, because there were as many keys as may be.
    pub full: u64,
}

impl<T: Clone> Coalescer<T> {
    /// No calls yet; at most `max` keys at once.
    pub fn new(max: u32) -> Self {
        let empty = |_| Mutex::new(Table::new());
        Self(Arc::new(Shared {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(empty).collect(),
            max: AtomicU64::new(u64::from(max)),
            keys: AtomicU64::new(0),
            counts: Counts::default(),
        }))
    }

    /// Allows another number of keys from now on; those under way stay.
    pub fn reconfigure(&self, max: u32) {
        self.0.max.store(u64::from(max), Ordering::Relaxed);
    }

    /// Asks for `key`: makes the call, or waits for who makes it.
    ///
    /// Takes the lock of one shard; allocates.
    pub fn join(&self, key: Key) -> Joined<T> {
        let shared = &self.0;
        let mut table = shared.shard(&key).lock();
        if let Some(flight) = table.get(&key) {
            let mut state = flight.state.lock();
            if matches!(state.phase, Phase::Led) {
                let id = state.next;
                state.next += 1;
                state.waiting.insert(id, None);
                add(&shared.counts.followed);
                add(&shared.counts.waiting);
                return Joined::Follow(Follow {
                    shared: Arc::clone(shared),
                    flight: Arc::clone(flight),
                    id: Some(id),
                });
            }
            // Vacant: those who wait have been woken, and will find that it is led again.
            state.phase = Phase::Led;
            drop(state);
            return Joined::Lead(Lead::new(shared, flight));
        }
        if shared.keys.fetch_add(1, Ordering::Relaxed) >= shared.max.load(Ordering::Relaxed) {
            shared.keys.fetch_sub(1, Ordering::Relaxed);
            add(&shared.counts.full);
            return Joined::Alone;
        }
        let flight = Arc::new(Flight {
            key: key.clone(),
            state: Mutex::new(State {
                phase: Phase::Led,
                next: 0,
                waiting: BTreeMap::new(),
            }),
        });
        table.insert(key, Arc::clone(&flight));
        Joined::Lead(Lead::new(shared, &flight))
    }

    /// Counters and gauges now. Takes no lock.
    pub fn status(&self) -> Status {
        let counts = &self.0.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            in_flight: read(&self.0.keys),
            waiting: read(&counts.waiting),
            led: read(&counts.led),
            followed: read(&counts.followed),
            promoted: read(&counts.promoted),
            answered: read(&counts.answered),
            released: read(&counts.released),
            broken: read(&counts.broken),
            full: read(&counts.full),
        }
    }
}

impl<T> Shared<T> {
    fn shard(&self, key: &Key) -> &Mutex<Table<T>> {
        let hash = self.hasher.hash_one(key);
        &self.shards[hash as usize % SHARDS]
    }

    /// Takes `flight` out of the table and tells everybody how it ended.
    fn end(&self, flight: &Flight<T>, end: End<T>) {
        let mut table = self.shard(&flight.key).lock();
        let mut state = flight.state.lock();
        table.remove(&flight.key);
        self.keys.fetch_sub(1, Ordering::Relaxed);
        state.phase = Phase::Done(end);
        let wakers = state.wakers();
        drop((state, table));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Leaves the lead to whoever looks first; ends the flight if nobody waits.
    fn vacate(&self, flight: &Flight<T>) {
        let mut table = self.shard(&flight.key).lock();
        let mut state = flight.state.lock();
        if state.waiting.is_empty() {
            self.forget(&mut table, &mut state, flight);
            return;
        }
        state.phase = Phase::Vacant;
        // All of them: one that was woken alone might be polled by nobody.
        let wakers = state.wakers();
        drop((state, table));
        wakers.into_iter().for_each(Waker::wake);
    }

    fn forget(&self, table: &mut Table<T>, state: &mut State<T>, flight: &Flight<T>) {
        table.remove(&flight.key);
        self.keys.fetch_sub(1, Ordering::Relaxed);
        state.phase = Phase::Done(End::Alone);
    }
}

/// The right, and the duty, to make the call. Dropped, it passes to a follower.
#[must_use = "followers wait for who has the lead"]
pub struct Lead<T: Clone> {
    shared: Arc<Shared<T>>,
    flight: Option<Arc<Flight<T>>>,
}

impl<T: Clone> Lead<T> {
    fn new(shared: &Arc<Shared<T>>, flight: &Arc<Flight<T>>) -> Self {
        add(&shared.counts.led);
        Self {
            shared: Arc::clone(shared),
            flight: Some(Arc::clone(flight)),
        }
    }

    /// Gives `answer` to everybody who waits.
    pub fn share(self, answer: T) {
        self.end(End::Answer(answer));
    }

    /// The answer is nobody else's: everybody who waits makes a call of their own, all at once.
    pub fn release(self) {
        self.end(End::Alone);
    }

    fn end(mut self, end: End<T>) {
        let flight = self.flight.take().expect("taken only at the end");
        self.shared.end(&flight, end);
    }
}

impl<T: Clone> Drop for Lead<T> {
    fn drop(&mut self) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        if std::thread::panicking() {
            self.shared.end(&flight, End::Broken);
        } else {
            self.shared.vacate(&flight);
        }
    }
}

/// A place among those who wait for an answer. Dropped, it is given up.
#[must_use = "a follower that is dropped does not wait"]
pub struct Follow<T: Clone> {
    shared: Arc<Shared<T>>,
    flight: Arc<Flight<T>>,
    /// Until the wait is over.
    id: Option<u64>,
}

impl<T: Clone> Follow<T> {
    /// Whether the wait is over; else `waker` is woken when that may have changed.
    ///
    /// # Panics
    /// When polled again after it was ready.
    pub fn poll(&mut self, waker: &Waker) -> Poll<Turn<T>> {
        let counts = &self.shared.counts;
        let id = self.id.expect("not polled after it is ready");
        let mut state = self.flight.state.lock();
        let (turn, counter) = match &state.phase {
            Phase::Led => {
                let kept = state.waiting.entry(id).or_default();
                match kept {
                    Some(kept) => kept.clone_from(waker),
                    None => *kept = Some(waker.clone()),
                }
                return Poll::Pending;
            }
            Phase::Vacant => {
                state.phase = Phase::Led;
                let lead = Lead::new(&self.shared, &self.flight);
                (Turn::Lead(lead), &counts.promoted)
            }
            Phase::Done(End::Answer(answer)) => (Turn::Answer(answer.clone()), &counts.answered),
            Phase::Done(End::Alone) => (Turn::Alone, &counts.released),
            Phase::Done(End::Broken) => (Turn::Broken, &counts.broken),
        };
        state.waiting.remove(&id);
        drop(state);
        self.id = None;
        counts.waiting.fetch_sub(1, Ordering::Relaxed);
        add(counter);
        Poll::Ready(turn)
    }
}

impl<T: Clone> Drop for Follow<T> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        self.shared.counts.waiting.fetch_sub(1, Ordering::Relaxed);
        let mut table = self.shared.shard(&self.flight.key).lock();
        let mut state = self.flight.state.lock();
        state.waiting.remove(&id);
        if matches!(state.phase, Phase::Vacant) && state.waiting.is_empty() {
            self.shared.forget(&mut table, &mut state, &self.flight);
        }
    }
}

impl<T> fmt::Debug for Coalescer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalescer")
            .field("in_flight", &self.0.keys.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl<T: Clone> fmt::Debug for Lead<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lead")
    }
}

impl<T: Clone> fmt::Debug for Follow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follow")
    }
}
