//! What a balancer tells of its endpoints, and when.

use super::*;
use crate::events::{Event, EventKind, Events, Return, Subscription};

fn told(n: u32, outlier: OutlierConfig, now: Instant) -> (Balancer<u32>, Subscription) {
    let events = Events::new();
    let heard = events.subscribe_to_changes(64);
    let balancer = Balancer::builder(BalanceConfig::default(), outlier)
        .rng(Rng::new(1))
        .name("orders")
        .events(events)
        .label(|key| format!("endpoint {key}"))
        .build()
        .expect("valid");
    balancer.set_members((0..n).map(Member::new), now);
    (balancer, heard)
}

fn all(heard: &Subscription) -> Vec<(Option<String>, EventKind, Option<Instant>)> {
    let event = |event: Event| {
        assert_eq!((&*event.name, event.policy), ("orders", Policy::Balancer));
        (
            event.endpoint.map(|it| it.to_string()),
            event.kind,
            event.at,
        )
    };
    std::iter::from_fn(|| heard.next()).map(event).collect()
}

fn of(key: u32) -> String {
    format!("endpoint {key}")
}

#[test]
fn an_ejection_and_its_end_are_told_with_cause_and_time() {
    let start = start();
    let (b, heard) = told(4, OutlierConfig::default(), start);
    fail(&b, 1, REFUSED, 1, start);
    let cause = Cause::ConsecutiveConnect;
    let lasts = Duration::from_secs(30);
    assert_eq!(
        all(&heard),
        [(
            Some(of(1)),
            EventKind::Ejected { cause, lasts },
            Some(start)
        )]
    );
    // Nobody calls: a timer is enough, and the time is that at which it was over.
    b.tick(start + Duration::from_secs(29));
    assert_eq!(all(&heard), []);
    b.tick(start + Duration::from_secs(31));
    let why = Return::TimeOver;
    let at = Some(start + lasts);
    assert_eq!(
        all(&heard),
        [(Some(of(1)), EventKind::Returned { why }, at)]
    );
}

#[test]
fn an_ejection_ends_with_a_check_or_with_the_membership_too() {
    let now = start();
    let (b, heard) = told(4, OutlierConfig::default(), now);
    for (name, end, why) in [
        ("check", 0, Return::CheckPassed),
        ("gone", 1, Return::Left),
        ("moved", 2, Return::Left),
    ] {
        fail(&b, 3, REFUSED, 1, now);
        assert!(is_ejected(&b, 3, now), "{name}");
        all(&heard);
        match end {
            0 => b.report(&3, Probe::Passed, now),
            1 => b.set_members((0..3).map(Member::new), now),
            _ => {
                let moved = Member::new(3).locality(Locality::new("eu", "a"));
                b.set_members((0..3).map(Member::new).chain([moved]), now);
            }
        }
        let want = [(Some(of(3)), EventKind::Returned { why }, Some(now))];
        assert_eq!(all(&heard), want, "{name}");
        b.set_members((0..4).map(Member::new), now);
        assert_eq!(all(&heard), [], "{name}");
    }
}

#[test]
fn a_health_check_is_told_when_it_says_something_new() {
    let now = start();
    let (b, heard) = told(4, OutlierConfig::default(), now);
    for probe in [Probe::Passed, Probe::Failed, Probe::Failed, Probe::Passed] {
        b.report(&2, probe, now);
    }
    let checked = |passed| (Some(of(2)), EventKind::Checked { passed }, Some(now));
    assert_eq!(all(&heard), [checked(false), checked(true)]);
}

#[test]
fn panic_is_told_as_it_begins_and_ends() {
    let (start, outlier) = (
        start(),
        OutlierConfig {
            max_ejected: Ratio::percent(100),
            ..OutlierConfig::default()
        },
    );
    let (b, heard) = told(4, outlier, start);
    let panics = |events: Vec<(Option<String>, EventKind, Option<Instant>)>| -> Vec<EventKind> {
        let of_all = events
            .into_iter()
            .filter(|(endpoint, ..)| endpoint.is_none());
        of_all.map(|(_, kind, _)| kind).collect()
    };
    for key in [0, 1, 2] {
        assert!(!b.is_in_panic(), "before {key}");
        fail(&b, key, REFUSED, 1, start);
        b.tick(start);
    }
    let begun = |begun, healthy| EventKind::Panic {
        begun,
        healthy,
        all: 4,
    };
    assert!(b.is_in_panic());
    assert_eq!(panics(all(&heard)), [begun(true, 1)]);
    b.tick(start + Duration::from_secs(31));
    assert!(!b.is_in_panic());
    assert_eq!(panics(all(&heard)), [begun(false, 4)]);
}

#[test]
fn without_a_label_endpoints_have_no_name_and_without_a_listener_nobody_is_asked_for_one() {
    let now = start();
    let events = Events::new();
    let builder = Balancer::builder(BalanceConfig::default(), OutlierConfig::default())
        .rng(Rng::new(1))
        .events(events.clone());
    let silent = builder
        .label(|_: &u32| panic!("nobody listens"))
        .build()
        .expect("valid");
    silent.set_members((0..4).map(Member::new), now);
    fail(&silent, 0, REFUSED, 1, now);
    let plain = Balancer::builder(BalanceConfig::default(), OutlierConfig::default())
        .rng(Rng::new(1))
        .events(events.clone())
        .build()
        .expect("valid");
    plain.set_members((0..4u32).map(Member::new), now);
    let heard = events.subscribe(8);
    fail(&plain, 0, REFUSED, 1, now);
    assert_eq!(heard.next().expect("one").endpoint, None);
}
