//! A server from its configuration: its parts made, wired and started, and stopped in order.
//!
//! Here the arrows meet: this module sees every other, and none but the crate's root sees it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use chitchat::transport::Transport;
use selvedge_registry::{
    client::connect::{Connector, Protocol, TlsError},
    node::{
        admin::Admin,
        listen::{self, ListenError},
    },
    wire::MemberState,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinHandle, JoinSet},
};

use crate::{
    api::{self, Api},
    auth::Auth,
    catalogue::NodeId,
    config::{GossipConfig, RegistryConfig},
    dns::Dns,
    eureka::Eureka,
    gossip::{self, Announcer, Gossip, generation, member::HEAD},
    persist,
    regions::{self, Regions},
    replicate::{
        self,
        peer::{Io, Peers},
    },
    server::{Identity, SWEEP, Shared, WallClock, ready, sweep, system_clock},
    tls::Acceptor,
};

/// Pause after leases that nobody took. A guess: as long as a server takes to start.
const DRAIN_AGAIN: Duration = Duration::from_secs(1);

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
    /// Certificates that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The runtime would not take the listener.
    #[error("serve the API")]
    Serve(#[from] std::io::Error),
}

/// What a server takes from around it; another one in tests.
pub struct Environment {
    /// The wall clock.
    pub wall: WallClock,
    /// How it reaches its peers.
    pub peers: Peers,
    /// What the gossip goes over, as `gossip.bind`; sealed UDP if not set.
    pub gossip: Option<Arc<dyn Transport>>,
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            wall: system_clock(),
            peers: Peers::default(),
            gossip: None,
        }
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}

/// A server that runs until it is shut down.
#[derive(Debug)]
pub struct RegistryServer {
    shared: Arc<Shared>,
    gossip_addr: SocketAddr,
    dns_addr: Option<SocketAddr>,
    gossip: Gossip,
    tasks: JoinSet<()>,
    drainer: AbortHandle,
    stop: watch::Sender<bool>,
    api: JoinHandle<()>,
    auth: Arc<Auth>,
    state_dir: Option<PathBuf>,
}

impl RegistryServer {
    /// Binds, joins the cluster and begins to answer. Ready when `admin.readiness` says so.
    ///
    /// # Errors
    /// [`StartError`] naming the address that cannot be used.
    pub async fn start(config: &RegistryConfig, admin: &Admin) -> Result<Self, StartError> {
        let connector = config.peer_connector()?;
        let environment = Environment {
            peers: Peers::new(by(connector.clone()), connector.authorization().cloned()),
            ..Environment::default()
        };
        Self::start_in(config, admin, environment).await
    }

    /// [`start`](Self::start), in an environment of the caller's making.
    ///
    /// # Errors
    /// [`StartError`] naming the address that cannot be used.
    pub async fn start_in(
        config: &RegistryConfig,
        admin: &Admin,
        environment: Environment,
    ) -> Result<Self, StartError> {
        let listener = listen::bind("registry API", config.http)?;
        let http = listener.local_addr()?;
        let ready = admin.readiness.wait_for("registry", "joining the cluster");
        let life = generation::begin(config.state_dir.as_deref(), wall_ns())?;
        if !life.wait.is_zero() {
            tracing::warn!(wait = ?life.wait, "started too often, joining later");
            tokio::time::sleep(life.wait).await;
        }
        let generation = life.generation;
        let dir = config.state_dir.clone();
        let restored = dir
            .as_deref()
            .and_then(|dir| persist::load(dir, generation));
        let node: NodeId = match (&config.node, &restored) {
            (Some(name), _) => name.as_str().into(),
            // One that was made up is kept, as the instances are that it owns.
            (None, Some(restored)) => restored.header.node.as_str().into(),
            (None, None) => format!("registry-{:08x}", fastrand::u32(..)).into(),
        };
        let cluster = config.cluster.to_string();
        let gossip = join(
            gossip::Identity {
                node: Arc::clone(&node),
                generation,
                cluster: cluster.clone(),
                http,
                locality: config.locality.clone(),
            },
            &config.gossip,
            dir.as_deref(),
            environment.gossip.as_deref(),
        )
        .await?;
        let gossip_addr = gossip.addr();
        let identity = Identity {
            node,
            generation,
            http,
            members: gossip.members(),
            dead: gossip.dead(),
            wall: environment.wall,
            peers: environment.peers,
            cluster,
        };
        let shared = Arc::new(Shared::new(identity, &config.leases, &config.replication));
        let remembered = restored.map(|restored| {
            let header = restored.header.clone();
            shared.restore(restored, config.leases.restart_grace.0);
            header
        });
        shared.set_caps(config.limits.caps());
        crate::metrics::show(&shared, &admin.metrics);
        crate::metrics::show_gossip(&gossip, &admin.metrics);
        let mut tasks = JoinSet::new();
        let tls = Acceptor::new(&config.tls)?;
        if let Some(tls) = tls.clone() {
            tasks.spawn(tls.reload_for_ever(config.tls.clone()));
        }
        tasks.spawn(replicate::follow_everybody(Arc::clone(&shared)));
        tasks.spawn(replicate::pass_on_for_ever(Arc::clone(&shared)));
        tasks.spawn(replicate::ask_for_ever(Arc::clone(&shared)));
        tasks.spawn(sweep::sweep_for_ever(Arc::clone(&shared)));
        let alone_after = (!config.gossip.seeds.is_empty()).then_some(config.gossip.join_timeout.0);
        tasks.spawn(ready::become_ready(
            Arc::clone(&shared),
            alone_after,
            remembered,
            ready,
        ));
        if let Some(dir) = dir.clone() {
            let every = config.storage.snapshot_every.0;
            tasks.spawn(persist::save_for_ever(Arc::clone(&shared), dir, every));
        }
        tasks.spawn(ready::step_down_if_superseded(
            Arc::clone(&shared),
            gossip.superseded(),
            admin.readiness.wait_for("name", "not asked yet"),
        ));
        let drainer = tasks.spawn(drain_when_told(Arc::clone(&shared), gossip.announcer()));
        tasks.spawn(publish_head(
            Arc::clone(&shared),
            gossip.announcer(),
            config.gossip.interval.0,
        ));
        tasks.spawn(sweep::note_isolation(
            Arc::clone(&shared),
            gossip.is_isolated(),
        ));
        let regions = Arc::new(Regions::new(&config.locality.region, &config.regions));
        for following in regions::follow(&regions, &shared, &config.peer_connector()?)? {
            tasks.spawn(following);
        }
        let dns = Dns::bind(&config.dns, &config.locality, &shared)?;
        let dns_addr = dns.as_ref().map(Dns::addr);
        if let Some(dns) = dns {
            tasks.spawn(dns.run());
        }
        let mut dialects = axum::Router::new();
        if config.eureka.enabled {
            let eureka = Eureka::new(Arc::clone(&shared), &config.eureka);
            dialects = dialects.merge(eureka.router());
            tasks.spawn(eureka.run());
        }
        let (stop, stopped) = watch::channel(false);
        let listener = api::Listener {
            socket: listener,
            tls,
        };
        let api = Api::new(config, Arc::clone(&shared), regions, stopped);
        let auth = Arc::clone(&api.auth);
        tasks.spawn(Arc::clone(&auth).renew_for_ever());
        let api = tokio::spawn(api::serve(listener, Arc::new(api), dialects));
        tracing::info!(node = %shared.node, http = %http, gossip = %gossip_addr, "registry server started");
        let server = Self {
            shared,
            gossip_addr,
            dns_addr,
            gossip,
            tasks,
            drainer,
            stop,
            api,
            auth,
            state_dir: dir,
        };
        server.announce();
        Ok(server)
    }

    /// Tells the others once it serves.
    fn announce(&self) {
        let announce = self.gossip.announcer();
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let mut serving = shared.serving();
            if serving.wait_for(|serving| *serving).await.is_ok() && !shared.is_draining() {
                announce.set(MemberState::Serving).await;
            }
        });
    }

    /// Looks at the files of clients' tokens now, rather than within half a minute. Reads them.
    pub fn renew_tokens(&self) {
        self.auth.renew();
    }

    /// What it is made of.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Its part in the gossip.
    pub fn gossip(&self) -> &Gossip {
        &self.gossip
    }

    /// Where it gossips.
    pub fn gossip_addr(&self) -> SocketAddr {
        self.gossip_addr
    }

    /// Where it answers DNS, if it does.
    pub fn dns_addr(&self) -> Option<SocketAddr> {
        self.dns_addr
    }

    /// Leaves the cluster and stops: hands its leases over with the time that remains of them, so
    /// that nobody waits for it and nobody is given more than is due. Clients turn to other servers
    /// at once.
    pub async fn shutdown(mut self) {
        // What it does is done here, once.
        self.drainer.abort();
        self.shared.start_drain();
        self.gossip.announcer().set(MemberState::Draining).await;
        // One round of gossip, so that the others know before the connections end.
        tokio::time::sleep(SWEEP).await;
        let left = replicate::hand_off(&self.shared).await;
        if left > 0 {
            tracing::warn!(
                leases = left,
                "nobody took these leases over, they are orphans"
            );
        }
        // So that the others have read that what they took over is theirs.
        tokio::time::sleep(SWEEP).await;
        self.stop.send_replace(true);
        if tokio::time::timeout(Duration::from_secs(2), &mut self.api)
            .await
            .is_err()
        {
            self.api.abort();
        }
        self.tasks.shutdown().await;
        if let Some(dir) = &self.state_dir
            && self.shared.is_serving()
        {
            persist::save_now(&self.shared, dir).await;
        }
        self.gossip.leave().await;
    }
}

async fn join(
    identity: gossip::Identity,
    config: &GossipConfig,
    dir: Option<&Path>,
    over: Option<&dyn Transport>,
) -> Result<Gossip, StartError> {
    let joined = match over {
        Some(transport) => Gossip::join_over(identity, config.bind, transport, config, dir).await,
        None => Gossip::join(identity, gossip::bind(config.bind)?, config, dir).await,
    };
    joined.map_err(|source| StartError::Gossip {
        addr: config.bind,
        source,
    })
}

/// Once an operator drains it, hands its leases over, again and again until somebody has taken
/// each: those who should may be starting at this moment.
async fn drain_when_told(shared: Arc<Shared>, announcer: Announcer) {
    shared.drained().await;
    announcer.set(MemberState::Draining).await;
    loop {
        // One round of gossip, so that nobody passes on to us what we hand over.
        tokio::time::sleep(SWEEP).await;
        let left = replicate::hand_off(&shared).await;
        if left == 0 {
            tracing::info!("drained: no lease is left here");
            return;
        }
        tracing::warn!(leases = left, "nobody takes these leases over");
        tokio::time::sleep(DRAIN_AGAIN).await;
    }
}

/// Tells the others where this server's log stands, once a round of gossip and only when it has
/// moved: one that hears no stream of it knows by that what it misses.
async fn publish_head(shared: Arc<Shared>, announcer: Announcer, every: Duration) {
    let mut said = String::new();
    loop {
        tokio::time::sleep(every).await;
        let head = shared.head();
        if head == said {
            continue;
        }
        match announcer.publish(HEAD, &head).await {
            Ok(()) => said = head,
            Err(error) => tracing::warn!(%error, "the log's head could not be published"),
        }
    }
}

fn wall_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Peers by `connector`.
fn by(connector: Connector) -> replicate::peer::Connect {
    Arc::new(move |addr| {
        let connector = connector.clone();
        Box::pin(async move {
            let server = addr.to_string();
            let stream = connector.connect(&server, Protocol::Http2).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    })
}
