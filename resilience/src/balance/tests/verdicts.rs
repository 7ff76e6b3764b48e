//! Ejection, panic, probes, slow start, membership.

use super::*;

#[test]
fn refused_connections_eject_and_nobody_goes_there() {
    let now = start();
    for name in POLICIES {
        let outlier = OutlierConfig {
            consecutive_connect: 2,
            ..OutlierConfig::default()
        };
        let b = with(3, policy(name), outlier, now);
        fail(&b, 1, REFUSED, 1, now);
        assert!(!is_ejected(&b, 1, now), "{name:?}");
        fail(&b, 1, REFUSED, 1, now);
        assert!(is_ejected(&b, 1, now), "{name:?}");
        assert_eq!(drive(&b, now, 1000, well)[1], 0, "{name:?}");
        assert_eq!((made(&b), b.ejected()), ((1, 0), 1), "{name:?}");
        let causes = b.ejections_by_cause();
        assert!(
            causes.contains(&(Cause::ConsecutiveConnect, 1)),
            "{causes:?}"
        );
    }
}

#[test]
fn out_1_ejections_grow_end_on_time_and_shrink_by_healthy_intervals() {
    let outlier = OutlierConfig {
        eject: "10s".parse().expect("unit"),
        interval: "10s".parse().expect("unit"),
        ..OutlierConfig::default()
    };
    let start = start();
    let b = with(3, BalanceConfig::default(), outlier, start);
    let mut now = start;
    for want in [10, 20, 30] {
        fail(&b, 0, ERR, 5, now);
        let out = status(&b, 0, now);
        assert_eq!(out.ejected_for, Duration::from_secs(want));
        assert_eq!(out.state, EndpointState::Ejected);
        now += Duration::from_secs(want);
        b.tick(now.checked_sub(ms(1)).expect("later than the start"));
        assert!(is_ejected(&b, 0, now.checked_sub(ms(1)).expect("as above")));
        b.tick(now);
        assert!(!is_ejected(&b, 0, now));
        // At once again: no interval ends between.
    }
    // Back at +60 s: the ends of intervals at 70 and 80 s are healthy.
    now = start + Duration::from_secs(80);
    b.tick(now);
    b.tick(now);
    fail(&b, 0, ERR, 5, now);
    assert_eq!(status(&b, 0, now).ejected_for, Duration::from_secs(20));
    now += Duration::from_secs(3600);
    b.tick(now);
    b.tick(now);
    fail(&b, 0, ERR, 5, now);
    assert_eq!(status(&b, 0, now).ejected_for, Duration::from_secs(10));
}

#[test]
fn out_1_still_out_at_9_999_ms_back_at_30_001_ms() {
    let now = start();
    let b = balancer(3, now);
    fail(&b, 0, ERR, 5, now);
    for (at, want) in [(9_999, true), (29_999, true), (30_001, false)] {
        let then = now + ms(at);
        assert_eq!(is_ejected(&b, 0, then), want, "{at}");
        assert_eq!(drive(&b, then, 500, well)[0] == 0, want, "{at}");
    }
}

#[test]
fn one_good_answer_among_the_failures_does_not_eject() {
    let now = start();
    let b = balancer(3, now);
    fail(&b, 0, ERR, 4, now);
    fail(&b, 0, Outcome::Success, 1, now);
    fail(&b, 0, ERR, 4, now);
    assert!(!is_ejected(&b, 0, now));
}

#[test]
fn the_share_that_may_be_out_is_kept_but_one_of_two_always_may() {
    let now = start();
    let out = |b: &Balancer<u32>| {
        b.status(now)
            .iter()
            .filter(|e| !e.ejected_for.is_zero())
            .count()
    };
    let b = balancer(4, now);
    for key in 0..4 {
        fail(&b, key, REFUSED, 2, now);
    }
    assert_eq!(out(&b), 2);
    assert!(b.ejections().not_allowed > 0, "overflow is counted");
    let outlier = |always_eject_one| OutlierConfig {
        max_ejected: Ratio::percent(0),
        always_eject_one,
        ..OutlierConfig::default()
    };
    for (switch, want) in [(true, 1), (false, 0)] {
        let b = with(2, BalanceConfig::default(), outlier(switch), now);
        fail(&b, 0, REFUSED, 2, now);
        assert_eq!(out(&b), want);
    }
    let b = balancer(1, now);
    fail(&b, 0, REFUSED, 5, now);
    assert!(b.pick(&PickContext::at(now)).is_ok(), "the last one stays");
}

#[test]
fn a_retry_goes_elsewhere_but_not_to_one_that_is_out() {
    let now = start();
    for name in POLICIES {
        let b = with(2, policy(name), OutlierConfig::default(), now);
        let elsewhere = PickContext::at(now).avoid(&[0]);
        for _ in 0..100 {
            assert_eq!(*b.pick(&elsewhere).expect("members").key(), 1, "{name:?}");
        }
        fail(&b, 1, REFUSED, 1, now);
        assert_eq!(*b.pick(&elsewhere).expect("members").key(), 0, "{name:?}");
        let nowhere = PickContext::at(now).avoid(&[0, 1]);
        assert_eq!(*b.pick(&nowhere).expect("members").key(), 0, "{name:?}");
    }
}

#[test]
fn an_update_keeps_what_is_known_and_frees_the_places_of_the_gone() {
    let now = start();
    let b = balancer(2, now);
    fail(&b, 0, REFUSED, 2, now);
    b.set_members(
        [Member::new(0), Member::new(1).weight(3), Member::new(0)],
        now,
    );
    assert!(is_ejected(&b, 0, now), "still out");
    assert_eq!((b.len(), b.status(now)[1].weight), (2, 3));
    b.set_members([1, 2].map(Member::new), now);
    assert_eq!(b.ejected(), 0);
    fail(&b, 1, REFUSED, 2, now);
    assert!(is_ejected(&b, 1, now));
}

#[test]
fn the_last_calls_to_a_member_that_is_gone_take_no_place() {
    let now = start();
    let b = balancer(2, now);
    let held: Vec<_> = (0..8).map(|_| pick(&b, now)).collect();
    b.set_members([2, 3].map(Member::new), now);
    for pick in held {
        assert_eq!(pick.complete(REFUSED, now), None);
    }
    assert_eq!((b.ejected(), made(&b)), (0, (0, 0)));
    fail(&b, 2, REFUSED, 1, now);
    assert!(is_ejected(&b, 2, now), "the place is free");
}

#[test]
fn panic_ignores_verdicts_where_too_few_are_in() {
    let now = start();
    for name in POLICIES {
        let b = with(10, policy(name), OutlierConfig::default(), now);
        for key in 0..5 {
            b.report(&key, Probe::Failed, now);
        }
        let counts = drive(&b, now, 2_000, well);
        assert!(
            counts[..5].iter().all(|&n| n == 0),
            "{name:?}: 50 % in: {counts:?}"
        );
        b.report(&5, Probe::Failed, now);
        let counts = drive(&b, now, 2_000, well);
        assert!(
            counts.iter().all(|&n| n > 0),
            "{name:?}: 40 % in: {counts:?}"
        );
        assert_eq!(status(&b, 5, now).state, EndpointState::Unhealthy);
    }
}

#[test]
fn without_panic_nobody_is_a_refusal_with_a_time() {
    let now = start();
    let config = BalanceConfig {
        panic_threshold: Ratio::percent(0),
        ..BalanceConfig::default()
    };
    let b = build(config, OutlierConfig::default());
    let rejected = b.pick(&PickContext::at(now)).expect_err("empty");
    assert_eq!(rejected.reason, Reason::NoEndpoint);
    assert_eq!(rejected.retry_after, Some(Duration::from_secs(1)));
    b.set_members((0..3).map(Member::new), now);
    for key in 0..3 {
        b.report(&key, Probe::Failed, now);
    }
    assert!(b.pick(&PickContext::at(now)).is_err());
    b.report(&1, Probe::Passed, now);
    assert_eq!(*pick(&b, now).key(), 1);
}

#[test]
fn a_probe_that_passes_lets_in_whom_calls_have_ejected() {
    let now = start();
    let b = balancer(3, now);
    fail(&b, 0, REFUSED, 1, now);
    b.report(&0, Probe::Passed, now);
    assert!(!is_ejected(&b, 0, now));
    assert!(drive(&b, now, 1_000, well)[0] > 0);
    b.report(&7, Probe::Failed, now);
    assert_eq!(b.ejected(), 0);
}

#[test]
fn a_success_rate_below_its_peers_ejects_when_the_interval_ends() {
    let now = start();
    let outlier = OutlierConfig {
        consecutive_5xx: 0,
        ..OutlierConfig::default()
    };
    let b = with(10, policy(BalancePolicy::RoundRobin), outlier, now);
    // Every fifth call to 3 fails, never five in a row.
    let turns = std::cell::Cell::new(0);
    let flaky = |key| {
        turns.set(turns.get() + 1);
        let fails = key == 3 && turns.get() / 10 % 5 == 0;
        (if fails { ERR } else { Outcome::Success }, 1)
    };
    drive(&b, now, 2_000, flaky);
    assert!(!is_ejected(&b, 3, now + ms(9_999)));
    let end = now + ms(10_000);
    b.tick(end);
    assert!(
        is_ejected(&b, 3, end),
        "judged by whoever comes after the end"
    );
    assert!(b.ejections_by_cause().contains(&(Cause::SuccessRate, 1)));
    assert_eq!(drive(&b, end, 500, well)[3], 0);
}

#[test]
fn an_interval_that_ends_unseen_is_judged_as_of_its_end() {
    let now = start();
    let outlier = OutlierConfig {
        consecutive_5xx: 0,
        ..OutlierConfig::default()
    };
    let b = with(6, policy(BalancePolicy::RoundRobin), outlier, now);
    drive(&b, now, 1_200, |key| {
        (if key == 0 { ERR } else { Outcome::Success }, 1)
    });
    // A minute of silence: it was out from 10 s to 40 s, and is in again.
    let later = now + ms(60_000);
    assert!(drive(&b, later, 600, well)[0] > 0);
    assert_eq!((b.ejections().made, b.ejected()), (1, 0));
    assert_eq!(status(&b, 0, later).ejections, 1, "and counts for the next");
}

#[test]
fn whoever_is_much_slower_than_the_others_is_ejected_if_that_is_asked_for() {
    let now = start();
    let slow = |key| (Outcome::Success, if key == 2 { 400 } else { 20 });
    for enforce in [true, false] {
        let mut outlier = OutlierConfig::default();
        outlier.latency.enforce = enforce;
        let b = with(6, policy(BalancePolicy::RoundRobin), outlier, now);
        drive(&b, now, 600, slow);
        let end = now + ms(10_000);
        b.tick(end);
        assert_eq!(is_ejected(&b, 2, end), enforce);
        let made = b.ejections_by_cause()[Cause::Latency as usize].1;
        assert_eq!(made, u64::from(enforce));
    }
}

fn warming(aggression: f64) -> BalanceConfig {
    BalanceConfig {
        slow_start: Some(SlowStartConfig {
            window: "60s".parse().expect("unit"),
            aggression,
            min_weight: Ratio::percent(10),
        }),
        ..policy(BalancePolicy::RoundRobin)
    }
}

#[test]
fn a_newcomer_gets_more_and_more() {
    let now = start();
    for name in POLICIES {
        let config = BalanceConfig {
            policy: name,
            ..warming(1.0)
        };
        let b = with(4, config, OutlierConfig::default(), now);
        let all = drive(&b, now, 4_000, well);
        assert!(
            all.iter().all(|&n| n > 600),
            "all are new: {name:?} {all:?}"
        );
        let joined = now + Duration::from_secs(100);
        b.set_members((0..5).map(Member::new), joined);
        let mut last = 0;
        for (age, share) in [(0, 0.1), (30, 0.5), (60, 1.0)] {
            let then = joined + Duration::from_secs(age);
            let got = drive(&b, then, 20_000, well)[4];
            match name {
                // Keys do not move with time.
                BalancePolicy::RingHash | BalancePolicy::Maglev => assert!(got > 3_000),
                BalancePolicy::RoundRobin | BalancePolicy::Random => {
                    let want = 20_000.0 * share / (4.0 + share);
                    assert!(
                        (got as f64 / want - 1.0).abs() < 0.2,
                        "{name:?} {age}: {got}"
                    );
                }
                // What two choices make of it.
                _ => assert!(
                    got > last && (age > 0 || got < 1_200),
                    "{name:?} {age}: {got}"
                ),
            }
            last = got;
        }
    }
}

#[test]
fn who_comes_back_warms_up_again_and_says_so() {
    let now = start();
    let b = with(4, warming(1.0), OutlierConfig::default(), now);
    let now = now + Duration::from_secs(100);
    fail(&b, 0, REFUSED, 1, now);
    let back = now + Duration::from_secs(30);
    let got = drive(&b, back, 10_000, well)[0];
    assert!((200..500).contains(&got), "{got}");
    let seen = status(&b, 0, back);
    assert_eq!(seen.state, EndpointState::Warming);
    assert!((seen.weight_now - 0.1).abs() < 1e-9);
    assert_eq!(status(&b, 0, back + ms(60_000)).state, EndpointState::In);
}

#[test]
fn a_new_configuration_keeps_costs_calls_and_verdicts() {
    let now = start();
    let b = balancer(4, now);
    fail(&b, 0, REFUSED, 1, now);
    drive(&b, now, 50, |_| (Outcome::Success, 40));
    let held = pick(&b, now);
    let before = b.status(now);
    for name in POLICIES {
        b.reconfigure(policy(name), OutlierConfig::default(), now)
            .expect("valid");
        assert_eq!(b.status(now), before, "{name:?}");
    }
    let bad = BalanceConfig {
        virtual_nodes: 0,
        ..BalanceConfig::default()
    };
    let refused = b.reconfigure(bad, OutlierConfig::default(), now);
    assert_eq!(refused.expect_err("refused").path, "virtual_nodes");
    held.complete(Outcome::Success, now);
    assert_eq!(pending(&b, now), 0);
}

#[test]
fn a_member_that_moves_is_another() {
    let now = start();
    let b = balancer(2, now);
    fail(&b, 0, REFUSED, 1, now);
    b.set_members(
        [
            Member::new(0).locality(Locality::new("eu", "a")),
            Member::new(1),
        ],
        now,
    );
    assert!(!is_ejected(&b, 0, now));
    assert_eq!(b.ejected(), 0);
    fail(&b, 1, REFUSED, 1, now);
    b.set_members([Member::new(0), Member::new(1).placed(9)], now);
    assert!(!is_ejected(&b, 1, now));
}
