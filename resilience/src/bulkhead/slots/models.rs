//! Loom models of the word and the queue: nobody waits for a slot that is free.

use std::{
    sync::Arc,
    task::{Poll, Wake, Waker},
    time::{Duration, Instant},
};

use loom::{
    sync::{Arc as LoomArc, atomic::AtomicBool},
    thread,
};

use super::{
    super::waiter::{Entry, Queued, Waiter, enter},
    *,
};
use crate::outcome::{Policy, Rejected};

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
