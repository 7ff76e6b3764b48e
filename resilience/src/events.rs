//! What policies tell those who listen: a circuit opened, a threshold was reached, a policy changed.
//!
//! Counters say how often; an operator wants to know *when*, and in which order. But a policy that
//! calls a listener back from its hot path runs a stranger's code there, and one that queues
//! without bound turns a slow listener into a leak. So events go into a bounded queue of each
//! subscriber; what does not fit is dropped and counted; and without a subscriber an event is not
//! even built.
//!
//! # Guarantees
//! Events of one core arrive in the order in which its state changed. Nothing waits for a
//! subscriber. A transition from a state to itself is no event.
//!
//! # What it does not do
//! It wakes nobody: a subscriber asks, from a timer of its own. (A waker called from inside a core
//! would be a stranger's code again.)
//!
//! # Source
//! resilience4j's event consumers, without their callbacks; tower-resilience builds a string and
//! reads the clock for each event whether anybody listens or not.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::{Mutex, RwLock};

use crate::{
    breaker::{Cause, State},
    outcome::{Policy, Reason},
    sync::{AtomicU64, Ordering},
};

/// Something that happened to a policy.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Where: the core's name.
    pub name: Arc<str>,
    /// Which policy.
    pub policy: Policy,
    /// The `now` of the call that made it happen; `None` for an operator's hand.
    pub at: Option<Instant>,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// A circuit changed its state.
    Transition {
        /// The state before.
        from: State,
        /// The state after; never the same.
        to: State,
        /// Why.
        cause: Cause,
    },
    /// A circuit that only measures would have opened. Told once, until it has been better.
    Exceeded {
        /// Why it would have.
        cause: Cause,
    },
    /// A call was refused.
    Rejected {
        /// Why.
        reason: Reason,
    },
    /// A new configuration is in force.
    Reconfigured {
        /// How many there have been before it.
        generation: u64,
    },
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
    queues: RwLock<Vec<Weak<Queue>>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            listeners: AtomicU64::new(0),
            queues: RwLock::new(Vec::new()),
        }
    }
}

struct Queue {
    hub: Weak<Hub>,
    capacity: usize,
    waiting: Mutex<VecDeque<Event>>,
    dropped: AtomicU64,
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.listeners.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Events {
    /// A hub that nobody listens to.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens from now on, with at most `capacity` (at least 1) events waiting.
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        let queue = Arc::new(Queue {
            hub: Arc::downgrade(&self.0),
            capacity: capacity.max(1),
            waiting: Mutex::new(VecDeque::new()),
            dropped: AtomicU64::new(0),
        });
        let mut queues = self.0.queues.write();
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        self.0.listeners.fetch_add(1, Ordering::Relaxed);
        Subscription(queue)
    }

    /// Whether anybody listens: one load.
    pub fn has_listeners(&self) -> bool {
        self.0.listeners.load(Ordering::Relaxed) > 0
    }

    /// Tells everybody who listens; without a listener `event` is not called.
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        if !self.has_listeners() {
            return;
        }
        let event = event();
        for queue in self.0.queues.read().iter().filter_map(Weak::upgrade) {
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

    fn event() -> Event {
        Event {
            name: "orders".into(),
            policy: Policy::Breaker,
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
}
