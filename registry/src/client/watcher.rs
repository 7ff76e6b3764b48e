//! The one task that keeps every watched service up to date.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, header::HeaderName};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    STALL,
    cache::{self, Known},
    discovery::{EndpointSnapshot, PolicyWatch, ServiceWatch, Slot},
    http::{ClientError, Http, with_causes, within},
    servers::Servers,
    sse::Parser,
    view::View,
};
use crate::{name::ServiceName, wire::MAX_WATCHED};

/// The longest pause between tries when no server answers; the first retry is at once.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Clients of a server that dies spread their reconnects over this long. The list stays meanwhile.
const SPREAD: Duration = Duration::from_millis(100);
/// How long a client stays with a server farther away before it looks whether a nearer one is
/// back. A guess: long against a restart, short against a day's cross-zone traffic.
const SECOND_CHOICE: Duration = Duration::from_secs(120);
/// How long changes are collected before they go to disk: a deploy changes many services.
const SAVE_AFTER: Duration = Duration::from_secs(1);

/// Follows services; clones share one task, which ends with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Watcher(Arc<Handle>);

/// Kept by clients and by whoever watches; the task ends with the last of them.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    task: tokio::task::AbortHandle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) slots: Mutex<HashMap<ServiceName, Arc<Slot>>>,
    /// A service was added: the stream must be asked anew.
    added: Notify,
    /// Nobody is heard, or only one that hears nobody.
    pub(super) stale: Arc<AtomicBool>,
}

/// What a client asks of its watch.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    pub(super) cache: Option<PathBuf>,
    pub(super) region_fallback: bool,
}

impl Watcher {
    pub(super) fn spawn(servers: Arc<Servers>, options: Options) -> Self {
        let shared = Arc::new(Shared {
            slots: Mutex::default(),
            added: Notify::new(),
            stale: Arc::new(AtomicBool::new(true)),
        });
        let mut view = View::new(options.region_fallback);
        if let Some(known) = options.cache.as_deref().and_then(cache::load) {
            view.restore(known);
        }
        let run = Run {
            shared: Arc::clone(&shared),
            servers,
            view: Arc::new(Mutex::new(view)),
            options,
            failures: 0,
        };
        let task = tokio::spawn(run.run()).abort_handle();
        Self(Arc::new(Handle { shared, task }))
    }

    pub(super) fn watch(&self, service: &ServiceName) -> ServiceWatch {
        let slot = self.slot(service);
        slot.watch(Some(Arc::clone(&self.0.shared.stale)), Some(self.source()))
    }

    pub(super) fn policy(&self, service: &ServiceName) -> PolicyWatch {
        PolicyWatch::of(&self.slot(service).policy, Some(self.watch(service)))
    }

    fn slot(&self, service: &ServiceName) -> Arc<Slot> {
        let mut slots = self.0.shared.slots.lock();
        if let Some(slot) = slots.get(service) {
            return Arc::clone(slot);
        }
        let slot = Slot::new(EndpointSnapshot::unknown(service.clone()));
        slots.insert(service.clone(), Arc::clone(&slot));
        self.0.shared.added.notify_one();
        slot
    }

    fn source(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        Arc::<Handle>::clone(&self.0)
    }

    pub(super) fn is_synced(&self) -> bool {
        self.0
            .shared
            .slots
            .lock()
            .values()
            .all(|slot| slot.current().synced)
    }

    pub(super) fn is_stale(&self) -> bool {
        self.0.shared.stale.load(Ordering::Relaxed)
    }
}

struct Run {
    shared: Arc<Shared>,
    servers: Arc<Servers>,
    /// Shared with the disk: what is written is read from it at that moment.
    view: Arc<Mutex<View>>,
    options: Options,
    failures: u32,
}

/// Why a stream was left.
enum Left {
    /// Another service is wanted.
    Added,
    /// A nearer server answers.
    Nearer,
}

impl Run {
    async fn run(mut self) {
        self.servers.ranked().await;
        let mut saver = Saver::spawn(self.options.cache.clone(), &self.view);
        loop {
            let shared = Arc::clone(&self.shared);
            let names = wanted(&shared);
            self.view.lock().show_known(&shared, &names);
            if names.is_empty() {
                shared.added.notified().await;
                continue;
            }
            // Before: of a turn in between it is heard.
            let turns = self.servers.turns();
            let Some(server) = self.servers.current() else {
                return;
            };
            let mut heard = false;
            let ended = self
                .follow(&shared, (&server, turns), &names, &mut heard, &mut saver)
                .await;
            self.failures = if heard { 0 } else { self.failures + 1 };
            match ended {
                // A new service joined the set, or a nearer server was found: same view.
                Ok(Left::Added | Left::Nearer) => continue,
                Err(error) => {
                    tracing::debug!(server = %server, error = %with_causes(&error), "registry watch ended");
                    self.servers.fail_over(&server);
                }
            }
            self.pause(&shared).await;
        }
    }

    async fn pause(&self, shared: &Shared) {
        let all_failed = self.failures as usize >= self.servers.count;
        if all_failed && !shared.stale.swap(true, Ordering::Relaxed) {
            tracing::warn!(servers = ?self.servers.all(), "no registry server answers, serving the last known endpoints");
        }
        tokio::time::sleep(pause(self.failures, self.servers.count, fastrand::f64())).await;
    }

    /// Follows `names` at `server` until another service is wanted, the favour turns from it or the
    /// stream ends.
    async fn follow(
        &self,
        shared: &Shared,
        (server, mut turns): (&str, watch::Receiver<()>),
        names: &[ServiceName],
        heard: &mut bool,
        saver: &mut Saver,
    ) -> Result<Left, ClientError> {
        let begin = self.view.lock().begin(names);
        let fresh = begin.as_ref().map_or(&[][..], |(_, fresh)| fresh);
        let path = path(names, fresh, self.options.region_fallback);
        let mut headers = vec![(http::header::ACCEPT, "text/event-stream".to_owned())];
        if let Some((token, _)) = &begin {
            headers.push((HeaderName::from_static("last-event-id"), token.to_string()));
        }
        let mut http = Http::new(self.servers.connector.clone());
        let sent = http.send(server, "GET", &path, Vec::new(), &headers);
        let response = within(STALL, server, "GET", &path, sent).await?;
        if response.status() != StatusCode::OK {
            let source = format!("answered {}, expected 200", response.status()).into();
            return Err(ended(server, &path, source));
        }
        let mut body = response.into_body();
        let mut parser = Parser::default();
        let again = || Instant::now() + SECOND_CHOICE.mul_f64(0.8 + fastrand::f64() * 0.4);
        let mut look = again();
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout_at(Instant::now() + STALL, frame(&mut body)) => next,
                () = shared.added.notified() => return Ok(Left::Added),
                () = self.servers.turned_from(server, &mut turns) => return Ok(Left::Nearer),
                () = tokio::time::sleep_until(look) => {
                    if self.servers.is_second_choice() {
                        self.servers.look();
                    }
                    look = again();
                    continue;
                }
            };
            let bytes = match next {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => {
                    return Err(ended(server, &path, "the server ended the stream".into()));
                }
                Ok(Err(error)) => return Err(ended(server, &path, error.into())),
                Err(_) => {
                    return Err(ended(server, &path, format!("silent for {STALL:?}").into()));
                }
            };
            *heard = true;
            let mut view = self.view.lock();
            let mut broken = None;
            parser
                .push(&bytes, |event| {
                    if let Err(error) = view.apply(shared, event) {
                        broken = Some(error);
                    }
                })
                .map_err(|error| ended(server, &path, error.into()))?;
            if let Some(error) = broken {
                // What cannot be understood must not be half applied: start over elsewhere.
                view.forget();
                return Err(ended(server, &path, error.into()));
            }
            shared.stale.store(view.is_stale(), Ordering::Relaxed);
            if std::mem::take(&mut view.changed) {
                saver.save();
            }
        }
    }
}

/// How long to wait after so many failures in a row; `random` is in [0, 1). While there is a server
/// that has not failed, as long as spreads the clients of the one that has; then there is reason to
/// wait.
fn pause(failures: u32, servers: usize, random: f64) -> Duration {
    if (failures as usize) < servers {
        return SPREAD.mul_f64(random);
    }
    let ceiling = MAX_PAUSE.min(Duration::from_millis(100).saturating_mul(1 << failures.min(5)));
    ceiling.mul_f64(0.5 + random / 2.0)
}

/// The services that somebody looks at; the others are let go of.
fn wanted(shared: &Shared) -> Vec<ServiceName> {
    let mut slots = shared.slots.lock();
    slots.retain(|_, slot| !slot.is_unused());
    let mut names: Vec<_> = slots.keys().cloned().collect();
    names.sort();
    names
}

/// Bytes of names in a request, so that its head fits everywhere: half of what our servers take.
const MAX_NAMES: usize = 32 << 10;

fn path(names: &[ServiceName], fresh: &[ServiceName], region_fallback: bool) -> String {
    let bytes = |names: &[ServiceName]| names.iter().map(|n| n.as_str().len() + 9).sum::<usize>();
    let too_many = names.len() > MAX_WATCHED || bytes(names) + bytes(fresh) > MAX_NAMES;
    // More than a query may name: then everything.
    let mut query: Vec<String> = if too_many {
        vec!["service=*".to_owned()]
    } else {
        names.iter().map(|name| format!("service={name}")).collect()
    };
    query.extend(fresh.iter().map(|name| format!("fresh={name}")));
    if region_fallback {
        query.push("region=any".to_owned());
    }
    format!("/v1/watch?{}", query.join("&"))
}

fn ended(
    server: &str,
    path: &str,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> ClientError {
    // Hundreds of names help nobody in a log.
    let path = path.chars().take(120).collect();
    ClientError::Exchange {
        method: "GET",
        path,
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

/// Writes what is known to disk, a while after it changed.
struct Saver(Option<(Arc<Notify>, tokio::task::AbortHandle)>);

impl Saver {
    fn spawn(path: Option<PathBuf>, view: &Arc<Mutex<View>>) -> Self {
        let Some(path) = path else {
            return Self(None);
        };
        let changed = Arc::new(Notify::new());
        let (wake, view) = (Arc::clone(&changed), Arc::clone(view));
        let task = tokio::spawn(async move {
            loop {
                wake.notified().await;
                tokio::time::sleep(SAVE_AFTER).await;
                let known: Known = view.lock().known();
                let target = path.clone();
                let saved = tokio::task::spawn_blocking(move || cache::save(&target, &known)).await;
                if let Ok(Err(error)) = saved {
                    tracing::warn!(path = %path.display(), %error, "keep last known services failed");
                }
            }
        });
        Self(Some((changed, task.abort_handle())))
    }

    fn save(&self) {
        if let Some((changed, _)) = &self.0 {
            changed.notify_one();
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::Synced, instance::Revision};

    /// A stream's end of snapshots is about whom it was asked for.
    #[test]
    fn who_is_watched_since_is_not_said_to_have_nobody() {
        let shared = Shared {
            slots: Mutex::default(),
            added: Notify::new(),
            stale: Arc::default(),
        };
        let watch = |name: &str| {
            let name = ServiceName::new(name).expect("a name");
            let slot = Slot::new(EndpointSnapshot::unknown(name.clone()));
            shared.slots.lock().insert(name, Arc::clone(&slot));
            slot
        };
        let mut view = View::new(false);
        let asked = watch("asked");
        view.begin(&["asked".parse().expect("a name")]);
        let since = watch("since");
        let synced = Synced {
            revision: Revision::default(),
            full: true,
            policies: Vec::new(),
        };
        let event = super::super::sse::Event {
            event: "synced".to_owned(),
            data: serde_json::to_string(&synced).expect("JSON"),
            id: None,
        };
        view.apply(&shared, event).expect("understood");
        assert!(asked.current().synced);
        assert!(!since.current().synced);
    }

    #[test]
    fn a_request_names_what_fits_and_else_everything() {
        let names = |n: usize, long: usize| -> Vec<ServiceName> {
            let name = |i: usize| format!("{i:0long$}").parse().expect("a name");
            (0..n).map(name).collect()
        };
        let fresh = names(1, 3);
        assert_eq!(
            path(&names(2, 3), &fresh, true),
            "/v1/watch?service=000&service=001&fresh=000&region=any"
        );
        for (name, n, long, all) in [
            ("as many as may be named", 1_000, 10, false),
            ("one more", 1_001, 10, true),
            ("fewer and longer", 1_000, 60, true),
        ] {
            let path = path(&names(n, long), &[], false);
            assert_eq!(path == "/v1/watch?service=*", all, "{name}");
            assert!(path.len() < 48 << 10, "{name}: {}", path.len());
        }
    }

    #[test]
    fn servers_that_fail_are_tried_at_once_and_then_ever_more_slowly() {
        for (failures, servers, least, most) in [
            (1, 3, 0, 100),
            (2, 3, 0, 100),
            // Each has failed once.
            (3, 3, 400, 800),
            (4, 3, 800, 1_600),
            (5, 3, 1_000, 2_000),
            (u32::MAX, 3, 1_000, 2_000),
            (1, 1, 100, 200),
        ] {
            for random in [0.0, 0.5, 0.999] {
                let ms = pause(failures, servers, random).as_millis();
                let name = format!("{failures} failures of {servers} servers, {random}: {ms}");
                assert!((least..=most).contains(&ms), "{name}");
            }
        }
        // They do not come back together.
        assert_ne!(pause(1, 3, 0.1), pause(1, 3, 0.9));
        assert_ne!(pause(9, 3, 0.1), pause(9, 3, 0.9));
    }
}
