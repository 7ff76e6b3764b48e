//! The table's laws: bounded, exact under threads, and it asks before it forgets.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64 as Counter, Ordering::SeqCst},
    },
};

use proptest::prelude::*;

use super::*;
use crate::{
    FailureClass, Outcome,
    breaker::{BreakerConfig, CircuitBreaker, State},
    config::Millis,
};

/// A core that knows which one it is and whether it may go.
#[derive(Debug, Clone)]
struct Probe(Arc<(u64, AtomicBool)>);

impl Probe {
    fn id(&self) -> u64 {
        self.0.0
    }
    fn hold(&self, held: bool) {
        self.0.1.store(held, SeqCst);
    }
}

impl Keep for Probe {
    fn keep_for(&self, _: Instant) -> Duration {
        if self.0.1.load(SeqCst) {
            Duration::MAX
        } else {
            Duration::ZERO
        }
    }
}

const OVERFLOW: u64 = u64::MAX;

fn probe(id: u64) -> Probe {
    Probe(Arc::new((id, AtomicBool::new(false))))
}

fn table(capacity: u32, idle_ms: u64) -> Keyed<u64, Probe> {
    let config = KeyedConfig {
        capacity,
        idle: Millis::new(idle_ms),
    };
    let next = Counter::new(0);
    Keyed::new(config, probe(OVERFLOW), move |_| {
        probe(next.fetch_add(1, SeqCst))
    })
    .expect("valid")
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn bounds_that_cannot_work_are_refused() {
    let cases = [
        ("capacity", 0, 1),
        ("capacity", CAPACITY_OVER, 1),
        ("idle", 1, 0),
    ];
    for (field, capacity, idle) in cases {
        let config = KeyedConfig {
            capacity,
            idle: Millis::new(idle),
        };
        assert_eq!(config.validate().expect_err(field).path, field);
    }
    let unknown: Result<KeyedConfig, _> = toml::from_str("size = 3");
    assert!(unknown.is_err());
}

const CAPACITY_OVER: u32 = (1 << 24) + 1;

#[test]
fn a_key_has_one_core_and_another_key_another() {
    let (table, now) = (table(10, 1_000), Instant::now());
    let (a, b) = (table.find(&1, now), table.find(&2, now));
    assert!(a.tracked && b.tracked);
    assert_ne!(a.core.id(), b.core.id());
    assert_eq!(table.find(&1, now + ms(999)).core.id(), a.core.id());
    assert_eq!(table.peek(&2).expect("tracked").id(), b.core.id());
    assert!(table.peek(&3).is_none());
    assert_eq!(table.stats().tracked, 2, "peek tracks nothing");
}

#[test]
fn an_idle_key_is_as_if_it_had_never_been_swept_or_not() {
    let (table, now) = (table(10, 1_000), Instant::now());
    let before = table.find(&1, now).core.id();
    let after = table.find(&1, now + ms(1_002)).core.id();
    assert_ne!(before, after);
    let stats = table.stats();
    assert_eq!((stats.tracked, stats.inserted, stats.expired), (1, 2, 1));
    assert_eq!(table.sweep(now + ms(5_000)), 1);
    assert_eq!(table.stats().tracked, 0);
}

#[test]
fn a_core_that_must_stay_outlives_its_idle_time() {
    let (table, now) = (table(10, 1_000), Instant::now());
    let core = table.find(&1, now).core;
    core.hold(true);
    assert_eq!(table.sweep(now + ms(9_000)), 0);
    assert_eq!(table.find(&1, now + ms(9_000)).core.id(), core.id());
    core.hold(false);
    assert_eq!(table.sweep(now + ms(20_000)), 1);
}

#[test]
fn full_the_key_idle_for_longest_makes_room() {
    let (table, now) = (table(3, 60_000), Instant::now());
    for (key, at) in [(1, 0), (2, 10), (3, 20), (1, 30)] {
        let _ = table.find(&key, now + ms(at));
    }
    assert!(table.find(&4, now + ms(40)).tracked);
    assert!(table.peek(&2).is_none(), "2 was idle for longest");
    assert!(table.peek(&1).is_some() && table.peek(&3).is_some());
    let stats = table.stats();
    assert_eq!((stats.tracked, stats.evicted), (3, 1));
}

#[test]
fn full_of_cores_that_must_stay_new_keys_share_the_overflow_core() {
    let (table, now) = (table(3, 1_000), Instant::now());
    let held: Vec<_> = (0..3).map(|key| table.find(&key, now).core).collect();
    for core in &held {
        core.hold(true);
    }
    for key in 3..6 {
        let found = table.find(&key, now + ms(50_000));
        assert_eq!((found.tracked, found.core.id()), (false, OVERFLOW));
    }
    assert_eq!(table.stats().untracked, 3);
    assert!((0..3).all(|key| table.peek(&key).is_some()));
    held[1].hold(false);
    assert!(
        table.find(&3, now + ms(50_000)).tracked,
        "recovers by itself"
    );
    assert!(table.peek(&1).is_none());
}

#[test]
fn a_removed_key_dies_with_its_last_permit() {
    let (table, now) = (table(3, 1_000), Instant::now());
    let permit = table.find(&1, now).core;
    let alive = Arc::downgrade(&permit.0);
    drop(table.remove(&1).expect("tracked"));
    assert!(alive.upgrade().is_some(), "the permit's core lives");
    assert_ne!(
        table.find(&1, now).core.id(),
        permit.id(),
        "but is nobody's"
    );
    drop(permit);
    assert!(alive.upgrade().is_none());
    assert!(table.remove(&9).is_none());
    assert_eq!(table.stats().removed, 1);
}

#[test]
fn a_lowered_capacity_is_debt_that_drains() {
    let (table, now) = (table(100, 1_000_000), Instant::now());
    for key in 0..100 {
        let _ = table.find(&key, now);
    }
    let config = KeyedConfig {
        capacity: 10,
        idle: Millis::new(1_000_000),
    };
    table.reconfigure(config).expect("valid");
    assert_eq!(table.stats().tracked, 100);
    for key in 100..400 {
        let _ = table.find(&key, now);
        assert!(table.stats().tracked <= 100);
    }
    assert_eq!(table.stats().tracked, 10);
    let held = KeyedConfig {
        capacity: 4,
        ..config
    };
    table.reconfigure(held).expect("valid");
    while table.sweep(now) > 0 {}
    assert_eq!(table.stats().tracked, 4);
    assert!(
        table
            .reconfigure(KeyedConfig {
                capacity: 0,
                ..config
            })
            .is_err()
    );
    assert_eq!(table.stats().capacity, 4);
}

#[test]
fn a_constructor_that_panics_costs_no_place() {
    let config = KeyedConfig {
        capacity: 1,
        ..KeyedConfig::default()
    };
    let table = Keyed::new(config, probe(OVERFLOW), |&key: &u64| {
        assert_ne!(key, 13, "unlucky");
        probe(key)
    })
    .expect("valid");
    let now = Instant::now();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.find(&13, now)));
    assert!(result.is_err());
    assert_eq!(table.stats().tracked, 0);
    assert!(table.find(&1, now).tracked);
}

#[test]
fn two_threads_never_exceed_the_bound_and_agree_on_each_key() {
    const CAPACITY: u32 = 256;
    let (table, now) = (table(CAPACITY, 3_600_000), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let table = &table;
            scope.spawn(move || {
                let mut seed = 0x9E37_79B9 + thread;
                for step in 0..crate::sync::rounds(60_000, 120) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let key = (seed >> 33) % 400;
                    if seed.is_multiple_of(64) {
                        let _ = table.remove(&key);
                    } else {
                        let _ = table.find(&key, now + ms(step / 100));
                    }
                    assert!(table.stats().tracked <= CAPACITY);
                }
            });
        }
    });
    let mut seen = HashMap::new();
    table.for_each(|key, core| {
        assert!(seen.insert(*key, core.id()).is_none(), "{key} twice");
    });
    let stats = table.stats();
    assert_eq!(seen.len() as u32, stats.tracked);
    assert_eq!(
        u64::from(stats.tracked),
        stats.inserted - stats.expired - stats.evicted - stats.removed
    );
    for (key, id) in seen {
        assert_eq!(table.peek(&key).expect("tracked").id(), id);
    }
}

#[test]
fn an_open_circuit_is_not_forgotten_before_its_time() {
    let breaker = || {
        let config = BreakerConfig {
            consecutive: 1,
            open_for: Millis::new(5_000),
            ..BreakerConfig::default()
        };
        CircuitBreaker::new(config).expect("valid")
    };
    let config = KeyedConfig {
        capacity: 2,
        idle: Millis::new(100),
    };
    let table: Keyed<Arc<str>, _> =
        Keyed::new(config, breaker(), move |_| breaker()).expect("valid");
    let now = Instant::now();
    let permit = table
        .find("bad", now)
        .core
        .try_acquire(now)
        .expect("closed");
    permit.complete(Outcome::Failure(FailureClass::Connect), now);
    for n in 0..1_000u64 {
        let at = now + ms(5 * n);
        let _ = table.find(format!("key {n}").as_str(), at);
        let bad = table.peek("bad").expect("stays while open");
        assert_eq!(bad.state(), State::Open);
    }
    assert_eq!(table.find("bad", now + ms(5_000)).core.state(), State::Open);
    table.sweep(now + ms(5_101));
    assert!(table.peek("bad").is_none(), "its time is over");
}

/// The slow obvious table, for one shard: a map with times of use.
#[derive(Debug, Clone)]
enum Step {
    Find(u8),
    Remove(u8),
    Hold(u8, bool),
    Wait(u16),
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..12).prop_map(Step::Find),
        1 => (0u8..12).prop_map(Step::Remove),
        2 => (0u8..12, any::<bool>()).prop_map(|(k, h)| Step::Hold(k, h)),
        // Above the grain of the time of last use.
        2 => (0u16..70).prop_map(|n| Step::Wait(10 * n)),
        1 => Just(Step::Sweep),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn a_table_behaves_as_the_obvious_one(steps in steps(), capacity in 1u32..8) {
        let table = table(capacity, 1_000);
        let mut now = Instant::now();
        // key → (core, last use, held)
        let mut model: HashMap<u64, (u64, Instant, bool)> = HashMap::new();
        for step in steps {
            match step {
                Step::Wait(n) => now += ms(u64::from(n)),
                Step::Hold(key, held) => if let Some(core) = table.peek(&u64::from(key)) {
                    core.hold(held);
                    model.get_mut(&u64::from(key)).expect("tracked in both").2 = held;
                },
                Step::Remove(key) => {
                    let (real, ours) = (table.remove(&u64::from(key)), model.remove(&u64::from(key)));
                    prop_assert_eq!(real.map(|core| core.id()), ours.map(|(id, ..)| id));
                }
                Step::Sweep => {
                    table.sweep(now);
                    model.retain(|_, (_, used, held)| *held || now - *used <= ms(1_000));
                }
                Step::Find(key) => {
                    let key = u64::from(key);
                    let found = table.find(&key, now);
                    let live = model
                        .get(&key)
                        .filter(|(_, used, held)| *held || now - *used <= ms(1_000))
                        .copied();
                    if let Some((id, ..)) = live {
                        prop_assert_eq!(found.core.id(), id);
                    } else if found.tracked {
                        prop_assert!(model.values().all(|(id, ..)| *id != found.core.id()));
                    } else {
                        model.remove(&key);
                        prop_assert_eq!(model.values().filter(|(.., held)| *held).count(), capacity as usize);
                    }
                    if found.tracked {
                        let held = live.is_some_and(|(.., held)| held);
                        model.insert(key, (found.core.id(), now, held));
                    }
                }
            }
            // What the real table still has is a subset: eviction may choose. What must stay, stays.
            model.retain(|key, (_, _, held)| *held || table.peek(key).is_some());
            for (key, (id, ..)) in &model {
                let real = table.peek(key);
                prop_assert_eq!(real.map(|core| core.id()), Some(*id), "key {}", key);
            }
            prop_assert_eq!(table.stats().tracked as usize, model.len());
            prop_assert!(table.stats().tracked <= capacity);
        }
    }
}
