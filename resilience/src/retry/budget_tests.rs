//! Named cases, laws against a slow model, and loom models of the share under way.

#[cfg(loom)]
mod models {
    use loom::thread;

    use crate::retry::budget::*;

    /// The last place of the share goes to one of two, and comes back from both ways out.
    #[test]
    fn the_share_is_never_overdrawn_and_always_given_back() {
        let now = std::time::Instant::now();
        loom::model(move || {
            let share = ShareSpec {
                ratio: Ratio::percent(0),
                min: 1,
            };
            let one = Ratio::percent(100);
            let budget = Budget::with_reserve(one, 9, share, Millis::new(2_000)).expect("valid");
            let threads = [(); 2].map(|()| {
                let budget = budget.clone();
                thread::spawn(move || {
                    let call = budget.begin(now);
                    let extra = call.try_extra(now);
                    assert!(budget.in_flight().extra <= 1, "never two");
                    extra.is_ok()
                })
            });
            let won = threads.map(|t| t.join().expect("no panic"));
            assert!(won.contains(&true), "somebody got it");
            assert_eq!(budget.in_flight(), InFlight::default());
        });
    }
}

#[cfg(not(loom))]
mod table {
    use proptest::prelude::*;

    use crate::retry::budget::*;

    const NO_CAP: ShareSpec = ShareSpec {
        ratio: Ratio::percent(1000),
        min: u32::MAX,
    };

    fn budget(text: &str) -> Budget {
        Budget::with(text.parse().expect("spec"), NO_CAP, DEFAULT_TTL).expect("valid")
    }

    fn reserve(reserve: u64, ttl_ms: u64) -> Budget {
        let ttl = Millis::new(ttl_ms);
        Budget::with_reserve(Ratio::percent(100), reserve, NO_CAP, ttl).expect("valid")
    }

    fn take(budget: &Budget, now: Instant) -> usize {
        (0..100_000)
            .take_while(|_| budget.try_withdraw(now).is_ok())
            .count()
    }

    fn takes(budget: &Budget, now: Instant, n: usize) -> bool {
        (0..n).all(|_| budget.try_withdraw(now).is_ok())
    }

    #[test]
    fn every_ratio_counts_right() {
        let now = Instant::now();
        for (ratio, want) in [
            ("20%", 2000),
            ("34%", 3400),
            ("75%", 7500),
            ("99%", 9900),
            ("1%", 100),
            ("0.01%", 1),
            ("33.3%", 3330),
            ("100%", 10_000),
            ("200%", 20_000),
        ] {
            let b = budget(ratio);
            (0..10_000).for_each(|_| b.deposit(now));
            assert_eq!(take(&b, now), want, "{ratio}");
        }
    }

    /// tower 0.5.3 `TpsBudget`: `withdraw = (1/ratio) as isize`, so 0.34 pays for every second call
    /// and each ratio above one half for every call.
    #[test]
    fn towers_truncated_ratio_034_allows_34_of_100_and_075_allows_75() {
        let now = Instant::now();
        for (ratio, want) in [("34%", 34), ("51%", 51), ("75%", 75), ("99%", 99)] {
            let b = budget(ratio);
            (0..100).for_each(|_| b.deposit(now));
            let towers = 100 / (1.0 / (want as f64 / 100.0)) as usize;
            assert_eq!(take(&b, now), want, "{ratio}");
            assert_ne!(want, towers, "{ratio}: a case that tower gets wrong");
        }
    }

    #[test]
    fn bud_1_balance_reserve_and_limits() {
        let now = Instant::now();
        let b = budget("200%");
        (0..10_000).for_each(|_| b.deposit(now));
        assert_eq!(b.balance(now), 20_000);
        let of = |text: &str, ttl| {
            let spec = text.parse().expect("spec");
            Budget::with(spec, NO_CAP, Millis::new(ttl))
        };
        for (text, ttl, want) in [
            ("0% min 10/s", 1_000, 10),
            ("0% min 5/s", 2_000, 10),
            ("0% min 1/s", 10_000, 10),
            ("20% min 3/s", 10_000, 30),
            ("0%", 10_000, 0),
        ] {
            assert_eq!(take(&of(text, ttl).expect("valid"), now), want, "{text}");
        }
        let never = of("0%", 10_000).expect("valid");
        (0..1000).for_each(|_| never.deposit(now));
        assert_eq!(take(&never, now), 0);
        for ttl in [0, 999, 61_000] {
            assert_eq!(of("20%", ttl).expect_err("refused").path, "ttl");
        }
        assert!("20% min -1/s".parse::<BudgetSpec>().is_err());
        assert!("-1%".parse::<BudgetSpec>().is_err());
        assert_eq!(of("2000%", 1_000).expect_err("refused").path, "budget");
    }

    #[test]
    fn bud_2_the_recorded_run_of_twitter_util() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let b = reserve(100, 3_000);
        assert!(takes(&b, start, 50) && takes(&b, start, 50));
        assert!(!takes(&b, start, 1));
        b.deposit(start);
        assert!(takes(&b, start, 1));
        assert!(!takes(&b, at(1), 1) && !takes(&b, at(2), 1) && !takes(&b, at(3), 1));
        assert!(takes(&b, at(4), 50));
        assert!(takes(&b, at(7), 100));
        assert!(!takes(&b, at(7), 1));

        let b = reserve(0, 3_000);
        (0..100).for_each(|_| b.deposit(start));
        assert!(takes(&b, start, 1));
        assert!(!takes(&b, at(3), 1));
    }

    #[test]
    fn an_idle_budget_forgets_however_long_it_was_idle() {
        let start = Instant::now();
        let b = budget("100% min 1/s");
        (0..50).for_each(|_| b.deposit(start));
        assert_eq!(take(&b, start), 60);
        // 24 bits of slice ids would be back after 194 days.
        for days in [1, 194, 195, 20_000] {
            let later = start + Duration::from_secs(days * 86_400);
            assert_eq!(b.balance(later), 10, "after {days} days");
        }
        // A caller with an older clock sees no more than there is.
        assert!(take(&b, start) <= 10);
    }

    #[test]
    fn a_call_deposits_once_and_its_share_comes_back_on_drop() {
        let now = Instant::now();
        let share = "50% min 1".parse().expect("share");
        let b = Budget::with("100% min 9/s".parse().expect("spec"), share, DEFAULT_TTL);
        let b = b.expect("valid");
        let calls: Vec<_> = (0..4).map(|_| b.begin(now)).collect();
        assert_eq!(b.balance(now), 94);
        let first = calls[0].try_extra(now).expect("1 of 2");
        let _second = calls[1].try_extra(now).expect("2 of 2");
        let full = calls[2].try_extra(now).expect_err("half of 4 are 2");
        assert_eq!(full.reason, Reason::Full);
        drop(first);
        assert_eq!(b.balance(now), 92, "what was spent stays spent");
        let third = calls[2].try_extra(now).expect("room again");
        third.forgive();
        assert_eq!(
            b.balance(now),
            92,
            "a try that was never made costs nothing"
        );
        drop(calls);
        assert_eq!(b.in_flight(), InFlight { calls: 0, extra: 1 });
        let one = b.begin(now);
        assert!(one.try_extra(now).is_err(), "the floor is 1, and taken");
        let want = Counts {
            withdrawn: 2,
            exhausted: 0,
            capped: 2,
        };
        assert_eq!(b.counts(), want);
    }

    /// Envoy #30205 and #43022: retries that wait in backoff were not counted, so a burst of them
    /// passed any share. Here they are held from the moment they are decided.
    #[test]
    fn envoy_30205_retries_that_wait_count_as_under_way() {
        let now = Instant::now();
        let share = "20% min 3".parse().expect("share");
        let b = Budget::with("1000% min 99/s".parse().expect("spec"), share, DEFAULT_TTL);
        let b = b.expect("valid");
        let calls: Vec<_> = (0..100).map(|_| b.begin(now)).collect();
        let waiting: Vec<_> = calls.iter().filter_map(|c| c.try_extra(now).ok()).collect();
        assert_eq!(waiting.len(), 20);
    }

    #[test]
    fn exhausted_gives_its_place_back() {
        let now = Instant::now();
        let b = Budget::new("0% min 0/s".parse().expect("spec")).expect("valid");
        let call = b.begin(now);
        for _ in 0..100 {
            let refused = call.try_extra(now).expect_err("nothing there");
            assert_eq!(refused.reason, Reason::Exhausted);
        }
        assert_eq!(b.in_flight(), InFlight { calls: 1, extra: 0 });
    }

    #[test]
    fn two_threads_never_overdraw_and_leave_nothing_behind() {
        const CALLS: usize = crate::sync::rounds(200_000, 400) as usize;
        let now = Instant::now();
        let b = budget("50%");
        let taken: usize = std::thread::scope(|scope| {
            let work = |thread: u64| {
                let b = &b;
                move || {
                    (0..CALLS as u64)
                        .filter(|n| {
                            // Two clocks that are never quite the same.
                            let at = now + Duration::from_micros(n * 3 + thread * 700);
                            let call = b.begin(at);
                            call.try_extra(at).is_ok()
                        })
                        .count()
                }
            };
            let threads = [scope.spawn(work(0)), scope.spawn(work(1))];
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum()
        });
        // All within one ttl: half of what was deposited, and every one of them.
        assert_eq!(taken, CALLS);
        assert_eq!(b.in_flight(), InFlight::default());
        assert_eq!(b.counts().withdrawn, CALLS as u64);
        assert_eq!(b.counts().exhausted, CALLS as u64);
    }

    #[test]
    fn reconfigure_keeps_the_balance() {
        let now = Instant::now();
        let b = budget("10%");
        (0..1000).for_each(|_| b.deposit(now));
        assert_eq!(b.balance(now), 100);
        b.reconfigure("50%".parse().expect("spec"), DEFAULT_SHARE)
            .expect("valid");
        assert_eq!(b.balance(now), 500);
        let refused = b.reconfigure("2000%".parse().expect("spec"), DEFAULT_SHARE);
        assert!(refused.is_err());
        assert_eq!(b.balance(now), 500);
    }

    proptest! {
        /// The law, against the slowest model there is: a list of everything that happened.
        #[test]
        fn no_span_of_ttl_holds_more_than_the_ratio_and_the_floor(
            percent in 0u32..300,
            min in 0u32..4,
            steps in proptest::collection::vec((0u64..400, 0u8..4), 1..400),
        ) {
            let ttl = Duration::from_secs(2);
            let spec = BudgetSpec { ratio: Ratio::percent(percent), min_per_second: min };
            let b = Budget::with(spec, NO_CAP, Millis(ttl)).expect("valid");
            let start = Instant::now();
            let (mut at, mut deposits, mut withdrawals) = (start, Vec::new(), Vec::new());
            for (ms, action) in steps {
                at += Duration::from_millis(ms);
                let within = |times: &[Instant]| {
                    times.iter().filter(|&&t| t + ttl > at).count() as u64
                };
                if action == 0 {
                    b.deposit(at);
                    deposits.push(at);
                } else if b.try_withdraw(at).is_ok() {
                    withdrawals.push(at);
                    let allowed = within(&deposits) * u64::from(percent) / 100 + u64::from(min) * 2;
                    prop_assert!(within(&withdrawals) <= allowed, "at {:?}", at - start);
                } else {
                    // Refused only if a span that is two slices shorter for deposits and longer for
                    // withdrawals is really used up.
                    let (less, more) = (ttl * 9 / 10, ttl * 11 / 10);
                    let paid = deposits.iter().filter(|&&t| t + less > at).count() as u64;
                    let used = withdrawals.iter().filter(|&&t| t + more > at).count() as u64;
                    let allowed = paid * u64::from(percent) / 100 + u64::from(min) * 2;
                    prop_assert!(used >= allowed, "refused too early at {:?}", at - start);
                }
            }
        }
    }
}
