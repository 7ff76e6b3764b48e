//! Loom models of the word: every interleaving of takers, a refund and a live change.

use std::{sync::Arc, time::Duration};

use loom::thread;

use super::{
    gcra::{Quota, Word},
    *,
};

fn rate(count: u32, secs: u64, burst: u32) -> Rate {
    Rate {
        count,
        per: Duration::from_secs(secs),
        burst,
    }
}

const NOW: Tick = Tick(3_600_000_000_000);

#[test]
fn takers_never_get_more_than_the_burst() {
    loom::model(|| {
        let (word, quota) = (Arc::new(Word::new()), Quota::new(rate(1, 1, 2), 0));
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let word = Arc::clone(&word);
                thread::spawn(move || word.take(&quota, 1, NOW).is_ok())
            })
            .collect();
        let mine = word.take(&quota, 1, NOW).is_ok();
        let others = takers.into_iter().map(|t| t.join().expect("taker"));
        let taken = others.filter(|taken| *taken).count();
        assert_eq!(taken + usize::from(mine), 2);
    });
}

#[test]
fn a_refund_makes_room_for_exactly_one() {
    loom::model(|| {
        let (word, quota) = (Arc::new(Word::new()), Quota::new(rate(1, 1, 1), 0));
        let taken = word.take(&quota, 1, NOW).expect("full bucket");
        let taker = {
            let word = Arc::clone(&word);
            thread::spawn(move || word.take(&quota, 1, NOW).is_ok())
        };
        word.give_back(taken, NOW);
        let first = taker.join().expect("taker");
        assert_eq!(word.take(&quota, 1, NOW).is_ok(), !first);
    });
}

#[test]
fn a_quota_is_read_as_a_whole_or_not_at_all() {
    loom::model(|| {
        let [old, new] = [Quota::new(rate(1, 1, 1), 0), Quota::new(rate(9, 7, 5), 2)];
        let quota = Arc::new(Published::new(&old));
        let writer = {
            let quota = Arc::clone(&quota);
            thread::spawn(move || quota.write(&new))
        };
        let seen = quota.read();
        assert!(seen.is_none_or(|seen| seen == old || seen == new));
        writer.join().expect("writer");
        assert_eq!(quota.read(), Some(new));
    });
}

#[test]
fn a_call_under_the_old_quota_leaves_no_debt_that_the_new_one_cannot_make() {
    loom::model(|| {
        let live = Arc::new(LiveQuota::new(rate(1, 3600, 1)));
        let word = Arc::new(Word::new());
        let now = Instant::now();
        let taker = {
            let (live, word) = (Arc::clone(&live), Arc::clone(&word));
            thread::spawn(move || live.take(&word, 1, now).is_ok())
        };
        let quota = live.change(rate(1000, 1, 1));
        word.cap(&quota, Tick::at(now));
        taker.join().expect("taker");
        assert!(word.ahead(Tick::at(now)) <= quota.interval);
    });
}
