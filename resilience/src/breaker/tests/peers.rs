//! The defects of peers that we know of (from their sources), each as what must not happen here.

use super::*;

#[test]
fn tower_resilience_count_window_never_slides() {
    let mut b = Bench::new(BreakerConfig {
        over: Window::Calls(100),
        ..setup()
    });
    for _ in 0..1_000_000 {
        b.call(OK);
    }
    for _ in 0..49 {
        b.call(ERR);
    }
    assert_eq!(b.state(), State::Closed);
    b.call(ERR);
    assert_eq!(
        b.state(),
        State::Open,
        "50 failures after a million good calls are enough"
    );
}

#[test]
fn tower_resilience_time_window_grows_with_the_calls() {
    let mut b = Bench::new(setup());
    let before = size_of_val(&b.breaker.snapshot(b.now));
    for _ in 0..100_000 {
        b.call(OK);
    }
    // Sums and a snapshot a bucket: nothing is kept for each call.
    assert_eq!(b.breaker.snapshot(b.now).window.total, 100_000);
    assert_eq!(size_of_val(&b.breaker.snapshot(b.now)), before);
}

/// A permit from before the trip, and the circuit half-open now.
fn straggler() -> (Permit, Bench) {
    let mut b = Bench::new(setup());
    let permit = b.breaker.try_acquire(b.now).expect("closed");
    for _ in 0..5 {
        b.call(ERR);
    }
    b.wait(6_000);
    drop(b.breaker.try_acquire(b.now).expect("half-open"));
    assert_eq!(b.state(), State::HalfOpen);
    (permit, b)
}

#[test]
fn resilience4j_late_closed_era_result_is_not_a_probe() {
    let (late, mut b) = straggler();
    late.complete(ERR, b.now);
    b.call(OK).call(OK).call(OK);
    assert_eq!(b.state(), State::HalfOpen, "three probes of four are done");
    b.call(OK);
    assert_eq!(b.state(), State::Closed);
    assert_eq!(b.breaker.calls().stale, 1);
}

#[test]
fn linkerd_straggler_decides_the_probe() {
    for outcome in [OK, ERR, Outcome::Cancelled] {
        let (late, b) = straggler();
        let probes: Vec<_> = (0..4)
            .map(|_| b.breaker.try_acquire(b.now).expect("probe"))
            .collect();
        late.complete(outcome, b.now);
        assert_eq!(b.state(), State::HalfOpen);
        let fifth = b.breaker.try_acquire(b.now);
        assert_eq!(
            fifth.expect_err("no slot came free").reason,
            Reason::ProbesTaken
        );
        drop(probes);
    }
}

#[test]
fn resilience4j_releasing_a_foreign_permission_frees_a_probe_slot() {
    let (late, b) = straggler();
    let _probes: Vec<_> = (0..4)
        .map(|_| b.breaker.try_acquire(b.now).expect("probe"))
        .collect();
    drop(late);
    assert!(b.breaker.try_acquire(b.now).is_err());
}

#[test]
fn resilience4j_stuck_half_open() {
    // #903, #935; Polly #311, opossum #276, Sentinel #1638.
    for result in [Some(Outcome::Ignored), Some(Outcome::Cancelled), None] {
        let b = Bench::new(setup()).half_open();
        let probes: Vec<_> = (0..4)
            .map(|_| b.breaker.try_acquire(b.now).expect("probe"))
            .collect();
        for probe in probes {
            match result {
                Some(outcome) => probe.complete(outcome, b.now),
                None => drop(probe),
            }
        }
        assert!(b.breaker.try_acquire(b.now).is_ok(), "after {result:?}");
    }
}

#[test]
fn linkerd_probe_that_never_answers_hangs_half_open() {
    let b = Bench::new(setup()).half_open();
    let _forgotten: Vec<_> = (0..4)
        .map(|_| b.breaker.try_acquire(b.now).expect("probe"))
        .collect();
    let later = b.now + Duration::from_secs(61);
    assert_eq!(
        b.breaker
            .try_acquire(later)
            .expect_err("opens again")
            .reason,
        Reason::Open
    );
    let after = later + Duration::from_secs(11);
    let fresh = b.breaker.try_acquire(after).expect("probes again");
    fresh.complete(OK, after);
    assert_eq!(b.state(), State::HalfOpen);
}

#[test]
fn tower_resilience_first_failure_in_half_open_reopens() {
    let mut b = Bench::new(setup()).half_open();
    b.call(ERR).call(OK).call(OK);
    assert_eq!(b.state(), State::HalfOpen);
    b.call(OK);
    assert_eq!(b.state(), State::Closed, "judged by rate: 25 %");
}

#[test]
fn failsafe_half_open_admits_everyone() {
    let b = Bench::new(setup()).half_open();
    let admitted: Vec<_> = (0..1_000).map(|_| b.breaker.try_acquire(b.now)).collect();
    assert_eq!(admitted.iter().filter(|permit| permit.is_ok()).count(), 4);
}

#[test]
fn failsafe_time_zero_is_a_sentinel() {
    // Its average takes t = 0 for "no sample yet".
    let now = Instant::now();
    let zero = now.checked_sub(Duration::from_secs(3_600)).unwrap_or(now);
    let breaker = CircuitBreaker::new(setup()).expect("valid");
    for _ in 0..5 {
        let permit = breaker.try_acquire(zero).expect("closed");
        permit.complete(ERR, zero);
    }
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn polly_cancelled_probe_counts_as_success_and_closes() {
    let mut b = Bench::new(setup()).half_open();
    for _ in 0..10 {
        b.call(Outcome::Cancelled);
    }
    assert_eq!(b.state(), State::HalfOpen);
}

#[test]
fn erpc_ignored_outcomes_latch_the_breaker() {
    // Their #1118: a cache miss was a failure.
    let mut b = Bench::new(setup());
    for _ in 0..100 {
        b.call(Outcome::Ignored);
    }
    assert_eq!(b.state(), State::Closed);
    assert_eq!(b.breaker.snapshot(b.now).window, Counts::default());
}

#[test]
fn tower_resilience_cancelled_calls_are_not_recorded() {
    let mut b = Bench::new(setup());
    for _ in 0..5 {
        b.call_for(Outcome::Cancelled, 5_000);
    }
    assert_eq!(
        b.state(),
        State::Open,
        "the timeout outside did not hide the hang"
    );
    let b = Bench::new(setup());
    drop(b.breaker.try_acquire(b.now));
    assert_eq!(b.breaker.calls().cancelled, 1);
}

#[test]
fn tower_resilience_state_gauge_never_zeroes_the_old_state() {
    let b = Bench::new(setup()).open();
    let states: Vec<_> = b
        .breaker
        .to_samples(b.now)
        .into_iter()
        .filter(|sample| sample.metric == "selvedge.breaker.state")
        .collect();
    assert_eq!(states.len(), State::ALL.len());
    for sample in states {
        let (_, state) = sample.labels.last().expect("has the label");
        let want = if state == "open" { 1.0 } else { 0.0 };
        assert!((sample.value - want).abs() < f64::EPSILON, "{state}");
    }
}

#[test]
fn tower_resilience_events_cost_without_a_listener() {
    let events = Events::new();
    let breaker = CircuitBreaker::builder(setup())
        .events(events.clone())
        .build();
    let breaker = breaker.expect("valid");
    breaker.force_open();
    assert!(!events.has_listeners());
    // `events::tests::without_a_listener_no_event_is_built` shows that none is built.
    let heard = events.subscribe(10);
    assert!(
        heard.next().is_none(),
        "nothing was kept for whoever came later"
    );
}

#[test]
fn linkerd_full_channel_discards_results() {
    // A listener that does not listen loses events; the circuit loses no result.
    let events = Events::new();
    let heard = events.subscribe(1);
    let mut b = Bench::new(setup());
    b.breaker = CircuitBreaker::builder(setup())
        .events(events)
        .build()
        .expect("valid");
    let mut b = b.half_open();
    b.call(OK).call(OK).call(OK).call(OK);
    assert_eq!(b.state(), State::Closed);
    assert_eq!(heard.dropped(), 2);
}
