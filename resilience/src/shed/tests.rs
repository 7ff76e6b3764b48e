//! The cursor by hand, and a simulated server at three times its capacity.

use std::collections::VecDeque;

use super::*;
use crate::rng::Rng;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn shedder(text: &str) -> Shedder {
    Shedder::new(toml::from_str(text).expect(text)).expect(text)
}

const CLASSES: [Priority; 3] = [Priority::CRITICAL, Priority::DEFAULT, Priority::BATCH];

/// A window's worth of requests that all wait for `wait`; how many of each class were admitted.
fn window(shedder: &Shedder, each: u32, wait: Duration, at: Instant) -> [u32; 3] {
    let mut admitted = [0; 3];
    let mut tickets = Vec::new();
    for _ in 0..each {
        for (class, priority) in CLASSES.iter().enumerate() {
            if let Ok(ticket) = shedder.admit(*priority, at) {
                admitted[class] += 1;
                tickets.push(ticket);
            }
        }
    }
    for ticket in tickets {
        ticket.begun(at + wait);
    }
    admitted
}

#[test]
fn what_matters_least_is_refused_first_and_comes_back_last() {
    let shedder = shedder("decrease = \"50%\"\nincrease = \"20%\"");
    let start = Instant::now();
    let mut at = start;
    let mut next = |wait| {
        at += ms(1001);
        window(&shedder, 100, ms(wait), at)
    };
    let mut admits = |wait, want: [u32; 3], why: &str| {
        let admitted = next(wait);
        // A share is spread evenly, not counted out: each window may be off by one or two.
        let near = admitted
            .iter()
            .zip(want)
            .all(|(n, want)| n.abs_diff(want) <= 5);
        assert!(near, "{why}: {admitted:?} instead of {want:?}");
    };
    admits(21, [100; 3], "nothing is known yet");
    admits(21, [100, 50, 0], "half of 300");
    admits(21, [75, 0, 0], "half of 150");
    admits(20, [37, 0, 0], "20 ms are not above the target");
    admits(1, [98, 0, 0], "a fifth of 300 more");
    admits(1, [100, 58, 0], "and again");
    let status = shedder.status();
    assert_eq!(status.cursor, Some(Priority::DEFAULT));
    assert_eq!((status.overloaded, status.waiting), (3, 0));
    admits(1, [100, 100, 18], "and again");
    admits(1, [100, 100, 78], "and again");
    admits(1, [100; 3], "everybody is back");
    assert_eq!(shedder.status().cursor, None);
}

#[test]
fn a_refusal_says_when_to_come_back() {
    let shedder = shedder("decrease = \"99%\"");
    let start = Instant::now();
    window(&shedder, 100, ms(500), start);
    let rejected = shedder
        .admit(Priority::LOWEST, start + ms(1001))
        .expect_err("overloaded");
    assert_eq!(rejected.policy, Policy::Shed);
    assert_eq!(rejected.reason, Reason::Overloaded);
    assert_eq!(rejected.retry_after, Some(ms(1000)));
    assert_eq!(rejected.flag(), "OM");
}

#[test]
fn the_window_closes_early_when_it_has_seen_enough() {
    let shedder = shedder("samples = 30");
    let now = Instant::now();
    window(&shedder, 10, ms(30), now);
    assert_eq!(shedder.status().overloaded, 1, "no second has passed");
}

#[test]
fn who_waits_for_nothing_counts_with_the_wait() {
    let shedder = shedder("");
    let start = Instant::now();
    for n in 0..100 {
        let ticket = shedder.admit(Priority::DEFAULT, start).expect("open");
        match n % 2 {
            // Newest first: those served are quick, the others starve.
            0 => ticket.begun(start + ms(1)),
            _ => ticket.gone(start + ms(100)),
        }
    }
    drop(shedder.admit(Priority::DEFAULT, start + ms(1200)));
    let status = shedder.status();
    assert_eq!(status.overloaded, 1);
    assert!(status.share < 0.5, "half of them were served: {status:?}");
}

#[test]
fn nothing_begins_for_a_window_while_requests_wait() {
    let shedder = shedder("");
    let start = Instant::now();
    let mut stuck = Vec::new();
    for second in 0..4u64 {
        stuck.extend(shedder.admit(Priority::BATCH, start + ms(1001 * second)));
    }
    assert!(shedder.status().overloaded > 0);
    assert!(shedder.admit(Priority::BATCH, start + ms(3100)).is_err());
    drop(stuck);
    assert_eq!(shedder.status().waiting, 0);
    // It does not stay shut: with nobody waiting, each window lets one more pass.
    let reopened = (0..5u64).any(|s| {
        shedder
            .admit(Priority::BATCH, start + ms(10_000 + 1001 * s))
            .is_ok()
    });
    assert!(reopened);
}

#[test]
fn a_quiet_service_refuses_nobody() {
    let shedder = shedder("");
    let start = Instant::now();
    for n in 0..100u64 {
        let at = start + ms(700 * n);
        shedder
            .admit(Priority::LOWEST, at)
            .expect("nothing waits")
            .begun(at + ms(2));
    }
    assert_eq!(shedder.status().overloaded, 0);
}

#[test]
fn a_share_is_spread_evenly() {
    for share in [0.01, 0.1, 0.5, 0.9] {
        let cursor = Cursor::new(5, share);
        assert!(cursor.passes(4, 0) && !cursor.passes(6, 0));
        for start in [0u32, 12_345, u32::MAX - 50] {
            let passed = (0..1000)
                .filter(|n| cursor.passes(5, start.wrapping_add(*n)))
                .count() as f64;
            assert!((passed - 1000.0 * share).abs() <= 10.0, "{share}: {passed}");
        }
    }
}

#[test]
fn what_cannot_work_is_refused_with_its_path() {
    for (text, path) in [
        ("target = \"0s\"", "target"),
        ("window = \"0s\"", "window"),
        ("samples = 0", "samples"),
        ("decrease = 1.0", "decrease"),
        ("increase = 0.0", "increase"),
    ] {
        let config: ShedConfig = toml::from_str(text).expect(text);
        assert_eq!(config.validate().expect_err(text).path, path, "{text}");
    }
    assert!(toml::from_str::<ShedConfig>("alpha = 0.1").is_err());
}

/// Counts of one class.
#[derive(Debug, Default, Clone, Copy)]
struct Served {
    came: u32,
    /// Begun and finished before its caller gave up.
    good: u32,
}

/// One worker that needs 1 ms a request, a queue that its callers leave after 100 ms, and three
/// times as many requests as it can serve. A pure event loop: no clock, no thread.
fn overloaded_server(shedder: Option<&Shedder>, seconds: u64) -> [Served; 3] {
    const STEP: Duration = Duration::from_micros(1000);
    const PATIENCE: Duration = Duration::from_millis(100);
    let (start, rng) = (Instant::now(), Rng::new(5));
    let mut queue: VecDeque<(usize, Duration, Option<Ticket>)> = VecDeque::new();
    let mut served = [Served::default(); 3];
    for step in 0..seconds * 1000 {
        let now = STEP * step as u32;
        let counts = step >= 10_000;
        for _ in 0..3 {
            // 20 % critical, 30 % default, 50 % batch; of a class, users of all cohorts.
            let class = match rng.below(10) {
                0..=1 => 0,
                2..=4 => 1,
                _ => 2,
            };
            served[class].came += u32::from(counts);
            let priority = CLASSES[class].with_cohort(rng.next_u64());
            match shedder.map(|s| s.admit(priority, start + now)) {
                Some(Err(_)) => {}
                Some(Ok(ticket)) => queue.push_back((class, now, Some(ticket))),
                None => queue.push_back((class, now, None)),
            }
        }
        // Without shedding nobody tells the server that a caller has gone: it serves him, for
        // nothing. With it, the queue has a deadline.
        while let Some((class, arrived, ticket)) = queue.pop_front() {
            let waited = now.saturating_sub(arrived);
            let in_time = waited + STEP <= PATIENCE;
            if let Some(ticket) = ticket {
                if !in_time {
                    ticket.gone(start + now);
                    continue;
                }
                ticket.begun(start + now);
            }
            served[class].good += u32::from(in_time && counts);
            break;
        }
    }
    served
}

#[test]
fn at_three_times_the_load_critical_is_served_batch_is_shed_and_goodput_holds() {
    let shedder = shedder("");
    let [critical, default, batch] = overloaded_server(Some(&shedder), 60);
    let share = |class: Served| f64::from(class.good) / f64::from(class.came);
    assert!(share(critical) > 0.99, "critical {critical:?}");
    assert!(share(batch) < 0.02, "batch {batch:?}");
    // 1000/s: 600 critical, what is left of 400 for 900 default ones.
    assert!(
        (0.25..=0.45).contains(&share(default)),
        "default {default:?}"
    );
    let good = critical.good + default.good + batch.good;
    assert!(good > 50 * 850, "goodput {good} of {}", 50 * 1000);

    let without = overloaded_server(None, 60);
    let good: u32 = without.iter().map(|class| class.good).sum();
    assert!(
        good < 50,
        "an unbounded queue serves nobody in time: {good}"
    );
}
