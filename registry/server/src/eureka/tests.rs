use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use selvedge_registry::{InstanceStatus, ServiceName};
use serde_json::json;

use super::{
    feed::{Feed, RETENTION},
    json as out,
    json::Detail,
    model::{self, Action, Applications},
    record, view, xml,
};
use crate::{
    catalogue::{Body, Change, Live, Record, Stamp, Store, plain},
    hub::Hub,
    lease::{Grant, Leases, LeasesConfig},
};

/// A catalogue and a hub, written to by hand.
struct World {
    store: Store,
    hub: Hub,
    hlc: u64,
}

impl World {
    fn new() -> (Self, Feed) {
        let hub = Hub::default();
        let feed = Feed::new(hub.subscribe());
        let store = Store::new(1);
        (Self { store, hub, hlc: 0 }, feed)
    }

    fn write(&mut self, id: &str, body: Body) {
        self.hlc += 1;
        let record = Record {
            service: ServiceName::new("foo").unwrap(),
            id: id.parse().unwrap(),
            stamp: Stamp {
                incarnation: 1,
                hlc: self.hlc,
                owner: "n".into(),
            },
            body,
        };
        if let Change::Visible(visible) = self.store.merge(record, 0) {
            self.hub.publish(&visible);
        }
    }

    fn put(&mut self, id: &str, status: InstanceStatus) {
        let mut instance = plain(&id.parse().unwrap(), ([10, 0, 0, 1], 80).into());
        instance.reported = status;
        instance.settle();
        self.write(id, Body::Live(Live::of(&instance)));
    }

    fn delta(&self, feed: &mut Feed, now: Instant) -> Applications {
        feed.catch_up(now);
        view::delta(self.store.catalogue(), feed, 1)
    }
}

fn actions(delta: &Applications) -> Vec<(String, Action)> {
    let all = delta.applications.iter().flat_map(|app| &app.instances);
    all.map(|one| (one.id.clone(), one.action)).collect()
}

#[test]
fn e9_a_change_stays_for_three_minutes_after_its_last() {
    let ((mut world, mut feed), start) = (World::new(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let (a, b) = ("a".to_owned(), "b".to_owned());
    world.put("a", InstanceStatus::Up);
    world.put("b", InstanceStatus::Up);
    let delta = world.delta(&mut feed, at(0));
    assert_eq!(
        actions(&delta),
        [(a.clone(), Action::Added), (b.clone(), Action::Added)]
    );
    world.put("a", InstanceStatus::Down);
    world.write("b", Body::Cancelled);
    let delta = world.delta(&mut feed, at(100));
    let want = [(a, Action::Modified), (b, Action::Deleted)];
    assert_eq!(actions(&delta), want);
    assert_eq!(delta.hash, "DOWN_1_");
    let state = feed.state();
    assert_eq!(actions(&world.delta(&mut feed, at(279))), want);
    let empty = world.delta(&mut feed, at(280));
    assert_eq!((actions(&empty).len(), empty.hash.as_str()), (0, "DOWN_1_"));
    assert_ne!(feed.state(), state, "another content has another state");
    let document: serde_json::Value =
        serde_json::from_slice(&out::applications(&empty, Detail::Full)).unwrap();
    assert_eq!(document["applications"]["application"], json!([]));
    assert_eq!(RETENTION, Duration::from_secs(180));
}

#[test]
fn changes_ahead_of_the_snapshot_do_no_harm() {
    let ((mut world, mut feed), now) = (World::new(), Instant::now());
    world.put("old", InstanceStatus::Up);
    let before = std::sync::Arc::clone(world.store.catalogue());
    world.put("new", InstanceStatus::Up);
    world.write("old", Body::Cancelled);
    feed.catch_up(now);
    let delta = view::delta(&before, &feed, 1);
    // As it was: the next delta has the rest.
    assert_eq!(actions(&delta), [("old".to_owned(), Action::Modified)]);
    assert_eq!(delta.hash, "UP_1_");
}

#[test]
fn lost_changes_make_everybody_fetch_everything() {
    let ((mut world, mut feed), start) = (World::new(), Instant::now());
    world.put("a", InstanceStatus::Up);
    for i in 0..3000 {
        let status = [InstanceStatus::Up, InstanceStatus::Down][i % 2];
        world.put("b", status);
    }
    let delta = world.delta(&mut feed, start);
    assert_eq!(actions(&delta).len(), 2, "all there is");
    let full = view::full(world.store.catalogue(), 1);
    assert_ne!(delta.hash, full.hash);
    let later = world.delta(&mut feed, start + RETENTION);
    assert_eq!(later.hash, full.hash, "trusted again");
}

#[test]
fn e14_a_late_or_early_sweep_neither_takes_time_nor_gives_it() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let key = (
        ServiceName::new("foo").unwrap(),
        "i".parse::<selvedge_registry::InstanceId>().unwrap(),
    );
    for (what, sweeps) in [
        ("on time", [100, 200]),
        ("10 ms late", [110, 210]),
        ("10 ms early", [90, 190]),
    ] {
        let leases = Leases::new(start, &LeasesConfig::default());
        let grant = Grant {
            ttl: Duration::from_millis(500),
            incarnation: 1,
            zone: "",
        };
        leases.grant(key.clone(), &grant, start);
        for ms in sweeps.into_iter().chain([300, 400, 499]) {
            leases.advance(at(ms));
            assert!(leases.overdue(|_| true).is_empty(), "{what} at {ms}");
        }
        let mut ended = 0;
        for ms in [520, 540, 560, 580, 600] {
            leases.advance(at(ms));
            ended += leases.overdue(|_| true).len();
        }
        assert!(ended > 0, "{what}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{1,12}", "\\PC{1,6}", "[<>&'\"_$.]{1,6}"]
        .prop_filter("blank is absent", |text| !text.trim().is_empty())
}

fn keys() -> impl Strategy<Value = BTreeMap<String, String>> {
    let key = text().prop_filter("Java's own", |key| key != "class" && key != "@class");
    proptest::collection::btree_map(key, text(), 0..5)
}

prop_compose! {
    fn instance()(
        id in text(), host in text(), metadata in keys(), amazon in keys(), vip in text(),
        status in 0usize..5, port in 1u16.., enabled: bool, dirty in 1i64.., kind in 0usize..3,
    ) -> serde_json::Value {
        let status = ["UP", "DOWN", "STARTING", "OUT_OF_SERVICE", "UNKNOWN"][status];
        let name = ["MyOwn", "Netflix", "Amazon"][kind];
        json!({
            "instanceId": id, "hostName": host, "app": "FOO", "ipAddr": "10.0.0.1",
            "status": status, "port": {"$": port, "@enabled": enabled.to_string()},
            "securePort": {"$": 443, "@enabled": "false"}, "metadata": metadata,
            "dataCenterInfo": {"name": name, "metadata": if kind == 2 { json!(amazon) } else { json!({}) }},
            "vipAddress": vip, "lastDirtyTimestamp": dirty, "lastUpdatedTimestamp": dirty,
        })
    }
}

proptest! {
    /// What is written is read as what it was, in both forms.
    #[test]
    fn reading_undoes_writing(document in instance()) {
        let one = model::read(&document).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out::instance(&one, Detail::Full)).unwrap();
        prop_assert_eq!(&model::read(&json).unwrap(), &one);
        let written = String::from_utf8(xml::instance(&one, Detail::Full)).unwrap();
        let read = model::read(&xml::read(&written).unwrap()).unwrap();
        // XML ends lines in one way and has no control characters.
        if !document.to_string().contains(r"\r") {
            prop_assert_eq!(read, one, "{}", written);
        }
    }

    /// The catalogue gives back what was registered.
    #[test]
    fn a_record_keeps_everything(document in instance()) {
        let one = model::read(&document).unwrap();
        let registration = record::registration(&one, 7).unwrap();
        let mut kept = plain(&registration.id, registration.request.addr);
        kept.reported = registration.request.status;
        kept.metadata = registration.request.metadata;
        kept.dialects.insert(super::DIALECT.to_owned(), registration.extra.to_text());
        kept.settle();
        let back = record::instance(&registration.service, &kept, Action::Added);
        let want = model::Instance { lease: back.lease, ..one };
        prop_assert_eq!(back, want);
    }

    #[test]
    fn names_of_elements_are_reversible_and_legal(key in "\\PC{1,12}") {
        let name = xml::escape_name(&key);
        prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)), "{}", name);
        prop_assert!(name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'));
        prop_assert_eq!(xml::unescape_name(&name), key);
    }

    /// Whatever is sent, the readers answer.
    #[test]
    fn garbage_is_an_error_and_not_a_panic(text in "[<>a-c/&;\"'=! \\[\\]{}:,0-9#x-]{0,60}") {
        let read = xml::read(&text).map(|value| model::read(&value));
        prop_assert!(!matches!(read, Ok(Ok(_))));
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
            prop_assert!(model::read(&value).is_err());
        }
    }
}
