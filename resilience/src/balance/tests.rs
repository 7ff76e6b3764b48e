//! Picks, ejections, membership.

use super::*;
use crate::{FailureClass, config::Ratio};

const REFUSED: Outcome = Outcome::Failure(FailureClass::Connect);
const ERR: Outcome = Outcome::Failure(FailureClass::ServerError);

fn balancer(n: u32) -> Balancer<u32> {
    with(n, OutlierConfig::default())
}

fn with(n: u32, config: OutlierConfig) -> Balancer<u32> {
    let balancer = Balancer::new(config, Rng::new(1)).expect("valid");
    balancer.set_members((0..n).map(Member::new));
    balancer
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Makes `n` calls to whoever is picked; returns how often each was.
fn drive(
    b: &Balancer<u32>,
    now: Instant,
    n: usize,
    outcome: impl Fn(u32) -> (Outcome, u64),
) -> Vec<usize> {
    let mut counts = vec![0; b.len()];
    for _ in 0..n {
        let pick = b.pick(now, None).expect("members");
        let key = *pick.key();
        counts[key as usize] += 1;
        let (outcome, latency) = outcome(key);
        pick.complete(outcome, now + ms(latency));
    }
    counts
}

/// Ends `n` calls to `key` with `outcome` while the others do well.
fn fail(b: &Balancer<u32>, key: u32, outcome: Outcome, n: usize, now: Instant) {
    let mut left = n;
    for _ in 0..10_000 {
        let pick = b.pick(now, None).expect("members");
        if *pick.key() != key {
            pick.complete(Outcome::Success, now + ms(1));
        } else if left > 0 {
            left -= 1;
            pick.complete(outcome, now);
        }
    }
}

fn ejected(b: &Balancer<u32>, key: u32, now: Instant) -> bool {
    !b.status(now)[key as usize].ejected_for.is_zero()
}

#[test]
fn nobody_is_a_refusal_with_a_time() {
    let b = balancer(0);
    let rejected = b.pick(Instant::now(), None).expect_err("empty");
    assert_eq!(rejected.reason, Reason::NoEndpoint);
    assert!(rejected.retry_after.is_some());
}

#[test]
fn equal_endpoints_share_evenly_and_slow_ones_get_less() {
    let now = Instant::now();
    let even = drive(&balancer(4), now, 4000, |_| (Outcome::Success, 1));
    assert!(even.iter().all(|&n| (700..1300).contains(&n)), "{even:?}");
    let b = balancer(4);
    drive(&b, now, 100, |key| {
        (Outcome::Success, if key == 0 { 100 } else { 1 })
    });
    let skewed = drive(&b, now, 4000, |key| {
        (Outcome::Success, if key == 0 { 100 } else { 1 })
    });
    assert!(skewed[0] < 50, "{skewed:?}");
}

#[test]
fn a_newcomer_without_history_is_tried_one_call_at_a_time() {
    let now = Instant::now();
    let b = balancer(2);
    drive(&b, now, 10, |_| (Outcome::Success, 1));
    b.set_members((0..3).map(Member::new));
    let mut open = Vec::new();
    for _ in 0..50 {
        open.push(b.pick(now, None).expect("members"));
    }
    assert_eq!(open.iter().filter(|p| *p.key() == 2).count(), 1);
}

#[test]
fn refused_connections_eject_and_nobody_goes_there() {
    let now = Instant::now();
    let b = with(
        3,
        OutlierConfig {
            consecutive_connect: 2,
            ..OutlierConfig::default()
        },
    );
    fail(&b, 1, REFUSED, 1, now);
    assert!(!ejected(&b, 1, now));
    fail(&b, 1, REFUSED, 1, now);
    assert!(ejected(&b, 1, now));
    assert_eq!(drive(&b, now, 1000, |_| (Outcome::Success, 1))[1], 0);
    assert_eq!(b.ejections().0, 1);
}

#[test]
fn out_1_ejections_grow_end_on_time_and_start_over_when_healthy() {
    let start = Instant::now();
    let b = with(
        3,
        OutlierConfig {
            eject: "10s".parse().expect("unit"),
            ..OutlierConfig::default()
        },
    );
    fail(&b, 0, ERR, 5, start);
    assert_eq!(b.status(start)[0].ejected_for, Duration::from_secs(10));
    let back = start + ms(10_001);
    assert!(ejected(&b, 0, start + ms(9_999)));
    fail(&b, 0, ERR, 5, back);
    assert_eq!(b.status(back)[0].ejected_for, Duration::from_secs(20));
    let healthy = back + ms(20_001);
    drive(&b, healthy, 100, |_| (Outcome::Success, 1));
    fail(&b, 0, ERR, 5, healthy);
    assert_eq!(b.status(healthy)[0].ejected_for, Duration::from_secs(10));
}

#[test]
fn one_good_answer_among_the_failures_does_not_eject() {
    let now = Instant::now();
    let b = balancer(3);
    fail(&b, 0, ERR, 4, now);
    fail(&b, 0, Outcome::Success, 1, now);
    fail(&b, 0, ERR, 4, now);
    assert!(!ejected(&b, 0, now));
}

#[test]
fn the_share_that_may_be_out_is_kept_but_one_of_two_always_may() {
    let now = Instant::now();
    let b = with(
        4,
        OutlierConfig {
            max_ejected: Ratio::percent(50),
            ..OutlierConfig::default()
        },
    );
    for key in 0..4 {
        fail(&b, key, REFUSED, 2, now);
    }
    assert_eq!(
        b.status(now)
            .iter()
            .filter(|e| !e.ejected_for.is_zero())
            .count(),
        2
    );
    assert!(b.ejections().1 > 0, "overflow is counted");
    let b = with(
        2,
        OutlierConfig {
            max_ejected: Ratio::percent(0),
            ..OutlierConfig::default()
        },
    );
    fail(&b, 0, REFUSED, 2, now);
    assert!(ejected(&b, 0, now));
    let b = balancer(1);
    fail(&b, 0, REFUSED, 5, now);
    assert!(b.pick(now, None).is_ok(), "the last one stays");
}

#[test]
fn a_retry_goes_elsewhere() {
    let now = Instant::now();
    let b = balancer(2);
    assert!((0..100).all(|_| *b.pick(now, Some(&0)).expect("members").key() == 1));
    fail(&b, 1, REFUSED, 2, now);
    assert_eq!(*b.pick(now, None).expect("members").key(), 0);
}

#[test]
fn an_update_keeps_what_is_known_and_frees_the_places_of_the_gone() {
    let now = Instant::now();
    let b = balancer(2);
    fail(&b, 0, REFUSED, 2, now);
    b.set_members([Member::new(0), Member { key: 1, weight: 3 }, Member::new(0)]);
    assert!(ejected(&b, 0, now), "still out");
    assert_eq!((b.len(), b.status(now)[1].weight), (2, 3));
    b.set_members([Member::new(1), Member::new(2)]);
    fail(&b, 1, REFUSED, 2, now);
    assert_eq!(
        b.status(now)
            .iter()
            .filter(|e| !e.ejected_for.is_zero())
            .count(),
        1
    );
}

#[test]
fn a_dropped_pick_gives_back_its_place() {
    let b = balancer(2);
    let now = Instant::now();
    let picks: Vec<_> = (0..10)
        .map(|_| b.pick(now, None).expect("members"))
        .collect();
    assert_eq!(b.status(now).iter().map(|e| e.pending).sum::<u32>(), 10);
    drop(picks);
    assert_eq!(b.status(now).iter().map(|e| e.pending).sum::<u32>(), 0);
}

#[test]
fn who_was_slow_once_is_tried_again_within_a_second_but_not_often() {
    let b = balancer(3);
    let mut now = Instant::now();
    // Three calls each, endpoint 0 slow; then all are fast, but nobody knows.
    drive(&b, now, 9, |key| {
        (Outcome::Success, if key == 0 { 1_000 } else { 1 })
    });
    let start = now;
    let mut tried = Vec::new();
    for _ in 0..1_000 {
        now += ms(5);
        let pick = b.pick(now, None).expect("a pick");
        if *pick.key() == 0 {
            tried.push(now - start);
        }
        let rtt = if *pick.key() == 0 { 1_000 } else { 1 };
        pick.complete(Outcome::Success, now + ms(rtt));
    }
    assert!(tried[0] <= ms(1_000), "{:?}", tried[0]);
    assert!(
        tried.len() <= 10,
        "{} of 1000 went the dear way",
        tried.len()
    );
}
