//! Watches: server-sent events with resume tokens.
//!
//! A stream begins with what the client does not have yet (`snapshot` of each service, `policy`,
//! `fallback`), says `synced`, and goes on with `delta`s as they happen. Deltas are written once
//! for all who watch the service; a watch that does not keep up loses them and gets snapshots of
//! what has changed instead, so a slow client costs a bounded mailbox and nobody else anything.
//!
//! # Guarantees
//! - Only the last event of the beginning carries an id: a stream that breaks before it begins
//!   anew, never with half of the services.
//! - A delta that a snapshot already holds is not sent after it.
//! - A comment at least every [`HEARTBEAT`].

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use selvedge_registry::{
    Revision, ServiceName,
    api::{DEFAULT_POLICY, FallbackEvent, ServerState, Synced},
    wire::{HEARTBEAT, MAX_WATCHED},
};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast, broadcast::error::RecvError},
    time::{Instant, timeout_at},
};

use super::{
    Api, App, guard,
    poll::{self, Wait},
    query::Pairs,
    refusal::{self, Refusal},
};
use crate::{
    audit::Who,
    catalogue::Catalogue,
    hub::{Kind, Published, Watching, event},
    limits::WatchSlot,
};

/// Bytes of snapshots that are written at once: a client that reads slowly holds this much.
const CHUNK: usize = 256 << 10;

pub(super) async fn watch(
    State(api): App,
    who: Who,
    query: Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let mut pairs = Pairs::of(query);
    let names = names(&mut pairs)?;
    let regions = match pairs.one("region")?.as_deref() {
        None => false,
        Some("any") => true,
        Some(_) => return Err(Refusal::bad("region: allowed is any")),
    };
    let resume = pairs.one("resume")?;
    let fresh = pairs.all("fresh");
    if fresh.len() > MAX_WATCHED {
        return Err(Refusal::bad(format!(
            "{} services are fresh: at most {MAX_WATCHED}",
            fresh.len()
        )));
    }
    let fresh = fresh
        .iter()
        .map(|name| refusal::service(name))
        .collect::<Result<HashSet<_>, _>>()?;
    let wait = Wait::parse(&mut pairs)?;
    pairs.end("service, fresh, region, resume, wait, index")?;
    let given = headers.get("last-event-id").map(|value| value.to_str());
    let token = match given {
        Some(Ok(text)) => Some(text.to_owned()),
        Some(Err(_)) => return Err(Refusal::bad("last-event-id is not a resume token")),
        None => resume,
    };
    let resume: Option<Revision> = match token {
        None => None,
        Some(text) => Some(text.parse().map_err(|()| {
            let text: String = text.chars().take(80).collect();
            Refusal::bad(format!("{text:?} is not a resume token"))
        })?),
    };
    api.serving()?;
    if let Some(wait) = wait {
        return poll::changes(&api, names.unwrap_or_default(), wait).await;
    }
    let now = Instant::now().into_std();
    let slot = api.per_client.watch(&guard::client(&who), now);
    let slot =
        slot.ok_or_else(|| Refusal::full("watches of this client", api.limits.watches_per_client))?;
    let place = Arc::clone(&api.watches)
        .try_acquire_owned()
        .map_err(|_| Refusal::full("watches", api.limits.watches))?;
    let begin = Begin { resume, fresh };
    let watch = Watch::new(api, names, regions, begin, (slot, place));
    let stopped = Arc::clone(&watch.api);
    let events = stream::unfold(watch, |mut watch| async {
        let bytes = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), watch))
    });
    // The server leaves: the client is told by the end of the stream, and turns to another.
    let events =
        futures_util::StreamExt::take_until(events, async move { stopped.stopped().await });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// What the client has already.
struct Begin {
    /// All that happened up to here …
    resume: Option<Revision>,
    /// … but for what concerns these, which it watches for the first time.
    fresh: HashSet<ServiceName>,
}

/// The services named, each once; `None` is every service.
fn names(pairs: &mut Pairs) -> Result<Option<Vec<ServiceName>>, Refusal> {
    let given = pairs.all("service");
    if given.iter().any(|name| name == "*") {
        if given.len() > 1 {
            return Err(Refusal::bad("service=* goes alone: it is every service"));
        }
        return Ok(None);
    }
    if !(1..=MAX_WATCHED).contains(&given.len()) {
        return Err(Refusal::bad(format!(
            "{} services named: a watch takes 1 to {MAX_WATCHED}, or service=*",
            given.len()
        )));
    }
    let mut names = given
        .iter()
        .map(|name| refusal::service(name))
        .collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable();
    names.dedup();
    Ok(Some(names))
}

/// Where changes come from.
enum Source {
    Some(Watching),
    All(broadcast::Receiver<Arc<Published>>),
}

impl Source {
    /// The next change; `Err` if some were lost. Cancel-safe.
    async fn recv(&mut self) -> Result<Arc<Published>, ()> {
        match self {
            Self::Some(watching) => watching.recv().await.map_err(|_| ()),
            Self::All(all) => match all.recv().await {
                Ok(change) => Ok(change),
                Err(RecvError::Lagged(_)) => Err(()),
                // The hub lives as long as the server.
                Err(RecvError::Closed) => std::future::pending().await,
            },
        }
    }
}

/// The beginning of a stream, or of a part that has to be told anew.
struct Telling {
    left: VecDeque<ServiceName>,
    full: bool,
    begun: bool,
}

/// One client's watch.
struct Watch {
    api: Arc<Api>,
    /// `None`: every service.
    names: Option<Vec<ServiceName>>,
    source: Source,
    regions: bool,
    telling: Option<Telling>,
    /// Of each service that was told of, up to which counter; until deltas have come past all.
    told: HashMap<ServiceName, u64>,
    told_to: u64,
    /// All changes up to this one were sent.
    seen: u64,
    state: ServerState,
    regions_version: u64,
    beat: Instant,
    _place: (WatchSlot, OwnedSemaphorePermit),
}

impl Watch {
    fn new(
        api: Arc<Api>,
        names: Option<Vec<ServiceName>>,
        regions: bool,
        begin: Begin,
        place: (WatchSlot, OwnedSemaphorePermit),
    ) -> Self {
        // First the changes, then what they change: none falls between.
        let source = match &names {
            Some(names) => {
                let default = ServiceName::new(DEFAULT_POLICY).ok();
                let watched = names.iter().cloned().chain(default);
                Source::Some(api.shared.hub.watch(watched))
            }
            None => Source::All(api.shared.hub.subscribe()),
        };
        let catalogue = api.shared.catalogue();
        let now = catalogue.revision();
        let resume = begin
            .resume
            .filter(|token| token.epoch == now.epoch && token.counter <= now.counter)
            .map(|token| token.counter);
        let mut watch = Self {
            api,
            names,
            source,
            regions,
            telling: None,
            told: HashMap::new(),
            told_to: 0,
            seen: 0,
            state: ServerState::default(),
            regions_version: 0,
            beat: Instant::now(),
            _place: place,
        };
        watch.tell(&catalogue, resume, &begin.fresh);
        watch
    }

    /// Begins to tell what has changed since `after`, and all of what is `fresh`; or everything.
    fn tell(&mut self, catalogue: &Catalogue, after: Option<u64>, fresh: &HashSet<ServiceName>) {
        let names = match &self.names {
            Some(names) => names.clone(),
            None => match after {
                // A service that is gone must be told of as well.
                Some(_) => catalogue.all_names(),
                None => catalogue.names(),
            },
        };
        let changed = |name: &ServiceName| {
            let is_news = |counter| catalogue.changed_since(name, counter) || fresh.contains(name);
            after.is_none_or(is_news)
        };
        self.telling = Some(Telling {
            left: names.into_iter().filter(changed).collect(),
            full: after.is_none(),
            begun: false,
        });
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.tell_on() {
            return Some(bytes);
        }
        loop {
            // On time on a busy stream too: how far the server can be believed is told then.
            if self.beat.elapsed() >= HEARTBEAT {
                self.beat = Instant::now();
                return Some(self.heartbeat());
            }
            match timeout_at(self.beat + HEARTBEAT, self.source.recv()).await {
                Ok(Ok(change)) => {
                    if self.is_news(&change) {
                        self.seen = self.seen.max(change.counter);
                        return Some(change.event.clone());
                    }
                }
                // Too slow: what is true now instead of what happened.
                Ok(Err(())) => {
                    let catalogue = self.api.shared.catalogue();
                    self.tell(&catalogue, Some(self.seen), &HashSet::new());
                    return self.tell_on();
                }
                // The next round is on time.
                Err(_) => {}
            }
        }
    }

    /// Whether the client has not been told of it by a snapshot.
    fn is_news(&mut self, change: &Published) -> bool {
        if change.counter > self.told_to {
            self.told = HashMap::new();
        }
        match change.kind {
            Kind::Policy => true,
            Kind::Instances => {
                let watched = self.names.as_ref();
                // The default policy's name is watched for its policy alone.
                watched.is_none_or(|names| names.binary_search(&change.service).is_ok())
                    && self
                        .told
                        .get(&change.service)
                        .is_none_or(|told| change.counter > *told)
            }
        }
    }

    /// The next piece of the beginning; `None` once everything is told.
    fn tell_on(&mut self) -> Option<Bytes> {
        let mut telling = self.telling.take()?;
        let catalogue = self.api.shared.catalogue();
        let now = catalogue.revision();
        let mut text = Vec::new();
        if !telling.begun {
            telling.begun = true;
            self.state = self.api.state();
            write(&mut text, "state", &self.state);
        }
        while let Some(name) = telling.left.pop_front() {
            write(&mut text, "snapshot", &catalogue.service(&name));
            self.api.shared.hub.told(1);
            self.told.insert(name, now.counter);
            if text.len() >= CHUNK {
                self.told_to = self.told_to.max(now.counter);
                self.telling = Some(telling);
                return Some(text.into());
            }
        }
        self.told_to = self.told_to.max(now.counter);
        self.end_telling(&catalogue, telling.full, &mut text);
        Some(text.into())
    }

    fn end_telling(&mut self, catalogue: &Catalogue, full: bool, text: &mut Vec<u8>) {
        let mut policies = Vec::new();
        for record in catalogue.policies() {
            let own = self
                .names
                .as_ref()
                .is_none_or(|names| names.binary_search(&record.service).is_ok());
            if own || record.service.as_str() == DEFAULT_POLICY {
                policies.push(record.service.clone());
                let policy = serde_json::json!({
                    "service": record.service,
                    "revision": catalogue.revision(),
                    "policy": record,
                });
                write(text, "policy", &policy);
            }
        }
        if self.regions {
            self.regions_version = self.api.regions.version();
            self.tell_of_regions(text);
        }
        // Changes that came while we told are in the queue: resuming from an earlier state repeats
        // some of them, from a later one would lose them.
        let first = self.told.values().min().copied();
        let revision = Revision {
            counter: first.unwrap_or(self.told_to),
            ..catalogue.revision()
        };
        self.seen = self.seen.max(revision.counter);
        let synced = Synced {
            revision,
            full,
            policies,
        };
        text.extend_from_slice(&event("synced", &revision, &synced));
    }

    fn tell_of_regions(&self, text: &mut Vec<u8>) {
        let names = self.names.clone();
        let names = names.unwrap_or_else(|| self.api.regions.services());
        for service in names {
            let regions = self.api.regions.of(&service);
            write(text, "fallback", &FallbackEvent { service, regions });
        }
    }

    /// A sign of life, and what has changed beside the catalogue.
    fn heartbeat(&mut self) -> Bytes {
        let mut text = Vec::new();
        let state = self.api.state();
        // Staleness grows by itself: whether there is any is the news.
        let kind = |state: &ServerState| (state.self_preservation, state.staleness_ms.is_some());
        if kind(&state) != kind(&self.state) {
            write(&mut text, "state", &state);
            self.state = state;
        }
        let version = self.api.regions.version();
        if self.regions && version != self.regions_version {
            self.regions_version = version;
            self.tell_of_regions(&mut text);
        }
        if text.is_empty() {
            return Bytes::from_static(b":\n\n");
        }
        text.into()
    }
}

/// One event without an id.
fn write(text: &mut Vec<u8>, kind: &str, data: &impl Serialize) {
    text.extend_from_slice(b"event: ");
    text.extend_from_slice(kind.as_bytes());
    text.extend_from_slice(b"\ndata: ");
    // Our documents always serialise, and JSON has no raw line ends.
    text.extend_from_slice(&serde_json::to_vec(data).unwrap_or_default());
    text.extend_from_slice(b"\n\n");
}
