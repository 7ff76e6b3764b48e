//! What became of calls in the last ten seconds, counted while somebody watches.
//!
//! A dashboard wants a rolling window and percentiles; a scrape wants neither, and a call should not
//! pay for a screen that nobody looks at. So a stack counts its calls as commands only while there
//! is a [`Watch`](crate::hystrix::Watch): otherwise a call pays one relaxed load.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock::Tick,
    hedge::Latencies,
    layer::{Error, TransportError},
    outcome::{FailureClass, Outcome, Policy, Rejected},
    slices::{Slices, pack},
};

/// What is looked back on. Source: Hystrix `metrics.rollingStats.timeInMilliseconds`.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// Slices of a second, as Hystrix's buckets.
const SLICE: u64 = 1_000_000_000;
const LIVES: u64 = 10;
const RING: usize = 12;

/// What a command came to, in Hystrix's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Success,
    /// The callee, or the way to it, failed.
    Failure,
    /// Its time was up.
    Timeout,
    /// The circuit was open.
    ShortCircuited,
    /// A limit refused it.
    Rejected,
    /// An answer that says nothing of the callee's health, or the caller's own fault.
    BadRequest,
    /// The fallback answered; beside one of the others.
    FallbackSuccess,
}

const EVENTS: usize = Event::FallbackSuccess as usize + 1;

impl Event {
    /// What a call came to before its fallback.
    pub(super) fn of<A, E: TransportError>(
        result: &Result<A, Error<E>>,
        outcome: impl FnOnce(&A) -> Outcome,
    ) -> Self {
        match result {
            Ok(answer) => match outcome(answer) {
                Outcome::Success => Self::Success,
                Outcome::Failure(FailureClass::Timeout) => Self::Timeout,
                Outcome::Failure(_) | Outcome::RateLimited => Self::Failure,
                Outcome::Ignored | Outcome::Cancelled => Self::BadRequest,
            },
            Err(Error::Rejected(rejected)) => Self::refused(rejected),
            Err(Error::Service(error)) if error.is_callers_fault() => Self::BadRequest,
            Err(Error::Service(_)) => Self::Failure,
        }
    }

    fn refused(rejected: &Rejected) -> Self {
        match rejected.policy {
            Policy::Breaker => Self::ShortCircuited,
            Policy::Deadline => Self::Timeout,
            // Nobody could take it; a fault is a failure on purpose; another's call failed for it too.
            Policy::Balancer | Policy::Fault | Policy::Coalesce => Self::Failure,
            _ => Self::Rejected,
        }
    }

    fn is_executed(self) -> bool {
        !matches!(self, Self::ShortCircuited | Self::Rejected)
    }
}

/// The commands of one stack.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    watchers: AtomicU32,
    /// From the first watcher on. What is older than the window is forgotten by itself.
    rolling: OnceLock<Box<Rolling>>,
}

#[derive(Debug)]
struct Rolling {
    events: [Slices<RING>; EVENTS],
    /// The most commands at once, by slice.
    most: Slices<RING>,
    in_flight: AtomicU32,
    execute: Latencies,
    total: Latencies,
}

/// What the window holds.
#[derive(Debug, Clone)]
pub(crate) struct View {
    events: [u64; EVENTS],
    pub(crate) in_flight: u32,
    pub(crate) most: u64,
    /// By percentile, in milliseconds.
    pub(crate) execute: Percentiles,
    pub(crate) total: Percentiles,
}

/// Mean and percentiles of a latency, in milliseconds.
pub(crate) type Percentiles = (u64, [u64; PERCENTILES.len()]);

/// Those that Hystrix shows, and their names.
pub(crate) const PERCENTILES: [(&str, f64); 9] = [
    ("0", 0.0),
    ("25", 0.25),
    ("50", 0.5),
    ("75", 0.75),
    ("90", 0.9),
    ("95", 0.95),
    ("99", 0.99),
    ("99.5", 0.995),
    ("100", 1.0),
];

impl View {
    pub(crate) fn count(&self, event: Event) -> u64 {
        self.events[event as usize]
    }
}

fn slice(now: Instant) -> u64 {
    Tick::at(now.into_std()).0 / SLICE + 1
}

impl Rolling {
    fn new() -> Self {
        Self {
            events: std::array::from_fn(|_| Slices::new(SLICE)),
            most: Slices::new(SLICE),
            in_flight: AtomicU32::new(0),
            execute: Latencies::new(WINDOW),
            total: Latencies::new(WINDOW),
        }
    }

    fn add(&self, event: Event, now: Instant) {
        self.events[event as usize].add(slice(now), 1);
    }
}

impl Commands {
    /// A command begins, if anybody wants to know.
    pub(super) fn begin(&self) -> Option<Command<'_>> {
        if self.watchers.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (rolling, began) = (self.rolling.get()?, Instant::now());
        let at_once = rolling.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        rolling.most.raise(pack(slice(began), at_once.into()));
        Some(Command { rolling, began })
    }

    pub(crate) fn watch(&self) {
        self.rolling.get_or_init(|| Box::new(Rolling::new()));
        self.watchers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unwatch(&self) {
        self.watchers.fetch_sub(1, Ordering::Relaxed);
    }

    /// The window at `now`; `None` if nobody has ever watched.
    pub(crate) fn view(&self, now: Instant) -> Option<View> {
        let (rolling, id) = (self.rolling.get()?, slice(now));
        let quantiles = PERCENTILES.map(|(_, quantile)| quantile);
        let percentiles = |latencies: &Latencies| {
            let (mean, all) = latencies.summary(&quantiles, Tick::at(now.into_std()));
            (millis(mean), all.map(millis))
        };
        let in_flight = rolling.in_flight.load(Ordering::Relaxed);
        Some(View {
            events: std::array::from_fn(|n| rolling.events[n].sum(id, LIVES, None)),
            in_flight,
            most: rolling.most.most(id, LIVES).max(in_flight.into()),
            execute: percentiles(&rolling.execute),
            total: percentiles(&rolling.total),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A command under way; cancelled when dropped, and then counted as nothing, as in Hystrix.
#[derive(Debug)]
pub(super) struct Command<'a> {
    rolling: &'a Rolling,
    began: Instant,
}

impl Command<'_> {
    /// It has come to `event`; its last try took `tried`.
    pub(super) fn ended(&self, event: Event, tried: Duration) {
        let now = Instant::now();
        self.rolling.add(event, now);
        if event.is_executed() {
            let total = now.saturating_duration_since(self.began);
            self.rolling.total.record(total, now.into_std());
            self.rolling.execute.record(tried, now.into_std());
        }
    }

    pub(super) fn fell_back(&self) {
        self.rolling.add(Event::FallbackSuccess, Instant::now());
    }
}

impl Drop for Command<'_> {
    fn drop(&mut self) {
        self.rolling.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io;

    use super::*;
    use crate::{layer::BoxError, outcome::Reason};

    type Came = Result<Outcome, Error<BoxError>>;

    #[test]
    fn what_a_call_came_to_in_hystrixs_words() {
        let refused = |policy| Err(Error::Rejected(Rejected::new(policy, Reason::Full)));
        let failed =
            |kind: io::ErrorKind| Err(Error::Service(BoxError::from(io::Error::from(kind))));
        let cases: [(Came, Event); 14] = [
            (Ok(Outcome::Success), Event::Success),
            (
                Ok(Outcome::Failure(FailureClass::ServerError)),
                Event::Failure,
            ),
            (Ok(Outcome::Failure(FailureClass::Timeout)), Event::Timeout),
            (Ok(Outcome::RateLimited), Event::Failure),
            (Ok(Outcome::Ignored), Event::BadRequest),
            (failed(io::ErrorKind::ConnectionRefused), Event::Failure),
            (refused(Policy::Breaker), Event::ShortCircuited),
            (refused(Policy::Deadline), Event::Timeout),
            (refused(Policy::Balancer), Event::Failure),
            (refused(Policy::Fault), Event::Failure),
            (refused(Policy::Coalesce), Event::Failure),
            (refused(Policy::Bulkhead), Event::Rejected),
            (refused(Policy::RateLimit), Event::Rejected),
            (refused(Policy::Throttle), Event::Rejected),
        ];
        for (came, want) in cases {
            assert_eq!(Event::of(&came, |outcome| *outcome), want, "{came:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_counted_before_somebody_watches_or_after() {
        let commands = Commands::default();
        assert!(commands.begin().is_none() && commands.view(Instant::now()).is_none());
        commands.watch();
        let before = commands.begin().expect("somebody watches");
        commands.unwatch();
        assert!(commands.begin().is_none());
        before.ended(Event::Success, Duration::ZERO);
        let view = commands.view(Instant::now()).expect("somebody has watched");
        assert_eq!((view.count(Event::Success), view.in_flight), (1, 1));
        drop(before);
        let view = commands.view(Instant::now()).expect("as before");
        assert_eq!(view.in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_holds_ten_seconds_and_what_was_at_once() {
        let commands = Commands::default();
        commands.watch();
        let view = || commands.view(Instant::now()).expect("somebody watches");
        for event in [
            Event::Success,
            Event::Timeout,
            Event::Rejected,
            Event::ShortCircuited,
        ] {
            let (one, other) = (commands.begin().expect("watched"), commands.begin());
            tokio::time::advance(Duration::from_millis(100)).await;
            one.ended(event, Duration::from_millis(40));
            drop((one, other));
        }
        let cancelled = commands.begin().expect("watched");
        cancelled.fell_back();
        drop(cancelled);
        let now = view();
        let counts = [
            Event::Success,
            Event::Timeout,
            Event::Rejected,
            Event::ShortCircuited,
        ];
        assert_eq!(counts.map(|event| now.count(event)), [1; 4]);
        assert_eq!(
            (now.count(Event::Failure), now.count(Event::FallbackSuccess)),
            (0, 1)
        );
        assert_eq!((now.in_flight, now.most), (0, 2));

        // Latencies are of whole slices: the one that runs is not among them yet. Refusals are none.
        tokio::time::advance(Duration::from_secs(2)).await;
        let later = view();
        let (mean, percentiles) = later.total;
        assert!((90..=115).contains(&mean), "{mean}");
        assert!(
            percentiles.iter().all(|ms| (90..=115).contains(ms)),
            "{percentiles:?}"
        );
        let (mean, _) = later.execute;
        assert!((36..=46).contains(&mean), "{mean}");

        tokio::time::advance(Duration::from_secs(11)).await;
        let past = view();
        assert_eq!(counts.map(|event| past.count(event)), [0; 4]);
        assert_eq!((past.most, past.total.0), (0, 0));
    }
}
