//! Loom: every order in which two threads may judge, forgive and forget an endpoint.

use loom::{sync::Arc, thread};

use super::*;
use crate::{FailureClass, clock::Tick, sync::Ordering};

fn config() -> OutlierConfig {
    OutlierConfig::default()
}

fn shared(hosts: u32) -> Arc<(Health, Health, Places)> {
    let all = Arc::new((Health::default(), Health::default(), Places::default()));
    all.2.hosts.store(hosts, Ordering::Relaxed);
    all
}

#[test]
fn out_1_two_threads_crossing_the_threshold_eject_once() {
    loom::model(|| {
        let all = shared(4);
        let other = {
            let all = Arc::clone(&all);
            thread::spawn(move || all.0.eject(&all.2, &config(), Tick(9), 0.0))
        };
        let mine = all.0.eject(&all.2, &config(), Tick(9), 0.0);
        let verdicts = [mine, other.join().expect("no panic")];
        let ejected = verdicts.iter().filter(|v| **v == Verdict::Ejected).count();
        assert_eq!((ejected, all.2.ejected()), (1, 1));
        assert!(!verdicts.contains(&Verdict::Overflow));
        assert_eq!(all.0.times(), 1);
    });
}

#[test]
fn two_endpoints_never_take_one_place() {
    loom::model(|| {
        let all = shared(2);
        let other = {
            let all = Arc::clone(&all);
            thread::spawn(move || all.1.eject(&all.2, &config(), Tick(9), 0.0))
        };
        let mine = all.0.eject(&all.2, &config(), Tick(9), 0.0);
        let mut verdicts = [mine, other.join().expect("no panic")];
        verdicts.sort_by_key(|v| *v == Verdict::Overflow);
        assert_eq!(verdicts, [Verdict::Ejected, Verdict::Overflow]);
        assert_eq!(all.2.ejected(), 1);
    });
}

#[test]
fn a_member_that_leaves_while_it_is_judged_holds_no_place() {
    loom::model(|| {
        let all = shared(2);
        let other = {
            let all = Arc::clone(&all);
            thread::spawn(move || all.0.retire(&all.2))
        };
        all.0.eject(&all.2, &config(), Tick(9), 0.0);
        other.join().expect("no panic");
        assert_eq!((all.2.ejected(), all.0.until()), (0, None));
    });
}

#[test]
fn two_who_bring_it_back_do_so_once() {
    loom::model(|| {
        let all = shared(2);
        all.0.eject(&all.2, &config(), Tick(9), 0.0);
        let other = {
            let all = Arc::clone(&all);
            thread::spawn(move || all.0.readmit_now(&all.2))
        };
        let mine = all.0.readmit_if_due(&all.2, Tick(u64::MAX - 2));
        assert!(mine ^ other.join().expect("no panic"));
        assert_eq!((all.2.ejected(), all.0.epoch()), (0, 1));
    });
}

#[test]
fn no_failure_in_a_row_is_lost() {
    loom::model(|| {
        let all = shared(2);
        let other = {
            let all = Arc::clone(&all);
            thread::spawn(move || all.0.count(FailureClass::ServerError))
        };
        let mine = all.0.count(FailureClass::ServerError);
        let last = mine.max(other.join().expect("no panic"));
        assert_eq!(last & 0xFFFF, 2);
    });
}

#[test]
fn forgiving_and_ejecting_at_once_keep_a_count_that_one_of_the_two_orders_gives() {
    loom::model(|| {
        let all = shared(4);
        all.0.eject(&all.2, &config(), Tick(9), 0.0);
        assert!(all.0.readmit_now(&all.2));
        let other = {
            let all = Arc::clone(&all);
            thread::spawn(move || all.0.forgive(1))
        };
        all.0.eject(&all.2, &config(), Tick(9), 0.0);
        other.join().expect("no panic");
        assert!((1..=2).contains(&all.0.times()), "{}", all.0.times());
    });
}
