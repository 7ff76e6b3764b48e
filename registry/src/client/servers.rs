//! The registry servers a client knows, and which of them it prefers.
//!
//! A client in zone `a` that watches through a server in zone `b` pays for every change across the
//! zones, and is cut off with the zone that it is not in. So servers are asked where they run, and
//! those nearby are tried first. Among equals the order is random for each client, so that the
//! clients of a server that dies do not all fall upon the same other one.
//!
//! A server that hangs must not hold up a process that starts. So nobody waits for all answers:
//! the choice is made [`GRACE`] after the first server that can be used has answered, among those
//! that have; whoever answers later and is nearer is turned to then.
//!
//! # Guarantees
//! - Nobody is sent to a server by chance while a better choice is being made.
//! - What is waited for is the first answer and [`GRACE`], or, where no server can be used, the
//!   last answer; [`ASK`] at the longest.
//!
//! # What it does not do
//! Measure: an answer's time decides only whether it is waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    connect::Connector,
    http::{Http, with_causes},
};
use crate::{api::ServerStatus, instance::Locality};

/// How long a server may take to say where it runs.
const ASK: Duration = Duration::from_secs(1);
/// How long the others are waited for once one has answered. A guess: many times what it takes to
/// another zone and back, so who is near has answered, and little to somebody who starts.
const GRACE: Duration = Duration::from_millis(10);

/// The servers, and which one is in favour.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) connector: Connector,
    /// Where this client runs; empty: all servers are alike.
    here: Locality,
    order: Mutex<Order>,
    pub(super) count: usize,
    /// Somebody has had the servers asked for the first time.
    begun: AtomicBool,
    /// They are being asked.
    asking: AtomicBool,
    /// The order is more than chance.
    ranked: watch::Sender<bool>,
    /// Changes when answers turn the favour from one server to another.
    turned: watch::Sender<()>,
}

#[derive(Debug)]
struct Order {
    /// The best first.
    list: Vec<Server>,
    at: usize,
}

#[derive(Debug, Clone)]
struct Server {
    addr: Arc<str>,
    place: Place,
}

/// Where a server runs, seen from here; the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Zone,
    Region,
    Elsewhere,
    /// It answers, and cannot be used.
    NotServing,
    /// It has said nothing.
    Silent,
}

impl Place {
    fn of(here: &Locality, there: &Locality) -> Self {
        let same_region = here.region == there.region;
        match (same_region && here.zone == there.zone, same_region) {
            (true, _) => Self::Zone,
            (_, true) => Self::Region,
            _ => Self::Elsewhere,
        }
    }

    fn is_usable(self) -> bool {
        self < Self::NotServing
    }
}

impl Order {
    fn current(&self) -> Option<&Server> {
        self.list.get(self.at)
    }

    /// Takes the new places in; the favour stays with whom it is.
    fn sort(&mut self) {
        let Some(current) = self.current().cloned() else {
            return;
        };
        // Stable: among equals the random order stays.
        self.list.sort_by_key(|server| server.place);
        let is_current = |server: &Server| Arc::ptr_eq(&server.addr, &current.addr);
        self.at = self.list.iter().position(is_current).unwrap_or(0);
    }

    /// Turns to the best if it is nearer than the one in favour, or, among equals, if `equals` do.
    /// Whether that is another one.
    fn turn(&mut self, equals: bool) -> bool {
        self.sort();
        let (Some(best), Some(current)) = (self.list.first(), self.current()) else {
            return false;
        };
        let turns =
            self.at != 0 && (best.place < current.place || equals && best.place == current.place);
        if turns {
            self.at = 0;
        }
        turns
    }
}

impl Servers {
    pub(super) fn new(list: Vec<String>, here: Locality, connector: Connector) -> Self {
        let unknown = |addr: String| Server {
            addr: addr.into(),
            place: Place::Silent,
        };
        let mut list: Vec<Server> = list.into_iter().map(unknown).collect();
        fastrand::shuffle(&mut list);
        Self {
            connector,
            here,
            count: list.len(),
            order: Mutex::new(Order { list, at: 0 }),
            begun: AtomicBool::new(false),
            asking: AtomicBool::new(false),
            ranked: watch::Sender::new(false),
            turned: watch::Sender::new(()),
        }
    }

    /// The one in favour.
    pub(super) fn current(&self) -> Option<Arc<str>> {
        let order = self.order.lock();
        order.current().map(|server| Arc::clone(&server.addr))
    }

    /// All of them, the best first.
    pub(super) fn all(&self) -> Vec<Arc<str>> {
        let order = self.order.lock();
        let addrs = order.list.iter().map(|server| Arc::clone(&server.addr));
        addrs.collect()
    }

    /// Turns to another server, unless somebody has done so since `from` was current.
    pub(super) fn fail_over(&self, from: &str) {
        let mut order = self.order.lock();
        if order.current().is_some_and(|at| *at.addr == *from) {
            order.at = (order.at + 1) % order.list.len();
        }
    }

    /// Whether a nearer server than the current one, or one that came before it, may be back.
    pub(super) fn is_second_choice(&self) -> bool {
        let order = self.order.lock();
        let is_far = order.current().is_some_and(|at| at.place > Place::Zone);
        let unheard = order.list.iter().any(|server| !server.place.is_usable());
        self.picks_by_place() && (order.at != 0 || *self.ranked.borrow() && is_far && unheard)
    }

    fn picks_by_place(&self) -> bool {
        self.count > 1 && self.here != Locality::default()
    }

    /// Resolves once [`current`](Self::current) is the choice and not chance: the first time after
    /// the servers were asked, then at once. Cancel-safe: whoever asks next waits for the rest.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) async fn ranked(self: &Arc<Self>) {
        if !self.picks_by_place() || *self.ranked.borrow() {
            return;
        }
        let mut ranked = self.ranked.subscribe();
        if !self.begun.swap(true, Ordering::AcqRel) {
            self.look();
        }
        // The sender lives in `self`.
        let _ranked = ranked.wait_for(|ranked| *ranked).await;
    }

    /// Has the servers asked in the background, unless they are being asked.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn look(self: &Arc<Self>) {
        if !self.asking.swap(true, Ordering::AcqRel) {
            tokio::spawn(Round(Arc::clone(self)).run());
        }
    }

    /// Hears of every turn of the favour from now on.
    pub(super) fn turns(&self) -> watch::Receiver<()> {
        self.turned.subscribe()
    }

    /// Resolves once `turns` tells of one after which `server` is not in favour. Cancel-safe.
    pub(super) async fn turned_from(&self, server: &str, turns: &mut watch::Receiver<()>) {
        // The sender lives in `self`.
        while turns.changed().await.is_ok() {
            if self.current().is_none_or(|current| *current != *server) {
                return;
            }
        }
    }

    async fn ask(&self, server: Arc<str>) -> (Arc<str>, Place) {
        let mut http = Http::new(self.connector.clone());
        let reply = http.call(&server, "GET", "/v1/status", Vec::new(), ASK);
        let place = match reply.await {
            Ok(reply) => match serde_json::from_slice::<ServerStatus>(&reply.body) {
                Ok(status) if status.serving => Place::of(&self.here, &status.locality),
                Ok(_) | Err(_) => Place::NotServing,
            },
            Err(error) => {
                tracing::debug!(server = %server, error = %with_causes(&error), "registry server does not say where it runs");
                Place::Silent
            }
        };
        (server, place)
    }

    fn note(&self, (addr, place): &(Arc<str>, Place)) {
        let mut order = self.order.lock();
        let mut list = order.list.iter_mut();
        if let Some(server) = list.find(|server| Arc::ptr_eq(&server.addr, addr)) {
            server.place = *place;
        }
    }

    /// As [`Order::turn`]; says so.
    fn turn(&self, equals: bool) {
        let turned = {
            let mut order = self.order.lock();
            order
                .turn(equals)
                .then(|| order.current().cloned())
                .flatten()
        };
        if let Some(server) = turned {
            tracing::debug!(server = %server.addr, place = ?server.place, "turned to a nearer registry server");
            self.turned.send_replace(());
        }
    }
}

/// Every server is asked once where it runs.
struct Round(Arc<Servers>);

impl Drop for Round {
    fn drop(&mut self) {
        // Also if it was given up with its runtime: nobody waits for ever.
        self.0.ranked.send_replace(true);
        self.0.asking.store(false, Ordering::Release);
    }
}

impl Round {
    async fn run(self) {
        let servers = &self.0;
        let mut answers = {
            let mut order = servers.order.lock();
            let current = order.at;
            // What was said in another round counts for the one that we are with: it is not left
            // for a farther one because it answers a moment later.
            for (n, server) in order.list.iter_mut().enumerate() {
                if n != current {
                    server.place = Place::Silent;
                }
            }
            let all = order.list.iter().map(|server| Arc::clone(&server.addr));
            all.map(|server| servers.ask(server))
                .collect::<FuturesUnordered<_>>()
        };
        let mut until = None;
        loop {
            let next = match until {
                None => Ok(answers.next().await),
                Some(until) => tokio::time::timeout_at(until, answers.next()).await,
            };
            let Ok(Some(answer)) = next else { break };
            servers.note(&answer);
            if answer.1.is_usable() {
                until = until.or_else(|| Some(Instant::now() + GRACE));
            }
        }
        servers.turn(true);
        servers.ranked.send_replace(true);
        while let Some(answer) = answers.next().await {
            servers.note(&answer);
            servers.turn(false);
        }
    }
}

#[cfg(test)]
mod tests;
