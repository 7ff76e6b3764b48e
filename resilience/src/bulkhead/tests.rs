//! The core by hand: order, deadlines, debt, and exact accounts under contention.

use std::{
    sync::atomic::AtomicUsize,
    task::{Poll, Wake, Waker},
    time::Duration,
};

use proptest::prelude::*;

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn queued(max: u32, text: &str) -> Bulkhead {
    let queue = toml::from_str(text).expect("parses");
    Bulkhead::with_config(&BulkheadConfig {
        max,
        queue: Some(queue),
    })
    .expect("valid")
}

fn admitted(bulkhead: &Bulkhead, now: Instant) -> Permit {
    match bulkhead.acquire(now) {
        Ok(Entry::Admitted(permit)) => permit,
        other => panic!("expected a slot: {other:?}"),
    }
}

fn waits(bulkhead: &Bulkhead, now: Instant) -> Waiter<Bulkhead> {
    match bulkhead.acquire(now) {
        Ok(Entry::Waits(waiter)) => waiter,
        other => panic!("expected a place: {other:?}"),
    }
}

fn poll(waiter: &mut Waiter<Bulkhead>, now: Instant) -> Option<Result<Permit, Reason>> {
    match waiter.poll(Waker::noop(), now) {
        Poll::Ready(result) => Some(result.map_err(|rejected| rejected.reason)),
        Poll::Pending => None,
    }
}

/// Releases one slot after the other; in which order do the waiters get it?
fn served(mut permit: Permit, mut waiters: Vec<(u32, Waiter<Bulkhead>)>, now: Instant) -> Vec<u32> {
    let mut order = Vec::new();
    while !waiters.is_empty() {
        drop(permit);
        let next = waiters
            .iter_mut()
            .position(|(_, waiter)| {
                // Only asks: a granted permit is taken below.
                waiter.is_granted()
            })
            .expect("one of them has the slot");
        let (name, mut waiter) = waiters.remove(next);
        permit = poll(&mut waiter, now).expect("granted").expect("a permit");
        order.push(name);
    }
    order
}

#[test]
fn full_is_full_and_a_slot_comes_back_on_drop() {
    let bulkhead = Bulkhead::new(2);
    let (a, _b) = (
        bulkhead.try_acquire().expect("1"),
        bulkhead.try_acquire().expect("2"),
    );
    assert_eq!(bulkhead.try_acquire().expect_err("3").reason, Reason::Full);
    assert!(bulkhead.acquire(Instant::now()).is_err(), "no queue");
    drop(a);
    assert!(bulkhead.try_acquire().is_ok());
    assert!(Bulkhead::new(0).try_acquire().is_err());
}

#[test]
fn lowering_the_limit_makes_debt_that_drains_before_anybody_is_served() {
    let bulkhead = queued(3, "max = 5");
    let now = Instant::now();
    let mut held: Vec<_> = (0..3).map(|_| admitted(&bulkhead, now)).collect();
    let mut waiter = waits(&bulkhead, now);
    bulkhead.reconfigure(1);
    assert!(bulkhead.try_acquire().is_err());
    for left in [2, 1] {
        held.pop();
        assert_eq!(bulkhead.in_flight(), left);
        assert!(poll(&mut waiter, now).is_none(), "still in debt");
    }
    held.pop();
    let _granted = poll(&mut waiter, now).expect("served").expect("a slot");
    assert_eq!((bulkhead.in_flight(), bulkhead.status().waiting), (1, 0));
}

#[test]
fn raising_the_limit_serves_who_waits() {
    let bulkhead = queued(1, "max = 5");
    let now = Instant::now();
    let _held = admitted(&bulkhead, now);
    let mut waiters: Vec<_> = (0..3).map(|_| waits(&bulkhead, now)).collect();
    bulkhead.reconfigure(3);
    let served: Vec<_> = waiters.iter_mut().map(|w| poll(w, now)).collect();
    assert!(matches!(served[..], [Some(Ok(_)), Some(Ok(_)), None]));
    assert_eq!(bulkhead.in_flight(), 3);
}

#[test]
fn adp_6_newest_first_and_first_come_first_served() {
    let now = Instant::now();
    for (order, want) in [("lifo", [4, 3, 2, 1, 0]), ("fifo", [0, 1, 2, 3, 4])] {
        let bulkhead = queued(1, &format!("order = {order:?}"));
        let permit = admitted(&bulkhead, now);
        let waiters = (0..5).map(|n| (n, waits(&bulkhead, now))).collect();
        assert_eq!(served(permit, waiters, now), want, "{order}");
        assert_eq!(bulkhead.in_flight(), 0);
    }
}

#[test]
fn the_queue_turns_round_when_it_has_stood_too_long_and_back_when_it_was_empty() {
    let bulkhead = queued(1, r#"overload_after = "100ms""#);
    let now = Instant::now();
    let permit = admitted(&bulkhead, now);
    let mut waiters: Vec<_> = (0..3)
        .map(|n| (n, waits(&bulkhead, now + ms(u64::from(n) * 49))))
        .collect();
    assert!(!bulkhead.status().newest_first, "98 ms are no overload");
    waiters.push((3, waits(&bulkhead, now + ms(100))));
    assert!(bulkhead.status().newest_first);
    assert_eq!(served(permit, waiters, now), [3, 2, 1, 0]);

    let permit = admitted(&bulkhead, now + ms(150));
    let waiters = (0..3)
        .map(|n| (n, waits(&bulkhead, now + ms(150))))
        .collect();
    assert_eq!(
        served(permit, waiters, now),
        [0, 1, 2],
        "it was empty in between"
    );
}

#[test]
fn a_full_queue_refuses_the_newest_or_sends_the_oldest_away() {
    let now = Instant::now();
    let fifo = queued(1, "max = 2\norder = \"fifo\"");
    let _held = admitted(&fifo, now);
    let _waiters = [waits(&fifo, now), waits(&fifo, now)];
    assert_eq!(
        fifo.acquire(now).expect_err("full").reason,
        Reason::QueueFull
    );

    let lifo = queued(1, "max = 2\norder = \"lifo\"");
    let _held = admitted(&lifo, now);
    let (mut oldest, mut middle) = (waits(&lifo, now), waits(&lifo, now));
    let _newest = waits(&lifo, now);
    assert_eq!(
        poll(&mut oldest, now)
            .expect("displaced")
            .expect_err("no slot"),
        Reason::QueueFull
    );
    assert!(poll(&mut middle, now).is_none());
    let status = lifo.status();
    assert_eq!((status.waiting, status.queue_full), (2, 1));
}

#[test]
fn waiting_ends_at_the_deadline_unless_the_slot_came_in_that_moment() {
    let bulkhead = queued(1, r#"wait = "50ms""#);
    let now = Instant::now();
    let permit = admitted(&bulkhead, now);
    let (late, lucky) = (waits(&bulkhead, now), waits(&bulkhead, now));
    assert_eq!(late.deadline(), Some(now + ms(50)));
    assert_eq!(late.waited(now + ms(50)), ms(50));
    let refused = late.expire(now + ms(50)).expect_err("nobody left");
    assert_eq!(refused.reason, Reason::QueueTimeout);
    drop(permit);
    let _permit = lucky.expire(now + ms(50)).expect("granted just before");
    let status = bulkhead.status();
    assert_eq!(
        (status.in_flight, status.waiting, status.queue_timeout),
        (1, 0, 1)
    );
}

#[test]
fn tower_resilience_leaks_nothing_here_a_waiter_that_goes_passes_its_slot_on() {
    let bulkhead = queued(1, "max = 9");
    let now = Instant::now();
    let permit = admitted(&bulkhead, now);
    let (granted, mut next) = (waits(&bulkhead, now), waits(&bulkhead, now));
    let gone = waits(&bulkhead, now);
    drop(gone);
    assert_eq!(bulkhead.status().waiting, 2);
    drop(permit);
    assert!(poll(&mut next, now).is_none());
    drop(granted);
    let permit = poll(&mut next, now).expect("passed on").expect("a slot");
    drop(permit);
    assert_eq!((bulkhead.in_flight(), bulkhead.status().waiting), (0, 0));
}

#[test]
fn newcomers_do_not_overtake_who_waits() {
    let bulkhead = queued(2, "max = 9");
    let now = Instant::now();
    let (a, _b) = (admitted(&bulkhead, now), admitted(&bulkhead, now));
    let mut waiter = waits(&bulkhead, now);
    drop(a);
    assert!(bulkhead.try_acquire().is_err(), "the slot is promised");
    assert!(poll(&mut waiter, now).expect("served").is_ok());
}

#[test]
fn a_place_is_used_again_and_its_old_ticket_means_nothing() {
    let bulkhead = queued(1, "max = 3");
    let now = Instant::now();
    let _held = admitted(&bulkhead, now);
    for _ in 0..1000 {
        let waiters = [(); 3].map(|()| waits(&bulkhead, now));
        assert!(bulkhead.acquire(now).is_err());
        drop(waiters);
    }
    assert_eq!(bulkhead.status().waiting, 0);
}

#[test]
fn what_cannot_work_is_refused() {
    for (text, path) in [
        ("max = 0", "max"),
        ("max = 1\nqueue = { max = 0 }", "queue.max"),
        ("max = 1\nqueue = { max = 1_000_001 }", "queue.max"),
        ("max = 1\nqueue = { wait = \"0s\" }", "queue.wait"),
    ] {
        let config: BulkheadConfig = toml::from_str(text).expect(text);
        assert_eq!(config.validate().expect_err(text).path, path, "{text}");
    }
    for text in [
        "queue = {}",
        "max = -1",
        "max = 1\nmin = 1",
        "max = 1\nqueue = { order = 1 }",
    ] {
        assert!(toml::from_str::<BulkheadConfig>(text).is_err(), "{text}");
    }
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_is_served_is_woken_once() {
    let bulkhead = queued(1, "max = 3");
    let now = Instant::now();
    let permit = admitted(&bulkhead, now);
    let mut waiter = waits(&bulkhead, now);
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    assert!(waiter.poll(&waker, now).is_pending());
    assert!(waiter.poll(&waker, now).is_pending());
    drop(permit);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
}

#[test]
fn two_million_calls_from_two_threads_leave_nothing_behind() {
    const CALLS: u64 = crate::sync::rounds(1_000_000, 400);
    let bulkhead = Bulkhead::new(1);
    let work = || {
        (0..CALLS)
            .filter(|_| {
                let permit = bulkhead.try_acquire();
                assert!(bulkhead.in_flight() <= 1);
                permit.is_ok()
            })
            .count() as u64
    };
    let admitted: u64 = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work() + other.join().expect("no panic")
    });
    assert_eq!(admitted + bulkhead.rejected(), 2 * CALLS);
    assert_eq!(bulkhead.in_flight(), 0);
}

/// Threads that queue, are served, give up: every call ends in exactly one way.
#[test]
fn two_million_calls_through_the_queue_add_up() {
    const CALLS: u64 = crate::sync::rounds(500_000, 300);
    let bulkhead = queued(2, "max = 3");
    let now = Instant::now();
    let work = |seed: u64| {
        let rng = crate::Rng::new(seed);
        let (mut served, mut left, mut refused) = (0u64, 0u64, 0u64);
        let mut parked: Vec<Waiter<Bulkhead>> = Vec::new();
        for _ in 0..CALLS {
            match bulkhead.acquire(now) {
                Ok(Entry::Admitted(permit)) => {
                    served += 1;
                    drop(permit);
                }
                Ok(Entry::Waits(waiter)) => parked.push(waiter),
                Err(_) => refused += 1,
            }
            if let Some(mut waiter) = parked.pop() {
                match (poll(&mut waiter, now), rng.below(3)) {
                    (Some(result), _) => {
                        drop(result.expect("fifo displaces nobody"));
                        served += 1;
                    }
                    (None, 0) => left += 1,
                    (None, 1) => match waiter.expire(now) {
                        Ok(_permit) => served += 1,
                        Err(_) => left += 1,
                    },
                    (None, _) => parked.push(waiter),
                }
            }
        }
        left += parked.len() as u64;
        drop(parked);
        (served, left, refused)
    };
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || work(n))).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .fold([0; 3], |sum, (a, b, c)| {
                [sum[0] + a, sum[1] + b, sum[2] + c]
            })
    });
    assert_eq!(totals.iter().sum::<u64>(), 4 * CALLS);
    let status = bulkhead.status();
    assert_eq!((status.in_flight, status.waiting), (0, 0));
    assert_eq!(status.queue_full, totals[2]);
}

/// A slow, obvious bulkhead: a list of holders and a list of waiters.
#[derive(Default)]
struct Model {
    limit: usize,
    held: usize,
    queue: Vec<usize>,
    granted: Vec<usize>,
}

impl Model {
    fn serve(&mut self) {
        while self.held < self.limit && !self.queue.is_empty() {
            self.held += 1;
            let next = self.queue.remove(0);
            self.granted.push(next);
        }
    }
}

proptest! {
    #[test]
    fn first_come_first_served_is_what_the_list_does(
        steps in prop::collection::vec((0u8..4, 0usize..6), 1..200)
    ) {
        let bulkhead = queued(2, "max = 4\norder = \"fifo\"");
        let now = Instant::now();
        let mut model = Model { limit: 2, ..Model::default() };
        let mut permits = Vec::new();
        let mut waiters: Vec<(usize, Waiter<Bulkhead>)> = Vec::new();
        for (id, (step, arg)) in steps.into_iter().enumerate() {
            match step {
                0 | 1 => match bulkhead.acquire(now) {
                    Ok(Entry::Admitted(permit)) => {
                        prop_assert!(model.held < model.limit && model.queue.is_empty());
                        model.held += 1;
                        permits.push(permit);
                    }
                    Ok(Entry::Waits(waiter)) => {
                        prop_assert!(model.held >= model.limit && model.queue.len() < 4);
                        model.queue.push(id);
                        waiters.push((id, waiter));
                    }
                    Err(_) => prop_assert_eq!(model.queue.len(), 4),
                },
                2 if arg < permits.len() => {
                    drop(permits.swap_remove(arg));
                    model.held -= 1;
                    model.serve();
                }
                2 if !waiters.is_empty() => {
                    let (gone, waiter) = waiters.remove(arg % waiters.len());
                    drop(waiter);
                    model.queue.retain(|id| *id != gone);
                }
                _ => {
                    model.limit = arg;
                    bulkhead.reconfigure(arg as u32);
                    model.serve();
                }
            }
            let mut still = Vec::new();
            for (id, mut waiter) in waiters {
                match poll(&mut waiter, now) {
                    Some(permit) => {
                        prop_assert!(model.granted.contains(&id), "{} was granted", id);
                        model.granted.retain(|granted| *granted != id);
                        permits.push(permit.expect("fifo displaces nobody"));
                    }
                    None => still.push((id, waiter)),
                }
            }
            waiters = still;
            prop_assert!(model.granted.is_empty(), "everybody granted was told");
            prop_assert_eq!(bulkhead.in_flight() as usize, model.held);
            prop_assert_eq!(bulkhead.status().waiting as usize, model.queue.len());
        }
        drop((permits, waiters));
        prop_assert_eq!(bulkhead.in_flight(), 0);
    }
}
