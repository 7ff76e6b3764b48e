//! Clocks that jump: a window may be lost, a circuit never.

use super::*;

const YEAR: u64 = 365 * 86_400_000;

#[test]
fn a_call_from_the_far_future_does_not_stop_the_window() {
    let mut b = Bench::new(setup());
    let now = b.now;
    b.wait(10 * YEAR).call(OK);
    b.now = now;
    for _ in 0..4 {
        b.call(ERR);
    }
    assert_eq!(b.state(), State::Closed);
    b.wait(21_000);
    assert_eq!(
        b.breaker.snapshot(b.now).window,
        Counts::default(),
        "it slides again"
    );
    for _ in 0..5 {
        b.call(ERR);
    }
    assert_eq!(b.state(), State::Open);
}

#[test]
fn a_circuit_that_opened_in_the_far_future_opens_for_its_time_only() {
    let mut b = Bench::new(setup());
    let now = b.now;
    b.wait(10 * YEAR);
    let mut b = b.open();
    b.now = now;
    let rejected = b.breaker.try_acquire(b.now).expect_err("open");
    assert_eq!(rejected.retry_after, Some(Duration::from_secs(5)));
    b.wait(5_001);
    assert!(b.breaker.try_acquire(b.now).is_ok());
}

#[test]
fn probes_from_the_far_future_do_not_hold_the_circuit_half_open() {
    let mut b = Bench::new(setup()).half_open();
    let now = b.now;
    b.wait(10 * YEAR);
    let _hung: Vec<_> = (0..4).map(|_| b.breaker.try_acquire(b.now)).collect();
    b.now = now;
    assert!(b.breaker.try_acquire(b.now).is_err());
    b.wait(60_001);
    assert_eq!(
        b.breaker.try_acquire(b.now).expect_err("hung").reason,
        Reason::Open
    );
}

#[test]
fn a_call_that_ends_before_it_began_took_no_time() {
    let b = Bench::new(setup());
    let permit = b.breaker.try_acquire(b.now).expect("closed");
    let before = b
        .now
        .checked_sub(Duration::from_secs(30))
        .expect("not at boot");
    permit.complete(OK, before);
    assert_eq!(b.breaker.calls().slow, 0);
    assert_eq!(b.breaker.calls().success, 1);
}

#[test]
fn the_extremes_of_the_clock_do_not_panic() {
    let b = Bench::new(setup());
    let mut far = b.now;
    // As far as the platform's `Instant` goes.
    let mut step = Duration::from_secs(u64::MAX / 4);
    while step > Duration::from_secs(1) {
        match far.checked_add(step) {
            Some(further) => far = further,
            None => step /= 2,
        }
    }
    for now in [b.now, far, b.now, far] {
        for outcome in [ERR, OK, ERR, Outcome::Cancelled] {
            if let Ok(permit) = b.breaker.try_acquire(now) {
                permit.complete(outcome, far);
            }
            if let Ok(permit) = b.breaker.try_acquire(now) {
                permit.complete(outcome, b.now);
            }
            let _ = b.breaker.snapshot(now);
        }
    }
    b.breaker.open_for(Duration::MAX, far);
    assert!(b.breaker.try_acquire(far).is_err());
    assert_eq!(b.breaker.calls().in_flight, 0);
}
