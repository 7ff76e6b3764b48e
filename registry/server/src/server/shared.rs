//! What the parts of a server share: the catalogue, the leases, and who else there is.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use selvedge_registry::wire::{MemberInfo, MemberList, MemberState};
use tokio::sync::watch;

use super::{doubts::Doubts, passed_on::PassedOn, sweep::Judgement};
use crate::{
    catalogue::{Catalogue, Clock, Key, NodeId, Store},
    eureka::Beside,
    gossip::{Member, Members},
    hub::Hub,
    lease::{Leases, LeasesConfig, preserve::SelfPreservation},
    log::{Log, ReplicationConfig},
    persist::{Restored, resume_clock},
    replicate::{frame::Position, peer::Peers},
};

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// No such instance: register (again).
    Unknown,
    /// A later life of the instance is known.
    Later {
        /// Its incarnation.
        incarnation: u64,
    },
    /// There is no room for it.
    Limit {
        /// What there would be too many of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// It would break a limit of what an instance may say.
    Invalid(String),
    /// This server is catching up and cannot know, or leaves: another one can.
    NotServing,
}

/// How many there may be. Source: `reliability.md` §4.8 for instances of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Services that have instances.
    pub services: usize,
    /// Instances of one service.
    pub per_service: usize,
    /// Instances in all.
    pub total: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            services: 40_000,
            per_service: 10_000,
            total: 2_000_000,
        }
    }
}

/// Where a registration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What other dialects must give back.
    pub dialects: BTreeMap<String, String>,
}

impl Origin {
    /// The v1 API.
    pub fn v1() -> Self {
        Self {
            dialects: BTreeMap::new(),
        }
    }
}

/// A renewal was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// The lease; zero if this server does not know it.
    pub ttl: Duration,
    /// It was passed on to the server that keeps the lease, or knows who does.
    pub passed_on: bool,
}

/// The wall clock, in Unix milliseconds. Replaced where tests let it jump.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's.
pub fn system_clock() -> WallClock {
    Arc::new(|| {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) log: Log,
}

/// What it counts, for those who look.
#[derive(Debug, Default)]
pub struct Counters {
    /// Leases renewed.
    pub renewals: AtomicU64,
    /// Leases that ran out.
    pub evictions: AtomicU64,
    /// Leases taken over from other servers.
    pub claims: AtomicU64,
    /// Evictions by others that were taken back, as the lease here was good.
    pub reasserted: AtomicU64,
    /// Renewals passed on to the servers that keep the leases.
    pub passed_on: AtomicU64,
    /// Whole snapshots fetched from peers.
    pub snapshots: AtomicU64,
    /// Buckets fetched because they differed.
    pub repairs: AtomicU64,
    /// Times that a server's changes came by way of another, as its stream could not be had.
    pub relayed: AtomicU64,
    /// State that could not be saved.
    pub save_failures: AtomicU64,
}

/// What the parts of a server share.
pub struct Shared {
    /// This server's name.
    pub node: NodeId,
    /// This server's life; its revisions' epoch.
    pub generation: u64,
    /// Where its API is.
    pub http: SocketAddr,
    /// Tells the watchers.
    pub hub: Hub,
    /// What it counts.
    pub counters: Counters,
    pub(crate) state: RwLock<State>,
    pub(crate) leases: Leases,
    pub(crate) config: LeasesConfig,
    pub(crate) members: watch::Receiver<Members>,
    /// Those that are no longer heard of, until they are forgotten.
    pub(crate) dead: watch::Receiver<Members>,
    pub(crate) serving: watch::Sender<bool>,
    pub(crate) draining: watch::Sender<bool>,
    /// Peers up to whose last word this server has followed.
    pub(crate) synced: Mutex<HashSet<NodeId>>,
    /// Instances whose owner may be gone, to be looked at.
    pub(crate) orphans: Mutex<HashSet<Key>>,
    pub(crate) judgement: Mutex<Judgement>,
    pub(crate) preservation: ArcSwap<SelfPreservation>,
    pub(crate) passed_on: PassedOn,
    pub(crate) doubts: Doubts,
    pub(crate) beside: Beside,
    pub(crate) caps: ArcSwap<Caps>,
    pub(crate) wall: WallClock,
    pub(crate) peers: Peers,
    /// The cluster's name.
    pub cluster: String,
    /// How far each server's log has been followed.
    pub(crate) followed: Mutex<HashMap<String, Position>>,
    /// How far each peer has followed ours, and when it said so.
    pub(crate) heard: Mutex<HashMap<NodeId, (Position, Instant)>>,
    pub(crate) compare_every: Duration,
    /// The catalogue of a peer has arrived, or there was none to fetch.
    pub(crate) caught_up: watch::Sender<bool>,
    /// What was remembered over a restart is given time until then, in milliseconds of uptime.
    pub(crate) grace_until: AtomicU64,
    started: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("node", &self.node)
            .field("generation", &self.generation)
            .field("serving", &self.is_serving())
            .finish_non_exhaustive()
    }
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What a server is at its start.
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
    pub(crate) http: SocketAddr,
    pub(crate) members: watch::Receiver<Members>,
    pub(crate) dead: watch::Receiver<Members>,
    pub(crate) wall: WallClock,
    pub(crate) peers: Peers,
    pub(crate) cluster: String,
}

impl Shared {
    pub(crate) fn new(
        identity: Identity,
        leases: &LeasesConfig,
        replication: &ReplicationConfig,
    ) -> Self {
        let started = now();
        Self {
            node: identity.node,
            generation: identity.generation,
            http: identity.http,
            hub: Hub::default(),
            counters: Counters::default(),
            state: RwLock::new(State {
                store: Store::new(identity.generation),
                clock: Clock::default(),
                log: Log::new(replication.clone()),
            }),
            leases: Leases::new(started, leases),
            config: leases.clone(),
            members: identity.members,
            dead: identity.dead,
            serving: watch::channel(false).0,
            draining: watch::channel(false).0,
            synced: Mutex::default(),
            orphans: Mutex::default(),
            judgement: Mutex::default(),
            preservation: ArcSwap::default(),
            passed_on: PassedOn::default(),
            doubts: Doubts::default(),
            beside: Beside::default(),
            caps: ArcSwap::default(),
            wall: identity.wall,
            peers: identity.peers,
            cluster: identity.cluster,
            followed: Mutex::default(),
            heard: Mutex::default(),
            compare_every: replication.compare_every.0,
            caught_up: watch::channel(false).0,
            grace_until: AtomicU64::new(0),
            started,
        }
    }

    /// Reads the catalogue as it is now. Takes no lock while `with` runs; what changes meanwhile is
    /// not seen.
    pub fn read<T>(&self, with: impl FnOnce(&Catalogue) -> T) -> T {
        with(&self.catalogue())
    }

    /// The catalogue as it is now.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(self.state.read().store.catalogue())
    }

    /// Reads this server's own log.
    pub fn read_log<T>(&self, with: impl FnOnce(&Log) -> T) -> T {
        with(&self.state.read().log)
    }

    /// Milliseconds since it started, on the monotonic clock.
    pub(crate) fn uptime_ms(&self) -> u64 {
        now().saturating_duration_since(self.started).as_millis() as u64
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        (self.wall)()
    }

    /// Whether it answers as one that knows everything.
    pub fn is_serving(&self) -> bool {
        *self.serving.borrow()
    }

    /// Follows [`is_serving`](Self::is_serving).
    pub fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    /// Whether it leaves.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Begins to leave: no new instance is taken, leases go to other servers.
    pub fn start_drain(&self) {
        self.draining.send_replace(true);
    }

    /// Resolves once this server is told to leave. Cancel-safe.
    pub(crate) async fn drained(&self) {
        let mut draining = self.draining.subscribe();
        // The sender is in `self`.
        let _told = draining.wait_for(|draining| *draining).await;
    }

    /// Since when this server has heard from none of its peers; `None` if it is up to date.
    pub fn staleness(&self) -> Option<Duration> {
        self.judgement.lock().unheard_since(now())
    }

    /// Whether evictions are stopped, and why.
    pub fn self_preservation(&self) -> Arc<SelfPreservation> {
        self.preservation.load_full()
    }

    /// Sets how many instances there may be.
    pub fn set_caps(&self, caps: Caps) {
        self.caps.store(Arc::new(caps));
    }

    /// The servers that are alive.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    /// Whether `node` can keep a lease: it is there and has not left.
    pub(crate) fn is_alive(&self, node: &str) -> bool {
        let there = |members: &Members| members.get(node).is_some_and(Member::is_present);
        *node == *self.node || there(&self.members.borrow())
    }

    /// A peer's last word has arrived.
    pub(crate) fn synced_with(&self, node: &NodeId) {
        self.synced.lock().insert(Arc::clone(node));
    }

    /// A peer says how far it has followed this server.
    pub(crate) fn heard_by(&self, node: &NodeId, position: Option<Position>) {
        if let Some(position) = position.filter(|p| p.generation == self.generation) {
            let mut heard = self.heard.lock();
            heard.insert(Arc::clone(node), (position, now()));
        }
    }

    /// Changes accepted here that each peer has not confirmed yet, as of its last word.
    pub fn unconfirmed(&self) -> Vec<(NodeId, u64)> {
        let next = self.read_log(Log::next);
        let heard = self.heard.lock();
        let lag = |(node, (at, _)): (&NodeId, &(Position, Instant))| {
            (Arc::clone(node), next.saturating_sub(at.next))
        };
        heard.iter().map(lag).collect()
    }

    /// What a restart still gives to those it remembers.
    pub(crate) fn restart_grace(&self) -> Duration {
        let until = self.grace_until.load(Ordering::Relaxed);
        Duration::from_millis(until.saturating_sub(self.uptime_ms()))
    }

    /// Where this server stands, for gossip: `epoch:seq:count:hash` of what it owns.
    pub fn head(&self) -> String {
        let state = self.state.read();
        let owned = state.store.owned(&self.node);
        let (count, hash) = owned.map_or((0, 0), |owned| (owned.keys.len(), owned.hash()));
        let next = state.log.next();
        format!("{:x}:{next}:{count}:{hash:016x}", self.generation)
    }

    /// The catalogue, and the last stamp that was given: not later than anything that is given
    /// after this.
    pub(crate) fn to_save(&self) -> (Arc<Catalogue>, u64) {
        let state = self.state.read();
        (Arc::clone(state.store.catalogue()), state.clock.last())
    }

    /// Begins with what an earlier life has left; everybody in it has `grace` to be heard of.
    pub(crate) fn restore(&self, restored: Restored, grace: Duration) {
        let mut state = self.state.write();
        state.clock = resume_clock(&restored.header, self.wall_ms());
        state.store = restored.store;
        let until = self.uptime_ms() + grace.as_millis() as u64;
        self.grace_until.store(until, Ordering::Relaxed);
        let mine = state.store.owned(&self.node);
        let mine = mine
            .into_iter()
            .flat_map(|owned| owned.keys.iter().cloned());
        self.orphans.lock().extend(mine);
        tracing::info!(
            instances = state.store.catalogue().len(),
            saved_ms = restored.header.saved_ms,
            "restored the catalogue, unconfirmed"
        );
    }

    /// Forgets what an earlier life has left: it is so old that tombstones of what it holds may
    /// have been forgotten, and there are others to ask.
    pub(crate) fn forget_restored(&self) {
        self.state.write().store = Store::new(self.generation);
        self.orphans.lock().clear();
    }

    /// Every server, as this one sees it; those that are dead or have left too, until they are
    /// forgotten.
    pub fn member_list(&self) -> MemberList {
        let state = self.state.read();
        let owned = |node: &str| state.store.owned(node).map_or(0, |owned| owned.keys.len());
        // Whoever dies between the two looks is in both.
        let mut members = self.dead.borrow().clone();
        members.extend(self.members.borrow().clone());
        let info = members.iter().map(|(node, member)| MemberInfo {
            node: node.to_string(),
            http: member.http,
            gossip: member.gossip,
            state: member.state,
            locality: member.locality.clone(),
            owned: owned(node),
            me: *node == self.node,
        });
        MemberList {
            members: info.collect(),
        }
    }

    /// The peers that serve.
    pub(crate) fn serving_peers(&self) -> Vec<(NodeId, SocketAddr)> {
        let members = self.members.borrow();
        members
            .iter()
            .filter(|(node, m)| **node != self.node && m.state == MemberState::Serving)
            .map(|(node, member)| (Arc::clone(node), member.http))
            .collect()
    }

    /// Leases this server keeps.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// How slow this process is in its own eyes, 0 to 7: deadlines are `1 + n` times as long.
    pub fn slowness(&self) -> u32 {
        self.leases.clock().score()
    }

    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
