use proptest::prelude::*;

use super::*;

fn record(id: &str, incarnation: u64, hlc: u64, owner: &str, live: bool) -> Record {
    let id = InstanceId::new(id).expect("id");
    let mut instance = plain(&id, "10.0.0.1:80".parse().expect("address"));
    instance.incarnation = incarnation;
    owner.clone_into(&mut instance.owner);
    Record {
        service: ServiceName::new("orders").expect("name"),
        id,
        stamp: Stamp {
            incarnation,
            hlc,
            owner: owner.into(),
        },
        body: if live {
            Body::Live(Live::of(&instance))
        } else {
            Body::Evicted { overridden: None }
        },
    }
}

#[test]
fn the_later_record_wins_and_a_change_of_owner_is_hidden() {
    let mut store = Store::new(1);
    let mut merge = |record| {
        let counter = match store.merge(record, 0) {
            Change::None => None,
            Change::Hidden => Some(0),
            Change::Visible(visible) => Some(visible.revision.counter),
        };
        (counter, store.catalogue().len())
    };
    for (what, record, want) in [
        ("new", record("a", 1, 5, "n1", true), (Some(1), 1)),
        ("again", record("a", 1, 5, "n1", true), (None, 1)),
        ("older", record("a", 1, 4, "n2", false), (None, 1)),
        ("claimed", record("a", 1, 6, "n2", true), (Some(0), 1)),
        ("evicted", record("a", 1, 7, "n2", false), (Some(2), 0)),
        ("no zombie", record("a", 1, 6, "n3", true), (None, 0)),
        (
            "a new life wins over an older one's clock",
            record("a", 2, 1, "n3", true),
            (Some(3), 1),
        ),
    ] {
        assert_eq!(merge(record), want, "{what}");
    }
    assert_eq!(store.catalogue().list().services[0].up, 1);
    assert_eq!(
        store.owners().map(|(n, _)| &**n).collect::<Vec<_>>(),
        ["n3"]
    );
}

#[test]
fn tombstones_are_forgotten_and_the_living_and_the_buried_again_are_not() {
    let mut store = Store::new(1);
    store.merge(record("a", 1, 5, "n1", false), 10);
    store.merge(record("b", 1, 5, "n1", true), 10);
    store.merge(record("c", 1, 5, "n1", false), 10);
    store.merge(record("c", 2, 5, "n1", false), 20);
    store.forget_before(15);
    let left: Vec<_> = store
        .catalogue()
        .records()
        .map(|r| r.id.to_string())
        .collect();
    assert_eq!(left, ["b", "c"]);
    let orders = ServiceName::new("orders").expect("name");
    store.merge(record("b", 1, 6, "n1", false), 20);
    store.forget_before(30);
    assert_eq!(store.catalogue().records().count(), 0);
    assert!(
        store.catalogue().changed_since(&orders, 1),
        "forgotten since is changed since"
    );
    assert_eq!(store.graves(), 0);
}

#[test]
fn a_reader_keeps_what_it_was_given() {
    let mut store = Store::new(1);
    store.merge(record("a", 1, 5, "n1", true), 0);
    let before = Arc::clone(store.catalogue());
    store.merge(record("a", 1, 6, "n1", false), 0);
    store.merge(record("b", 1, 6, "n1", true), 0);
    let ids = |catalogue: &Catalogue| {
        let services = catalogue.services();
        let all = services.flat_map(|(_, live)| live.map(|i| i.id.to_string()));
        all.collect::<Vec<_>>()
    };
    assert_eq!(ids(&before), ["a"]);
    assert_eq!(ids(store.catalogue()), ["b"]);
}

#[test]
fn what_travels_arrives_as_it_was() {
    let evicted = Body::Evicted {
        overridden: Some(InstanceStatus::OutOfService),
    };
    for record in [
        record("a", 1, 5, "n1", true),
        record("a", 1, 5, "n1", false),
        Record {
            body: evicted,
            ..record("a", 1, 5, "n\"1", false)
        },
    ] {
        let text = serde_json::to_string(&record).expect("serialises");
        assert_eq!(
            serde_json::from_str::<Record>(&text).expect("reads"),
            record
        );
    }
    for bad in [
        r#"{"s":"a","i":"b","n":1,"h":1,"o":"n1"}"#,
        r#"{"s":"a","i":"b","n":1,"h":1,"o":"n1","b":{"addr":"x"}}"#,
    ] {
        assert!(serde_json::from_str::<Record>(bad).is_err(), "{bad}");
    }
}

fn seen() -> impl Strategy<Value = Vec<Record>> {
    let one = (0u8..3, 1u64..3, 0u64..5, 0u8..3);
    proptest::collection::vec(one, 0..40).prop_map(|seen| {
        // One writer never stamps two different records alike, so `live` follows the stamp.
        let record = |(id, inc, hlc, owner): (u8, u64, u64, u8)| {
            let live = (inc + hlc + u64::from(owner)).is_multiple_of(2);
            record(&format!("i{id}"), inc, hlc, &format!("n{owner}"), live)
        };
        seen.into_iter().map(record).collect()
    })
}

proptest! {
    #[test]
    fn servers_that_saw_the_same_agree_in_whatever_order(records in seen(), seed: u64) {
        let mut shuffled = records.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        let state = |records: Vec<Record>| {
            let mut store = Store::new(1);
            for record in records {
                store.merge(record, 0);
            }
            let catalogue = Arc::clone(store.catalogue());
            (catalogue.records().cloned().collect::<Vec<_>>(), catalogue.hash())
        };
        prop_assert_eq!(state(records), state(shuffled));
    }

    #[test]
    fn what_is_counted_as_it_changes_is_what_a_count_would_find(records in seen()) {
        let mut store = Store::new(1);
        for record in records {
            store.merge(record, 0);
        }
        let catalogue = store.catalogue();
        let live: Vec<_> = catalogue.records().filter(|r| r.is_live()).collect();
        prop_assert_eq!(catalogue.len(), live.len());
        prop_assert_eq!(catalogue.up(), live.len());
        let hash = live.iter().fold(0, |all, r| all ^ r.fingerprint());
        prop_assert_eq!(catalogue.hash(), hash);
        for owner in ["n0", "n1", "n2"] {
            let mut buckets = [0; BUCKETS];
            let mut count = 0;
            for record in live.iter().filter(|r| &*r.stamp.owner == owner) {
                buckets[record.bucket()] ^= record.fingerprint();
                count += 1;
            }
            let owned = store.owned(owner);
            prop_assert_eq!(owned.map_or(0, |o| o.keys.len()), count);
            prop_assert_eq!(owned.map_or([0; BUCKETS], |o| o.buckets), buckets);
        }
    }
}
