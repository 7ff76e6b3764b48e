use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(id: &str) -> Key {
    (
        ServiceName::new("s").expect("name"),
        InstanceId::new(id).expect("id"),
    )
}

fn grant(ms: u64) -> Grant<'static> {
    Grant {
        ttl: Duration::from_millis(ms),
        incarnation: 1,
        zone: "z",
    }
}

fn leases(now: Instant) -> Leases {
    let config = LeasesConfig {
        rebase_after: "5s".parse().expect("unit"),
        ..LeasesConfig::default()
    };
    Leases::new(now, &config)
}

/// Ends what is over.
fn expired(leases: &Leases, now: Instant) -> Vec<String> {
    leases.advance(now);
    let mut over = leases.overdue(|_| true);
    over.sort_by(|a, b| a.key.cmp(&b.key));
    over.retain(|lease| leases.end(&lease.key));
    over.into_iter().map(|l| l.key.1.to_string()).collect()
}

#[test]
fn ends_on_time_and_a_renewal_moves_the_end() {
    let start = Instant::now();
    let leases = leases(start);
    let at = |ms| start + Duration::from_millis(ms);
    leases.grant(key("a"), &grant(1000), start);
    leases.grant(key("b"), &grant(1000), start);
    for ms in (0..1000).step_by(100) {
        assert_eq!(expired(&leases, at(ms)), [""; 0], "{ms}");
    }
    let renewed = leases.renew(&key("b"), Some(1), None, at(900));
    assert!(matches!(renewed, Renewal::Renewed { .. }), "{renewed:?}");
    assert_eq!(expired(&leases, at(1000)), ["a"]);
    leases.guard(key("b"), &grant(1000), Duration::from_secs(60), at(1000));
    assert_eq!(
        expired(&leases, at(1900)),
        ["b"],
        "guarding what is held changes nothing"
    );
    assert!(leases.is_empty() && leases.zones().is_empty());
}

#[test]
fn a_process_that_stood_still_evicts_nobody_for_it() {
    let start = Instant::now();
    let leases = leases(start);
    let at = |ms| start + Duration::from_millis(ms);
    leases.grant(key("a"), &grant(3000), start);
    assert_eq!(expired(&leases, at(60_000)), [""; 0]);
    for ms in (60_000..63_000).step_by(500) {
        assert_eq!(expired(&leases, at(ms)), [""; 0], "{ms}");
    }
    assert_eq!(expired(&leases, at(63_000)), ["a"]);
}

#[test]
fn the_late_are_counted_before_they_are_over_and_the_long_silent_no_longer() {
    let start = Instant::now();
    let leases = leases(start);
    let mut clock = 0;
    let mut at = |ms: u64| {
        while clock < ms {
            clock = (clock + 500).min(ms);
            leases.advance(start + Duration::from_millis(clock));
        }
        let zone = leases.zones().pop().expect("one");
        (zone.expected, zone.late, zone.overdue)
    };
    leases.grant(key("a"), &grant(1000), start);
    leases.grant(key("b"), &grant(60_000), start);
    for (ms, want) in [
        (700, (2, 0, 0)),
        (750, (2, 1, 0)),
        (1000, (2, 1, 1)),
        (5999, (2, 1, 1)),
        (6000, (1, 0, 1)),
    ] {
        assert_eq!(at(ms), want, "{ms}");
    }
    leases.renew(&key("a"), None, None, start + Duration::from_millis(6000));
    assert_eq!(at(6100), (2, 0, 0), "back, and expected again");
}

#[test]
fn a_lease_moves_to_the_server_that_passes_it_on_twice() {
    let now = Instant::now();
    let leases = leases(now);
    leases.grant(key("a"), &grant(1000), now);
    let mut moved = String::new();
    for via in ["n2", "n3", "n2", "", "n2", "n2"] {
        let via = (!via.is_empty()).then_some(via);
        let renewal = leases.renew(&key("a"), None, via, now);
        moved.push(if matches!(renewal, Renewal::Moved { .. }) {
            'M'
        } else {
            '-'
        });
    }
    assert_eq!(moved, "-----M");
    assert_eq!(
        leases.renew(&key("a"), Some(2), None, now),
        Renewal::OtherLife
    );
    assert_eq!(leases.renew(&key("b"), None, None, now), Renewal::NotHere);
    leases.guard(key("c"), &grant(1000), Duration::from_secs(1), now);
    assert_eq!(leases.renew(&key("c"), None, None, now), Renewal::Guarded);
    leases.release_guarded(&key("a"));
    leases.release_guarded(&key("c"));
    assert!(leases.holds(&key("a")) && !leases.holds(&key("c")));
}

#[test]
fn a_slow_server_waits_as_many_times_longer() {
    let start = Instant::now();
    let leases = leases(start);
    let every = Duration::from_millis(100);
    leases.clock().ticked(every * 9, every);
    leases.grant(key("a"), &grant(1000), start);
    for ms in (0..2000).step_by(250) {
        assert_eq!(expired(&leases, start + Duration::from_millis(ms)), [""; 0]);
    }
    assert_eq!(expired(&leases, start + Duration::from_millis(2000)), ["a"]);
}

#[test]
fn guardians_share_fairly_and_only_orphans_move() {
    let all = ["n1", "n2", "n3"];
    let keys: Vec<_> = (0..3000).map(|i| key(&format!("i{i}"))).collect();
    let mut moved = 0;
    for key in &keys {
        let before = guardian(key, all.into_iter()).expect("some");
        let after = guardian(key, ["n1", "n3"].into_iter()).expect("some");
        moved += usize::from(before != after);
        assert!(before == "n2" || before == after);
    }
    assert!((850..1150).contains(&moved), "{moved}");
    assert_eq!(guardian(&keys[0], std::iter::empty()), None);
}

#[test]
fn what_has_moved_away_still_counts_until_it_would_be_over() {
    let start = Instant::now();
    let leases = leases(start);
    let at = |ms| start + Duration::from_millis(ms);
    let rest = |key, life, ms| leases.heard(key, life, at(ms));
    let (own, guarded) = (key("own"), key("guarded"));
    leases.grant(own.clone(), &grant(1000), start);
    leases.guard(
        guarded.clone(),
        &grant(1000),
        Duration::from_secs(60),
        start,
    );
    assert_eq!(rest(&own, 1, 400), Some(Duration::from_millis(600)));
    assert_eq!(rest(&own, 2, 400), None, "of another life nothing is known");
    assert_eq!(
        rest(&guarded, 1, 400),
        None,
        "and of nobody who was not heard"
    );
    leases.moved(&own, at(400));
    leases.moved(&guarded, at(400));
    assert!(leases.is_empty());
    assert_eq!(rest(&own, 1, 500), Some(Duration::from_millis(500)));
    assert_eq!(rest(&own, 2, 500), None);
    assert_eq!(rest(&guarded, 1, 500), None);
    // Here again, and away again: the later end.
    leases.grant(own.clone(), &grant(1000), at(600));
    leases.moved(&own, at(700));
    leases.advance(at(1000));
    assert_eq!(rest(&own, 1, 1000), Some(Duration::from_millis(600)));
    assert_eq!(rest(&own, 1, 1600), None, "over");
    leases.advance(at(1600));
    assert_eq!(leases.moved.len(), 0, "nothing is kept for ever");
    // What is over when it moves is no proof of anything.
    leases.grant(own.clone(), &grant(100), at(1600));
    leases.moved(&own, at(1700));
    assert_eq!(leases.moved.len(), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Grant(u8, u64),
    Renew(u8),
    Release(u8),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u8..4, 1u64..40).prop_map(|(i, ms)| Op::Grant(i, ms * 20)),
        (0u8..4).prop_map(Op::Renew),
        (0u8..4).prop_map(Op::Release),
        (1u64..900).prop_map(Op::Pass),
    ]
}

proptest! {
    /// Against a map of deadlines that is gone through from end to end.
    #[test]
    fn the_timers_find_what_a_look_at_every_lease_would(ops in proptest::collection::vec(op(), 0..60)) {
        let start = Instant::now();
        let leases = leases(start);
        let mut model: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
        let mut now = 0u64;
        for op in ops {
            let at = start + Duration::from_millis(now);
            match op {
                Op::Grant(i, ttl) => {
                    leases.grant(key(&i.to_string()), &grant(ttl), at);
                    model.insert(i, (now + ttl, ttl));
                }
                Op::Renew(i) => {
                    leases.renew(&key(&i.to_string()), None, None, at);
                    if let Some((deadline, ttl)) = model.get_mut(&i) {
                        *deadline = now + *ttl;
                    }
                }
                Op::Release(i) => {
                    leases.release(&key(&i.to_string()));
                    model.remove(&i);
                }
                Op::Pass(ms) => {
                    now += ms;
                    let over: Vec<String> = model
                        .iter()
                        .filter(|(_, (deadline, _))| *deadline <= now)
                        .map(|(i, _)| i.to_string())
                        .collect();
                    model.retain(|_, (deadline, _)| *deadline > now);
                    prop_assert_eq!(expired(&leases, start + Duration::from_millis(now)), over);
                }
            }
            prop_assert_eq!(leases.len(), model.len());
            let zones = leases.zones();
            prop_assert_eq!(zones.first().map_or(0, |z| z.expected), model.len());
            let late = model.values().filter(|(deadline, ttl)| now >= deadline - ttl / 4).count();
            prop_assert!(zones.first().map_or(0, |z| z.late) <= late);
        }
    }
}
