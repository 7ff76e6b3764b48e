//! Slots, those who hold them and those who wait: what a bulkhead and an adaptive limit share.
//!
//! ```text
//! state: AtomicU64 = waiting (32 bits) | held (32 bits)
//! ```
//!
//! Taking and giving back is one compare-and-swap while nobody waits. Both counts are in one word,
//! so that the moment at which somebody begins to wait is a moment for the holders too: a release
//! either came before it, and the newcomer finds the slot, or sees that somebody waits, and hands
//! the slot over under the queue's lock. There is no third order, so no wake-up can be lost.

use std::{
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::queue::{Fate, Order, Queue, Ticket};
use crate::{
    clock::{Tick, nanos},
    lanes::Line,
    outcome::{Policy, Reason, Rejected},
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// How a queue behaves; see [`QueueConfig`](super::QueueConfig).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) max: u32,
    pub(crate) wait: Duration,
    pub(crate) order: Order,
    pub(crate) overload_after: Duration,
}

impl Rules {
    pub(crate) const NO_QUEUE: Self = Self {
        max: 0,
        wait: Duration::ZERO,
        order: Order::Fifo,
        overload_after: Duration::ZERO,
    };
}

/// What comes of asking for a slot.
enum Entered {
    Taken,
    Waits(Ticket),
    Refused(Reason),
}

const ONE_WAITS: u64 = 1 << 32;

fn held(state: u64) -> u32 {
    state as u32
}

fn waiting(state: u64) -> u32 {
    (state >> 32) as u32
}

/// The word and the queue; opaque outside.
#[derive(Debug)]
pub struct Slots {
    state: Line<AtomicU64>,
    limit: AtomicU32,
    /// `waiting` in `state` changes only under this lock, and equals the queue's own count.
    queue: Mutex<Queue>,
}

impl Slots {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            state: Line(AtomicU64::new(0)),
            limit: AtomicU32::new(limit),
            queue: Mutex::new(Queue::new()),
        }
    }

    pub(crate) fn held(&self) -> u32 {
        held(self.state.load(Ordering::Relaxed))
    }

    pub(crate) fn waiting(&self) -> u32 {
        waiting(self.state.load(Ordering::Relaxed))
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn newest_first(&self) -> bool {
        let queue = self.queue.lock();
        queue.waiting() > 0 && queue.newest_first()
    }

    /// Takes a slot if one is free and nobody waits for it. Returns how many are held then.
    pub(crate) fn try_take(&self) -> Option<u32> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            // Not add-then-undo: that refuses callers who would have fitted.
            if waiting(state) > 0 || held(state) >= self.limit.load(Ordering::Relaxed) {
                return None;
            }
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(held(state) + 1),
                Err(seen) => state = seen,
            }
        }
    }

    /// Takes a slot beyond the limit; who may do so is decided elsewhere. Returns how many are held
    /// then.
    pub(crate) fn take_beyond(&self) -> u32 {
        held(self.state.fetch_add(1, Ordering::AcqRel)) + 1
    }

    /// Gives a slot back, or on to whoever waits.
    pub(crate) fn give_back(&self) {
        let mut state = self.state.load(Ordering::Relaxed);
        while waiting(state) == 0 {
            match self.state.compare_exchange_weak(
                state,
                state - 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(seen) => state = seen,
            }
        }
        self.hand_over();
    }

    #[cold]
    fn hand_over(&self) {
        let mut queue = self.queue.lock();
        let mut state = self.state.load(Ordering::Relaxed);
        let waker = loop {
            // Debt drains first: a limit that was lowered below what is held.
            let keeps = waiting(state) > 0 && held(state) <= self.limit.load(Ordering::Relaxed);
            let next = state - if keeps { ONE_WAITS } else { 1 };
            match self
                .state
                .compare_exchange(state, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) if keeps => break queue.grant(),
                Ok(_) => break None,
                Err(seen) => state = seen,
            }
        };
        drop(queue);
        wake(waker);
    }

    fn enter(&self, rules: &Rules, now: Tick) -> Entered {
        if self.try_take().is_some() {
            return Entered::Taken;
        }
        if rules.max == 0 {
            return Entered::Refused(Reason::Full);
        }
        self.enter_queue(rules, now)
    }

    #[cold]
    fn enter_queue(&self, rules: &Rules, now: Tick) -> Entered {
        let mut queue = self.queue.lock();
        queue.arrive(rules.order, now, nanos(rules.overload_after));
        let full = queue.waiting() >= rules.max;
        if full && !queue.newest_first() {
            return Entered::Refused(Reason::QueueFull);
        }
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let free = waiting(state) == 0 && held(state) < self.limit.load(Ordering::Relaxed);
            // A newcomer takes the place of the oldest, who has the least hope left.
            let next = match (free, full) {
                (true, _) => state + 1,
                (false, false) => state + ONE_WAITS,
                (false, true) => state,
            };
            match self
                .state
                .compare_exchange(state, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) if free => return Entered::Taken,
                Ok(_) => break,
                Err(seen) => state = seen,
            }
        }
        let displaced = full.then(|| queue.displace_oldest()).flatten();
        let ticket = queue.push();
        drop(queue);
        wake(displaced);
        Entered::Waits(ticket)
    }

    /// Takes a new limit; who waits is served from what it adds.
    pub(crate) fn set_limit(&self, limit: u32) {
        // Under the lock: who has just read the old limit and goes to wait is seen below.
        let queue = self.queue.lock();
        self.limit.store(limit, Ordering::Relaxed);
        drop(queue);
        while self.serve_one() {}
    }

    /// Gives a free slot to whoever is next; false if there is none, or nobody waits.
    fn serve_one(&self) -> bool {
        let mut queue = self.queue.lock();
        let mut state = self.state.load(Ordering::Relaxed);
        let waker = loop {
            if waiting(state) == 0 || held(state) >= self.limit.load(Ordering::Relaxed) {
                return false;
            }
            match self.state.compare_exchange(
                state,
                state + 1 - ONE_WAITS,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break queue.grant(),
                Err(seen) => state = seen,
            }
        };
        drop(queue);
        wake(waker);
        true
    }

    fn fate(&self, ticket: Ticket, waker: &Waker) -> Fate {
        let mut queue = self.queue.lock();
        let fate = queue.fate(ticket);
        let old = match fate {
            Fate::Waiting => queue.park(ticket, waker),
            Fate::Granted | Fate::Displaced => None,
        };
        drop(queue);
        drop(old);
        fate
    }

    fn leave(&self, ticket: Ticket) -> Fate {
        let mut queue = self.queue.lock();
        let (fate, waker) = queue.leave(ticket);
        if fate == Fate::Waiting {
            self.state.fetch_sub(ONE_WAITS, Ordering::AcqRel);
        }
        drop(queue);
        drop(waker);
        fate
    }
}

/// Outside every lock: a waker may run anything.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A handle on a core whose calls may wait for their slots: a
/// [`Bulkhead`](super::Bulkhead) or an [`AdaptiveLimit`](crate::adaptive::AdaptiveLimit).
///
/// Nobody else can implement it: only this crate makes slots.
pub trait Queued: Clone {
    /// What a call holds.
    type Permit;

    /// Asks for a slot, or for a place in the queue.
    ///
    /// # Errors
    /// [`Rejected`] if there is neither.
    fn acquire(&self, now: Instant) -> Result<Entry<Self>, Rejected>;

    #[doc(hidden)]
    const POLICY: Policy;
    #[doc(hidden)]
    fn slots(&self) -> &Slots;
    /// Makes the permit of a call that has got its slot.
    #[doc(hidden)]
    fn permit(&self, now: Instant) -> Self::Permit;
    /// Counts a refusal.
    #[doc(hidden)]
    fn refused(&self, reason: Reason);
}

/// Asks for a slot of `core`, or for a place in its queue.
pub(crate) fn enter<C: Queued>(
    core: &C,
    rules: &Rules,
    now: Instant,
) -> Result<Entry<C>, Rejected> {
    let tick = Tick::at(now);
    match core.slots().enter(rules, tick) {
        Entered::Taken => Ok(Entry::Admitted(core.permit(now))),
        Entered::Waits(ticket) => Ok(Entry::Waits(Waiter {
            core: core.clone(),
            ticket: Some(ticket),
            // Further than the clock goes is for ever.
            deadline: now.checked_add(rules.wait),
            since: tick,
        })),
        Entered::Refused(reason) => Err(refuse(core, reason)),
    }
}

fn refuse<C: Queued>(core: &C, reason: Reason) -> Rejected {
    core.refused(reason);
    Rejected::new(C::POLICY, reason)
}

/// Admitted, or to wait.
#[derive(Debug)]
pub enum Entry<C: Queued> {
    /// There was a slot.
    Admitted(C::Permit),
    /// There is a place in the queue.
    Waits(Waiter<C>),
}

/// A place in the queue. Dropping it leaves the queue; a slot that was granted meanwhile goes on to
/// the next.
#[must_use = "a place in the queue that is dropped at once waits for nothing"]
pub struct Waiter<C: Queued> {
    core: C,
    /// `None` once it has left the queue.
    ticket: Option<Ticket>,
    deadline: Option<Instant>,
    since: Tick,
}

impl<C: Queued> Waiter<C> {
    /// When waiting ends; `None` is never. Call [`expire`](Self::expire) then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How long it has waited at `now`.
    pub fn waited(&self, now: Instant) -> Duration {
        Tick::at(now).since(self.since)
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn is_granted(&self) -> bool {
        let ticket = self.ticket.expect("has not left the queue yet");
        self.core.slots().queue.lock().fate(ticket) == Fate::Granted
    }

    /// The permit, if the slot has been granted; otherwise `waker` is woken when there is news.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::QueueFull`] if a newer call took the place.
    pub fn poll(&mut self, waker: &Waker, now: Instant) -> Poll<Result<C::Permit, Rejected>> {
        let ticket = self
            .ticket
            .expect("a waiter is not polled after it is ready");
        match self.core.slots().fate(ticket, waker) {
            Fate::Waiting => Poll::Pending,
            Fate::Granted | Fate::Displaced => Poll::Ready(self.end(Reason::QueueFull, now)),
        }
    }

    /// Leaves the queue because the time is up; with the permit, if it was granted in that moment.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::QueueTimeout`].
    pub fn expire(mut self, now: Instant) -> Result<C::Permit, Rejected> {
        self.end(Reason::QueueTimeout, now)
    }

    fn end(&mut self, otherwise: Reason, now: Instant) -> Result<C::Permit, Rejected> {
        let ticket = self.ticket.take().expect("has not left the queue yet");
        match self.core.slots().leave(ticket) {
            Fate::Granted => Ok(self.core.permit(now)),
            Fate::Displaced => Err(refuse(&self.core, Reason::QueueFull)),
            Fate::Waiting => Err(refuse(&self.core, otherwise)),
        }
    }
}

impl<C: Queued> Drop for Waiter<C> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && self.core.slots().leave(ticket) == Fate::Granted
        {
            self.core.slots().give_back();
        }
    }
}

impl<C: Queued> std::fmt::Debug for Waiter<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter")
            .field("ticket", &self.ticket)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod models {
    //! Loom models of the word and the queue: nobody waits for a slot that is free.

    use std::{sync::Arc, task::Wake};

    use loom::{
        sync::{Arc as LoomArc, atomic::AtomicBool},
        thread,
    };

    use super::*;

    const RULES: Rules = Rules {
        max: 4,
        wait: Duration::from_secs(1),
        order: Order::Fifo,
        overload_after: Duration::from_secs(1),
    };

    #[derive(Debug, Clone)]
    struct Core(Arc<Slots>);

    struct Permit(Core);

    impl Drop for Permit {
        fn drop(&mut self) {
            self.0.0.give_back();
        }
    }

    impl Queued for Core {
        type Permit = Permit;
        const POLICY: Policy = Policy::Bulkhead;
        fn slots(&self) -> &Slots {
            &self.0
        }
        fn acquire(&self, now: Instant) -> Result<Entry<Self>, Rejected> {
            enter(self, &RULES, now)
        }
        fn permit(&self, _: Instant) -> Permit {
            Permit(self.clone())
        }
        fn refused(&self, _: Reason) {}
    }

    /// Notes that it was woken.
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn core(limit: u32) -> Core {
        Core(Arc::new(Slots::new(limit)))
    }

    fn take(core: &Core, now: Instant) -> Permit {
        match enter(core, &RULES, now) {
            Ok(Entry::Admitted(permit)) => permit,
            _ => panic!("there is a free slot"),
        }
    }

    /// Asks, polls once if it must wait, and returns whether it has a slot or was not woken yet.
    fn ask(core: &Core, flag: &Arc<Flag>, now: Instant) -> Result<Permit, Waiter<Core>> {
        match enter(core, &RULES, now).expect("the queue has room") {
            Entry::Admitted(permit) => Ok(permit),
            Entry::Waits(mut waiter) => match waiter.poll(&Waker::from(Arc::clone(flag)), now) {
                Poll::Ready(permit) => Ok(permit.expect("nobody displaces")),
                Poll::Pending => Err(waiter),
            },
        }
    }

    #[test]
    fn a_release_and_an_arrival_never_miss_each_other() {
        loom::model(|| {
            let (core, now) = (core(1), Instant::now());
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            let permit = take(&core, now);
            let releaser = thread::spawn(move || drop(permit));
            let mine = ask(&core, &flag, now);
            releaser.join().expect("releaser");
            match mine {
                Ok(permit) => drop(permit),
                Err(waiter) => {
                    let woken = flag.0.load(Ordering::SeqCst);
                    assert!(woken, "waits for a free slot");
                    drop(waiter);
                }
            }
            assert_eq!((core.0.held(), core.0.waiting()), (0, 0));
        });
    }

    #[test]
    fn a_waiter_that_leaves_hands_on_what_it_was_granted() {
        loom::model(|| {
            let (core, now) = (core(1), Instant::now());
            let flags: Vec<_> = (0..2)
                .map(|_| Arc::new(Flag(AtomicBool::new(false))))
                .collect();
            let permit = take(&core, now);
            let Err(first) = ask(&core, &flags[0], now) else {
                panic!("the slot is taken")
            };
            let Err(second) = ask(&core, &flags[1], now) else {
                panic!("the slot is taken")
            };
            let leaver = thread::spawn(move || drop(first));
            drop(permit);
            leaver.join().expect("leaver");
            assert!(
                flags[1].0.load(Ordering::SeqCst),
                "the next one is not woken"
            );
            drop(second);
            assert_eq!((core.0.held(), core.0.waiting()), (0, 0));
        });
    }

    #[test]
    fn a_raised_limit_reaches_who_goes_to_wait_in_that_moment() {
        loom::model(|| {
            let (core, now) = (core(1), Instant::now());
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            let _held = take(&core, now);
            let raiser = {
                let core = core.clone();
                thread::spawn(move || core.0.set_limit(2))
            };
            let mine = ask(&core, &flag, now);
            raiser.join().expect("raiser");
            assert_eq!(core.0.held(), 2);
            if mine.is_err() {
                assert!(flag.0.load(Ordering::SeqCst));
            }
        });
    }

    #[test]
    fn takers_never_hold_more_than_the_limit() {
        loom::model(|| {
            let slots = LoomArc::new(Slots::new(1));
            let other = {
                let slots = LoomArc::clone(&slots);
                thread::spawn(move || slots.try_take().map(|_| slots.give_back()).is_some())
            };
            let mine = slots.try_take();
            if mine.is_some() {
                assert_eq!(slots.held(), 1);
                slots.give_back();
            }
            let theirs = other.join().expect("other");
            assert!(theirs || mine.is_some(), "one of two always fits");
            assert_eq!(slots.held(), 0);
        });
    }
}
