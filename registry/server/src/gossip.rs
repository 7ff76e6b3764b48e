//! Membership: which servers there are, by gossip.
//!
//! chitchat carries who a server is and how it is, a handful of small values. Instances stay out
//! of it: every change there clones every node's state, and a digest has a hard ceiling.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState,
    ProtocolVersion, spawn_chitchat, transport::UdpTransport,
};
use selvedge_registry::{Locality, wire::MemberState};
use tokio::sync::watch;

use crate::{catalogue::NodeId, config::GossipConfig};

/// How long the dead are remembered. Source: quickwit cut both grace periods to this after its
/// digests grew too large.
const GRACE: Duration = Duration::from_secs(15 * 60);
/// Verdict of the failure detector. Source: chitchat's default.
const PHI: f64 = 8.0;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its life.
    pub generation: u64,
    /// Where it gossips.
    pub gossip: SocketAddr,
    /// Where its API is.
    pub http: SocketAddr,
    /// How it is.
    pub state: MemberState,
    /// Where it runs.
    pub locality: Locality,
}

/// The servers that are alive, this one among them.
pub type Members = BTreeMap<NodeId, Member>;

/// Takes part in the gossip until it is shut down.
pub struct Gossip {
    handle: ChitchatHandle,
    members: watch::Receiver<Members>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip")
            .field("members", &*self.members.borrow())
            .finish_non_exhaustive()
    }
}

/// Tells the others how this server is.
pub struct Announcer(Arc<tokio::sync::Mutex<Chitchat>>);

impl std::fmt::Debug for Announcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Announcer")
    }
}

impl Announcer {
    /// Says so from the next round of gossip on.
    pub async fn set(&self, state: MemberState) {
        self.0
            .lock()
            .await
            .self_node_state()
            .set(STATE, text(state));
    }
}

const HTTP: &str = "http";
const STATE: &str = "state";
const REGION: &str = "region";
const ZONE: &str = "zone";

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
            node_id: node,
            generation_id: generation,
            gossip_advertise_addr: config.bind,
        };
        let interval = config.interval.0;
        let facts = [
            (HTTP, http.to_string()),
            (STATE, text(MemberState::Joining).to_owned()),
            (REGION, locality.region.clone()),
            (ZONE, locality.zone.clone()),
        ];
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
            extra_liveness_predicate: Some(Box::new(|state| member(0, state).is_some())),
            protocol_version: ProtocolVersion::V1,
        };
        let facts = facts.map(|(key, value)| (key.to_owned(), value)).to_vec();
        let handle = spawn_chitchat(config, facts, &UdpTransport).await?;
        let (publish, members) = watch::channel(Members::new());
        let mut live = handle.with_chitchat(|c| c.live_nodes_watcher()).await;
        tokio::spawn(async move {
            loop {
                let now = read(&live.borrow_and_update());
                publish.send_if_modified(|known| {
                    let changed = *known != now;
                    *known = now;
                    changed
                });
                if live.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { handle, members })
    }

    /// Who is alive.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    /// What tells the others how this server is.
    pub fn announcer(&self) -> Announcer {
        Announcer(self.handle.chitchat())
    }

    /// Leaves.
    pub async fn leave(self) {
        if let Err(error) = self.handle.shutdown().await {
            tracing::warn!(%error, "gossip did not end cleanly");
        }
    }
}

/// A state as it is gossiped, and shown.
pub(crate) fn text(state: MemberState) -> &'static str {
    match state {
        MemberState::Joining => "joining",
        MemberState::Serving => "serving",
        MemberState::Draining => "draining",
        MemberState::Dead => "dead",
    }
}

/// A node's facts; `None` while they have not all arrived.
fn member(generation: u64, state: &NodeState) -> Option<Member> {
    let state_of = |text: &str| match text {
        "joining" => Some(MemberState::Joining),
        "serving" => Some(MemberState::Serving),
        "draining" => Some(MemberState::Draining),
        _ => None,
    };
    Some(Member {
        generation,
        gossip: state.chitchat_id().gossip_advertise_addr,
        http: state.get(HTTP)?.parse().ok()?,
        state: state_of(state.get(STATE)?)?,
        locality: Locality {
            region: state.get(REGION)?.to_owned(),
            zone: state.get(ZONE)?.to_owned(),
        },
    })
}

/// The latest life of each node.
fn read(live: &BTreeMap<ChitchatId, NodeState>) -> Members {
    let mut members = Members::new();
    for (id, state) in live {
        let Some(member) = member(id.generation_id, state) else {
            continue;
        };
        let known = members.get(&id.node_id);
        if known.is_none_or(|known: &Member| known.generation < id.generation_id) {
            members.insert(id.node_id.clone(), member);
        }
    }
    members
}
