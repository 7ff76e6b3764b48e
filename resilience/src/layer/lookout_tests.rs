//! Counters in, events out.

use super::*;

#[expect(
    clippy::disallowed_methods,
    reason = "a core's test has to start somewhere"
)]
fn start() -> Instant {
    Instant::now()
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn began(reason: Reason) -> EventKind {
    EventKind::RefusalsBegan { reason }
}

fn ended(refused: u64) -> EventKind {
    EventKind::RefusalsEnded { refused }
}

#[test]
fn a_trouble_is_told_once_when_it_begins_and_once_when_it_has_ended() {
    let (start, mut episode) = (start(), Episode::default());
    let counts = |full, queue_full| [(Reason::Full, full), (Reason::QueueFull, queue_full)];
    let steps = [
        ("nothing yet", 0, (0, 0), None),
        ("began", 1, (1, 7), Some(began(Reason::QueueFull))),
        ("goes on", 2, (5, 7), None),
        ("a pause of nine seconds", 11, (6, 7), None),
        ("quiet, but not for long", 20, (6, 7), None),
        ("over", 21, (6, 7), Some(ended(13))),
        ("stays over", 60, (6, 7), None),
        ("again", 61, (7, 7), Some(began(Reason::Full))),
        ("over again", 71, (7, 7), Some(ended(1))),
    ];
    for (name, at, (full, queue_full), want) in steps {
        let got = episode.look(&counts(full, queue_full), start + secs(at));
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn what_happened_before_the_first_look_counts() {
    let mut episode = Episode::default();
    let got = episode.look(&[(Reason::Exhausted, 3)], start());
    assert_eq!(got, Some(began(Reason::Exhausted)));
    let got = episode.look(&[(Reason::Exhausted, 3)], start() + QUIET);
    assert_eq!(got, Some(ended(3)));
}

#[test]
fn a_section_that_goes_ends_what_it_began_and_its_successor_begins_at_nothing() {
    let told = std::cell::RefCell::new(Vec::new());
    let tell = |policy, kind| told.borrow_mut().push((policy, kind));
    let (mut lookout, now) = (Lookout::default(), start());
    let steps = [Some(9), None, Some(0), Some(2)];
    for (n, count) in steps.into_iter().enumerate() {
        let now = now + secs(n as u64);
        let mut look = lookout.begin(now, &tell);
        look.one(Policy::RateLimit, Reason::Exhausted, count);
        // Never refused anything: nothing is kept of it.
        look.one(Policy::Throttle, Reason::Throttled, Some(0));
    }
    let began = began(Reason::Exhausted);
    let all = [began.clone(), ended(9), began].map(|kind| (Policy::RateLimit, kind));
    assert_eq!(told.into_inner(), all);
    assert_eq!(lookout.episodes.len(), 1);
}

#[test]
fn a_limit_that_falls_is_told_when_it_falls_and_when_it_is_back_or_stays() {
    type Steps = &'static [(u64, u32)];
    let fell = |from, to| Some(EventKind::LimitFell { from, to });
    let settled = |from, to| Some(EventKind::LimitSettled { from, to });
    let cases: [(&str, Steps, Vec<Option<EventKind>>); 5] = [
        (
            "falls and comes back",
            &[(0, 100), (1, 90), (2, 40), (3, 40), (4, 60), (5, 80)],
            vec![None, None, fell(98, 40), None, None, settled(98, 80)],
        ),
        (
            "falls and stays",
            &[(0, 40), (1, 10), (30, 10), (80, 10)],
            vec![None, fell(39, 10), None, settled(39, 10)],
        ),
        (
            "sinks slowly",
            &[(0, 40), (60, 30), (120, 22), (180, 16), (240, 11)],
            vec![None; 5],
        ),
        ("few", &[(0, 4), (1, 2), (2, 1)], vec![None; 3]),
        ("rises", &[(0, 10), (1, 100)], vec![None; 2]),
    ];
    for (name, steps, want) in cases {
        let (start, mut level) = (start(), Level::default());
        let got: Vec<_> = steps
            .iter()
            .map(|&(at, limit)| level.look(limit, start + secs(at)))
            .collect();
        assert_eq!(got, want, "{name}");
    }
}
