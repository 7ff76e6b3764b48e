#[cfg(loom)]
mod models {
    use loom::thread;

    use super::super::*;

    /// Latencies recorded by two threads are all there, and a refresh beside them sees some of
    /// them but never more.
    #[test]
    fn no_latency_is_lost() {
        loom::model(|| {
            let config = HedgeConfig {
                min_samples: 1,
                after: "p50".parse().expect("valid"),
                ..HedgeConfig::default()
            };
            let hedge = Hedge::new(config).expect("valid");
            #[expect(clippy::disallowed_methods, reason = "a model has to start somewhere")]
            let now = Instant::now();
            let other = {
                let hedge = hedge.clone();
                thread::spawn(move || hedge.record(Duration::from_micros(70), now))
            };
            hedge.record(Duration::from_micros(70), now);
            // One is there for certain; a quantile of p50 needs two.
            let early = hedge.delay(now);
            other.join().expect("no panic");
            let (total, _) = hedge.0.latencies.load().quantile(0.5, Tick::at(now));
            assert_eq!(total, 2);
            assert!(early.is_none_or(|delay| delay == Duration::from_millis(1)));
        });
    }
}

#[cfg(not(loom))]
mod cases {
    use proptest::prelude::*;

    use super::super::*;
    use crate::{
        Reason,
        config::Millis,
        retry::budget::{Budget, InFlight},
    };

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn hedge(text: &str) -> Hedge {
        Hedge::new(toml::from_str(text).expect(text)).expect(text)
    }

    fn rich() -> Budget {
        Budget::new("1000% min 99/s".parse().expect("spec")).expect("valid")
    }

    #[test]
    fn a_fixed_delay_is_due_at_once_and_again_until_there_are_enough() {
        let (hedge, budget, now) = (hedge("after = \"50ms\"\nmax = 2"), rich(), Instant::now());
        let call = budget.begin(now);
        let mut race = hedge.begin(Safety::Always, now, None);
        assert_eq!(race.due(), Some(now + ms(50)));
        // The timer was late: the next is due after the same time again.
        let _first = race.send(&call, now + ms(53)).expect("paid");
        assert_eq!(race.due(), Some(now + ms(103)));
        let _second = race.send(&call, now + ms(103)).expect("paid");
        assert_eq!((race.due(), race.sent()), (None, 2));
        race.won();
        drop(race);
        let want = HedgeStats {
            sent: 2,
            won: 1,
            wasted: 1,
            ..HedgeStats::default()
        };
        assert_eq!(hedge.stats(), want);
    }

    #[test]
    fn there_is_no_hedge_where_there_must_be_none() {
        let (hedge, now) = (hedge("after = \"50ms\""), Instant::now());
        let until = |left| Some(now + ms(left));
        let cases = [
            ("not idempotent", Safety::IfUnprocessed, None, false),
            ("a tunnel", Safety::Never, None, false),
            ("due at the deadline", Safety::Always, until(50), false),
            ("due after it", Safety::Always, until(20), false),
            ("due before it", Safety::Always, until(51), true),
            ("no deadline", Safety::Always, None, true),
        ];
        for (name, safety, deadline, want) in cases {
            let race = hedge.begin(safety, now, deadline);
            assert_eq!(race.due().is_some(), want, "{name}");
        }
    }

    #[test]
    fn hedges_are_paid_from_the_budget_that_retries_use() {
        let (hedge, now) = (hedge("after = \"50ms\"\nmax = 4"), Instant::now());
        let share = "1000%".parse().expect("share");
        let spec = "0% min 1/s".parse().expect("spec");
        let budget = Budget::with(spec, share, Millis::new(2_000)).expect("valid");
        let call = budget.begin(now);
        // A retry takes one of two.
        let _retry = call.try_extra(now).expect("paid");
        let mut race = hedge.begin(Safety::Always, now, None);
        let _hedge = race.send(&call, now + ms(50)).expect("paid");
        let refused = race.send(&call, now + ms(100)).expect_err("used up");
        assert_eq!(refused.reason, Reason::Exhausted);
        assert_eq!(race.due(), None, "no more of this call");
        assert_eq!((hedge.stats().sent, hedge.stats().exhausted), (1, 1));
    }

    #[test]
    fn a_quantile_is_not_known_before_there_is_enough_nor_after_a_long_silence() {
        let (hedge, now) = (hedge("after = \"p95\""), Instant::now());
        (0..19).for_each(|_| hedge.record(ms(10), now));
        assert_eq!(hedge.delay(now), None, "19 are too few");
        hedge.record(ms(100), now);
        assert_eq!(hedge.delay(now), None, "looked at every 3 s only");
        let later = now + ms(3_000);
        let delay = hedge.delay(later).expect("20 are enough");
        assert!(delay >= ms(10) && delay <= ms(12), "{delay:?}");
        for seconds in [60, 86_400, 86_400 * 20_000] {
            let then = now + Duration::from_secs(seconds);
            assert_eq!(hedge.delay(then), None, "after {seconds} s of silence");
        }
    }

    #[test]
    fn bounds_hold_and_a_callee_that_is_slow_for_everybody_gets_none() {
        let now = Instant::now();
        for (latency, want) in [
            (Duration::from_micros(70), Some(ms(1))),
            (ms(1_700), Some(ms(1_700))),
            (ms(2_100), None),
            (Duration::from_secs(600), None),
        ] {
            let hedge = hedge("");
            (0..100).for_each(|_| hedge.record(latency, now));
            let got = hedge.delay(now);
            let near = match (got, want) {
                (Some(got), Some(want)) => got >= want && got <= want * 9 / 8,
                (got, want) => got == want,
            };
            assert!(near, "{latency:?}: {got:?}, want {want:?}");
        }
    }

    #[test]
    fn only_what_says_how_long_tries_take_is_recorded() {
        let now = Instant::now();
        let failed = Outcome::Failure;
        let cases = [
            (Outcome::Success, true),
            (Outcome::Ignored, true),
            (failed(FailureClass::Timeout), true),
            (failed(FailureClass::ServerError), false),
            (failed(FailureClass::Connect), false),
            (Outcome::RateLimited, false),
            (Outcome::Cancelled, false),
        ];
        for (outcome, want) in cases {
            let hedge = hedge("");
            let race = hedge.begin(Safety::Always, now, None);
            race.ended(outcome, now, now + ms(5));
            assert_eq!(hedge.quantile(0.5, now).is_some(), want, "{outcome:?}");
            let post = hedge.begin(Safety::IfUnprocessed, now, None);
            post.ended(Outcome::Success, now, now + ms(900));
            assert!(hedge.quantile(1.0, now) < Some(ms(900)), "another kind");
        }
    }

    #[test]
    fn losers_count_with_their_time_and_impatience_does_not() {
        let (hedge, now) = (hedge("after = \"50ms\""), Instant::now());
        let race = hedge.begin(Safety::Always, now, None);
        race.cancelled(now, now + ms(49));
        assert_eq!(hedge.quantile(0.5, now), None);
        race.cancelled(now, now + ms(50));
        let got = hedge.quantile(0.5, now).expect("recorded");
        assert!(got >= ms(50) && got < ms(57), "{got:?}");
    }

    #[test]
    fn reconfigured_it_keeps_its_latencies_and_its_counters() {
        let (hedge, now) = (hedge("after = \"50ms\""), Instant::now());
        (0..100).for_each(|_| hedge.record(ms(10), now));
        let config = |text: &str| toml::from_str::<HedgeConfig>(text).expect(text);
        hedge.reconfigure(config("after = \"p95\"")).expect("valid");
        assert!(hedge.delay(now).expect("known") < ms(12));
        let refused = hedge.reconfigure(config("max = 0"));
        assert_eq!(refused.expect_err("refused").path, "max");
        assert!(hedge.delay(now).is_some(), "nothing has changed");
        hedge
            .reconfigure(config("window = \"10s\""))
            .expect("valid");
        assert_eq!(hedge.delay(now), None, "another window begins empty");
        hedge.reconfigure(config("after = \"7ms\"")).expect("valid");
        assert_eq!(hedge.delay(now), Some(ms(7)));
    }

    #[test]
    fn extremes_of_the_clock_do_no_harm() {
        let (hedge, now) = (hedge(""), Instant::now());
        for at in [
            now.checked_sub(Duration::from_secs(7_200)),
            now.checked_add(Duration::from_secs(1 << 40)),
        ] {
            let Some(at) = at else { continue };
            hedge.record(Duration::MAX, at);
            hedge.record(Duration::ZERO, at);
            assert!(hedge.delay(at).is_none());
            let race = hedge.begin(Safety::Always, at, Some(now));
            race.cancelled(at, now);
        }
        assert!(hedge.delay(now).is_none());
    }

    #[test]
    fn two_threads_account_for_every_hedge() {
        const CALLS: u64 = crate::sync::rounds(100_000, 100);
        let (hedge, budget, now) = (hedge("after = \"1ms\"\nmax = 1"), rich(), Instant::now());
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let (hedge, budget) = (&hedge, &budget);
                scope.spawn(move || {
                    for n in 0..CALLS {
                        let call = budget.begin(now);
                        let mut race = hedge.begin(Safety::Always, now, None);
                        let extra = race.send(&call, now);
                        if extra.is_ok() && n % 3 == thread {
                            race.won();
                        }
                        race.ended(Outcome::Success, now, now + ms(n % 50));
                    }
                });
            }
        });
        let stats = hedge.stats();
        assert_eq!(stats.sent + stats.exhausted, 2 * CALLS);
        assert_eq!(stats.won + stats.wasted, stats.sent);
        assert_eq!(budget.in_flight(), InFlight::default());
        let (total, _) = hedge.0.latencies.load().quantile(0.5, Tick::at(now));
        assert_eq!(total, 2 * CALLS);
    }

    proptest! {
        /// The law, against a list of everything that happened: of the calls of the last window at
        /// the moment of measuring, at most `1 − quantile` took longer than the delay.
        #[test]
        fn few_calls_are_late_enough(
            steps in prop::collection::vec((0u64..400, 1u64..1_900), 1..400),
            percent in 50u32..99,
        ) {
            let hedge = hedge(&format!("after = \"p{percent}\"\nwindow = \"3s\"\nmin_samples = 1"));
            let start = Instant::now();
            let (mut at, mut all) = (start, Vec::new());
            for (gap, latency) in steps {
                at += ms(gap);
                all.push((at, ms(latency)));
                hedge.record(ms(latency), at);
            }
            hedge.0.refresh_at.set_now();
            if let Some(delay) = hedge.delay(at) {
                // What the window holds: no less than its last two slices, no more than three.
                let id = |then: Instant| Tick::at(then).0 / 1_000_000_000;
                let held: Vec<_> = all.iter().filter(|(then, _)| id(*then) + 3 > id(at)).collect();
                let late = held.iter().filter(|(_, latency)| *latency > delay).count() as f64;
                let allowed = (1.0 - f64::from(percent) / 100.0) * held.len() as f64;
                prop_assert!(late <= allowed + 1e-6, "{late} of {} at {delay:?}", held.len());
            }
        }
    }
}
