//! Many threads at once.

use std::sync::atomic::{AtomicBool, Ordering as Order};

use super::*;

const CALLS: u32 = crate::sync::rounds(100_000, 60) as u32;

#[test]
fn two_threads_and_a_changing_membership_leave_nothing_behind() {
    let now = start();
    for name in POLICIES {
        let config = BalanceConfig {
            policy: name,
            slow_start: Some(SlowStartConfig::default()),
            ..BalanceConfig::default()
        };
        let b = with(8, config, OutlierConfig::default(), now);
        let done = AtomicBool::new(false);
        let ended: u64 = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..2u32)
                .map(|thread| {
                    let b = &b;
                    scope.spawn(move || {
                        let mut held = Vec::new();
                        let mut ended = 0;
                        for n in 0..CALLS {
                            let at = now + Duration::from_micros(u64::from(n) * 300);
                            held.push(b.pick(&PickContext::at(at)).expect("members"));
                            if held.len() > 7 {
                                let pick = held.swap_remove(n as usize % 8);
                                ended += 1;
                                match (n + thread) % 11 {
                                    0 => drop(pick),
                                    1 => drop(pick.complete(Outcome::Cancelled, at)),
                                    2 => drop(pick.complete(REFUSED, at)),
                                    3 => drop(pick.complete(ERR, at)),
                                    _ => drop(pick.complete(Outcome::Success, at + ms(1))),
                                }
                            }
                        }
                        ended + held.len() as u64
                    })
                })
                .collect();
            let churn = scope.spawn(|| {
                let mut n = 0;
                while !done.load(Order::Relaxed) {
                    n = (n + 1) % 4;
                    b.set_members((n..n + 8).map(Member::new), now);
                    b.report(&n, Probe::Failed, now);
                    b.report(&n, Probe::Passed, now);
                    std::thread::yield_now();
                }
            });
            let ended = callers
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum();
            done.store(true, Order::Relaxed);
            churn.join().expect("no panic");
            ended
        });
        assert_eq!(
            (ended, b.picks()),
            (u64::from(2 * CALLS), u64::from(2 * CALLS))
        );
        let end = now + Duration::from_secs(3600);
        b.tick(end);
        b.tick(end);
        assert_eq!((pending(&b, end), b.ejected()), (0, 0), "{name:?}");
        let view = b.0.view.load();
        let hashed: u64 = view
            .members
            .iter()
            .map(|e| e.zone.hashed.load(Ordering::Relaxed))
            .sum();
        assert_eq!(hashed, 0, "{name:?}");
    }
}

#[test]
fn out_1_two_threads_crossing_the_threshold_eject_once() {
    let now = start();
    for _ in 0..crate::sync::rounds(200, 1) {
        let b = with(
            3,
            policy(BalancePolicy::Random),
            OutlierConfig::default(),
            now,
        );
        let picks: Vec<_> = std::iter::repeat_with(|| pick(&b, now))
            .filter(|p| *p.key() == 0)
            .take(10)
            .collect();
        let mut halves = [Vec::new(), Vec::new()];
        for (n, pick) in picks.into_iter().enumerate() {
            halves[n % 2].push(pick);
        }
        let causes: usize = std::thread::scope(|scope| {
            let threads = halves.map(|half| {
                scope.spawn(move || {
                    half.into_iter()
                        .filter_map(|pick| pick.complete(ERR, now))
                        .count()
                })
            });
            threads.map(|t| t.join().expect("no panic")).iter().sum()
        });
        assert_eq!((causes, made(&b), b.ejected()), (1, (1, 0), 1));
    }
}
