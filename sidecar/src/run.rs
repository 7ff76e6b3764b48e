//! The process: threads that carry requests, one that knows things, and the order of leaving.
//!
//! An app that is taken out must first stop being found, then stop being called, then stop calling:
//! un-ready → out of service → lame duck → mesh port closes, requests finish → deregistered →
//! the app's own calls finish → exit. A second signal ends it at once.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use axum::{Json, Router, body::Body, extract::Query, http::HeaderMap, routing::get};
use selvedge_proxy::{AccessLog, ProxyMetrics, Worker};
use selvedge_registry::{
    Instance, InstanceId, InstanceStatus,
    client::{Discovery, Registration, RegistryClient, StaticDiscovery},
    node::{
        admin::Admin,
        listen,
        readiness::ReadyGuard,
        shutdown::Signals,
        telemetry::{self, TelemetryGuard},
    },
};
use tokio::{
    sync::watch,
    time::{Duration, interval},
};

use crate::{
    config::{Config, Service},
    inbound::Inbound,
    outbound::Outbound,
    port::{Port, spawn_worker},
    probe::probe,
};

/// A query's parameters, as they are written.
type Pairs = Query<Vec<(String, String)>>;

/// How the sidecar names itself in `Via` and `Proxy-Status`.
const NODE: &str = "selvedge-sidecar";
/// How often destinations that nobody uses are looked for.
const TIDY: Duration = Duration::from_mins(1);
/// How often readiness asks whether the registry has been heard of.
const SYNC_LOOK: Duration = Duration::from_millis(50);

/// Runs a sidecar by `config` until it is told to leave.
///
/// # Errors
/// `ListenError` if an address cannot be had; whatever else keeps it from starting.
pub async fn run(config: Config, ports: Option<&Path>) -> anyhow::Result<()> {
    let name = config
        .service
        .as_ref()
        .map(|service| service.file.name.as_str());
    let telemetry = telemetry::init(name.unwrap_or(NODE), &config.telemetry)?;
    let signals = Signals::new().context("listen to signals")?;
    let sockets = Sockets::bind(&config)?;
    if let Some(file) = ports {
        sockets.write(file)?;
    }
    let sidecar = Sidecar::start(config, sockets, telemetry)?;
    sidecar.until_told_to_leave(signals).await;
    Ok(())
}

/// Sockets, bound before anything else so that a port in use is one message and an exit code.
struct Sockets {
    /// One a worker; none without an app.
    inbound: Vec<TcpListener>,
    outbound: Vec<TcpListener>,
    admin: TcpListener,
}

impl Sockets {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let inbound = match config.service {
            Some(_) => listen::bind_shared("mesh port (inbound)", config.inbound, config.workers)?,
            None => Vec::new(),
        };
        let outbound = "app's port (outbound)";
        Ok(Self {
            inbound,
            outbound: listen::bind_shared(outbound, config.outbound, config.workers)?,
            admin: listen::bind("admin port", config.admin.bind)?,
        })
    }

    fn write(&self, file: &Path) -> anyhow::Result<()> {
        let mut named = vec![("admin", self.admin.local_addr()?)];
        for (name, sockets) in [("inbound", &self.inbound), ("outbound", &self.outbound)] {
            if let Some(first) = sockets.first() {
                named.push((name, first.local_addr()?));
            }
        }
        listen::write_ports(file, &named).with_context(|| format!("write {}", file.display()))
    }
}

struct Sidecar {
    config: Config,
    admin: Admin,
    registry: Option<RegistryClient>,
    app: Option<App>,
    inbound: Option<Port<Inbound>>,
    outbound: Port<Outbound>,
    workers: Vec<Arc<Worker>>,
    log: Option<AccessLog>,
    telemetry: TelemetryGuard,
    metrics: ProxyMetrics,
}

/// What is known of the app, and what the registry is told of it.
struct App {
    instance: Instance,
    healthy: watch::Receiver<Result<(), String>>,
    ready: ReadyGuard,
    registration: Option<Registration>,
}

impl Sidecar {
    fn start(config: Config, sockets: Sockets, telemetry: TelemetryGuard) -> anyhow::Result<Self> {
        let admin = Admin::default();
        let metrics = ProxyMetrics::new(&admin.metrics);
        let log = match &config.access_log {
            Some(path) => Some(
                AccessLog::open(path, &metrics)
                    .with_context(|| format!("open the access log {}", path.display()))?,
            ),
            None => None,
        };
        let here = config
            .service
            .as_ref()
            .map(|service| service.file.locality.clone())
            .unwrap_or_default();
        let registry = match &config.registry {
            Some(registry) => Some(registry.client(&here)?.spawn()),
            None => None,
        };
        let discovery: Arc<dyn Discovery> = match &registry {
            Some(registry) => Arc::new(registry.clone()),
            None => Arc::new(StaticDiscovery::default()),
        };
        let outbound = Outbound::new(discovery, config.policies.clone(), here, metrics.clone());
        let outbound = Port::new("outbound", outbound, true);
        let bound = match sockets.inbound.first() {
            Some(first) => Some(first.local_addr()?),
            None => None,
        };
        let (mut app, mut inbound) = (None, None);
        if let (Some(service), Some(bound)) = (&config.service, bound) {
            let instance = instance(service, config.advertise.unwrap_or(bound))?;
            let door = Inbound::new(service, instance.id.clone(), registry.as_ref(), &metrics)?;
            let port = Port::new("inbound", door, false).trusting(Arc::clone(&config.trusted));
            inbound = Some(port);
            app = Some(App::start(service, instance, &admin));
        }
        let workers = (0..config.workers)
            .map(|_| Worker::new(NODE, metrics.clone(), log.as_ref()))
            .collect::<Vec<_>>();
        let mut mesh_sockets = sockets.inbound.into_iter();
        for ((n, worker), socket) in workers.iter().enumerate().zip(sockets.outbound) {
            let mesh = inbound.clone().zip(mesh_sockets.next());
            spawn_worker(n, Arc::clone(worker), mesh, (outbound.clone(), socket))?;
        }
        let sidecar = Self {
            config,
            admin,
            registry,
            app,
            inbound,
            outbound,
            workers,
            log,
            telemetry,
            metrics,
        };
        sidecar.serve_admin(sockets.admin)?;
        Ok(sidecar)
    }

    fn serve_admin(&self, listener: TcpListener) -> anyhow::Result<()> {
        tracing::info!(address = %listener.local_addr()?, "admin port");
        let (inbound, outbound) = (self.inbound.clone(), self.outbound.clone());
        let clusters = move || async move {
            let app = inbound.as_ref().map(|port| port.door().app().status());
            Json(serde_json::json!({ "inbound": app, "outbound": outbound.door().status() }))
        };
        let (events, hystrix) = (self.metrics.clone(), self.metrics.clone());
        let events = move |Query(query): Pairs, headers: HeaderMap| async move {
            events.events(query, &headers).map(Body::new)
        };
        let stream = move || async move { hystrix.hystrix_stream().map(Body::new) };
        let dump = crate::dump::dump(&self.config);
        let router = self.admin.router(
            &self.config.admin,
            move || dump.clone(),
            Router::new()
                .route("/clusters", get(clusters))
                .route("/events", get(events))
                .route("/hystrix.stream", get(stream)),
        );
        tokio::spawn(self.metrics.clone().keep_time());
        tokio::spawn(Admin::serve(listener, router, std::future::pending()));
        Ok(())
    }

    /// Keeps the registry's word of the app true until a signal comes, then leaves in order.
    async fn until_told_to_leave(mut self, mut signals: Signals) {
        let mut unsynced = self.registry.as_ref().map(|_| {
            let why = if self.app.is_some() {
                "no registry server has taken the app's registration yet"
            } else {
                "no registry server has answered yet"
            };
            self.admin.readiness.wait_for("registry", why)
        });
        let (mut tidies, mut sync_looks) = (interval(TIDY), interval(SYNC_LOOK));
        let signal = loop {
            tokio::select! {
                signal = signals.next() => break signal,
                () = App::changed(&mut self.app) => if let Some(app) = &mut self.app {
                    app.tell(self.registry.as_ref());
                },
                _ = tidies.tick() => self.outbound.door().tidy(),
                _ = sync_looks.tick(), if unsynced.is_some() => {
                    if self.is_known_to_the_registry() {
                        unsynced = None;
                    }
                }
            }
        };
        tracing::info!(signal, "sidecar leaves");
        let leaving = self.admin.readiness.wait_for("shutdown", "leaving");
        tokio::select! {
            () = self.leave() => {}
            signal = signals.next() => tracing::warn!(signal, "second signal, leaving at once"),
        }
        drop(leaving);
        for worker in &self.workers {
            worker.flush();
        }
        let (log, telemetry) = (self.log, self.telemetry);
        let flush = tokio::task::spawn_blocking(move || {
            if let Some(log) = log {
                log.sync();
            }
            drop(telemetry);
        });
        if flush.await.is_err() {
            tracing::warn!("logs and spans may not have been written to their end");
        }
    }

    /// Whether a registry server has been spoken to: it has the app, where there is one, and has
    /// told us of every service that was asked for.
    fn is_known_to_the_registry(&self) -> bool {
        let has_app = |app: &App| {
            let registration = app.registration.as_ref();
            registration.is_some_and(Registration::is_registered)
        };
        self.registry.as_ref().is_none_or(RegistryClient::is_synced)
            && self.app.as_ref().is_none_or(has_app)
    }

    async fn leave(&mut self) {
        let registration = self.app.as_mut().and_then(|app| app.registration.take());
        if let Some(registration) = &registration {
            registration.set_status(InstanceStatus::OutOfService);
            tokio::time::sleep(self.config.lame_duck).await;
        }
        let until = tokio::time::Instant::now() + self.config.drain;
        if let Some(inbound) = &self.inbound {
            inbound.close(until).await;
        }
        if let Some(registration) = registration {
            registration.deregister().await;
        }
        self.outbound.close(until).await;
    }
}

impl App {
    fn start(service: &Service, instance: Instance, admin: &Admin) -> Self {
        let (verdict, healthy) = watch::channel(Err("its health has not been asked yet".into()));
        let written = &service.file;
        let ready = admin
            .readiness
            .wait_for("app", "its health has not been asked yet");
        tokio::spawn(probe(
            written.app,
            written.protocol,
            written.health.clone(),
            verdict,
        ));
        Self {
            instance,
            healthy,
            ready,
            registration: None,
        }
    }

    /// Resolves when the app's health is another. Cancel-safe.
    async fn changed(app: &mut Option<Self>) {
        let changed = match app {
            Some(app) => app.healthy.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            std::future::pending().await
        }
    }

    /// Tells readiness and registry how the app is. It is registered with its first good answer.
    fn tell(&mut self, registry: Option<&RegistryClient>) {
        let verdict = self.healthy.borrow_and_update().clone();
        let status = match &verdict {
            Ok(()) => {
                tracing::info!(service = %self.instance.service, "the app is healthy");
                self.ready.ready();
                InstanceStatus::Up
            }
            Err(why) => {
                tracing::warn!(service = %self.instance.service, error = why, "the app is not healthy");
                self.ready.not_ready(why.clone());
                InstanceStatus::Down
            }
        };
        match (&self.registration, registry) {
            (Some(registration), _) => registration.set_status(status),
            (None, Some(registry)) if verdict.is_ok() => {
                self.registration = Some(registry.register(self.instance.clone()));
            }
            (None, _) => {}
        }
    }
}

fn instance(service: &Service, addr: SocketAddr) -> anyhow::Result<Instance> {
    let written = &service.file;
    let id = match &written.id {
        Some(id) => id.clone(),
        None => default_id(written.name.as_str(), addr)?,
    };
    Ok(Instance {
        weight: written.weight,
        protocol: written.protocol,
        locality: written.locality.clone(),
        ttl: written.ttl,
        metadata: written.metadata.clone(),
        ..Instance::new(written.name.clone(), id, addr)
    })
}

fn default_id(name: &str, addr: SocketAddr) -> anyhow::Result<InstanceId> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let addr: String = addr.to_string().chars().map(plain).collect();
    let id = format!("{name}-{}", addr.trim_matches('-'));
    InstanceId::new(&id).with_context(|| format!("{id} cannot be an instance's id: set service.id"))
}
