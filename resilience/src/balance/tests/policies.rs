//! Whom each policy picks.

use std::collections::{BTreeMap, HashMap};

use super::*;

#[test]
fn equal_endpoints_share_evenly_and_slow_ones_get_less() {
    let now = start();
    let even = drive(&balancer(4, now), now, 4000, well);
    assert!(even.iter().all(|&n| (700..1300).contains(&n)), "{even:?}");
    let b = balancer(4, now);
    let slow = |key| (Outcome::Success, if key == 0 { 100 } else { 1 });
    drive(&b, now, 100, slow);
    let skewed = drive(&b, now, 4000, slow);
    assert!(skewed[0] < 50, "{skewed:?}");
}

#[test]
fn every_policy_honours_weights() {
    let now = start();
    let weights = [1, 2, 3, 10];
    for name in POLICIES {
        let b = build(policy(name), OutlierConfig::default());
        let members = (0u32..).zip(weights).map(|(n, w)| Member::new(n).weight(w));
        b.set_members(members, now);
        let got = drive(&b, now, 32_000, well);
        for (n, &count) in got.iter().enumerate() {
            let want = 32_000.0 * f64::from(weights[n]) / 16.0;
            let slack = match name {
                BalancePolicy::RoundRobin => 1.0,
                // The unevenness of a ring of 160 points each is a tenth.
                BalancePolicy::RingHash => want * 0.4,
                _ => want * 0.1,
            };
            assert!((count as f64 - want).abs() <= slack, "{name:?}: {got:?}");
        }
    }
}

#[test]
fn a_newcomer_without_history_is_tried_one_call_at_a_time() {
    let now = start();
    let b = balancer(2, now);
    drive(&b, now, 10, well);
    b.set_members((0..3).map(Member::new), now);
    let open: Vec<_> = (0..50).map(|_| pick(&b, now)).collect();
    assert_eq!(open.iter().filter(|p| *p.key() == 2).count(), 1);
}

#[test]
fn who_was_slow_once_is_tried_again_within_a_second_but_not_often() {
    let mut now = start();
    let b = balancer(3, now);
    // Three calls each, endpoint 0 slow; then all are fast, but nobody knows.
    let slow = |key| (Outcome::Success, if key == 0 { 1_000 } else { 1 });
    drive(&b, now, 9, slow);
    let start = now;
    let mut tried = Vec::new();
    for _ in 0..1_000 {
        now += ms(5);
        let pick = pick(&b, now);
        let key = *pick.key();
        if key == 0 {
            tried.push(now - start);
        }
        pick.complete(Outcome::Success, now + ms(slow(key).1));
    }
    assert!(tried[0] <= ms(1_000), "{:?}", tried[0]);
    let often = tried.len();
    assert!(often <= 10, "{often} of 1000 went the dear way");
}

#[test]
fn least_request_fills_the_emptiest_by_weight() {
    let now = start();
    let b = build(
        policy(BalancePolicy::LeastRequest),
        OutlierConfig::default(),
    );
    b.set_members([Member::new(0), Member::new(1).weight(3)], now);
    let held: Vec<_> = (0..400).map(|_| pick(&b, now)).collect();
    let light = status(&b, 0, now).pending;
    assert!((97..=103).contains(&light), "{light}");
    drop(held);
}

#[test]
fn turns_are_exact_and_those_of_who_is_out_are_nobodys() {
    let now = start();
    let b = with(
        5,
        policy(BalancePolicy::RoundRobin),
        OutlierConfig::default(),
        now,
    );
    assert_eq!(drive(&b, now, 500, well), [100; 5]);
    fail(&b, 2, REFUSED, 1, now);
    let got = drive(&b, now, 400, well);
    let even = [0, 1, 3, 4]
        .iter()
        .all(|&n: &usize| got[n].abs_diff(100) <= 1);
    assert!(even && got[2] == 0, "{got:?}");
}

#[test]
fn a_slow_endpoint_is_avoided_a_simulation() {
    // One call a millisecond; four endpoints answer in 5 ms, the fifth in 200 ms.
    let run = |name| {
        let (start, mut now) = (start(), start());
        let b = with(5, policy(name), OutlierConfig::default(), start);
        let mut under_way: BTreeMap<Instant, Vec<Pick<u32>>> = BTreeMap::new();
        let (mut latencies, mut slow) = (Vec::new(), 0);
        for _ in 0..20_000 {
            now += ms(1);
            while let Some(first) = under_way.first_entry().filter(|e| *e.key() <= now) {
                let (at, ended) = first.remove_entry();
                for pick in ended {
                    pick.complete(Outcome::Success, at);
                }
            }
            let pick = pick(&b, now);
            let latency = if *pick.key() == 4 { 200 } else { 5 };
            slow += u32::from(*pick.key() == 4);
            latencies.push(latency);
            under_way.entry(now + ms(latency)).or_default().push(pick);
        }
        latencies.sort_unstable();
        (latencies[latencies.len() * 99 / 100], slow)
    };
    let (p99, slow) = run(BalancePolicy::PeakEwma);
    assert!(
        p99 == 5 && slow < 100,
        "p99 {p99} ms, {slow} of 20000 to the slow one"
    );
    let (p99, slow) = run(BalancePolicy::RoundRobin);
    assert_eq!((p99, slow), (200, 4_000));
    let (p99, slow) = run(BalancePolicy::LeastRequest);
    assert!(p99 == 200 && slow < 1_000, "p99 {p99} ms, {slow} of 20000");
}

/// The owner of each key.
fn owners(b: &Balancer<u32>, keys: u64, now: Instant) -> HashMap<u64, u32> {
    let owner = |key| {
        let context = PickContext::at(now).hash(stable_hash(&key));
        *b.pick(&context).expect("members").key()
    };
    (0..keys).map(|key| (key, owner(key))).collect()
}

#[test]
fn a_key_stays_and_only_the_keys_of_who_is_out_move() {
    let now = start();
    for name in [BalancePolicy::RingHash, BalancePolicy::Maglev] {
        let b = with(20, policy(name), OutlierConfig::default(), now);
        let before = owners(&b, 2_000, now);
        assert_eq!(owners(&b, 2_000, now), before);
        let other = build(policy(name), OutlierConfig::default());
        other.set_members((0..20).rev().map(Member::new), now);
        assert_eq!(
            owners(&other, 2_000, now),
            before,
            "{name:?}: all callers agree"
        );
        fail(&b, 7, REFUSED, 1, now);
        let after = owners(&b, 2_000, now);
        let mut heirs = HashMap::<u32, u32>::new();
        for (key, was) in &before {
            let is = after[key];
            assert!(
                if *was == 7 { is != 7 } else { is == *was },
                "{name:?}: {key}"
            );
            if *was == 7 {
                *heirs.entry(is).or_default() += 1;
            }
        }
        assert!(heirs.len() > 5, "{name:?}: many inherit: {heirs:?}");
        let back = now + Duration::from_secs(31);
        assert_eq!(owners(&b, 2_000, back), before, "{name:?}: and come back");
    }
}

#[test]
fn a_key_that_is_hot_spreads_as_far_as_the_bound_asks() {
    let now = start();
    for name in [BalancePolicy::RingHash, BalancePolicy::Maglev] {
        let hot = PickContext::at(now).hash(42);
        let b = with(10, policy(name), OutlierConfig::default(), now);
        let held: Vec<_> = (0..1_000).map(|_| b.pick(&hot).expect("room")).collect();
        let most = b.status(now).iter().map(|e| e.pending).max();
        assert_eq!(most, Some(125), "{name:?}: ⌈1.25 × 1000 ÷ 10⌉");
        drop(held);
        let config = BalanceConfig {
            load_factor: Ratio::percent(0),
            ..policy(name)
        };
        let b = with(10, config, OutlierConfig::default(), now);
        let held: Vec<_> = (0..1_000).map(|_| b.pick(&hot).expect("room")).collect();
        let most = b.status(now).iter().map(|e| e.pending).max();
        assert_eq!(most, Some(1_000), "{name:?}: no bound");
        drop(held);
    }
}

#[test]
fn calls_without_a_hash_go_anywhere() {
    let now = start();
    for name in [BalancePolicy::RingHash, BalancePolicy::Maglev] {
        let got = drive(
            &with(4, policy(name), OutlierConfig::default(), now),
            now,
            4_000,
            well,
        );
        assert!(got.iter().all(|&n| n > 600), "{name:?}: {got:?}");
    }
}

fn zoned(name: BalancePolicy) -> BalanceConfig {
    BalanceConfig {
        locality: Some(LocalityConfig::default()),
        ..policy(name)
    }
}

fn home(zone: &str) -> Home {
    Home {
        locality: Locality::new("eu", zone),
        client: Client::Id(1),
    }
}

/// Ten in zone a, ten in zone b of the same region, ten in another.
fn three_zones(name: BalancePolicy, now: Instant) -> Balancer<u32> {
    let b = build(zoned(name), OutlierConfig::default());
    b.set_home(home("a"), now);
    let place = |n| match n {
        0..10 => Locality::new("eu", "a"),
        10..20 => Locality::new("eu", "b"),
        _ => Locality::new("us", "c"),
    };
    b.set_members((0..30).map(|n| Member::new(n).locality(place(n))), now);
    b
}

fn by_zone(counts: &[usize]) -> [usize; 3] {
    [0, 1, 2].map(|z| counts[z * 10..(z + 1) * 10].iter().sum())
}

#[test]
fn calls_stay_in_their_zone_and_spill_by_what_it_can_carry() {
    let now = start();
    for name in POLICIES {
        let b = three_zones(name, now);
        let mut last = 10_000;
        for out in 0..10 {
            let got = by_zone(&drive(&b, now, 10_000, well));
            let want = (1.4 * f64::from(10 - out) / 10.0).min(1.0);
            let share = got[0] as f64 / 10_000.0;
            assert!((share - want).abs() < 0.03, "{name:?}, {out} out: {got:?}");
            assert!(got[0] <= last + 300, "{name:?}: {got:?} after {last}");
            assert_eq!(got[2], 0, "{name:?}: the region carries the rest");
            last = got[0];
            b.report(&out, Probe::Failed, now);
        }
        assert_eq!(
            by_zone(&drive(&b, now, 1_000, well)),
            [0, 1_000, 0],
            "{name:?}"
        );
    }
}

#[test]
fn a_call_may_come_from_elsewhere_and_a_key_keeps_its_zone() {
    let now = start();
    let b = three_zones(BalancePolicy::Random, now);
    let there = Locality::new("us", "c");
    for _ in 0..500 {
        let pick = b.pick(&PickContext::at(now).from(&there)).expect("members");
        assert!(*pick.key() >= 20);
    }
    let b = three_zones(BalancePolicy::Maglev, now);
    (0..5).for_each(|key| b.report(&key, Probe::Failed, now));
    let before = owners(&b, 1_000, now);
    assert_eq!(owners(&b, 1_000, now), before);
    let spilt = before.values().filter(|&&n| n >= 10).count();
    assert!((220..380).contains(&spilt), "{spilt} of 1000, want 30 %");
    // One more out: who had spilt stays where it was.
    b.report(&5, Probe::Failed, now);
    let after = owners(&b, 1_000, now);
    let moved = before
        .iter()
        .filter(|(k, n)| **n >= 10 && after[k] != **n)
        .count();
    assert_eq!(moved, 0);
}

#[test]
fn without_a_home_or_the_setting_zones_do_not_matter() {
    let now = start();
    let b = three_zones(BalancePolicy::Random, now);
    b.reconfigure(policy(BalancePolicy::Random), OutlierConfig::default(), now)
        .expect("valid");
    let got = by_zone(&drive(&b, now, 9_000, well));
    assert!(got.iter().all(|n| n.abs_diff(3_000) < 300), "{got:?}");
    let b = build(zoned(BalancePolicy::Random), OutlierConfig::default());
    let place = |n| Locality::new("eu", if n < 10 { "a" } else { "b" });
    b.set_members((0..20).map(|n| Member::new(n).locality(place(n))), now);
    let got = drive(&b, now, 2_000, well);
    assert!(got.iter().all(|&n| n > 50), "{got:?}");
}

#[test]
fn a_subset_is_all_that_is_called() {
    let now = start();
    for name in POLICIES {
        let config = BalanceConfig {
            subset: 5,
            ..policy(name)
        };
        let b = with(100, config, OutlierConfig::default(), now);
        let got = drive(&b, now, 2_000, well);
        assert_eq!(got.iter().filter(|&&n| n > 0).count(), 5, "{name:?}");
        let outside = |e: &EndpointStatus<u32>| e.state == EndpointState::OutsideSubset;
        let status = b.status(now);
        assert_eq!(status.iter().filter(|e| outside(e)).count(), 95);
        assert!(
            status
                .iter()
                .all(|e| outside(e) == (got[e.key as usize] == 0))
        );
        // Places are those of the subset: two of five may be out.
        let called: Vec<u32> = status
            .iter()
            .filter(|e| !outside(e))
            .map(|e| e.key)
            .collect();
        for &key in &called {
            fail(&b, key, REFUSED, 1, now);
        }
        assert_eq!(b.ejected(), 2, "{name:?}");
        // Who leaves the subset leaves its place.
        b.set_home(home("x"), now);
        let out = b
            .status(now)
            .iter()
            .filter(|e| !e.ejected_for.is_zero())
            .count();
        assert_eq!(out as u32, b.ejected(), "{name:?}");
    }
}

#[test]
fn a_call_given_up_shows_how_slow_its_endpoint_is() {
    let now = start();
    let b = balancer(1, now);
    drive(&b, now, 1, well);
    pick(&b, now).complete(Outcome::Cancelled, now + ms(700));
    assert!(status(&b, 0, now + ms(700)).cost >= ms(699));
    drop(pick(&b, now));
    assert_eq!(pending(&b, now), 0);
}

#[test]
fn the_clock_at_its_ends() {
    let now = start();
    let far = now
        .checked_add(Duration::from_secs(1 << 33))
        .expect("within the clock's range");
    let before = now.checked_sub(Duration::from_secs(7_200)).unwrap_or(now);
    for name in POLICIES {
        let config = BalanceConfig {
            policy: name,
            ..zoned(name)
        };
        let b = with(4, config, OutlierConfig::default(), now);
        for times in [[now, far], [far, now], [now, before], [before, far]] {
            for outcome in [Outcome::Success, ERR, REFUSED, Outcome::Cancelled] {
                let pick = pick(&b, times[0]);
                pick.complete(outcome, times[1]);
            }
            b.tick(times[1]);
            b.report(&0, Probe::Failed, times[1]);
            b.report(&0, Probe::Passed, times[0]);
        }
        assert_eq!(pending(&b, far), 0);
        let end = far + Duration::from_secs(3_600);
        b.tick(end);
        assert_eq!(b.ejected(), 0, "{name:?}");
        assert!(b.pick(&PickContext::at(end)).is_ok());
    }
}
