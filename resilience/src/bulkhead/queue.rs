//! Who waits for a slot, in what order, and until when.
//!
//! A slab with a doubly linked list through it: a waiter enters, leaves or is served in O(1), and a
//! queue that has reached its usual length allocates nothing. The rules live here and know neither
//! threads nor wakers' runtimes; [`slots`](super::slots) puts a lock around it.

use std::task::Waker;

use crate::clock::Tick;

/// In which order those who wait are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Order {
    /// Who came first, first: fair, and under lasting overload everybody is served just too late.
    Fifo,
    /// Who came last, first.
    Lifo,
    /// First come first served, until the queue has stood for a while without once being empty;
    /// then newest first, until it is empty again.
    #[default]
    Adaptive,
}

/// Where a waiter stands in the slab, and which of its tenants it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    index: u32,
    generation: u32,
}

/// What has become of a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Waiting,
    /// Has a slot: who holds the ticket must take it or pass it on.
    Granted,
    /// Made room for a newer one.
    Displaced,
}

#[derive(Debug)]
struct Node {
    generation: u32,
    fate: Fate,
    waker: Option<Waker>,
    older: u32,
    newer: u32,
}

const NONE: u32 = u32::MAX;

/// The queue. `waiting` counts those whose fate is open.
#[derive(Debug)]
pub(super) struct Queue {
    nodes: Vec<Node>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
    waiting: u32,
    /// Since when it has not been empty.
    standing_since: Tick,
    newest_first: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            waiting: 0,
            standing_since: Tick(0),
            newest_first: false,
        }
    }

    pub(super) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Whether the newest is served first, now.
    pub(super) fn newest_first(&self) -> bool {
        self.newest_first
    }

    /// Decides the order for as long as the queue stands. Asked at every arrival: a queue that
    /// nobody joins needs no new order.
    pub(super) fn arrive(&mut self, order: Order, now: Tick, overload_after: u64) {
        if self.waiting == 0 {
            self.standing_since = now;
        }
        self.newest_first = match order {
            Order::Fifo => false,
            Order::Lifo => true,
            Order::Adaptive => now.0.saturating_sub(self.standing_since.0) >= overload_after,
        };
    }

    /// Puts a waiter at the newest end.
    pub(super) fn push(&mut self) -> Ticket {
        let node = |generation, older| Node {
            generation,
            fate: Fate::Waiting,
            waker: None,
            older,
            newer: NONE,
        };
        let index = if let Some(index) = self.free.pop() {
            let slot = &mut self.nodes[index as usize];
            *slot = node(slot.generation, self.newest);
            index
        } else {
            let index = u32::try_from(self.nodes.len()).expect("fewer waiters than u32::MAX");
            self.nodes.push(node(0, self.newest));
            index
        };
        match self.newest {
            NONE => self.oldest = index,
            newest => self.nodes[newest as usize].newer = index,
        }
        self.newest = index;
        self.waiting += 1;
        Ticket {
            index,
            generation: self.nodes[index as usize].generation,
        }
    }

    /// Grants a slot to whoever is next, who must be there; returns whom to wake.
    pub(super) fn grant(&mut self) -> Option<Waker> {
        let next = if self.newest_first {
            self.newest
        } else {
            self.oldest
        };
        self.decide(next, Fate::Granted)
    }

    /// Sends the oldest away, who must be there.
    pub(super) fn displace_oldest(&mut self) -> Option<Waker> {
        self.decide(self.oldest, Fate::Displaced)
    }

    fn decide(&mut self, index: u32, fate: Fate) -> Option<Waker> {
        assert_ne!(index, NONE, "somebody waits: counted under this lock");
        self.unlink(index);
        let node = &mut self.nodes[index as usize];
        node.fate = fate;
        node.waker.take()
    }

    fn unlink(&mut self, index: u32) {
        let (older, newer) = {
            let node = &self.nodes[index as usize];
            (node.older, node.newer)
        };
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        self.waiting -= 1;
    }

    /// What has become of a waiter that is still in the slab.
    pub(super) fn fate(&self, ticket: Ticket) -> Fate {
        self.node(ticket).fate
    }

    fn node(&self, ticket: Ticket) -> &Node {
        let node = &self.nodes[ticket.index as usize];
        debug_assert_eq!(node.generation, ticket.generation, "one tenant at a time");
        node
    }

    /// Remembers whom to wake; the old waker comes back, to be dropped outside the lock.
    pub(super) fn park(&mut self, ticket: Ticket, waker: &Waker) -> Option<Waker> {
        let node = &mut self.nodes[ticket.index as usize];
        match &node.waker {
            Some(known) if known.will_wake(waker) => None,
            _ => node.waker.replace(waker.clone()),
        }
    }

    /// Takes a waiter out, whatever its fate, and says what that was.
    pub(super) fn leave(&mut self, ticket: Ticket) -> (Fate, Option<Waker>) {
        let fate = self.node(ticket).fate;
        if fate == Fate::Waiting {
            self.unlink(ticket.index);
        }
        let node = &mut self.nodes[ticket.index as usize];
        node.generation = node.generation.wrapping_add(1);
        let waker = node.waker.take();
        self.free.push(ticket.index);
        (fate, waker)
    }
}
