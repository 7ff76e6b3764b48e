//! Loom models: every interleaving of a leader that answers or goes away with followers that wait
//! or give up.

use std::{sync::Arc, task::Wake};

use loom::{sync::Notify, thread};

use super::*;

/// A thread that sleeps until its waker is called: one that is not called is a deadlock, which loom
/// reports.
struct Parked(Notify);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

fn wait(mut follow: Follow<u32>) -> Turn<u32> {
    let parked = Arc::new(Parked(Notify::new()));
    let waker = Waker::from(Arc::clone(&parked));
    loop {
        match follow.poll(&waker) {
            Poll::Ready(turn) => return turn,
            Poll::Pending => parked.0.wait(),
        }
    }
}

fn key() -> Key {
    Key::new(*b"k")
}

/// Asks as a caller does; makes the call (which answers `mine`) where it falls to it.
fn ask(calls: &Coalescer<u32>, mine: u32) -> u32 {
    let lead = match calls.join(key()) {
        Joined::Lead(lead) => lead,
        Joined::Alone => panic!("there is room"),
        Joined::Follow(follow) => match wait(follow) {
            Turn::Answer(answer) => return answer,
            Turn::Lead(lead) => lead,
            Turn::Alone | Turn::Broken => panic!("nobody released or broke it"),
        },
    };
    lead.share(mine);
    mine
}

fn all_is_over(calls: &Coalescer<u32>) {
    let status = calls.status();
    assert_eq!((status.in_flight, status.waiting), (0, 0), "{status:?}");
}

#[test]
fn an_answer_reaches_who_joined_before_it() {
    loom::model(|| {
        let calls = Coalescer::new(4);
        let other = {
            let calls = calls.clone();
            thread::spawn(move || ask(&calls, 1))
        };
        let mine = ask(&calls, 2);
        let theirs = other.join().expect("other");
        let led = calls.status().led;
        assert!(
            led == 2 || (led == 1 && mine == theirs),
            "{led} {mine} {theirs}"
        );
        all_is_over(&calls);
    });
}

#[test]
fn a_lead_that_goes_away_is_taken_by_who_waits_or_comes() {
    loom::model(|| {
        let calls = Coalescer::new(4);
        let Joined::Lead(lead) = calls.join(key()) else {
            panic!("the first one leads");
        };
        let other = {
            let calls = calls.clone();
            thread::spawn(move || ask(&calls, 1))
        };
        drop(lead);
        assert_eq!(other.join().expect("other"), 1);
        all_is_over(&calls);
    });
}

#[test]
fn a_follower_that_gives_up_while_the_lead_is_vacant_leaves_nothing_behind() {
    loom::model(|| {
        let calls = Coalescer::new(4);
        let Joined::Lead(lead) = calls.join(key()) else {
            panic!("the first one leads");
        };
        let follow = calls.join(key());
        let gone = thread::spawn(move || drop(follow));
        drop(lead);
        let mine = ask(&calls, 2);
        gone.join().expect("gone");
        assert_eq!(mine, 2);
        all_is_over(&calls);
    });
}
