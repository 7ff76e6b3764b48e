//! `/events`: what policies did, newest last, as a list or as a stream.
//!
//! A counter that is scraped every fifteen seconds cannot say whether the circuit opened before the
//! endpoint was ejected or after. Whoever is called at night wants that order, of the last minutes,
//! from the process itself. Policies tell it to whoever listens; here is who listens.
//!
//! ```text
//! cores ── bounded queues ──► collect (twice a second, and when somebody asks)
//!                               ├─► ring of the latest ──► GET /events: list, or cursors that follow
//!                               └─► log lines, few of each kind
//! ```
//!
//! A reader is a position in the ring, neither a queue nor a task: a slow one costs nothing, and is
//! told how many it missed.
//!
//! # Guarantees
//! - Events of one circuit, limit or listener are in the order in which they happened; those of
//!   several are put in order by their time.
//! - Ids go up by one. Where some are missing, that many events were lost, and a stream says so.
//! - An id of another life of this process is known as such: a reader never mistakes what came
//!   after a restart for what it knows already.
//! - No call waits for a reader, a log or a lock that either holds.
//!
//! # What it does not do
//! It keeps the [latest](KEPT) in memory and nothing on disk; the log has the others. It does not
//! show single refusals: counters do.
//!
//! # Source
//! Server-sent events and `Last-Event-ID`: HTML standard, section 9.2.

mod answer;
mod lines;
mod record;
mod ring;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Instant as StdInstant, SystemTime},
};

use parking_lot::Mutex;
use selvedge_registry::node::metrics::{Metrics, Name, Observed as Shown};
use selvedge_resilience::events::{Event, Events, Subscription};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

pub use self::answer::EventsBody;
pub(crate) use self::answer::{Query, answer};
use self::{
    lines::Lines,
    record::{Id, Record},
    ring::Ring,
};
use crate::seats::Seats;

/// Events that are kept, and that may wait to be collected from each side. A guess: a bad minute of
/// a dozen services.
const KEPT: usize = 256;
/// Between two collections. A guess: a person does not see the difference, and an idle process does
/// not feel it.
pub(crate) const PERIOD: Duration = Duration::from_millis(500);

/// Whose policies: what metrics call `side`, and which word a name goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// A service that is called.
    Client,
    /// The app that a sidecar stands before, as it is called.
    App,
    /// What that app takes on.
    Server,
    /// What a listener of a gateway takes on.
    Listener,
}

impl Origin {
    const ALL: [Self; 4] = [Self::Client, Self::App, Self::Server, Self::Listener];

    /// As in metrics.
    fn side(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
            Self::Server | Self::Listener => "server",
        }
    }

    /// `name`, if it is a service's.
    fn service(self, name: &str) -> Option<&str> {
        (self != Self::Listener).then_some(name)
    }

    /// `name`, if it is a listener's.
    fn listener(self, name: &str) -> Option<&str> {
        (self == Self::Listener).then_some(name)
    }
}

/// A hub and our ear at it.
#[derive(Debug)]
struct Ear {
    origin: Origin,
    events: Events,
    heard: Subscription,
    /// Of those that did not fit, how many the ring knows of.
    missed: u64,
}

/// What was told, the latest of it.
#[derive(Debug)]
pub(crate) struct Chronicle {
    hubs: [Events; 4],
    inner: Mutex<Inner>,
    /// The newest id, for who follows.
    news: watch::Sender<u64>,
    life: u32,
    seats: Arc<Seats>,
}

#[derive(Debug)]
struct Inner {
    ears: [Ear; 4],
    ring: Ring,
    lines: Lines,
}

impl Chronicle {
    /// Listens from now on; says in `metrics` how many it missed.
    pub(crate) fn new(metrics: &Metrics) -> Arc<Self> {
        let ears = Origin::ALL.map(|origin| {
            let events = Events::new();
            Ear {
                origin,
                heard: events.subscribe_to_changes(KEPT),
                events,
                missed: 0,
            }
        });
        let chronicle = Arc::new(Self {
            hubs: ears.each_ref().map(|ear| ear.events.clone()),
            inner: Mutex::new(Inner {
                ears,
                ring: Ring::new(KEPT),
                lines: Lines::default(),
            }),
            news: watch::Sender::new(0),
            life: fastrand::u32(..),
            seats: Arc::default(),
        });
        let shown = Arc::clone(&chronicle);
        let lost = move || {
            let inner = shown.inner.lock();
            inner.ears.iter().map(|ear| ear.heard.dropped()).sum()
        };
        metrics.register(Name::EventsLost, Shown::counter(lost));
        chronicle
    }

    /// Where policies of this origin tell what they did.
    pub(crate) fn hub(&self, origin: Origin) -> Events {
        self.hubs[origin as usize].clone()
    }

    /// Takes what was told since the last time: into the ring, and into the log.
    pub(crate) fn collect(&self) {
        let (now, wall) = (Instant::now().into_std(), SystemTime::now());
        let mut inner = self.inner.lock();
        let Inner { ears, ring, lines } = &mut *inner;
        let mut batches = ears.each_ref().map(|ear| Batch::of(&ear.heard, now));
        while let Some(n) = first(&batches) {
            let Some((happened, event)) = batches[n].0.pop_front() else {
                break;
            };
            // An instant says how long ago; that is as right as the wall's clock is now.
            let ago = now.saturating_duration_since(happened);
            let at = wall.checked_sub(ago).unwrap_or(wall);
            let origin = ears[n].origin;
            lines.tell(origin, &event, now);
            ring.push(|seq| Record {
                seq,
                at,
                origin,
                event,
            });
        }
        lines.tidy(now);
        for ear in ears {
            let dropped = ear.heard.dropped();
            ring.miss(dropped - std::mem::replace(&mut ear.missed, dropped));
        }
        let last = ring.last();
        drop(inner);
        self.news
            .send_if_modified(|known| std::mem::replace(known, last) != last);
    }

    fn id(&self, seq: u64) -> Id {
        Id {
            life: self.life,
            seq,
        }
    }
}

/// What one ear has heard since the last time, and when each of it happened.
struct Batch(VecDeque<(StdInstant, Event)>);

impl Batch {
    /// No more than may wait: where events come as fast as they are taken, the rest is for the next
    /// time.
    fn of(heard: &Subscription, now: StdInstant) -> Self {
        let mut events: Vec<_> = std::iter::from_fn(|| heard.next()).take(KEPT).collect();
        let mut batch = VecDeque::with_capacity(events.len());
        // What an operator's hand did has no time. It was before what happened next to the same:
        // told as of now, it would seem to come after.
        let mut next: HashMap<Arc<str>, StdInstant> = HashMap::new();
        while let Some(event) = events.pop() {
            let known = next.get(&event.name).copied();
            let happened = event.at.or(known).unwrap_or(now);
            next.insert(Arc::clone(&event.name), happened);
            batch.push_front((happened, event));
        }
        Self(batch)
    }
}

/// Whose next happened first.
fn first(batches: &[Batch; 4]) -> Option<usize> {
    let there = batches.iter().enumerate();
    let times = there.filter_map(|(n, batch)| Some((batch.0.front()?.0, n)));
    times.min().map(|(_, n)| n)
}

#[cfg(test)]
mod tests;
