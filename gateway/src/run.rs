//! The process: sockets, then Pingora, then workers that do nothing but carry requests.
//!
//! ```text
//! main thread     Pingora's server: waits for the signal, broadcasts the end
//! control         discovery, reloads, admin port, drain          one runtime of one thread
//! worker 0 … n    accept, serve, call: pools of their own        one runtime of one thread each
//! ```
//!
//! One service of one thread a worker, never one of n threads: an accepted socket then stays on the
//! thread, and in the epoll set, that serves it (measured: 22.2 against 27.6 µs a request).

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::IntoRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::{
    listeners::{L4BufferSettings, ListenerConfig},
    server::{
        ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch,
        configuration::ServerConf,
    },
    services::{
        ServiceReadyNotifier, ServiceWithDependents, background::background_service,
        listening::Service,
    },
};
use selvedge_proxy::{AccessLog, ProxyMetrics, Worker};
use selvedge_registry::node::{
    admin::Admin,
    drain::Drain,
    listen,
    readiness::Readiness,
    shutdown::Signals,
    telemetry::{self, TelemetryConfig},
};

use crate::{
    config::Config,
    control::{Control, Parts},
    door::ListenerDoor,
    edge::Edge,
    snapshot::Snapshot,
};

/// How the gateway names itself in `Via` and `Proxy-Status`.
const NODE: &str = "selvedge-gateway";

/// Runs a gateway by `config`, which came from `path`, until it is told to leave.
///
/// Blocks; must not be called inside a tokio runtime.
///
/// # Errors
/// `ListenError` if an address cannot be had; whatever else keeps it from starting.
pub fn run(config: Config, path: Option<PathBuf>, ports: Option<&Path>) -> anyhow::Result<()> {
    let telemetry = telemetry::init(NODE, &quiet(&config.telemetry))?;
    let admin = Admin::default();
    let sockets = Sockets::bind(&config)?;
    if let Some(file) = ports {
        let named: Vec<_> = sockets.named().collect();
        listen::write_ports(file, &named).with_context(|| format!("write {}", file.display()))?;
    }
    for (name, addr) in sockets.named() {
        tracing::info!(name, address = %addr, "listening");
    }
    let metrics = ProxyMetrics::new(&admin.metrics);
    let log = match &config.access_log {
        Some(log) => Some(
            AccessLog::open(&log.path, &metrics)
                .with_context(|| format!("open the access log {}", log.path.display()))?,
        ),
        None => None,
    };
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let doors: Vec<Arc<ListenerDoor>> = config
        .listeners
        .iter()
        .map(|listener| Arc::new(ListenerDoor::new(listener, Arc::clone(&snapshot))))
        .collect();
    let workers: Vec<_> = (0..config.process.workers)
        .map(|_| Worker::new(NODE, metrics.clone(), log.as_ref()))
        .collect();
    let drain = Drain::default();
    let signals = LameDuck {
        readiness: admin.readiness.clone(),
        lame_duck: config.process.lame_duck,
    };
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.bootstrap();
    let Sockets {
        edge,
        admin: admin_listener,
        ..
    } = sockets;
    let bound: Arc<[_]> = edge.iter().map(|(addr, _)| *addr).zip(doors).collect();
    let keys: Vec<Vec<String>> = (0..workers.len())
        .map(|worker| {
            config
                .listeners
                .iter()
                .map(|it| key(&it.name, worker))
                .collect()
        })
        .collect();
    let binder = server.add_service(Binder::new(&config, edge));
    let starting = admin.readiness.wait_for("gateway", "starting");
    let control = server.add_service(background_service(
        "control",
        Control::new(Parts {
            path,
            snapshot,
            admin,
            admin_listener,
            metrics: metrics.clone(),
            workers: workers.clone(),
            log,
            drain: drain.clone(),
            telemetry,
            starting,
            config,
        }),
    ));
    for ((n, worker), keys) in workers.into_iter().enumerate().zip(keys) {
        let edge = Edge {
            worker,
            doors: Arc::clone(&bound),
            drain: drain.clone(),
            refusals: metrics.clone(),
        };
        let mut service = Service::new(format!("worker {n}"), edge);
        service.threads = Some(1);
        for key in keys {
            // hyper buffers by itself: a second buffer costs memory for every idle connection.
            let listener = ListenerConfig::tcp(key).l4_buffer(L4BufferSettings::unbuffered());
            service.add_listener(listener);
        }
        let service = server.add_service(service);
        service.add_dependency(&binder);
        service.add_dependency(&control);
    }
    server.run(RunArgs {
        shutdown_signal: Box::new(signals),
    });
    Ok(())
}

/// Pingora says at info what our own lines say already; whoever names it in the filter hears it.
fn quiet(telemetry: &TelemetryConfig) -> TelemetryConfig {
    let mut quiet = telemetry.clone();
    if !quiet.log.contains("pingora") {
        quiet.log.push_str(",pingora_core=warn");
    }
    quiet
}

fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        threads: 1,
        work_stealing: false,
        // The control side ends the process before that, unless it hangs.
        grace_period_seconds: Some(config.process.drain.as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    }
}

/// Every worker has its own socket on each listener's address, under its own name: one socket in
/// several services would be closed several times.
fn key(listener: &str, worker: usize) -> String {
    format!("{listener}#{worker}")
}

/// Sockets, bound before anything else so that a port in use is one message and an exit code.
struct Sockets {
    names: Vec<String>,
    /// A listener's address and its sockets, one a worker.
    edge: Vec<(SocketAddr, Vec<TcpListener>)>,
    admin: TcpListener,
    admin_addr: SocketAddr,
}

impl Sockets {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let mut edge = Vec::new();
        for listener in &config.listeners {
            let what = format!("listener {}", listener.name);
            let sockets = listen::bind_shared(&what, listener.bind, config.process.workers)?;
            let addr = match sockets.first() {
                Some(first) => first.local_addr().context("ask a socket for its address")?,
                None => listener.bind,
            };
            edge.push((addr, sockets));
        }
        let admin = listen::bind("admin port", config.admin.bind)?;
        let admin_addr = admin.local_addr().context("ask a socket for its address")?;
        let names = config.listeners.iter().map(|it| it.name.clone()).collect();
        Ok(Self {
            names,
            edge,
            admin,
            admin_addr,
        })
    }

    fn named(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        let edge = self.names.iter().zip(&self.edge);
        edge.map(|(name, (addr, _))| (name.as_str(), *addr))
            .chain([("admin", self.admin_addr)])
    }
}

/// Gives our sockets to Pingora under the names by which the workers ask for them.
struct Binder(Mutex<Vec<(String, TcpListener)>>);

impl Binder {
    fn new(config: &Config, edge: Vec<(SocketAddr, Vec<TcpListener>)>) -> Self {
        let mut named = Vec::new();
        for (listener, (_, sockets)) in config.listeners.iter().zip(edge) {
            for (worker, socket) in sockets.into_iter().enumerate() {
                named.push((key(&listener.name, worker), socket));
            }
        }
        Self(Mutex::new(named))
    }
}

#[async_trait]
impl ServiceWithDependents for Binder {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _: ShutdownWatch,
        _: usize,
        ready: ServiceReadyNotifier,
    ) {
        if let Some(fds) = fds {
            let mut fds = fds.lock();
            for (key, socket) in self.0.get_mut().drain(..) {
                fds.add(key, socket.into_raw_fd());
            }
        }
        ready.notify_ready();
    }

    fn name(&self) -> &'static str {
        "binder"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Tells Pingora to leave, after those in front have had time to notice that we will.
struct LameDuck {
    readiness: Readiness,
    lame_duck: std::time::Duration,
}

#[async_trait]
impl ShutdownSignalWatch for LameDuck {
    async fn recv(&self) -> ShutdownSignal {
        let Ok(mut signals) = Signals::new() else {
            tracing::error!("signals cannot be listened to, so this gateway ends only by force");
            return std::future::pending().await;
        };
        let signal = signals.next().await;
        tracing::info!(signal, "gateway leaves");
        let leaving = self.readiness.wait_for("shutdown", "leaving");
        // For the rest of the process's life.
        std::mem::forget(leaving);
        tokio::select! {
            () = tokio::time::sleep(self.lame_duck) => ShutdownSignal::GracefulTerminate,
            signal = signals.next() => {
                tracing::warn!(signal, "second signal, leaving at once");
                ShutdownSignal::FastShutdown
            }
        }
    }
}
