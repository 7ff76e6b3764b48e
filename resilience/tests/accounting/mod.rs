//! Two million calls from two threads, accounted for to the last: nothing stays out, nothing is
//! counted twice, whatever becomes of a call.

mod cores;
mod stack;

use std::sync::Barrier;

/// Calls of each of the two threads.
const CALLS: u64 = 1_000_000;

/// `work` on two threads that start together; what each of them came to.
fn on_two<T: Send>(work: impl Fn(u64) -> T + Sync) -> [T; 2] {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let run = |thread| {
            barrier.wait();
            work(thread)
        };
        let other = scope.spawn(move || run(1));
        [run(0), other.join().expect("no panic")]
    })
}
