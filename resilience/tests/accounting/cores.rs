//! The cores that have no such test of their own; breaker, bulkhead, adaptive limit and rate limit
//! have theirs beside them.

use std::time::{Duration, Instant};

use selvedge_resilience::{
    FailureClass, Outcome, Rng,
    balance::{BalanceConfig, BalancePolicy, Balancer, Member, OutlierConfig, PickContext},
    context::Priority,
    keyed::KeyedConfig,
    rate_limit::{KeyedRateLimit, KeyedRateLimitConfig},
    retry::budget::{Budget, InFlight},
    shed::{ShedConfig, Shedder},
    throttle::{Throttle, ThrottleConfig},
};

use super::{CALLS, on_two};

const ERR: Outcome = Outcome::Failure(FailureClass::ServerError);

#[test]
fn a_budget_pays_for_what_was_taken_and_nothing_is_under_way() {
    let budget = Budget::new("20% min 3/s".parse().expect("a budget")).expect("valid");
    let now = Instant::now();
    let seen = on_two(|thread| {
        let (mut kept, mut forgiven) = (0_u64, 0_u64);
        for n in 0..CALLS {
            // Two clocks that are never quite the same, over several lives of a deposit.
            let now = now + Duration::from_micros(n * 40 + thread * 700);
            let call = budget.begin(now);
            match call.try_extra(now) {
                Ok(extra) if n % 3 == 0 => {
                    forgiven += 1;
                    extra.forgive();
                }
                Ok(extra) => {
                    kept += 1;
                    // Whichever of the two ends first.
                    if n % 2 == 0 {
                        drop(extra)
                    } else {
                        drop((call, extra))
                    }
                }
                Err(_) => {}
            }
        }
        (kept, forgiven)
    });
    let kept: u64 = seen.iter().map(|(kept, _)| kept).sum();
    assert!(
        seen.iter()
            .all(|(kept, forgiven)| *kept > 0 && *forgiven > 0)
    );
    assert_eq!(budget.in_flight(), InFlight::default());
    assert_eq!(budget.counts().withdrawn, kept);
    assert_eq!(budget.counts().capped, 0, "at most two at once");
}

#[test]
fn a_throttle_counts_each_result_once_and_no_cancelled_call() {
    let throttle = Throttle::new(ThrottleConfig::default(), Rng::new(1)).expect("valid");
    let now = Instant::now();
    let seen = on_two(|thread| {
        let (mut ended, mut accepted) = (0, 0);
        for n in 0..CALLS {
            match throttle.try_acquire(now) {
                Err(_) => {}
                Ok(permit) if n % 5 == thread => drop(permit),
                Ok(permit) if n % 4 == 0 => {
                    ended += 1;
                    permit.complete(ERR, now);
                }
                Ok(permit) => {
                    (ended, accepted) = (ended + 1, accepted + 1);
                    permit.complete(Outcome::Success, now);
                }
            }
        }
        (ended, accepted)
    });
    let [(a, b), (c, d)] = seen;
    // What it refused counts as a request that nobody accepted.
    let requests = a + c + throttle.rejected();
    let counts = throttle.counts(now);
    assert_eq!((counts.requests, counts.accepts), (requests, b + d));
}

#[test]
fn a_shedder_knows_at_the_end_that_nobody_waits() {
    let shedder = Shedder::new(ShedConfig::default()).expect("valid");
    let start = Instant::now();
    let seen = on_two(|thread| {
        let (mut admitted, mut refused) = (0, 0);
        let mut waiting = Vec::new();
        for n in 0..CALLS {
            let now = start + Duration::from_micros(n * 3);
            let priority = Priority((n * 7919 % 65_536) as u16);
            match shedder.admit(priority, now) {
                Ok(ticket) => {
                    admitted += 1;
                    waiting.push(ticket);
                }
                Err(_) => refused += 1,
            }
            // Far too late, so that some are refused.
            let late = now + Duration::from_millis(200);
            match (n + thread) % 7 {
                0 => drop(waiting.pop()),
                1 => waiting.drain(..).for_each(|ticket| ticket.gone(late)),
                2 => waiting.drain(..).for_each(|ticket| ticket.begun(late)),
                _ => {}
            }
        }
        (admitted, refused)
    });
    let status = shedder.status();
    let sum = |of: fn(&(u64, u64)) -> u64| seen.iter().map(of).sum::<u64>();
    assert_eq!(sum(|(admitted, refused)| admitted + refused), 2 * CALLS);
    assert_eq!(status.rejected, sum(|(_, refused)| *refused));
    assert_eq!(status.waiting, 0);
    assert!(status.overloaded > 0 && status.rejected > 0);
}

#[test]
fn each_key_has_exactly_its_burst() {
    const KEYS: u64 = 16;
    let config = KeyedRateLimitConfig {
        rate: "1/h burst 1000".parse().expect("a rate"),
        keys: KeyedConfig::default(),
    };
    let limit = KeyedRateLimit::<u64>::new(config).expect("valid");
    let now = Instant::now();
    let taken = on_two(|_| {
        (0..CALLS)
            .filter(|n| limit.try_acquire(&(n % KEYS), now).is_ok())
            .count() as u64
    });
    assert_eq!(taken[0] + taken[1], KEYS * 1000);
    assert_eq!(limit.rejected(), 2 * CALLS - KEYS * 1000);
}

#[test]
fn a_balancer_has_nothing_pending_and_counts_each_result_once() {
    let start = Instant::now();
    for policy in [BalancePolicy::PeakEwma, BalancePolicy::Maglev] {
        let config = BalanceConfig {
            policy,
            ..BalanceConfig::default()
        };
        let balancer = Balancer::new(config, OutlierConfig::default(), Rng::new(1)).expect("valid");
        balancer.set_members((0..10).map(Member::<u64>::new), start);
        let seen = on_two(|thread| {
            let (mut good, mut bad) = (0, 0);
            for n in 0..CALLS {
                let now = start + Duration::from_micros(n);
                let context = PickContext::at(now).hash(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let pick = balancer.pick(&context).expect("panic threshold");
                match (n + thread) % 5 {
                    0 => drop(pick),
                    1 if *pick.key() == 3 => {
                        bad += 1;
                        let _ = pick.complete(ERR, now);
                    }
                    _ => {
                        good += 1;
                        let _ = pick.complete(Outcome::Success, now);
                    }
                }
            }
            (good, bad)
        });
        let status = balancer.status(start);
        let [(a, b), (c, d)] = seen;
        let succeeded: u64 = status.iter().map(|endpoint| endpoint.succeeded).sum();
        let failed: u64 = status.iter().map(|endpoint| endpoint.failed).sum();
        assert_eq!((succeeded, failed), (a + c, b + d), "{policy:?}");
        assert_eq!(balancer.picks(), 2 * CALLS, "{policy:?}");
        assert!(status.iter().all(|e| e.pending == 0), "{policy:?}");
    }
}
