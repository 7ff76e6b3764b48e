//! WIN-1 to WIN-4, and that windows slide.

use super::*;

/// Never opens, so that the window alone is seen.
fn measuring(over: Window, buckets: u32) -> Bench {
    Bench::new(BreakerConfig {
        mode: Mode::MetricsOnly,
        over,
        buckets,
        min_requests: 1,
        ..setup()
    })
}

#[test]
fn win_1_a_count_window_slides_call_by_call() {
    let mut b = measuring(Window::Calls(4), 10);
    let calls = [
        (ERR, 100.0),
        (OK, 50.0),
        (OK, 100.0 / 3.0),
        (OK, 25.0),
        (OK, 0.0),
    ];
    for (outcome, want) in calls {
        b.call(outcome);
        let ratio = b.breaker.snapshot(b.now).failure_ratio.expect("enough");
        assert!((100.0 * ratio - want).abs() < 1e-9, "{ratio} for {want}");
    }
}

#[test]
fn win_2_a_time_window_slides_bucket_by_bucket() {
    let mut b = measuring(Window::Time(Millis::new(5_000)), 5);
    let start = b.now;
    let mut call = |ms: u64, outcome| {
        b.now = start + Duration::from_millis(ms);
        b.call(outcome);
        let window = b.breaker.snapshot(b.now).window;
        (window.total, window.failed)
    };
    for (ms, outcome) in [
        (0, ERR),
        (100, OK),
        (200, OK),
        (1_200, OK),
        (2_200, OK),
        (3_200, ERR),
    ] {
        call(ms, outcome);
    }
    assert_eq!(call(4_200, OK), (7, 2));
    assert_eq!(call(5_200, OK), (5, 1));
    assert_eq!(call(6_200, OK), (5, 1));
    assert_eq!(call(11_200, OK), (1, 0));
}

#[test]
fn win_3_what_was_slow_leaves_with_its_bucket() {
    let mut b = measuring(Window::Time(Millis::new(5_000)), 5);
    b.breaker
        .reconfigure(BreakerConfig {
            slow_after: Millis::new(500),
            ..(*b.breaker.config()).clone()
        })
        .expect("valid");
    let start = b.now;
    for (ms, outcome, took) in [(0, ERR, 100), (100, OK, 100), (800, ERR, 1_000)] {
        // Recorded at that time, begun `took` before.
        let begun = (start + Duration::from_millis(ms))
            .checked_sub(Duration::from_millis(took))
            .expect("not at boot");
        let permit = b.breaker.try_acquire(begun).expect("admits");
        permit.complete(outcome, start + Duration::from_millis(ms));
    }
    b.now = start + Duration::from_millis(4_800);
    let window = b.breaker.snapshot(b.now).window;
    assert_eq!((window.total, window.failed, window.slow), (3, 2, 1));
    b.wait(1_000);
    assert_eq!(b.breaker.snapshot(b.now).window, Counts::default());
}

#[test]
fn win_4_ten_buckets_of_twenty_milliseconds() {
    // Kinds of calls are told apart by the counters; the window holds total and failed.
    let mut b = measuring(Window::Time(Millis::new(200)), 10);
    let timeout = Outcome::Failure(FailureClass::Timeout);
    for (outcome, times) in [(OK, 4), (ERR, 2), (timeout, 2)] {
        (0..times).for_each(|_| {
            b.call(outcome);
        });
    }
    b.wait(60);
    for (outcome, times) in [(OK, 2), (ERR, 3), (timeout, 1)] {
        (0..times).for_each(|_| {
            b.call(outcome);
        });
    }
    let snapshot = b.breaker.snapshot(b.now);
    assert_eq!((snapshot.window.total, snapshot.window.failed), (14, 8));
    assert_eq!(snapshot.calls.success, 6);
    assert_eq!(snapshot.calls.failed_with(FailureClass::ServerError), 5);
    assert_eq!(snapshot.calls.failed_with(FailureClass::Timeout), 3);
    b.wait(200);
    b.call(OK);
    let window = b.breaker.snapshot(b.now).window;
    assert_eq!((window.total, window.failed), (1, 0));
}

#[test]
fn an_old_bucket_never_comes_back_to_life_however_long_the_gap() {
    let week = 7 * 86_400_000u64;
    // Among them the rounds of 16, 24 and 32 bits of buckets, to the bucket.
    for gap in [200, 201, 20 << 16, 20 << 24, 20 << 32, week, 52 * week] {
        let mut b = measuring(Window::Time(Millis::new(200)), 10);
        b.call(ERR).call(ERR);
        b.wait(gap);
        assert_eq!(
            b.breaker.snapshot(b.now).window,
            Counts::default(),
            "after {gap} ms"
        );
        b.call(OK);
        let window = b.breaker.snapshot(b.now).window;
        assert_eq!((window.total, window.failed), (1, 0), "after {gap} ms");
    }
}

#[test]
fn reading_ahead_changes_nothing() {
    let mut b = measuring(Window::Time(Millis::new(5_000)), 5);
    b.call(ERR);
    let later = b.now + Duration::from_secs(1_000_000);
    assert_eq!(b.breaker.snapshot(later).window, Counts::default());
    assert_eq!(b.breaker.snapshot(b.now).window.failed, 1);
    b.call(ERR);
    assert_eq!(b.breaker.snapshot(b.now).window.failed, 2);
}
