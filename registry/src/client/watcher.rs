//! The one task that keeps every watched service up to date.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, header::HeaderName};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    STALL, Servers,
    discovery::{EndpointSnapshot, ServiceWatch, Slot},
    http::{ClientError, Http, with_causes, within},
    sse::{Event, Parser},
};
use crate::{
    instance::{Endpoint, InstanceStatus, Revision},
    name::{InstanceId, ServiceName},
    wire::{InstanceRecord, ServiceDelta, ServiceRecord},
};

/// The longest pause between tries when no server answers; the first retry is at once.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Follows services; clones share one task, which ends with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Watcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    slots: Mutex<HashMap<ServiceName, Arc<Slot>>>,
    /// A service was added: the stream must be asked anew.
    added: Notify,
    task: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}

impl Watcher {
    pub(super) fn spawn(servers: Arc<Servers>) -> Self {
        let shared = Arc::new(Shared {
            slots: Mutex::default(),
            added: Notify::new(),
            task: Mutex::new(None),
        });
        let task = tokio::spawn(run(Arc::downgrade(&shared), servers));
        *shared.task.lock() = Some(task.abort_handle());
        Self(shared)
    }

    pub(super) fn watch(&self, service: &ServiceName) -> ServiceWatch {
        let mut slots = self.0.slots.lock();
        if let Some(slot) = slots.get(service) {
            return slot.watch(Some(self.source()));
        }
        let slot = Slot::new(EndpointSnapshot::unknown(service.clone()));
        slots.insert(service.clone(), Arc::clone(&slot));
        self.0.added.notify_one();
        slot.watch(Some(self.source()))
    }

    fn source(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        Arc::<Shared>::clone(&self.0)
    }

    pub(super) fn is_synced(&self) -> bool {
        self.0
            .slots
            .lock()
            .values()
            .all(|slot| slot.current().synced)
    }
}

/// What one server has told us; thrown away with its stream unless the stream resumes.
#[derive(Debug, Default)]
struct View {
    token: Option<Revision>,
    services: HashMap<ServiceName, BTreeMap<InstanceId, InstanceRecord>>,
}

async fn run(shared: std::sync::Weak<Shared>, servers: Arc<Servers>) {
    let mut view = View::default();
    let mut failures = 0u32;
    loop {
        let Some(here) = shared.upgrade() else { return };
        let names: Vec<ServiceName> = here.slots.lock().keys().cloned().collect();
        if names.is_empty() {
            here.added.notified().await;
            continue;
        }
        let Some(server) = servers.current().map(str::to_owned) else {
            return;
        };
        let mut heard = false;
        let ended = follow(&here, &server, &names, &mut view, &mut heard).await;
        failures = if heard { 0 } else { failures + 1 };
        match ended {
            // A new service joined the set: same server, same view.
            Ok(()) => continue,
            Err(error) => {
                tracing::debug!(server = %server, error = %with_causes(&error), "registry watch ended");
                servers.fail_over(&server);
            }
        }
        drop(here);
        if failures as usize >= servers.list.len() {
            // Every server has failed in turn: now there is reason to wait.
            tracing::warn!(servers = ?servers.list, "no registry server answers, serving the last known endpoints");
            let ceiling =
                MAX_PAUSE.min(Duration::from_millis(100).saturating_mul(1 << failures.min(5)));
            tokio::time::sleep(ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }
}

/// Follows `names` at `server` until a service is added (`Ok`) or the stream ends.
async fn follow(
    shared: &Shared,
    server: &str,
    names: &[ServiceName],
    view: &mut View,
    heard: &mut bool,
) -> Result<(), ClientError> {
    let query: Vec<String> = names.iter().map(|name| format!("service={name}")).collect();
    let path = format!("/v1/watch?{}", query.join("&"));
    // A name that the view does not hold needs its snapshot: then nothing can be skipped.
    let known = names.iter().all(|name| view.services.contains_key(name));
    let mut headers = vec![(http::header::ACCEPT, "text/event-stream".to_owned())];
    if let (Some(token), true) = (view.token, known) {
        headers.push((HeaderName::from_static("last-event-id"), token.to_string()));
    }
    let mut http = Http::default();
    let sent = http.send(server, "GET", &path, Vec::new(), &headers);
    let response = within(STALL, server, "GET", &path, sent).await?;
    if response.status() != StatusCode::OK {
        let source = format!("answered {}, expected 200", response.status()).into();
        return Err(ClientError::Exchange {
            method: "GET",
            path,
            server: server.to_owned(),
            source,
        });
    }
    let mut body = response.into_body();
    let mut parser = Parser::default();
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout_at(Instant::now() + STALL, frame(&mut body)) => next,
            () = shared.added.notified() => return Ok(()),
        };
        let bytes = match next {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => return Err(ended(server, &path, "the server ended the stream".into())),
            Ok(Err(error)) => return Err(ended(server, &path, error.into())),
            Err(_) => return Err(ended(server, &path, format!("silent for {STALL:?}").into())),
        };
        *heard = true;
        let mut broken = None;
        parser
            .push(&bytes, |event| {
                if let Err(error) = apply(shared, view, event) {
                    broken = Some(error);
                }
            })
            .map_err(|error| ended(server, &path, error.into()))?;
        if let Some(error) = broken {
            // What cannot be understood must not be half applied: start over elsewhere.
            *view = View::default();
            return Err(ended(server, &path, error.into()));
        }
    }
}

fn ended(
    server: &str,
    path: &str,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> ClientError {
    ClientError::Exchange {
        method: "GET",
        path: path.to_owned(),
        server: server.to_owned(),
        source,
    }
}

async fn frame(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(error),
            None => return Ok(None),
        }
    }
}

fn apply(shared: &Shared, view: &mut View, event: Event) -> Result<(), serde_json::Error> {
    let (service, revision) = match event.event.as_str() {
        "snapshot" => {
            let record: ServiceRecord = serde_json::from_str(&event.data)?;
            let instances = record
                .instances
                .into_iter()
                .map(|i| (i.id.clone(), i))
                .collect();
            view.services.insert(record.service.clone(), instances);
            (record.service, record.revision)
        }
        "delta" => {
            let delta: ServiceDelta = serde_json::from_str(&event.data)?;
            let instances = view.services.entry(delta.service.clone()).or_default();
            for id in &delta.removed {
                instances.remove(id);
            }
            instances.extend(delta.changed.into_iter().map(|i| (i.id.clone(), i)));
            (delta.service, delta.revision)
        }
        // Kinds of later versions.
        _ => return Ok(()),
    };
    if let Some(token) = event.id.and_then(|id| id.parse().ok()) {
        view.token = Some(token);
    }
    let slot = shared.slots.lock().get(&service).cloned();
    if let Some(slot) = slot {
        let endpoints: Arc<[Endpoint]> = view.services[&service]
            .values()
            .filter(|record| record.status == InstanceStatus::Up)
            .map(InstanceRecord::endpoint)
            .collect();
        let before = slot.current();
        if !before.synced || before.endpoints != endpoints {
            slot.publish(EndpointSnapshot {
                service,
                revision,
                endpoints,
                synced: true,
            });
        }
    }
    Ok(())
}
