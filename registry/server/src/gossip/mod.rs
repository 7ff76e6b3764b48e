//! Membership: which servers there are, by gossip.
//!
//! chitchat carries who a server is and how it is, a handful of small values. Instances stay out
//! of it: every change there clones every node's state, and a digest has a hard ceiling. It
//! authenticates nothing either, so what it says travels sealed.
//!
//! | part | |
//! |---|---|
//! | [`member`] | what a server says of itself, and how much it may say |
//! | [`roster`] | who is there: one life of each server, failed or left |
//! | [`health`], [`isolation`] | whether the fault is this server's own |
//! | [`generation`] | which life this is |
//! | [`keyring`], [`seal`], [`replay`], [`fragment`] | what travels: sealed, fresh, in small pieces |
//! | [`compact`] | digests in a byte or two for each server |
//! | [`transport`] | chitchat's datagrams through all that |
//! | [`admin`] | the keyring on the admin port |
//!
//! # Guarantees
//! - A server that dies is dead in everybody's eyes within five seconds at the default interval.
//!   One that is slow, or reached by fewer paths than others, is not.
//! - Nobody without a key joins, or changes what a member says (with keys: see [`seal`]).
//! - Two clusters that reach each other never merge, by mistake nor through addresses used again.
//!
//! # What it does not do
//! Protect against a server that has the key. Stay below a fixed number of bytes: each server adds
//! about a byte to most messages (`registry/docs/numbers.md`).

pub mod admin;
pub mod compact;
pub mod fragment;
pub mod generation;
pub mod health;
pub mod isolation;
pub mod keyring;
pub mod member;
pub mod replay;
pub mod roster;
pub mod seal;
mod seeds;
#[doc(hidden)]
pub mod testing;
pub mod traffic;
pub mod transport;

use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion,
    spawn_chitchat, transport::Transport,
};
use selvedge_registry::{Locality, node::listen::ListenError, wire::MemberState};
use tokio::{sync::watch, task::JoinSet};

pub use member::{Announcer, FactRefused, Member};
pub use roster::{Event, Members};

use crate::{catalogue::NodeId, config::GossipConfig};
use health::LocalHealth;
use isolation::Isolation;
use keyring::Keyring;
pub(crate) use member::text;
use roster::{GRACE, Roster, Sighting};
use seeds::LastPeers;
use traffic::Traffic;
use transport::SealedTransport;

/// Verdict of the failure detector. Source: chitchat has 8. Measured with fifty servers and a killed
/// one (`examples/gossip_sim.rs`, and ninety runs of the test of it): at 8 four runs of ninety took
/// 5.5 s, at 7 none took more than five; and at 7 nobody is accused in an hour of a tenth of the
/// messages lost, nor in ten minutes of a quarter of them.
const PHI: f64 = 7.0;
/// Intervals without a sign of life before anybody is given up. The detector judges by the mean
/// time between signs, which in a large cluster is a fraction of the interval: this is the least
/// that one may be silent, and it keeps detection below five seconds at 500 ms. Measured:
/// `examples/gossip_sim.rs`.
const PATIENCE: u32 = 4;
/// Rounds of gossip a goodbye is given: three peers hear each, and tell others. A guess.
const GOODBYE_ROUNDS: u32 = 3;

/// What the watcher of the membership has found.
#[derive(Debug, Default)]
struct Watched {
    members: watch::Sender<Members>,
    dead: watch::Sender<Members>,
    isolated: watch::Sender<bool>,
    health: watch::Sender<u32>,
    superseded: watch::Sender<Option<u64>>,
    events: [AtomicU64; Event::ALL.len()],
}

/// How often each event has happened. Clones share the counts.
#[derive(Debug, Clone)]
pub struct EventCounts(Arc<Watched>);

impl EventCounts {
    /// Every event.
    pub fn all(&self) -> [(Event, u64); Event::ALL.len()] {
        let mut counts = self.0.events.iter();
        Event::ALL.map(|event| {
            let count = counts.next();
            (
                event,
                count.map_or(0, |count| count.load(Ordering::Relaxed)),
            )
        })
    }

    /// One event.
    pub fn of(&self, event: Event) -> u64 {
        let all = self.all();
        all.iter()
            .filter(|(e, _)| *e == event)
            .map(|(_, n)| n)
            .sum()
    }
}

/// Who joins.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name, unique in the cluster.
    pub node: NodeId,
    /// Its life; must grow with each.
    pub generation: u64,
    /// The cluster.
    pub cluster: String,
    /// Where its API is.
    pub http: SocketAddr,
    /// Where it runs.
    pub locality: Locality,
}

/// Takes part in the gossip until it is shut down or dropped.
pub struct Gossip {
    handle: Arc<ChitchatHandle>,
    addr: SocketAddr,
    keys: Arc<Keyring>,
    traffic: Arc<Traffic>,
    watched: Arc<Watched>,
    interval: Duration,
    /// What to forget on leaving.
    last_peers: Option<LastPeers>,
    _tasks: JoinSet<()>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip")
            .field("addr", &self.addr)
            .field("watched", &self.watched)
            .finish_non_exhaustive()
    }
}

/// Binds the socket that [`Gossip::join`] takes. Port 0 takes a free one.
///
/// # Errors
/// [`ListenError`] naming the address and the cause.
pub fn bind(addr: SocketAddr) -> Result<UdpSocket, ListenError> {
    UdpSocket::bind(addr).map_err(|cause| ListenError {
        what: "gossip".into(),
        addr,
        cause,
    })
}

impl Gossip {
    /// Joins over `socket`. `state_dir` keeps what helps after a crash.
    ///
    /// # Errors
    /// If the configuration cannot be used, or the socket.
    pub async fn join(
        identity: Identity,
        socket: UdpSocket,
        config: &GossipConfig,
        state_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let addr = socket.local_addr()?;
        config.validate()?;
        let keys = Arc::new(config.keyring()?);
        say_how_sealed(addr, &keys);
        let traffic = Arc::new(Traffic::default());
        let transport = SealedTransport::new(
            socket,
            &identity.cluster,
            Arc::clone(&keys),
            Arc::clone(&traffic),
            config.allowed_networks()?,
        )?;
        let mut gossip = Self::join_over(identity, addr, &transport, config, state_dir).await?;
        (gossip.keys, gossip.traffic) = (keys, traffic);
        Ok(gossip)
    }

    /// Joins over any transport, as `addr`.
    ///
    /// # Errors
    /// If the transport cannot be opened.
    #[doc(hidden)]
    pub async fn join_over(
        identity: Identity,
        addr: SocketAddr,
        transport: &dyn Transport,
        config: &GossipConfig,
        state_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let interval = config.interval.0;
        let (mut seeds, names) = seeds::split(&config.seeds);
        seeds.retain(|seed| *seed != addr);
        let last_peers = LastPeers::in_dir(state_dir);
        let mut known = last_peers.load();
        known.extend(&seeds);
        let node = identity.node;
        let chitchat = ChitchatConfig {
            chitchat_id: ChitchatId {
                node_id: NodeId::clone(&node),
                generation_id: identity.generation,
                gossip_advertise_addr: addr,
            },
            cluster_id: identity.cluster,
            gossip_interval: interval,
            listen_addr: addr,
            // Names are resolved by `seeds`: here it would be waited for.
            seed_nodes: seeds.iter().map(ToString::to_string).collect(),
            failure_detector_config: FailureDetectorConfig::new(
                PHI,
                1_000,
                Duration::from_secs(10).max(interval * 4),
                // As the interval itself: detection is quick from the first minute on.
                interval,
                GRACE,
            ),
            marked_for_deletion_grace_period: GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let facts = member::first_facts(identity.http, &identity.locality);
        let handle = Arc::new(spawn_chitchat(chitchat, facts, transport).await?);
        let watched = Arc::new(Watched::default());
        let members = || watched.members.subscribe();
        let mut tasks = JoinSet::new();
        let to_knock = (Arc::clone(&handle), addr, names, known);
        tasks.spawn(seeds::knock(
            to_knock.0,
            to_knock.1,
            to_knock.2,
            to_knock.3,
            members(),
        ));
        tasks.spawn(last_peers.clone().follow(NodeId::clone(&node), members()));
        let roster = Roster::new(node, identity.generation);
        let chitchat = handle.chitchat();
        tasks.spawn(watch_members(
            chitchat,
            roster,
            interval,
            Arc::clone(&watched),
        ));
        Ok(Self {
            handle,
            addr,
            keys: Arc::default(),
            traffic: Arc::default(),
            watched,
            interval,
            last_peers: (!config.rejoin_after_leave).then_some(last_peers),
            _tasks: tasks,
        })
    }

    /// Where it gossips.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The keys it seals and opens with.
    pub fn keys(&self) -> &Arc<Keyring> {
        &self.keys
    }

    /// What it sends, receives and refuses.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// The servers that are heard of, this one among them, and, for some minutes, those that have
    /// left (their state says so).
    pub fn members(&self) -> watch::Receiver<Members> {
        self.watched.members.subscribe()
    }

    /// Servers that have died without a word, for some minutes.
    pub fn dead(&self) -> watch::Receiver<Members> {
        self.watched.dead.subscribe()
    }

    /// Whether it is this server that is cut off: [`isolation`]. Whoever would end leases for want
    /// of news asks this first.
    pub fn is_isolated(&self) -> watch::Receiver<bool> {
        self.watched.isolated.subscribe()
    }

    /// How late this server itself runs, 0 to [`health::MAX_SCORE`]: deadlines that blame others
    /// are to be multiplied by one more than this.
    pub fn local_health(&self) -> watch::Receiver<u32> {
        self.watched.health.subscribe()
    }

    /// A later life of this server's name, once one is known: two processes share the name, and
    /// this one must not act any more.
    pub fn superseded(&self) -> watch::Receiver<Option<u64>> {
        self.watched.superseded.subscribe()
    }

    /// What has happened to servers, counted.
    pub fn event_counts(&self) -> EventCounts {
        EventCounts(Arc::clone(&self.watched))
    }

    /// What tells the others how this server is.
    pub fn announcer(&self) -> Announcer {
        Announcer(self.handle.chitchat())
    }

    /// Says goodbye, gives it the time to be heard, and leaves. Dropped before it is done, it is as
    /// if the server had died.
    pub async fn leave(self) {
        self.announcer().set(MemberState::Left).await;
        // Nobody to tell: no need to wait.
        let me_only = |members: &Members| members.values().filter(|m| m.is_present()).count() < 2;
        let alone = me_only(&self.watched.members.borrow());
        if !alone {
            tokio::time::sleep(self.interval * GOODBYE_ROUNDS).await;
        }
        if let Some(last_peers) = &self.last_peers {
            last_peers.forget();
        }
        let ended = self.handle.termination_watcher();
        if self.handle.initiate_shutdown().is_ok()
            && let Err(error) = ended.await
        {
            tracing::warn!(%error, "gossip did not end cleanly");
        }
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        // It would end with the last handle; an announcer may still be held somewhere.
        self.handle.abort();
    }
}

fn say_how_sealed(addr: SocketAddr, keys: &Keyring) {
    let list = keys.list();
    if let Some(primary) = list.first() {
        tracing::info!(key = %primary.id, keys = list.len(), "gossip is sealed");
        if !keys.verifies_incoming() || !keys.verifies_outgoing() {
            tracing::warn!(
                verify_incoming = keys.verifies_incoming(),
                verify_outgoing = keys.verifies_outgoing(),
                "gossip has keys but does not insist on them"
            );
        }
    } else if addr.ip().is_loopback() {
        tracing::info!("gossip is not sealed: no keys, and only this machine can reach it");
    } else {
        tracing::warn!(
            address = %addr,
            "GOSSIP IS NOT SEALED: whoever can send a datagram to this address can rewrite the \
             membership of the whole cluster; make a key (selvedge-registry keygen), set \
             gossip.keys and remove gossip.insecure"
        );
    }
}

/// Follows chitchat at each change and each interval.
async fn watch_members(
    chitchat: Arc<tokio::sync::Mutex<Chitchat>>,
    mut roster: Roster,
    interval: Duration,
    watched: Arc<Watched>,
) {
    let mut live = chitchat.lock().await.live_nodes_watcher();
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let now = || tokio::time::Instant::now().into_std();
    let mut health = LocalHealth::new(interval, now());
    let mut isolation = Isolation::default();
    loop {
        let ticked = tokio::select! {
            _ = tick.tick() => true,
            changed = live.changed() => {
                if changed.is_err() {
                    return;
                }
                live.mark_unchanged();
                false
            }
        };
        let late = health.observe(now(), ticked);
        if !late.is_zero() {
            tracing::warn!(
                late_ms = late.as_millis(),
                score = health.score(),
                "this server runs late"
            );
            roster.stood_still(late);
        }
        let patience = interval * PATIENCE * (1 + health.score());
        let sightings = sightings(&*chitchat.lock().await);
        let at = now();
        let events = roster.observe(at, sightings.into_iter(), patience);
        let dead = roster.dead();
        let died = events.iter().filter(|(_, event)| *event == Event::Failed);
        let died = died.map(|(node, _)| node);
        let isolated = isolation.observe(at, roster.heard(), dead.keys(), died);
        for (node, event) in &events {
            say(&roster, node, *event, at, patience, health.score());
        }
        watched.show(&roster, dead, isolated, health.score(), &events);
    }
}

/// Writes down what happened to a server; of a verdict, what it was reached by.
fn say(roster: &Roster, node: &NodeId, event: Event, at: Instant, patience: Duration, score: u32) {
    let what = event.text();
    if event != Event::Failed {
        tracing::info!(peer = %node, event = what, "membership changed");
        return;
    }
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    tracing::warn!(
        peer = %node,
        event = what,
        silent_ms = roster.silent_for(node, at).map(ms),
        patience_ms = ms(patience),
        score,
        "membership changed"
    );
}

fn sightings(chitchat: &Chitchat) -> Vec<Sighting> {
    let live: std::collections::HashSet<&ChitchatId> = chitchat.live_nodes().collect();
    let states = chitchat.node_states().iter();
    states
        .map(|(id, state)| Sighting {
            node: NodeId::clone(&id.node_id),
            generation: id.generation_id,
            heartbeat: state.heartbeat().into(),
            alive: live.contains(id),
            member: member::read(id.generation_id, state),
        })
        .collect()
}

impl Watched {
    fn show(
        &self,
        roster: &Roster,
        dead: Members,
        isolated: bool,
        score: u32,
        events: &[(NodeId, Event)],
    ) {
        for (_, event) in events {
            let nth = Event::ALL.iter().position(|one| one == event);
            if let Some(count) = nth.and_then(|nth| self.events.get(nth)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        if isolated != *self.isolated.borrow() {
            tracing::warn!(isolated, "most servers vanished at once, or are back");
        }
        let superseded = roster.superseded();
        if superseded != *self.superseded.borrow() {
            tracing::error!(
                later = superseded,
                "another process has this server's name and a later generation"
            );
        }
        // Isolation first: whoever sees the deaths must be able to see it.
        set(&self.isolated, isolated);
        set(&self.health, score);
        set(&self.superseded, superseded);
        set(&self.dead, dead);
        set(&self.members, roster.members());
    }
}

fn set<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|known| {
        let changed = *known != value;
        *known = value;
        changed
    });
}
