//! The side of the gateway that carries no requests: discovery, reloads, the operator's port, and
//! the order in which it leaves.

use std::{net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::{
    Json, Router,
    body::Body,
    extract::Query,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parking_lot::Mutex;
use pingora_core::{
    server::ShutdownWatch,
    services::{ServiceReadyNotifier, background::BackgroundService},
};
use selvedge_proxy::{AccessLog, ProxyMetrics, Worker};
use selvedge_registry::{
    client::RegistryClient,
    node::{
        admin::Admin, drain::Drain, readiness::ReadyGuard, shutdown::Signals,
        telemetry::TelemetryGuard,
    },
    problem::{CONTENT_TYPE, Problem},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{config::Config, reload::Reloader, snapshot::Snapshot};

/// What the control side takes over when its runtime is there.
pub(crate) struct Parts {
    pub(crate) path: Option<PathBuf>,
    pub(crate) config: Config,
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) admin: Admin,
    pub(crate) admin_listener: TcpListener,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) workers: Vec<Arc<Worker>>,
    pub(crate) log: Option<AccessLog>,
    pub(crate) drain: Drain,
    pub(crate) telemetry: TelemetryGuard,
    pub(crate) starting: ReadyGuard,
}

/// The control side as Pingora runs it, on a thread of its own.
pub(crate) struct Control(Mutex<Option<Parts>>);

impl Control {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Mutex::new(Some(parts)))
    }
}

#[async_trait]
impl BackgroundService for Control {
    async fn start_with_ready_notifier(
        &self,
        shutdown: ShutdownWatch,
        ready: ServiceReadyNotifier,
    ) {
        let Some(parts) = self.0.lock().take() else {
            return;
        };
        match Running::start(parts) {
            Ok(running) => {
                // Workers accept from here on.
                ready.notify_ready();
                running.run(shutdown).await;
            }
            Err(error) => {
                tracing::error!(error, "the gateway cannot start");
                // A gateway without its control side would serve nothing and say nothing.
                std::process::exit(1);
            }
        }
    }
}

/// Asks for a reload and waits for what comes of it.
type Ask = mpsc::Sender<oneshot::Sender<Result<(), String>>>;

struct Running {
    reloader: Reloader,
    asked: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
    registry: Option<RegistryClient>,
    admin: Admin,
    watch: Option<Duration>,
    drain_limit: Duration,
    workers: Vec<Arc<Worker>>,
    log: Option<AccessLog>,
    drain: Drain,
    telemetry: TelemetryGuard,
}

/// How often readiness asks whether the registry has been heard of.
const SYNC_LOOK: Duration = Duration::from_millis(50);

impl Running {
    fn start(parts: Parts) -> Result<Self, String> {
        let config = parts.config;
        let registry = match &config.registry {
            Some(registry) => {
                let client = registry.client(&config.locality);
                Some(client.map_err(|error| error.to_string())?.spawn())
            }
            None => None,
        };
        let (watch, drain_limit) = (config.process.watch, config.process.drain);
        let admin_config = config.admin.clone();
        let metrics = parts.metrics.clone();
        tokio::spawn(metrics.clone().keep_time());
        let reloader = Reloader::start(
            parts.path.as_deref(),
            config,
            Arc::clone(&parts.snapshot),
            registry.clone(),
            parts.metrics,
            &parts.admin.metrics,
        )?;
        let (ask, asked) = mpsc::channel(1);
        let in_force = reloader.in_force();
        let router = parts.admin.router(
            &admin_config,
            move || in_force.lock().to_json(),
            extra(parts.snapshot, ask, metrics),
        );
        tokio::spawn(Admin::serve(
            parts.admin_listener,
            router,
            std::future::pending(),
        ));
        drop(parts.starting);
        Ok(Self {
            reloader,
            asked,
            registry,
            admin: parts.admin,
            watch,
            drain_limit,
            workers: parts.workers,
            log: parts.log,
            drain: parts.drain,
            telemetry: parts.telemetry,
        })
    }

    async fn run(mut self, mut shutdown: ShutdownWatch) {
        let mut hangups = signal(SignalKind::hangup()).ok();
        let mut looks = self.watch.map(every);
        let mut sync_looks = every(SYNC_LOOK);
        let mut unsynced = self.registry.as_ref().map(|_| {
            let why = "no registry server has answered yet";
            self.admin.readiness.wait_for("registry", why)
        });
        loop {
            tokio::select! {
                _ = async { shutdown.wait_for(|leave| *leave).await.is_ok() } => break,
                () = next(&mut looks) => if self.reloader.has_changed() {
                    // Told on the admin port and in the log.
                    let _told = self.reloader.reload();
                },
                Some(()) = async { hangups.as_mut()?.recv().await } => {
                    let _told = self.reloader.reload();
                }
                Some(reply) = self.asked.recv() => {
                    let _asker_may_have_left = reply.send(self.reloader.reload());
                }
                _ = sync_looks.tick(), if unsynced.is_some() => {
                    if self.registry.as_ref().is_none_or(RegistryClient::is_synced) {
                        unsynced = None;
                    }
                }
            }
        }
        self.leave().await;
    }

    /// Waits for connections to end, then ends the process: Pingora would sleep its grace period to
    /// the end, however early the last one is gone.
    async fn leave(self) {
        let limit = self.drain_limit;
        tracing::info!(connections = self.drain.in_flight(), "gateway drains");
        let mut insisted = Signals::new().ok();
        let left = tokio::select! {
            left = self.drain.wait(limit) => left,
            Some(signal) = async { Some(insisted.as_mut()?.next().await) } => {
                tracing::warn!(signal, "second signal, leaving at once");
                self.drain.in_flight()
            }
        };
        if left > 0 {
            tracing::warn!(connections = left, "cut connections that were not done");
        }
        for worker in &self.workers {
            worker.flush();
        }
        if let Some(log) = &self.log {
            log.sync();
        }
        // Its exporter blocks on the network.
        let telemetry = self.telemetry;
        let _flushed = tokio::task::spawn_blocking(move || drop(telemetry)).await;
        std::process::exit(0);
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn next(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// A query's parameters, as they are written.
type Pairs = Query<Vec<(String, String)>>;

/// What the gateway's admin port has beside every node's.
fn extra(snapshot: Arc<ArcSwap<Snapshot>>, ask: Ask, metrics: ProxyMetrics) -> Router {
    let clusters = get(move || async move { Json(snapshot.load().clusters()) });
    let events = metrics.clone();
    let events = move |Query(query): Pairs, headers: HeaderMap| async move {
        events.events(query, &headers).map(Body::new)
    };
    let stream = move || async move { metrics.hystrix_stream().map(Body::new) };
    let reload = post(move || async move { reload(&ask).await });
    Router::new()
        .route("/clusters", clusters)
        .route("/events", get(events))
        .route("/hystrix.stream", get(stream))
        .route("/reload", reload)
}

async fn reload(ask: &Ask) -> Response {
    let (reply, answer) = oneshot::channel();
    let answer = match ask.send(reply).await {
        Ok(()) => answer
            .await
            .unwrap_or_else(|_| Err("the gateway leaves".into())),
        Err(_) => Err("the gateway leaves".into()),
    };
    match answer {
        Ok(()) => "taken\n".into_response(),
        Err(why) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let title = "the configuration was refused, the old one stays in force";
            let problem = Problem::new(status, "config-refused", title).detail(why);
            let kind = [(header::CONTENT_TYPE, CONTENT_TYPE)];
            (status, kind, Body::from(problem.to_json())).into_response()
        }
    }
}
