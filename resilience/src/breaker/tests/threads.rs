//! Many calls from two threads, accounted for to the last.

use super::*;
use crate::sync::rounds;

/// Runs `calls` on each of two threads and checks the books at the end.
fn balance(
    config: BreakerConfig,
    calls: u64,
    pick: impl Fn(u64) -> Outcome + Sync,
) -> CircuitBreaker {
    let breaker = CircuitBreaker::new(config).expect("valid");
    let start = Instant::now();
    let refused: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2u64)
            .map(|thread| {
                let (breaker, pick) = (&breaker, &pick);
                scope.spawn(move || {
                    let mut refused = 0;
                    for i in 0..calls {
                        let now = start + Duration::from_micros(i);
                        match breaker.try_acquire(now) {
                            Ok(permit) if i % 17 == thread => drop(permit),
                            Ok(permit) => permit.complete(pick(i), now),
                            Err(_) => refused += 1,
                        }
                    }
                    refused
                })
            })
            .collect();
        let of = |thread: std::thread::ScopedJoinHandle<'_, u64>| thread.join().expect("no panic");
        threads.into_iter().map(of).sum()
    });
    let seen = breaker.calls();
    assert_eq!(seen.in_flight, 0, "permits out");
    assert_eq!(seen.rejected(), refused);
    assert_eq!(seen.admitted() + refused, 2 * calls);
    assert_eq!(seen.admitted(), seen.completed() + seen.cancelled);
    breaker
}

#[test]
fn two_million_calls_through_a_closed_circuit() {
    let config = BreakerConfig {
        min_requests: u32::MAX,
        over: Window::Time(Millis::new(3_600_000)),
        ..setup()
    };
    let breaker = balance(config, rounds(1_000_000, 400), |i| {
        if i % 4 == 0 { ERR } else { OK }
    });
    let calls = breaker.calls();
    assert_eq!(calls.stale, 0);
    let window = breaker.snapshot(Instant::now()).window;
    assert_eq!(u64::from(window.total), calls.success + calls.failures());
    assert_eq!(u64::from(window.failed), calls.failures());
}

#[test]
fn two_million_calls_through_a_circuit_that_keeps_tripping() {
    for over in [
        Window::Time(Millis::new(20)),
        Window::Calls(50),
        Window::Fading(20),
    ] {
        let config = BreakerConfig {
            over,
            buckets: 10,
            // Bad spells are 40 % failures, and half of the time.
            failure_rate: Ratio::percent(15),
            open_for: Millis::new(1),
            open_multiplier: 1.0,
            probes: 2,
            ..setup()
        };
        let mix = [
            OK,
            ERR,
            ERR,
            Outcome::Ignored,
            Outcome::RateLimited,
            Outcome::Cancelled,
            OK,
        ];
        let breaker = balance(config, rounds(333_334, 400), |i| {
            // Good and bad spells.
            if (i / rounds(1_000, 20)).is_multiple_of(2) {
                OK
            } else {
                mix[i as usize % mix.len()]
            }
        });
        assert!(
            breaker.snapshot(Instant::now()).opened > rounds(10, 0),
            "{over}"
        );
    }
}

#[test]
fn a_count_window_is_exact_when_quiescent() {
    const WINDOW: u32 = rounds(1_000, 50) as u32;
    let config = BreakerConfig {
        over: Window::Calls(WINDOW),
        mode: Mode::MetricsOnly,
        ..setup()
    };
    let breaker = balance(config, rounds(200_000, 300), |i| {
        if i % 3 == 0 { ERR } else { OK }
    });
    let now = Instant::now();
    let held = breaker.snapshot(now).window;
    assert_eq!(held.total, WINDOW);
    // Push each outcome out, one at a time: the sum must come down to exactly zero.
    for _ in 0..WINDOW {
        breaker.try_acquire(now).expect("admits").complete(OK, now);
    }
    assert_eq!(breaker.snapshot(now).window.failed, 0);
}

#[test]
fn reconfiguring_meanwhile_loses_no_call() {
    const CALLS: u64 = rounds(200_000, 400);
    const CHANGES: u64 = rounds(4_000, 30);
    let breaker = CircuitBreaker::new(setup()).expect("valid");
    let now = Instant::now();
    let shapes = [
        Window::Time(Millis::new(1_000)),
        Window::Calls(64),
        Window::Fading(10),
        Window::Time(Millis::new(77)),
    ];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..CHANGES {
                let over = shapes[i as usize % shapes.len()];
                let config = BreakerConfig { over, ..setup() };
                breaker.reconfigure(config).expect("valid");
                if i % 100 == 0 {
                    breaker.reset();
                }
            }
        });
        scope.spawn(|| {
            for i in 0..CALLS {
                let now = now + Duration::from_micros(i);
                if let Ok(permit) = breaker.try_acquire(now) {
                    permit.complete(if i % 5 == 0 { ERR } else { OK }, now);
                }
            }
        });
    });
    let calls = breaker.calls();
    assert_eq!(
        (calls.in_flight, calls.admitted() + calls.rejected()),
        (0, CALLS)
    );
    assert_eq!(breaker.snapshot(now).generation, CHANGES);
}
