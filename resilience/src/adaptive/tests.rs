//! The limiter around the rules: windows, epochs, partitions, and exact accounts.

use super::*;
use crate::config::Ratio;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn limit(text: &str) -> AdaptiveLimit {
    AdaptiveLimit::new(toml::from_str(text).expect(text), Rng::new(1)).expect(text)
}

/// `calls` at once, each `rtt` long, from `now`.
fn burst(limit: &AdaptiveLimit, calls: u32, rtt: Duration, outcome: Outcome, now: Instant) {
    let permits: Vec<_> = (0..calls)
        .map(|_| limit.try_acquire(now).expect("room"))
        .collect();
    for permit in permits {
        permit.complete(outcome, now + rtt);
    }
}

const AIMD: &str = "algorithm = \"aimd\"\ninitial = 20\nmin = 5\n";

#[test]
fn the_limit_moves_once_a_window_and_not_on_too_few_samples() {
    let limit = limit(AIMD);
    let start = Instant::now();
    burst(&limit, 9, ms(10), Outcome::Success, start);
    assert_eq!(limit.status().windows, 0, "nine are too few");
    burst(&limit, 10, ms(10), Outcome::Success, start + ms(10));
    assert_eq!(
        (limit.status().windows, limit.limit()),
        (1, 20),
        "nine of twenty were used"
    );
    burst(&limit, 20, ms(10), Outcome::Success, start + ms(500));
    assert_eq!(limit.status().windows, 1, "half a second is no window");
    burst(&limit, 20, ms(10), Outcome::Success, start + ms(1010));
    assert_eq!((limit.status().windows, limit.limit()), (2, 21));
    // A quiet time does not move it, and is not forgotten either: the window lasts.
    burst(&limit, 1, ms(10), Outcome::Success, start + ms(9000));
    assert_eq!(limit.status().windows, 2 + 1, "nineteen had come before");
}

#[test]
fn what_counts_as_dropped() {
    use FailureClass::{Connect, Other, Protocol, Reset, ServerError, Timeout};
    let cases = [
        (Outcome::Success, 10, false),
        (Outcome::Success, 5001, true),
        (Outcome::RateLimited, 1, true),
        (Outcome::Failure(Timeout), 10, true),
        (Outcome::Failure(Connect), 10, true),
        (Outcome::Failure(Reset), 10, true),
        (Outcome::Failure(ServerError), 10, false),
        (Outcome::Failure(Protocol), 10, false),
        (Outcome::Failure(Other), 10, false),
        (Outcome::Ignored, 10, false),
        (Outcome::Cancelled, 10, false),
        (Outcome::Cancelled, 5001, true),
    ];
    for (outcome, rtt, dropped) in cases {
        let limit = limit(AIMD);
        burst(&limit, 10, ms(rtt), outcome, Instant::now());
        let want = if dropped { 10 } else { 0 };
        assert_eq!(limit.status().dropped, want, "{outcome:?} {rtt} ms");
        assert_eq!(limit.limit() < 20, dropped, "{outcome:?} {rtt} ms");
        assert_eq!(limit.in_flight(), 0);
    }
}

#[test]
fn a_dropped_permit_and_a_very_fast_call_are_no_samples() {
    let limit = limit(AIMD);
    let now = Instant::now();
    for _ in 0..50 {
        drop(limit.try_acquire(now).expect("room"));
    }
    burst(&limit, 20, Duration::from_micros(99), Outcome::Success, now);
    assert_eq!(limit.status().windows, 0);
    assert_eq!(limit.in_flight(), 0);
}

#[test]
fn envoy_samples_begun_before_the_epoch_say_nothing_about_the_idle_callee() {
    let text = "algorithm = { gradient = { measure_samples = 10 } }\nmin = 5";
    let limit = limit(text);
    let start = Instant::now();
    assert_eq!(limit.limit(), 3, "it measures first");
    let straggler = limit.try_acquire(start).expect("room");
    for n in 0..10 {
        burst(&limit, 1, ms(13), Outcome::Success, start + ms(20 * n));
    }
    assert_eq!((limit.status().windows, limit.limit()), (1, 20));
    straggler.complete(Outcome::Success, start + ms(4000));
    assert_eq!(limit.status().stale, 1);
    let status = limit.status();
    assert_eq!(
        (status.windows, status.dropped, status.in_flight),
        (1, 0, 0)
    );
}

#[test]
fn adp_5_partitions() {
    let text = r#"
        initial = 10
        min = 1
        partitions = { batch = "30%", live = "70%" }
    "#;
    let now = Instant::now();
    let classes = |limit: &AdaptiveLimit| {
        ["batch", "live"].map(|name| limit.partition(name).expect("configured"))
    };
    let limit = limit(text);
    let [batch, live] = classes(&limit);
    let take = |class: &Partition, n: u32| -> Vec<Permit> {
        (0..n).map_while(|_| class.try_acquire(now).ok()).collect()
    };

    let mut held = take(&batch, 11);
    assert_eq!(held.len(), 10, "idle, batch takes all and no more");
    let lives = take(&live, 8);
    assert_eq!(lives.len(), 7, "live is sure of its share");
    drop(lives);
    drop(held.pop());
    assert_eq!(take(&batch, 2).len(), 1, "one released, one admitted");
    drop(held);
    assert_eq!(
        (limit.in_flight(), batch.in_flight(), live.in_flight()),
        (0, 0, 0)
    );

    let full = (take(&batch, 3), take(&live, 7));
    assert!(batch.try_acquire(now).is_err() && live.try_acquire(now).is_err());
    drop(full);
    let text = text
        .replace("initial = 10", "initial = 20\nmax = 20")
        .replace("min = 1", "min = 20");
    limit
        .reconfigure(toml::from_str(&text).expect("parses"))
        .expect("valid");
    assert_eq!((limit.limit(), batch.share(), live.share()), (20, 6, 14));
    assert!(limit.partition("other").is_none());
}

#[test]
fn a_partition_that_is_gone_is_sure_of_one_call_and_gives_back_what_it_holds() {
    let limit = limit("initial = 2\nmin = 2\npartitions = { a = 0.5, b = 0.5 }");
    let now = Instant::now();
    let a = limit.partition("a").expect("configured");
    let held = [
        a.try_acquire(now).expect("1"),
        a.try_acquire(now).expect("2"),
    ];
    let config = toml::from_str("initial = 2\nmin = 2\npartitions = { b = 1.0 }").expect("parses");
    limit.reconfigure(config).expect("valid");
    assert!(limit.partition("a").is_none() && a.try_acquire(now).is_err());
    drop(held);
    assert_eq!((a.in_flight(), limit.in_flight(), a.share()), (0, 0, 1));
    assert!(a.try_acquire(now).is_ok());
}

#[test]
fn reconfigure_keeps_the_limit_and_what_was_learnt() {
    let limit = limit(AIMD);
    let start = Instant::now();
    for second in 0..30 {
        burst(
            &limit,
            20,
            ms(10),
            Outcome::Success,
            start + ms(1010 * second),
        );
    }
    assert_eq!(limit.limit(), 41, "more than half of it must be used");
    let under_way = limit.try_acquire(start).expect("room");
    limit
        .reconfigure(toml::from_str(&AIMD.replace("20", "30")).expect("parses"))
        .expect("valid");
    assert_eq!(limit.limit(), 41, "not back to initial");
    let vegas = "algorithm = \"vegas\"\ninitial = 20\nmin = 5\nmax = 25";
    limit
        .reconfigure(toml::from_str(vegas).expect("parses"))
        .expect("valid");
    assert_eq!(limit.limit(), 25, "within the new bounds");
    under_way.complete(Outcome::Success, start + ms(60_000));
    let status = limit.status();
    assert_eq!((status.stale, status.in_flight), (1, 0));
    assert!(
        limit
            .reconfigure(toml::from_str("min = 9\nmax = 3").expect("parses"))
            .is_err()
    );
    assert_eq!(limit.limit(), 25, "a bad one changes nothing");
}

#[test]
fn who_waits_is_served_when_the_limit_grows() {
    let limit = limit("algorithm = \"aimd\"\ninitial = 10\nmin = 5\nqueue = { max = 2 }");
    let now = Instant::now();
    let mut held: Vec<_> = (0..10)
        .map(|_| limit.try_acquire(now).expect("room"))
        .collect();
    let mut places = Vec::new();
    for _ in 0..2 {
        match limit.acquire(now) {
            Ok(Entry::Waits(waiter)) => places.push(waiter),
            other => panic!("expected a place: {other:?}"),
        }
    }
    assert_eq!(
        limit.acquire(now).expect_err("full").reason,
        Reason::QueueFull
    );
    let last = held.pop().expect("ten");
    for permit in held {
        permit.complete(Outcome::Success, now + ms(10));
    }
    last.complete(Outcome::Success, now + ms(10));
    let waker = std::task::Waker::noop();
    for waiter in &mut places {
        assert!(waiter.poll(waker, now + ms(10)).is_ready());
    }
    assert_eq!(limit.limit(), 11);
    drop(places);
    assert_eq!((limit.in_flight(), limit.status().waiting), (0, 0));
}

#[test]
fn what_cannot_work_is_refused_with_its_path() {
    let cases = [
        ("max = 0", "max"),
        ("min = 0", "min"),
        ("min = 300\nmax = 250", "min"),
        ("initial = 300\nmax = 250", "initial"),
        ("initial = 1\nmin = 2", "min"),
        ("window = \"0s\"", "window"),
        ("min_samples = 0", "min_samples"),
        ("drop_after = \"0s\"", "drop_after"),
        ("min_rtt = \"5s\"", "min_rtt"),
        ("queue = { max = 0 }", "queue.max"),
        ("partitions = { a = 0.6, b = 0.5 }", "partitions.b"),
        ("partitions = { a = 0.0 }", "partitions.a"),
        (
            "algorithm = { aimd = { backoff = \"100%\" } }",
            "algorithm.aimd.backoff",
        ),
        (
            "algorithm = { vegas = { beta = 1 } }",
            "algorithm.vegas.beta",
        ),
        (
            "algorithm = { vegas = { smoothing = 0.0 } }",
            "algorithm.vegas.smoothing",
        ),
        (
            "algorithm = { gradient2 = { tolerance = \"90%\" } }",
            "algorithm.gradient2.tolerance",
        ),
        (
            "algorithm = { gradient = { measure_samples = 0 } }",
            "algorithm.gradient.measure_samples",
        ),
    ];
    for (text, path) in cases {
        let config: AdaptiveConfig = toml::from_str(text).expect(text);
        assert_eq!(config.validate().expect_err(text).path, path, "{text}");
    }
    for text in [
        "algorithm = \"bbr\"",
        "algorithm = { vegas = { gamma = 1 } }",
        "algorithm = { vegas = {}, aimd = {} }",
        "limit = 3",
    ] {
        assert!(toml::from_str::<AdaptiveConfig>(text).is_err(), "{text}");
    }
    let tuned: AdaptiveConfig = toml::from_str(
        "algorithm = { vegas = { alpha = 2, smoothing = \"50%\" } }\npartitions = { a = 0.5 }",
    )
    .expect("parses");
    let printed = toml::to_string(&tuned).expect("prints");
    assert_eq!(
        toml::from_str::<AdaptiveConfig>(&printed).expect("again"),
        tuned
    );
    assert_eq!(tuned.partitions["a"], Ratio::percent(50));
}

/// Two threads, every way a call may end: nothing stays behind, nothing is counted twice.
#[test]
fn two_million_calls_from_two_threads_leave_nothing_behind() {
    const CALLS: u64 = crate::sync::rounds(1_000_000, 1_200);
    let limit = limit(
        "algorithm = \"aimd\"\ninitial = 1\nmin = 1\nmax = 3\nwindow = \"1ms\"\npartitions = { a = 0.5, b = 0.5 }",
    );
    let start = Instant::now();
    let work = |name: &str, seed: u64| {
        let (class, rng) = (limit.partition(name).expect("configured"), Rng::new(seed));
        let mut refused = 0u64;
        let mut kept: Vec<Permit> = Vec::new();
        for n in 0..CALLS {
            let now = start + Duration::from_micros(n);
            match class.try_acquire(now) {
                Err(_) => refused += 1,
                Ok(permit) => kept.push(permit),
            }
            assert!(class.in_flight() <= 4);
            let outcome = match rng.below(4) {
                0 => Outcome::RateLimited,
                1 => Outcome::Cancelled,
                _ => Outcome::Success,
            };
            match rng.below(3) {
                0 => drop(kept.pop()),
                1 => kept
                    .drain(..)
                    .for_each(|permit| permit.complete(outcome, now + ms(1))),
                _ => {}
            }
        }
        refused
    };
    let totals = std::thread::scope(|scope| {
        let other = scope.spawn(|| work("b", 2));
        [work("a", 1), other.join().expect("no panic")]
    });
    let status = limit.status();
    assert_eq!(status.in_flight, 0);
    assert_eq!(status.full, totals.iter().sum::<u64>());
    assert!(status.windows > 0 && (1..=3).contains(&status.limit));
    for name in ["a", "b"] {
        assert_eq!(limit.partition(name).expect("configured").in_flight(), 0);
    }
}
