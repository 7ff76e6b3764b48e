//! Membership: which servers there are, by gossip.
//!
//! chitchat carries who a server is and how it is, a handful of small values. Instances stay out
//! of it: every change there clones every node's state, and a digest has a hard ceiling.
//!
//! | part | |
//! |---|---|
//! | [`member`] | what a server says of itself, and how much it may say |
//! | [`roster`] | who is there: one life of each server, failed or left |
//! | [`health`], [`isolation`] | whether the fault is this server's own |
//! | [`generation`] | which life this is |

pub mod generation;
pub mod health;
pub mod isolation;
pub mod member;
pub mod roster;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion,
    spawn_chitchat, transport::UdpTransport,
};
use selvedge_registry::{Locality, wire::MemberState};
use tokio::{sync::watch, task::JoinHandle};

pub use member::{Announcer, FactRefused, Member};
pub use roster::{Event, Members};

use crate::{catalogue::NodeId, config::GossipConfig};
use health::LocalHealth;
use isolation::Isolation;
pub(crate) use member::text;
use roster::{GRACE, Roster, Sighting};

/// Verdict of the failure detector. Source: chitchat's default.
const PHI: f64 = 8.0;
/// Intervals without a sign of life before anybody is given up. Many servers make heartbeats
/// frequent and so chitchat's own verdict hasty: seven intervals and the detector's own round keep
/// detection below five seconds at 500 ms.
const PATIENCE: u32 = 7;
/// Rounds of gossip a goodbye is given: three peers hear each, and tell others. A guess.
const GOODBYE_ROUNDS: u32 = 3;

/// What the watcher of the membership has found.
#[derive(Debug)]
struct Watched {
    members: watch::Sender<Members>,
    dead: watch::Sender<Members>,
    isolated: watch::Sender<bool>,
    health: watch::Sender<u32>,
    superseded: watch::Sender<Option<u64>>,
    events: [AtomicU64; Event::ALL.len()],
}

/// Takes part in the gossip until it is shut down or dropped.
pub struct Gossip {
    handle: Arc<ChitchatHandle>,
    watched: Arc<Watched>,
    interval: Duration,
    watcher: JoinHandle<()>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip")
            .field("watched", &self.watched)
            .finish_non_exhaustive()
    }
}

impl Gossip {
    /// Joins. `generation` must grow with each life of `node`.
    ///
    /// # Errors
    /// If the gossip socket cannot be bound.
    pub async fn join(
        node: NodeId,
        generation: u64,
        cluster: String,
        http: SocketAddr,
        locality: &Locality,
        config: &GossipConfig,
    ) -> anyhow::Result<Self> {
        let id = ChitchatId {
            node_id: NodeId::clone(&node),
            generation_id: generation,
            gossip_advertise_addr: config.bind,
        };
        let interval = config.interval.0;
        let config = ChitchatConfig {
            chitchat_id: id,
            cluster_id: cluster,
            gossip_interval: interval,
            listen_addr: config.bind,
            seed_nodes: config.seeds.clone(),
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
        let facts = member::first_facts(http, locality);
        let handle = Arc::new(spawn_chitchat(config, facts, &UdpTransport).await?);
        let watched = Arc::new(Watched {
            members: watch::channel(Members::new()).0,
            dead: watch::channel(Members::new()).0,
            isolated: watch::channel(false).0,
            health: watch::channel(0).0,
            superseded: watch::channel(None).0,
            events: Default::default(),
        });
        let roster = Roster::new(node, generation);
        let watcher = tokio::spawn(watch_members(
            handle.chitchat(),
            roster,
            interval,
            Arc::clone(&watched),
        ));
        Ok(Self {
            handle,
            watched,
            interval,
            watcher,
        })
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
    pub fn events(&self) -> [(Event, u64); Event::ALL.len()] {
        let mut nth = self.watched.events.iter();
        Event::ALL.map(|event| {
            let count = nth.next().map_or(0, |count| count.load(Ordering::Relaxed));
            (event, count)
        })
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
        self.watcher.abort();
        // The tasks would end with the last handle; an announcer may still be held somewhere.
        self.handle.abort();
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
        let events = roster.observe(now(), sightings.into_iter(), patience);
        let dead = roster.dead();
        let died = events.iter().filter(|(_, event)| *event == Event::Failed);
        let died = died.map(|(node, _)| node);
        let isolated = isolation.observe(now(), roster.heard(), dead.keys(), died);
        watched.show(&roster, dead, isolated, health.score(), &events);
    }
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
        for (node, event) in events {
            let nth = Event::ALL.iter().position(|one| one == event);
            if let Some(count) = nth.and_then(|nth| self.events.get(nth)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let what = event.text();
            if *event == Event::Failed {
                tracing::warn!(peer = %node, event = what, "membership changed");
            } else {
                tracing::info!(peer = %node, event = what, "membership changed");
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
