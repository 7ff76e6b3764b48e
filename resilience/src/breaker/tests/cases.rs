//! The public cases of the field (resilience4j, Hystrix, Finagle), by their behaviour.

use super::*;

#[test]
fn brk_1_a_success_can_be_the_call_that_reaches_the_minimum() {
    let mut b = Bench::new(setup());
    b.call(ERR).call(ERR).call(ERR).call(OK);
    assert_eq!(b.state(), State::Closed);
    b.call(OK);
    assert_eq!(b.state(), State::Open, "3 of 5 failed");
    assert!(b.breaker.try_acquire(b.now).is_err());
    assert_eq!(b.breaker.snapshot(b.now).rejected, 1);
}

#[test]
fn brk_2_the_rate_counts_from_the_threshold_on() {
    let mut b = Bench::new(setup());
    for outcome in [OK, OK, OK, ERR, ERR] {
        b.call(outcome).wait(1_000);
    }
    assert_eq!(b.state(), State::Closed, "40 %");
    b.call(ERR);
    assert_eq!(b.state(), State::Open, "50 %");
}

#[test]
fn brk_3_slow_calls_open_it_and_exactly_the_threshold_is_not_slow() {
    let mut b = Bench::new(setup());
    b.call_for(ERR, 5_000)
        .call_for(OK, 5_000)
        .call_for(ERR, 100)
        .call_for(OK, 100);
    b.call_for(OK, 5_000);
    assert_eq!(b.state(), State::Open, "3 of 5 slow");
    let mut b = Bench::new(setup());
    for _ in 0..5 {
        b.call_for(OK, 4_000);
    }
    assert_eq!(b.state(), State::Closed);
}

#[test]
fn brk_4_open_until_strictly_after_its_time() {
    let mut b = Bench::new(setup()).open();
    b.wait(3_000);
    let rejected = b.breaker.try_acquire(b.now).expect_err("open");
    assert_eq!(rejected.retry_after, Some(Duration::from_secs(2)));
    b.wait(2_000);
    assert!(
        b.breaker.try_acquire(b.now).is_err(),
        "exactly at the deadline"
    );
    b.wait(1_000);
    let permit = b.breaker.try_acquire(b.now).expect("half-open");
    assert_eq!(b.state(), State::HalfOpen);
    drop(permit);
}

#[test]
fn brk_5_a_dropped_probe_admits_exactly_one_more() {
    let b = Bench::new(setup()).half_open();
    let mut probes: Vec<_> = (0..4)
        .map(|_| b.breaker.try_acquire(b.now).expect("probe"))
        .collect();
    let rejected = b.breaker.try_acquire(b.now).expect_err("fifth");
    assert_eq!(rejected.reason, Reason::ProbesTaken);
    probes.pop();
    let _one_more = b.breaker.try_acquire(b.now).expect("one more");
    assert!(b.breaker.try_acquire(b.now).is_err());
}

#[test]
fn brk_6_probes_are_judged_by_rate() {
    let slow_ok = |b: &mut Bench| {
        b.call_for(OK, 5_000);
    };
    let mut b = Bench::new(setup()).half_open();
    b.call(ERR).call(ERR).call(OK).call(ERR);
    assert_eq!(b.state(), State::Open);
    let mut b = Bench::new(setup()).half_open();
    slow_ok(&mut b);
    slow_ok(&mut b);
    slow_ok(&mut b);
    b.call(OK);
    assert_eq!(b.state(), State::Open, "slow 75 %");
    let mut b = Bench::new(setup()).half_open();
    b.call(ERR).call(OK).call(OK).call(OK);
    assert_eq!(b.state(), State::Closed);
    assert_eq!(b.breaker.snapshot(b.now).window, Counts::default());
}

#[test]
fn brk_7_ignored_probes_neither_count_nor_stick() {
    let mut b = Bench::new(setup()).half_open();
    b.call(OK).call(OK).call(OK).call(Outcome::Ignored);
    assert_eq!(b.state(), State::HalfOpen);
    b.call(ERR);
    assert_eq!(b.state(), State::Closed, "25 %");
    let mut b = Bench::new(setup()).half_open();
    for _ in 0..4 {
        b.call(Outcome::Ignored);
    }
    for _ in 0..4 {
        b.call(OK);
    }
    assert_eq!(b.state(), State::Closed);
}

#[test]
fn brk_8_open_time_grows_by_its_factor_while_probes_fail_and_starts_over_when_closed() {
    let mut b = Bench::new(BreakerConfig {
        open_multiplier: 1.5,
        ..setup()
    })
    .half_open();
    b.call(ERR).call(ERR).call(ERR).call(ERR);
    assert_eq!(
        b.breaker.snapshot(b.now).open_for,
        Duration::from_millis(7_500)
    );
    b.wait(6_000);
    assert!(b.breaker.try_acquire(b.now).is_err(), "+6 s");
    b.wait(1_600);
    b.call(OK).call(OK).call(OK).call(OK);
    assert_eq!(b.state(), State::Closed);
    let b = b.open();
    assert_eq!(b.breaker.snapshot(b.now).open_for, Duration::from_secs(5));
}

#[test]
fn brk_8_an_operator_says_for_how_long_it_is_open() {
    let (hours, minutes) = (Duration::from_secs(7_200), Duration::from_secs(1_800));
    for time in [hours, minutes] {
        let mut b = Bench::new(setup());
        if time == hours {
            b.breaker.open_for(time, b.now);
        } else {
            b.breaker.open_until(b.now + time, b.now);
        }
        b.now += time;
        assert!(b.breaker.try_acquire(b.now).is_err(), "exactly then");
        b.wait(1);
        let _probe = b.breaker.try_acquire(b.now).expect("after it");
        assert_eq!(b.state(), State::HalfOpen);
    }
}

#[test]
fn brk_8_forced_open_denies_for_ever_and_disabled_records_nothing() {
    let mut b = Bench::new(setup());
    b.breaker.force_open();
    b.wait(365 * 86_400_000);
    let rejected = b.breaker.try_acquire(b.now).expect_err("forced open");
    assert_eq!(
        (rejected.reason, rejected.retry_after),
        (Reason::ForcedOpen, None)
    );
    b.breaker.disable();
    for _ in 0..100 {
        b.call(ERR);
    }
    assert_eq!(b.state(), State::Disabled);
    let snapshot = b.breaker.snapshot(b.now);
    assert_eq!(snapshot.window, Counts::default());
    assert_eq!(snapshot.calls.failures(), 100, "the counters still count");
}

#[test]
fn brk_8_metrics_only_admits_and_reports_exceeded_once() {
    let events = Events::new();
    let heard = events.subscribe(100);
    let mut b = Bench::new(setup());
    b.breaker = CircuitBreaker::builder(BreakerConfig {
        mode: Mode::MetricsOnly,
        ..setup()
    })
    .events(events)
    .build()
    .expect("valid");
    for _ in 0..50 {
        b.call(ERR);
    }
    assert_eq!(b.state(), State::MetricsOnly);
    assert_eq!(b.breaker.snapshot(b.now).window.failed, 50);
    assert_eq!(b.breaker.calls().exceeded, 1);
    let cause = Cause::FailureRate;
    assert_eq!(
        heard.next().expect("told").kind,
        EventKind::Exceeded { cause }
    );
    assert!(heard.next().is_none());
    for _ in 0..100 {
        b.call(OK);
    }
    for _ in 0..100 {
        b.call(ERR);
    }
    assert_eq!(
        b.breaker.calls().exceeded,
        2,
        "it had been better in between"
    );
}

#[test]
fn brk_8_closed_to_half_open_is_illegal() {
    let b = Bench::new(setup());
    for (lead, from) in [
        (State::Closed, State::Closed),
        (State::Disabled, State::Disabled),
        (State::MetricsOnly, State::MetricsOnly),
    ] {
        b.breaker.transition_to(lead, b.now).expect("legal");
        let to = State::HalfOpen;
        let refused = b.breaker.transition_to(to, b.now).expect_err("illegal");
        assert_eq!(refused, IllegalTransition { from, to });
        assert_eq!(b.state(), from, "nothing changed");
    }
    for from in [State::Open, State::ForcedOpen, State::HalfOpen] {
        if from != State::HalfOpen {
            b.breaker.transition_to(from, b.now).expect("legal");
        }
        b.breaker
            .transition_to(State::HalfOpen, b.now)
            .expect("legal");
        assert_eq!(b.state(), State::HalfOpen);
    }
}

#[test]
fn brk_9_one_cancelled_probe_never_sticks() {
    let b = Bench::new(BreakerConfig {
        probes: 1,
        ..setup()
    })
    .half_open();
    for _ in 0..1_000 {
        let probe = b.breaker.try_acquire(b.now).expect("the slot came back");
        assert!(b.breaker.try_acquire(b.now).is_err());
        drop(probe);
    }
    assert_eq!(b.breaker.calls().cancelled, 1_000);
}

#[test]
fn brk_9_fewer_calls_than_the_volume_never_trip() {
    let mut b = Bench::new(setup());
    for _ in 0..50 {
        b.call(ERR).call(ERR).call(ERR).call(ERR).wait(21_000);
    }
    assert_eq!(b.state(), State::Closed);
}

#[test]
fn brk_10_fading_success_rate_trips_at_the_70th_failure() {
    let mut b = Bench::new(BreakerConfig {
        over: Window::Fading(100),
        ..setup()
    });
    for _ in 0..100 {
        b.call(OK);
    }
    for n in 1..70 {
        b.call(ERR);
        assert_eq!(b.state(), State::Closed, "failure {n}");
    }
    b.call(ERR);
    assert_eq!(b.state(), State::Open, "failure 70");
}

#[test]
fn brk_10_consecutive_failures_open_whatever_the_share() {
    let mut b = Bench::new(BreakerConfig {
        consecutive: 3,
        min_requests: 1000,
        ..setup()
    });
    b.call(ERR).call(ERR).call(OK).call(ERR).call(ERR);
    assert_eq!(b.state(), State::Closed);
    b.call(ERR);
    assert_eq!(b.state(), State::Open);
}

#[test]
fn half_open_closes_by_success_ratio_strictly_below_opens() {
    for (results, want) in [
        ([OK, OK, OK, ERR], State::Closed),
        ([OK, ERR, OK, ERR], State::Open),
        ([OK, OK, OK, Outcome::RateLimited], State::Closed),
        (
            [OK, OK, Outcome::RateLimited, Outcome::RateLimited],
            State::Open,
        ),
    ] {
        let mut b = Bench::new(BreakerConfig {
            close_rate: Some(Ratio::percent(75)),
            ..setup()
        })
        .half_open();
        for result in results {
            b.call(result);
        }
        assert_eq!(b.state(), want, "{results:?}");
    }
}

#[test]
fn a_count_window_is_content_with_its_own_size() {
    let mut b = Bench::new(BreakerConfig {
        over: Window::Calls(4),
        min_requests: 100,
        ..setup()
    });
    b.call(ERR).call(ERR).call(ERR);
    assert_eq!(b.state(), State::Closed);
    b.call(OK);
    assert_eq!(b.state(), State::Open, "75 % of 4");
}

#[test]
fn rate_limited_lowers_the_share_and_leaves_the_row() {
    let mut b = Bench::new(BreakerConfig {
        consecutive: 3,
        min_requests: 1000,
        ..setup()
    });
    b.call(ERR).call(ERR).call(Outcome::RateLimited);
    assert_eq!(b.breaker.snapshot(b.now).window.total, 3);
    b.call(ERR);
    assert_eq!(
        b.state(),
        State::Open,
        "neither a failure nor a success in the row"
    );
}

#[test]
fn jitter_stays_between_the_open_time_and_its_maximum_and_is_replayed_by_its_seed() {
    let run = |seed| {
        let config = BreakerConfig {
            open_jitter: Ratio::percent(50),
            open_for_max: Millis::new(12_000),
            ..setup()
        };
        let breaker = CircuitBreaker::builder(config).rng(Rng::new(seed)).build();
        let breaker = breaker.expect("valid");
        let mut now = Instant::now();
        let times: Vec<_> = (0..50)
            .map(|_| {
                breaker.transition_to(State::Open, now).expect("legal");
                let time = breaker.snapshot(now).open_for;
                now += time;
                time
            })
            .collect();
        times
    };
    let times = run(7);
    assert_eq!(times, run(7));
    assert_ne!(times, run(8));
    let (low, high) = (Duration::from_secs(5), Duration::from_secs(12));
    assert!(times.iter().all(|time| (low..=high).contains(time)));
    let late: std::collections::BTreeSet<_> = times[5..].iter().collect();
    assert!(late.len() > 40, "spread at the maximum too");
}

#[test]
fn a_result_may_open_the_circuit_by_itself() {
    let b = Bench::new(setup());
    let stale = b.breaker.try_acquire(b.now).expect("closed");
    let permit = b.breaker.try_acquire(b.now).expect("closed");
    permit.trip(OK, b.now, Some(Duration::from_secs(20)));
    assert_eq!(b.state(), State::Open);
    assert_eq!(b.breaker.snapshot(b.now).open_for, Duration::from_secs(20));
    b.breaker.reset();
    stale.trip(ERR, b.now, None);
    assert_eq!(b.state(), State::Closed, "a straggler opens nothing");
}

#[test]
fn a_call_cancelled_past_its_deadline_failed() {
    let mut b = Bench::new(BreakerConfig {
        consecutive: 1,
        ..setup()
    });
    let deadline = b.now + Duration::from_millis(100);
    let permit = |b: &Bench| {
        b.breaker
            .try_acquire(b.now)
            .expect("closed")
            .with_deadline(deadline)
    };
    permit(&b).cancel(b.now);
    assert_eq!(b.state(), State::Closed, "before it");
    let late = permit(&b);
    b.wait(100);
    late.cancel(b.now);
    assert_eq!(b.state(), State::Open);
    let b = Bench::new(BreakerConfig {
        consecutive: 1,
        on_cancel: OnCancel::Ignore,
        ..setup()
    });
    permit(&b).cancel(b.now + Duration::from_secs(60));
    assert_eq!(b.state(), State::Closed, "told to ignore it");
}

#[test]
fn a_straggler_from_before_the_trip_is_not_a_probes_result() {
    let mut b = Bench::new(setup());
    let straggler = b.breaker.try_acquire(b.now).expect("closed");
    let mut b = {
        for _ in 0..5 {
            b.call(ERR);
        }
        b.wait(6_000);
        b
    };
    let _probe = b.breaker.try_acquire(b.now).expect("half-open");
    straggler.complete(ERR, b.now);
    assert_eq!(b.state(), State::HalfOpen);
    assert_eq!(b.breaker.snapshot(b.now).stale, 1);
    b.call(OK).call(OK).call(OK);
    assert_eq!(b.state(), State::HalfOpen, "the first probe is still out");
}

#[test]
fn rate_limited_probes_do_not_close() {
    let mut b = Bench::new(setup()).half_open();
    for _ in 0..4 {
        b.call(Outcome::RateLimited);
    }
    assert_eq!(b.state(), State::Open);
}

#[test]
fn a_hanging_probe_does_not_hold_the_circuit_half_open() {
    let b = Bench::new(BreakerConfig {
        probes: 1,
        ..setup()
    })
    .half_open();
    let hanging = b.breaker.try_acquire(b.now).expect("probe");
    let later = b.now + Duration::from_secs(61);
    assert!(b.breaker.try_acquire(later).is_err());
    assert_eq!(b.state(), State::Open);
    drop(hanging);
    assert_eq!(b.state(), State::Open);
}

#[test]
fn a_call_cancelled_after_the_slow_threshold_failed() {
    let mut b = Bench::new(BreakerConfig {
        slow_rate: None,
        ..setup()
    });
    for _ in 0..5 {
        b.call_for(Outcome::Cancelled, 100);
    }
    assert_eq!(b.state(), State::Closed);
    for _ in 0..5 {
        b.call_for(Outcome::Cancelled, 4_001);
    }
    assert_eq!(b.state(), State::Open);
}

#[test]
fn retry_after_opens_for_as_long_as_the_callee_asks() {
    let b = Bench::new(setup());
    for _ in 0..5 {
        let permit = b.breaker.try_acquire(b.now).expect("closed");
        permit.complete_with(ERR, b.now, Some(Duration::from_secs(30)));
    }
    assert_eq!(b.breaker.snapshot(b.now).open_for, Duration::from_secs(30));
}

#[test]
fn an_operator_overrides_and_new_thresholds_keep_the_state() {
    let mut b = Bench::new(setup());
    b.breaker.force_open();
    assert!(b.breaker.try_acquire(b.now).is_err());
    b.breaker.disable();
    for _ in 0..100 {
        b.call(ERR);
    }
    assert_eq!(b.state(), State::Disabled);
    b.breaker.reset();
    let b = b.open();
    b.breaker
        .reconfigure(BreakerConfig {
            over: Window::Time(Millis::new(1_000)),
            ..setup()
        })
        .expect("valid");
    assert_eq!(b.state(), State::Open);
    let refused = b.breaker.reconfigure(BreakerConfig {
        probes: 0,
        ..setup()
    });
    assert_eq!(refused.expect_err("probes 0").path, "probes");
}

#[test]
fn what_cannot_work_is_refused_with_its_field() {
    let zero = Millis::new(0);
    let cases = [
        (
            "failure_rate",
            BreakerConfig {
                failure_rate: Ratio::percent(0),
                ..setup()
            },
        ),
        (
            "failure_rate",
            BreakerConfig {
                failure_rate: Ratio::percent(101),
                ..setup()
            },
        ),
        (
            "slow_rate",
            BreakerConfig {
                slow_rate: Some(Ratio::percent(0)),
                ..setup()
            },
        ),
        (
            "over",
            BreakerConfig {
                over: Window::Time(zero),
                ..setup()
            },
        ),
        (
            "min_requests",
            BreakerConfig {
                min_requests: 0,
                ..setup()
            },
        ),
        (
            "open_for",
            BreakerConfig {
                open_for: zero,
                ..setup()
            },
        ),
        (
            "open_for_max",
            BreakerConfig {
                open_for_max: Millis::new(1),
                ..setup()
            },
        ),
        (
            "probes",
            BreakerConfig {
                probes: 0,
                ..setup()
            },
        ),
        (
            "probe_wait",
            BreakerConfig {
                probe_wait: zero,
                ..setup()
            },
        ),
    ];
    for (field, config) in cases {
        assert_eq!(CircuitBreaker::new(config).expect_err(field).path, field);
    }
}
