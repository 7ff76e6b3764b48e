//! What policies tell those who listen: a circuit opened, a threshold was reached, a policy changed.
//!
//! Counters say how often; an operator wants to know *when*, and in which order. But a policy that
//! calls a listener back from its hot path runs a stranger's code there, and one that queues
//! without bound turns a slow listener into a leak. So events go into a bounded queue of each
//! subscriber; what does not fit is dropped and counted; and without a subscriber an event is not
//! even built.
//!
//! Some changes are edges, and the core that makes them tells of them: a circuit opens, an endpoint
//! is ejected. Others are levels: a limit refuses, a budget is empty, an adaptive limit has fallen.
//! Nobody wants each refusal of those as an event, but when it began, when it ended, and how many
//! there were. They are told by whoever looks at the counters from time to time:
//! [`Stack::tick`](crate::layer::Stack::tick) and [`Inbound::tick`](crate::layer::Inbound::tick),
//! from a timer, so that the path of a call knows nothing of them.
//!
//! # Guarantees
//! Events of one circuit arrive in the order in which its state changed. Nothing waits for a
//! subscriber. A transition from a state to itself is no event. While all who listen want
//! [changes](Events::subscribe_to_changes) only, a refused call costs one load more than without.
//!
//! With the feature `tracing`, `Subscription::trace` writes what was heard as events of that crate,
//! with fields that keep their names.
//!
//! # What it does not do
//! It wakes nobody: a subscriber asks, from a timer of its own. (A waker called from inside a core
//! would be a stranger's code again.) An ejection is told by the call that made it, after it made
//! it: where it ends in the same instant by another's hand, its end may be told first. A level is
//! told as often as somebody looks: what begins and ends between two looks at a limit that finds
//! itself is not seen.
//!
//! # Source
//! resilience4j's event consumers, without their callbacks; tower-resilience builds a string and
//! reads the clock for each event whether anybody listens or not.

mod kind;
#[cfg(feature = "tracing")]
pub mod trace;

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
    time::Instant,
};

pub use self::kind::{EventKind, Return};
use crate::{
    outcome::Policy,
    sync::{
        AtomicU64, Ordering,
        plain::{Mutex, RwLock},
    },
};

/// Something that happened to a policy.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Where: the core's name.
    pub name: Arc<str>,
    /// Which policy.
    pub policy: Policy,
    /// Of which endpoint, if it is about one and the core was told what endpoints are called.
    pub endpoint: Option<Arc<str>>,
    /// The `now` of the call that made it happen; `None` for an operator's hand.
    pub at: Option<Instant>,
    /// What.
    pub kind: EventKind,
}

/// Where cores put their events, and subscribers find them. Clones are the same hub.
///
/// ```
/// use selvedge_resilience::{breaker::{BreakerConfig, CircuitBreaker}, events::Events};
///
/// let events = Events::new();
/// let listener = events.subscribe(64);
/// let breaker = CircuitBreaker::builder(BreakerConfig::default())
///     .name("orders")
///     .events(events)
///     .build()?;
/// breaker.force_open();
/// assert_eq!(&*listener.next().expect("one event").name, "orders");
/// # Ok::<_, selvedge_resilience::config::PolicyError>(())
/// ```
#[derive(Clone, Default)]
pub struct Events(Arc<Hub>);

struct Hub {
    /// Read by cores before an event is built.
    listeners: AtomicU64,
    /// Those of them who want single refusals too.
    of_calls: AtomicU64,
    queues: RwLock<Vec<Weak<Queue>>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            listeners: AtomicU64::new(0),
            of_calls: AtomicU64::new(0),
            queues: RwLock::new(Vec::new()),
        }
    }
}

struct Queue {
    hub: Weak<Hub>,
    capacity: usize,
    /// Whether single refusals are wanted too.
    of_calls: bool,
    waiting: Mutex<VecDeque<Event>>,
    dropped: AtomicU64,
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.listeners.fetch_sub(1, Ordering::Relaxed);
            hub.of_calls
                .fetch_sub(u64::from(self.of_calls), Ordering::Relaxed);
        }
    }
}

impl Events {
    /// A hub that nobody listens to.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens to everything from now on, single refusals too, with at most `capacity` (at least 1)
    /// events waiting.
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        self.listen(capacity, true)
    }

    /// The same to [changes](EventKind::is_change) only: what an operator wants to read. Refusals
    /// come by the thousand where they come at all; counters say how many.
    pub fn subscribe_to_changes(&self, capacity: usize) -> Subscription {
        self.listen(capacity, false)
    }

    fn listen(&self, capacity: usize, of_calls: bool) -> Subscription {
        let queue = Arc::new(Queue {
            hub: Arc::downgrade(&self.0),
            capacity: capacity.max(1),
            of_calls,
            waiting: Mutex::new(VecDeque::new()),
            dropped: AtomicU64::new(0),
        });
        let mut queues = self.0.queues.write();
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        self.0.listeners.fetch_add(1, Ordering::Relaxed);
        self.0
            .of_calls
            .fetch_add(u64::from(of_calls), Ordering::Relaxed);
        Subscription(queue)
    }

    /// Whether anybody listens: one load.
    pub fn has_listeners(&self) -> bool {
        self.0.listeners.load(Ordering::Relaxed) > 0
    }

    /// Tells of a single refusal those who want to hear it; without them `event` is not called.
    pub(crate) fn emit_refusal(&self, event: impl FnOnce() -> Event) {
        if self.0.of_calls.load(Ordering::Relaxed) > 0 {
            self.emit(event);
        }
    }

    /// Tells everybody who listens; without a listener `event` is not called.
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        if !self.has_listeners() {
            return;
        }
        let event = event();
        let everybody = event.kind.is_change();
        for queue in self.0.queues.read().iter().filter_map(Weak::upgrade) {
            if !everybody && !queue.of_calls {
                continue;
            }
            let mut waiting = queue.waiting.lock();
            if waiting.len() < queue.capacity {
                waiting.push_back(event.clone());
            } else {
                queue.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("listeners", &self.0.listeners.load(Ordering::Relaxed))
            .finish()
    }
}

/// One listener's queue; dropping it ends the subscription.
#[must_use = "a subscription that is dropped hears nothing"]
pub struct Subscription(Arc<Queue>);

impl Subscription {
    /// The oldest event that waits.
    pub fn next(&self) -> Option<Event> {
        self.0.waiting.lock().pop_front()
    }

    /// Events that did not fit, so far.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("waiting", &self.0.waiting.lock().len())
            .field("dropped", &self.dropped())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    fn event() -> Event {
        Event {
            name: "orders".into(),
            policy: Policy::Breaker,
            endpoint: None,
            at: None,
            kind: EventKind::Reconfigured { generation: 1 },
        }
    }

    #[test]
    fn without_a_listener_no_event_is_built() {
        let events = Events::new();
        events.emit(|| panic!("nobody listens"));
        let listener = events.subscribe(1);
        assert!(events.has_listeners());
        drop(listener);
        events.emit(|| panic!("nobody listens any more"));
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_keeps_the_order() {
        let events = Events::new();
        let (small, large) = (events.subscribe(2), events.subscribe(10));
        for generation in 0..5 {
            events.emit(|| Event {
                kind: EventKind::Reconfigured { generation },
                ..event()
            });
        }
        assert_eq!((small.dropped(), large.dropped()), (3, 0));
        let heard: Vec<_> = std::iter::from_fn(|| large.next())
            .map(|e| e.kind)
            .collect();
        let want: Vec<_> = (0..5)
            .map(|generation| EventKind::Reconfigured { generation })
            .collect();
        assert_eq!(heard, want);
        assert_eq!(std::iter::from_fn(|| small.next()).count(), 2);
    }

    #[test]
    fn who_wants_changes_only_is_not_told_of_refusals_and_nobody_builds_them_for_him() {
        let events = Events::new();
        let changes = events.subscribe_to_changes(10);
        events.emit_refusal(|| panic!("nobody wants to hear it"));
        let refusal = || Event {
            kind: EventKind::Rejected {
                reason: Reason::Open,
            },
            ..event()
        };
        let all = events.subscribe(10);
        events.emit_refusal(refusal);
        events.emit(event);
        assert_eq!(all.next(), Some(refusal()));
        assert_eq!((all.next(), all.next()), (Some(event()), None));
        assert_eq!((changes.next(), changes.next()), (Some(event()), None));
        drop(all);
        events.emit_refusal(|| panic!("nobody wants to hear it any more"));
        assert!(events.has_listeners());
    }
}
