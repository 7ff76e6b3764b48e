//! The public cases of the field (resilience4j, Hystrix, Finagle), by their behaviour.

use super::*;
use crate::{
    FailureClass,
    config::{Millis, Ratio},
};

const OK: Outcome = Outcome::Success;
const ERR: Outcome = Outcome::Failure(FailureClass::ServerError);

/// Failure ≥ 50 %, slow > 4 s, slow rate ≥ 50 %, window 20 s, min 5, open 5 s, probes 4.
fn setup() -> BreakerConfig {
    BreakerConfig {
        failure_rate: Ratio::percent(50),
        slow_rate: Some(Ratio::percent(50)),
        slow_after: Millis::new(4_000),
        over: Millis::new(20_000),
        min_requests: 5,
        open_for: Millis::new(5_000),
        probes: 4,
        ..BreakerConfig::default()
    }
}

struct Bench {
    breaker: CircuitBreaker,
    now: Instant,
}

impl Bench {
    fn new(config: BreakerConfig) -> Self {
        Self {
            breaker: CircuitBreaker::new(config).expect("valid"),
            now: Instant::now(),
        }
    }
    fn wait(&mut self, ms: u64) -> &mut Self {
        self.now += Duration::from_millis(ms);
        self
    }
    fn call(&mut self, outcome: Outcome) -> &mut Self {
        self.call_for(outcome, 0)
    }
    fn call_for(&mut self, outcome: Outcome, ms: u64) -> &mut Self {
        let permit = self.breaker.try_acquire(self.now).expect("admitted");
        permit.complete(outcome, self.now + Duration::from_millis(ms));
        self
    }
    fn state(&self) -> State {
        self.breaker.state()
    }
    fn open(mut self) -> Self {
        for _ in 0..5 {
            self.call(ERR);
        }
        assert_eq!(self.state(), State::Open);
        self
    }
    fn half_open(self) -> Self {
        let mut b = self.open();
        b.wait(6_000);
        b
    }
}

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
fn brk_8_open_time_grows_while_probes_fail_and_starts_over_when_closed() {
    let mut b = Bench::new(setup()).half_open();
    b.call(ERR).call(ERR).call(ERR).call(ERR);
    assert_eq!(b.breaker.snapshot(b.now).open_for, Duration::from_secs(10));
    b.wait(10_001);
    b.call(OK).call(OK).call(OK).call(OK);
    assert_eq!(b.state(), State::Closed);
    let b = b.open();
    assert_eq!(b.breaker.snapshot(b.now).open_for, Duration::from_secs(5));
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
            over: Millis::new(1_000),
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
                over: zero,
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

#[test]
fn two_threads_account_for_every_call() {
    const CALLS: u64 = 200_000;
    let config = BreakerConfig {
        min_requests: u32::MAX,
        ..BreakerConfig::default()
    };
    let breaker = CircuitBreaker::new(config).expect("valid");
    let now = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for i in 0..CALLS {
                    let permit = breaker.try_acquire(now).expect("closed");
                    permit.complete(if i % 4 == 0 { ERR } else { OK }, now);
                }
            });
        }
    });
    let window = breaker.snapshot(now).window;
    assert_eq!(
        (u64::from(window.total), u64::from(window.failed)),
        (2 * CALLS, CALLS / 2)
    );
}
