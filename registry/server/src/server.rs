//! One server: its catalogue, its leases, its part in the cluster.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use selvedge_registry::{
    InstanceId, InstanceStatus, ServiceName,
    node::{
        admin::Admin,
        listen::{self, ListenError},
        readiness::ReadyGuard,
    },
    wire::{InstanceRecord, MemberInfo, MemberList, MemberState, RegisterRequest},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::{
    api,
    catalogue::{Body, Catalogue, Change, Clock, NodeId, Record, Stamp},
    config::RegistryConfig,
    gossip::{Gossip, Member, Members, generation},
    hub::Hub,
    lease::{Key, Leases, guardian},
    log::Log,
    replicate,
};

/// How often leases are looked at: what a removal is late by at most.
const SWEEP: Duration = Duration::from_millis(100);
/// How long tombstones are kept. Source: twice the longest partition that should heal by itself.
const TOMBSTONES: Duration = Duration::from_secs(3600);

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address is in use or not ours.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Gossip could not start.
    #[error("gossip on {addr}: {source:#}")]
    Gossip {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: anyhow::Error,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] generation::StateError),
    /// The runtime would not take the listener.
    #[error("serve the API")]
    Serve(#[from] std::io::Error),
}

/// Why a renewal or registration was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// No such instance: register (again).
    Unknown,
    /// A later life of the instance is known.
    Later {
        /// Its incarnation.
        incarnation: u64,
    },
}

#[derive(Debug)]
struct State {
    catalogue: Catalogue,
    clock: Clock,
    log: Log,
    leases: Leases,
}

/// What the parts of a server share.
#[derive(Debug)]
pub struct Shared {
    /// This server's name.
    pub node: NodeId,
    /// This server's life; its revisions' epoch.
    pub generation: u64,
    /// Where its API is.
    pub http: SocketAddr,
    state: Mutex<State>,
    /// Tells the watchers.
    pub hub: Hub,
    members: watch::Receiver<Members>,
    serving: watch::Sender<bool>,
    /// Peers whose whole catalogue has arrived.
    synced: Mutex<HashSet<NodeId>>,
    /// Leases renewed.
    pub renewals: AtomicU64,
    /// Leases that ran out.
    pub evictions: AtomicU64,
}

fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn wall_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Shared {
    /// Reads the catalogue.
    pub fn read<T>(&self, with: impl FnOnce(&Catalogue) -> T) -> T {
        with(&self.state.lock().catalogue)
    }

    /// Reads this server's own log.
    pub fn read_log<T>(&self, with: impl FnOnce(&Log) -> T) -> T {
        with(&self.state.lock().log)
    }

    /// Whether it answers as one that knows everything.
    pub fn is_serving(&self) -> bool {
        *self.serving.borrow()
    }

    /// Follows [`is_serving`](Self::is_serving).
    pub fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    /// The servers that are alive.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    /// Registers an instance, or changes what it said.
    ///
    /// # Errors
    /// [`Refused::Later`] if a later life of it is known.
    pub fn register(
        &self,
        service: ServiceName,
        id: InstanceId,
        request: RegisterRequest,
    ) -> Result<InstanceRecord, Refused> {
        let mut state = self.state.lock();
        let known = state
            .catalogue
            .get(&service, &id)
            .map(|record| record.stamp.incarnation);
        let incarnation = request
            .incarnation
            .unwrap_or_else(|| known.unwrap_or_default().max(wall_ms()));
        if let Some(incarnation) = known.filter(|known| *known > incarnation) {
            return Err(Refused::Later { incarnation });
        }
        let instance = InstanceRecord {
            id: id.clone(),
            addr: request.addr,
            status: request.status,
            weight: request.weight,
            protocol: request.protocol,
            locality: request.locality,
            ttl: request.ttl,
            incarnation,
            owner: self.node.to_string(),
            metadata: request.metadata,
        };
        state
            .leases
            .renew((service.clone(), id.clone()), instance.ttl.0, now());
        self.write(
            &mut state,
            service,
            id,
            incarnation,
            Body::Live(Box::new(instance.clone())),
        );
        Ok(instance)
    }

    /// Renews a lease; takes it over if another server kept it.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if the instance is not registered, or not in this life.
    pub fn renew(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        incarnation: Option<u64>,
    ) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let Some((record, instance)) = state.catalogue.live(service, id) else {
            return Err(Refused::Unknown);
        };
        if incarnation.is_some_and(|life| life != record.stamp.incarnation) {
            return Err(Refused::Unknown);
        }
        let (mine, ttl) = (record.stamp.owner == self.node, instance.ttl.0);
        let claim = (!mine).then(|| (record.stamp.incarnation, instance.clone()));
        state
            .leases
            .renew((service.clone(), id.clone()), ttl, now());
        self.renewals.fetch_add(1, Ordering::Relaxed);
        if let Some((incarnation, mut instance)) = claim {
            instance.owner = self.node.to_string();
            let body = Body::Live(Box::new(instance));
            self.write(&mut state, service.clone(), id.clone(), incarnation, body);
        }
        Ok(())
    }

    /// Takes an instance out because it said so.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if it is not registered.
    pub fn deregister(&self, service: &ServiceName, id: &InstanceId) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let Some((record, _)) = state.catalogue.live(service, id) else {
            return Err(Refused::Unknown);
        };
        let incarnation = record.stamp.incarnation;
        state.leases.release(&(service.clone(), id.clone()));
        self.write(
            &mut state,
            service.clone(),
            id.clone(),
            incarnation,
            Body::Cancelled,
        );
        Ok(())
    }

    /// Changes an instance's status as an operator or the instance itself asks.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if it is not registered.
    pub fn set_status(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        status: InstanceStatus,
    ) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let Some((record, instance)) = state.catalogue.live(service, id) else {
            return Err(Refused::Unknown);
        };
        let (incarnation, mut instance) = (record.stamp.incarnation, instance.clone());
        instance.status = status;
        instance.owner = self.node.to_string();
        state
            .leases
            .renew((service.clone(), id.clone()), instance.ttl.0, now());
        let body = Body::Live(Box::new(instance));
        self.write(&mut state, service.clone(), id.clone(), incarnation, body);
        Ok(())
    }

    /// Stamps what was accepted here, takes it, logs it for the others and tells the watchers.
    fn write(
        &self,
        state: &mut State,
        service: ServiceName,
        id: InstanceId,
        incarnation: u64,
        body: Body,
    ) {
        let hlc = state.clock.tick(wall_ms());
        let stamp = Stamp {
            incarnation,
            hlc,
            owner: Arc::clone(&self.node),
        };
        let record = Record {
            service,
            id,
            stamp,
            body,
        };
        state.log.append(&record);
        if let Change::Visible(delta) = state.catalogue.merge(record) {
            self.hub.publish(&delta);
        }
    }

    /// Takes what another server has accepted.
    pub fn accept(&self, record: Record) {
        let mut state = self.state.lock();
        state.clock.observe(record.stamp.hlc, wall_ms());
        let key = (record.service.clone(), record.id.clone());
        let foreign = record.stamp.owner != self.node;
        match state.catalogue.merge(record) {
            Change::None => return,
            Change::Hidden => {}
            Change::Visible(delta) => self.hub.publish(&delta),
        }
        if foreign {
            state.leases.release(&key);
        }
    }

    /// A peer's whole catalogue has arrived.
    pub fn synced_with(&self, node: &NodeId) {
        self.synced.lock().insert(Arc::clone(node));
    }

    /// Ends leases whose time is over, and looks after those whose server is gone.
    fn sweep(&self, orphans_too: bool) {
        let members = self.members.borrow().clone();
        let mut state = self.state.lock();
        let at = now();
        if orphans_too {
            self.adopt_orphans(&mut state, &members, at);
        }
        for (service, id) in state.leases.expired(at, SWEEP) {
            let Some((record, _)) = state.catalogue.live(&service, &id) else {
                continue;
            };
            let incarnation = record.stamp.incarnation;
            tracing::info!(%service, instance = %id, owner = %record.stamp.owner, "lease ran out");
            self.evictions.fetch_add(1, Ordering::Relaxed);
            self.write(&mut state, service, id, incarnation, Body::Evicted);
        }
        let horizon = wall_ms().saturating_sub(TOMBSTONES.as_millis() as u64) << 16;
        if orphans_too {
            state.catalogue.forget_before(horizon);
        }
    }

    /// An instance whose server is gone has one full lease to renew elsewhere; one server, the same
    /// in everybody's eyes, counts it.
    fn adopt_orphans(&self, state: &mut State, members: &Members, at: Instant) {
        let alive = |node: &str| members.get(node).is_some_and(Member::is_present);
        let orphans: Vec<(Key, Duration, bool)> = state
            .catalogue
            .records()
            .filter_map(|record| {
                let Body::Live(instance) = &record.body else {
                    return None;
                };
                let key = (record.service.clone(), record.id.clone());
                let owner = &record.stamp.owner;
                // In its own eyes a server keeps what it owns, unless that was in an earlier life.
                let mine = *owner == self.node;
                let orphan = if mine {
                    !state.leases.holds(&key)
                } else {
                    !alive(owner)
                };
                let guarded = !mine && state.leases.holds(&key);
                (orphan || guarded).then_some((key, instance.ttl.0, orphan))
            })
            .collect();
        for (key, ttl, orphan) in orphans {
            let present = members.iter().filter(|(_, member)| member.is_present());
            let nodes = present.map(|(node, _)| &**node);
            let mine = guardian(&key, nodes) == Some(&*self.node);
            if orphan && mine {
                state.leases.adopt(&key, ttl, at);
            } else if !orphan {
                // Its server is back.
                state.leases.release(&key);
            }
        }
    }

    /// Every server, as this one sees it.
    pub fn member_list(&self) -> MemberList {
        let owned = self.owned_by_server();
        let members = self.members.borrow();
        let info = members.iter().map(|(node, member)| MemberInfo {
            node: node.to_string(),
            http: member.http,
            gossip: member.gossip,
            state: member.state,
            locality: member.locality.clone(),
            owned: owned.get(node).copied().unwrap_or_default(),
            me: *node == self.node,
        });
        MemberList {
            members: info.collect(),
        }
    }

    fn owned_by_server(&self) -> std::collections::HashMap<NodeId, usize> {
        let mut owned = std::collections::HashMap::new();
        self.read(|catalogue| {
            for record in catalogue
                .records()
                .filter(|r| matches!(r.body, Body::Live(_)))
            {
                *owned.entry(Arc::clone(&record.stamp.owner)).or_default() += 1;
            }
        });
        owned
    }

    /// Leases this server keeps.
    pub fn leases(&self) -> usize {
        self.state.lock().leases.len()
    }
}

/// A server that runs until it is shut down.
#[derive(Debug)]
pub struct RegistryServer {
    shared: Arc<Shared>,
    gossip_addr: SocketAddr,
    gossip: Gossip,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
    api: JoinHandle<()>,
}

impl RegistryServer {
    /// Binds, joins the cluster and begins to answer. Ready when `admin.readiness` says so.
    ///
    /// # Errors
    /// [`StartError`] naming the address that cannot be used.
    pub async fn start(config: &RegistryConfig, admin: &Admin) -> Result<Self, StartError> {
        let listener = listen::bind("registry API", config.http)?;
        let http = listener.local_addr()?;
        let ready = admin.readiness.wait_for("registry", "joining the cluster");
        let life = generation::begin(config.state_dir.as_deref(), wall_ns())?;
        if !life.wait.is_zero() {
            tracing::warn!(wait = ?life.wait, "started too often, joining later");
            tokio::time::sleep(life.wait).await;
        }
        let generation = life.generation;
        let node: NodeId = match &config.node {
            Some(name) => name.as_str().into(),
            None => format!("registry-{:08x}", fastrand::u32(..)).into(),
        };
        let mut gossip_config = config.gossip.clone();
        gossip_config.bind = free_udp_port(config.gossip.bind)?;
        let gossip_addr = gossip_config.bind;
        let cluster = config.cluster.to_string();
        let gossip = Gossip::join(
            Arc::clone(&node),
            generation,
            cluster,
            http,
            &config.locality,
            &gossip_config,
        )
        .await
        .map_err(|source| StartError::Gossip {
            addr: gossip_addr,
            source,
        })?;
        let shared = Arc::new(Shared {
            node,
            generation,
            http,
            state: Mutex::new(State {
                catalogue: Catalogue::new(generation),
                clock: Clock::default(),
                log: Log::default(),
                leases: Leases::default(),
            }),
            hub: Hub::default(),
            members: gossip.members(),
            serving: watch::channel(false).0,
            synced: Mutex::default(),
            renewals: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        });
        crate::metrics::show(&shared, &admin.metrics);
        let mut tasks = JoinSet::new();
        tasks.spawn(replicate::follow_everybody(Arc::clone(&shared)));
        tasks.spawn(sweep_for_ever(Arc::clone(&shared)));
        let alone_after = (!gossip_config.seeds.is_empty()).then_some(gossip_config.join_timeout.0);
        tasks.spawn(become_ready(Arc::clone(&shared), alone_after, ready));
        let name = admin.readiness.wait_for("name", "not asked yet");
        let superseded = gossip.superseded();
        tasks.spawn(step_down_if_superseded(
            Arc::clone(&shared),
            superseded,
            name,
        ));
        let (stop, mut stopped) = watch::channel(false);
        let api = tokio::spawn(api::serve(listener, Arc::clone(&shared), async move {
            let _stopped_or_dropped = stopped.wait_for(|stop| *stop).await;
        }));
        tracing::info!(node = %shared.node, http = %http, gossip = %gossip_addr, "registry server started");
        let server = Self {
            shared,
            gossip_addr,
            gossip,
            tasks,
            stop,
            api,
        };
        server.announce();
        Ok(server)
    }

    /// Tells the others once it serves.
    fn announce(&self) {
        let announce = self.gossip.announcer();
        let mut serving = self.shared.serving();
        tokio::spawn(async move {
            if serving.wait_for(|serving| *serving).await.is_ok() {
                announce.set(MemberState::Serving).await;
            }
        });
    }

    /// What it is made of.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where it gossips.
    pub fn gossip_addr(&self) -> SocketAddr {
        self.gossip_addr
    }

    /// Leaves the cluster and stops. Clients turn to other servers at once; those give what this
    /// one kept a full lease to follow.
    pub async fn shutdown(mut self) {
        self.gossip.announcer().set(MemberState::Draining).await;
        // One round of gossip, so that the others know before the connections end.
        tokio::time::sleep(SWEEP).await;
        self.stop.send_replace(true);
        if tokio::time::timeout(Duration::from_secs(2), &mut self.api)
            .await
            .is_err()
        {
            self.api.abort();
        }
        self.tasks.shutdown().await;
        self.gossip.leave().await;
    }
}

/// chitchat needs to know its own port beforehand.
fn free_udp_port(addr: SocketAddr) -> Result<SocketAddr, ListenError> {
    let error = |source| ListenError {
        what: "gossip".into(),
        addr,
        source,
    };
    let socket = std::net::UdpSocket::bind(addr).map_err(error)?;
    socket.local_addr().map_err(error)
}

async fn sweep_for_ever(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0u64.. {
        tick.tick().await;
        // A server that is catching up judges nobody.
        if shared.is_serving() {
            shared.sweep(round.is_multiple_of(5));
        }
    }
}

/// Of two processes with one name the one with the lower generation stops to serve: the others
/// listen to the higher only.
async fn step_down_if_superseded(
    shared: Arc<Shared>,
    mut superseded: watch::Receiver<Option<u64>>,
    ready: ReadyGuard,
) {
    let mut stepped_down = false;
    loop {
        let later = *superseded.borrow_and_update();
        if let Some(later) = later {
            ready.not_ready(format!(
                "another process is called {} too, with the later generation {later}: this one \
                 ({}) stepped down; give it a name of its own",
                shared.node, shared.generation
            ));
            stepped_down |= shared.serving.send_replace(false);
        } else {
            if std::mem::take(&mut stepped_down) {
                shared.serving.send_replace(true);
            }
            ready.ready();
        }
        if superseded.changed().await.is_err() {
            return;
        }
    }
}

/// Ready once the catalogue of a serving peer has arrived, or when there is no such peer.
async fn become_ready(shared: Arc<Shared>, alone_after: Option<Duration>, ready: ReadyGuard) {
    let start = tokio::time::Instant::now();
    loop {
        let others: Vec<NodeId> = shared
            .members
            .borrow()
            .iter()
            .filter(|(node, member)| **node != shared.node && member.state == MemberState::Serving)
            .map(|(node, _)| Arc::clone(node))
            .collect();
        let caught_up = others
            .iter()
            .any(|node| shared.synced.lock().contains(node));
        let alone = others.is_empty() && alone_after.is_none_or(|after| start.elapsed() >= after);
        if caught_up || alone {
            shared.serving.send_replace(true);
            ready.ready();
            tracing::info!(node = %shared.node, peers = others.len(), "registry server serves");
            // Kept: dropping it would say the same, but this part can be asked about for ever.
            std::future::pending::<()>().await;
        }
        if !others.is_empty() {
            ready.not_ready("fetching the catalogue from a peer");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
