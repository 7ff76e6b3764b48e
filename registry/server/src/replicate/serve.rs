//! What a server tells its peers.

use std::{convert::Infallible, io::Write as _, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream;
use selvedge_registry::{InstanceId, ServiceName};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};

use super::{
    HEARTBEAT,
    frame::{Buckets, Head, Out, Position, Sums},
    second_word::{HeardAnswer, HeardQuestion},
};
use crate::{
    catalogue::{BUCKETS, Record},
    log::Log,
    server::{EditAnswer, EditQuestion, Shared},
};

/// How long changes are collected after some were sent. A first one goes at once: who registers at
/// one server and asks another right after should find it there.
const COALESCE: Duration = Duration::from_millis(5);
/// Entries sent at once; a follower that is far behind is sent them one after the other, and no
/// more than it takes.
const BATCH: usize = 512;
/// Bytes of a snapshot under way at once, times four.
const CHUNK: usize = 64 << 10;
/// Quick rather than small: between servers of one region.
const LEVEL: i32 = 1;
/// Bytes of a question.
const MAX_QUESTION: usize = 8 << 20;

type App = State<Arc<Shared>>;

/// The paths that only peers use.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/replicate", get(log))
        .route("/v1/replicate/snapshot", get(snapshot))
        .route("/v1/replicate/hello", post(hello))
        .route("/v1/replicate/sums", post(sums))
        .route("/v1/replicate/renew", post(renew))
        .route("/v1/replicate/handoff", post(handoff))
        .route("/v1/replicate/heard", post(heard))
        .route("/v1/replicate/edit", post(edit))
        .layer(DefaultBodyLimit::max(MAX_QUESTION))
        .with_state(shared)
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    /// Who follows.
    node: String,
    generation: u64,
    next: u64,
}

async fn log(State(shared): App, Query(query): Query<LogQuery>) -> Response {
    let feed = Feed {
        next: Some(query.next).filter(|_| query.generation == shared.generation),
        follower: query.node,
        first: true,
        sent: None,
        compared: None,
        shared,
        over: false,
    };
    let body = stream::unfold(feed, |mut feed| async {
        let lines = feed.lines().await?;
        Some((Ok::<_, Infallible>(Bytes::from(lines)), feed))
    });
    Body::from_stream(body).into_response()
}

/// One follower's stream. Made as it is read: who reads slowly holds nothing but a number.
struct Feed {
    shared: Arc<Shared>,
    follower: String,
    /// The next entry to send; `None` if it is not of this log.
    next: Option<u64>,
    first: bool,
    /// When entries were last sent.
    sent: Option<Instant>,
    compared: Option<Instant>,
    over: bool,
}

impl Feed {
    async fn lines(&mut self) -> Option<Vec<u8>> {
        if self.over {
            return None;
        }
        if !std::mem::take(&mut self.first) {
            self.wait().await;
        }
        let mut lines = Vec::new();
        let state = self.shared.state.read();
        let entries = self.next.and_then(|next| state.log.since(next, BATCH));
        let (Some(next), Some(entries)) = (self.next, entries) else {
            drop(state);
            self.over = true;
            Out::Gap.write(&mut lines);
            return Some(lines);
        };
        let next = next + entries.len() as u64;
        let due = self.shared.is_serving()
            && self
                .compared
                .is_none_or(|at| at.elapsed() >= self.shared.compare_every);
        // Together with the position, or they would not be of it.
        let sums = (due && next == state.log.next()).then(|| self.sums(&state.store));
        drop(state);
        self.next = Some(next);
        if !entries.is_empty() {
            self.sent = Some(Instant::now());
        }
        for entry in &entries {
            Out::of(entry).write(&mut lines);
        }
        let generation = self.shared.generation;
        Out::At(Position { generation, next }).write(&mut lines);
        if let Some(sums) = sums {
            self.compared = Some(Instant::now());
            Out::Sums(Box::new(sums)).write(&mut lines);
        }
        Some(lines)
    }

    /// Until there is something to send and, soon after the last time, a moment more for what
    /// comes with it.
    async fn wait(&self) {
        let (grown, next) = self
            .shared
            .read_log(|log| (Arc::clone(&log.grown), log.next()));
        let more = grown.notified();
        tokio::pin!(more);
        more.as_mut().enable();
        // What was appended before this began to listen is seen here.
        if self.next == Some(next) && self.next == Some(self.shared.read_log(Log::next)) {
            let _a_heartbeat_then = tokio::time::timeout(HEARTBEAT, more).await;
        }
        if self
            .next
            .is_some_and(|at| next.saturating_sub(at) < BATCH as u64)
        {
            let quiet = self.sent.map_or_else(Instant::now, |sent| sent + COALESCE);
            tokio::time::sleep_until(quiet).await;
        }
    }

    fn sums(&self, store: &crate::catalogue::Store) -> Sums {
        let shared = &self.shared;
        let own = store
            .owned(&shared.node)
            .map_or([0; BUCKETS], |owned| owned.buckets);
        let gone = store
            .owners()
            .filter(|(owner, _)| !shared.is_alive(owner))
            .map(|(owner, owned)| (owner.to_string(), owned.hash()));
        Sums {
            own: Buckets(own),
            gone: gone.collect(),
            policies: store.catalogue().policies_hash(),
            heard: shared.followed.lock().get(&self.follower).copied(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct SnapshotQuery {
    /// Only what this server owns, or buried.
    owner: Option<String>,
    /// Only these buckets, `first-last,first-last`.
    buckets: Option<String>,
}

impl SnapshotQuery {
    fn buckets(&self) -> Option<[bool; BUCKETS]> {
        let Some(text) = &self.buckets else {
            return Some([true; BUCKETS]);
        };
        let mut wanted = [false; BUCKETS];
        for part in text.split(',') {
            let (first, last) = part.split_once('-')?;
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            if first > last {
                return None;
            }
            wanted.get_mut(first..=last)?.fill(true);
        }
        Some(wanted)
    }
}

/// How `buckets` are asked for.
pub(crate) fn of_buckets(buckets: &[usize]) -> String {
    let each: Vec<_> = buckets.iter().map(|n| format!("{n}-{n}")).collect();
    format!("buckets={}", each.join(","))
}

async fn snapshot(State(shared): App, Query(query): Query<SnapshotQuery>) -> Response {
    let Some(buckets) = query.buckets() else {
        let allowed = format!("buckets: expected first-last,first-last, below {BUCKETS}");
        return (StatusCode::BAD_REQUEST, allowed).into_response();
    };
    // Of what it owns it can tell in any case; what there is in all it must know.
    if query.owner.is_none() && !shared.is_serving() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let (send, receive) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let wanted = |record: &Record| {
            buckets[record.bucket()]
                && query
                    .owner
                    .as_deref()
                    .is_none_or(|owner| *owner == *record.stamp.owner)
        };
        if let Err(error) = write_snapshot(&shared, wanted, &send) {
            tracing::debug!(%error, "snapshot for a peer was broken off");
        }
    });
    let body = stream::unfold(receive, |mut receive| async {
        let chunk: Bytes = receive.recv().await?;
        Some((Ok::<_, Infallible>(chunk), receive))
    });
    Body::from_stream(body).into_response()
}

fn write_snapshot(
    shared: &Shared,
    wanted: impl Fn(&Record) -> bool,
    send: &mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    // First where everybody's log stood, then the catalogue: what happens in between comes twice,
    // never not at all.
    let positions = shared.positions();
    let catalogue = shared.catalogue();
    let mut out = zstd::stream::write::Encoder::new(Vec::with_capacity(CHUNK), LEVEL)?;
    let mut lines = Vec::new();
    let mut records = 0;
    Out::Head(Head { positions }).write(&mut lines);
    for policy in catalogue.policy_entries() {
        Out::Policy(policy).write(&mut lines);
    }
    for record in catalogue.records().filter(|record| wanted(record)) {
        records += 1;
        Out::Record(record).write(&mut lines);
        if lines.len() >= CHUNK {
            out.write_all(&lines)?;
            lines.clear();
            give(out.get_mut(), send)?;
        }
    }
    Out::End { records }.write(&mut lines);
    out.write_all(&lines)?;
    let mut rest = out.finish()?;
    give(&mut rest, send)
}

fn give(chunk: &mut Vec<u8>, send: &mpsc::Sender<Bytes>) -> std::io::Result<()> {
    if chunk.is_empty() {
        return Ok(());
    }
    let chunk = Bytes::from(std::mem::take(chunk));
    let gone = |_| std::io::Error::other("nobody reads it any more");
    send.blocking_send(chunk).map_err(gone)
}

/// A server that comes back asks those it remembers whether they are still there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: String,
}

/// Who is there, and whether it can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HelloAnswer {
    pub(crate) node: String,
    pub(crate) cluster: String,
    pub(crate) serving: bool,
}

async fn hello(State(shared): App, Json(question): Json<Hello>) -> Json<HelloAnswer> {
    tracing::debug!(peer = %question.node, "a peer asks whether this server is there");
    Json(HelloAnswer {
        node: shared.node.to_string(),
        cluster: shared.cluster.clone(),
        serving: shared.is_serving() && !shared.is_draining(),
    })
}

/// What another server knows of a third that cannot be reached from here.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SumsQuestion {
    pub(crate) of: String,
}

/// Hashes of what it knows of it, by bucket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SumsAnswer {
    pub(crate) owned: Buckets,
}

async fn sums(State(shared): App, Json(question): Json<SumsQuestion>) -> Json<SumsAnswer> {
    let state = shared.state.read();
    let owned = state.store.owned(&question.of);
    let owned = Buckets(owned.map_or([0; BUCKETS], |owned| owned.buckets));
    Json(SumsAnswer { owned })
}

/// A lease on its way to another server: instance, life.
pub(crate) type Passed = (ServiceName, InstanceId, u64);

/// Renewals that were made at one server of leases that another keeps.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewQuestion {
    pub(crate) via: String,
    /// Whoever keeps the lease: the asking server cannot know.
    pub(crate) find: bool,
    pub(crate) renewals: Vec<(ServiceName, InstanceId, Option<u64>)>,
}

/// Which of them, by number, are the asking server's from now on.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RenewAnswer {
    pub(crate) yours: Vec<usize>,
}

async fn renew(State(shared): App, Json(question): Json<RenewQuestion>) -> Json<RenewAnswer> {
    let mut answer = RenewAnswer::default();
    for (n, (service, id, incarnation)) in question.renewals.into_iter().enumerate() {
        if question.find {
            // As if the instance had come here. Nobody waits for what it is told.
            let _next_time = shared.renew(&service, &id, incarnation);
        } else if shared.renew_for(&question.via, &(service, id), incarnation) {
            answer.yours.push(n);
        }
    }
    Json(answer)
}

async fn edit(State(shared): App, Json(question): Json<EditQuestion>) -> Json<EditAnswer> {
    Json(shared.edit_for(question))
}

async fn heard(State(shared): App, Json(question): Json<HeardQuestion>) -> Json<HeardAnswer> {
    let over = question.over.into_iter().enumerate();
    Json(HeardAnswer {
        heard: over
            .filter_map(|(n, record)| shared.has_heard(n, record))
            .collect(),
    })
}

/// Leases that a leaving server hands over, with the milliseconds that remain of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HandoffQuestion {
    pub(crate) from: String,
    pub(crate) leases: Vec<(Passed, u64)>,
}

/// Which of them, by number, were taken over.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct HandoffAnswer {
    pub(crate) taken: Vec<usize>,
}

async fn handoff(State(shared): App, Json(question): Json<HandoffQuestion>) -> Response {
    if !shared.is_serving() || shared.is_draining() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let mut answer = HandoffAnswer::default();
    for (n, ((service, id, incarnation), rest)) in question.leases.into_iter().enumerate() {
        if shared.take_over(&(service, id), incarnation, Duration::from_millis(rest)) {
            answer.taken.push(n);
        }
    }
    tracing::info!(from = %question.from, leases = answer.taken.len(), "took leases over");
    Json(answer).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_asked_for_one_by_one_and_in_ranges() {
        let parsed = |text: &str| {
            let query = SnapshotQuery {
                owner: None,
                buckets: Some(text.into()),
            };
            let wanted = query.buckets()?;
            Some((0..BUCKETS).filter(|n| wanted[*n]).collect::<Vec<_>>())
        };
        let asked = of_buckets(&[3, 7, 9]);
        assert_eq!(
            parsed(asked.strip_prefix("buckets=").expect("key")),
            Some(vec![3, 7, 9])
        );
        assert_eq!(parsed("0-2,5-5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(SnapshotQuery::default().buckets(), Some([true; BUCKETS]));
        let over = format!("{BUCKETS}-{BUCKETS}");
        for wrong in ["", "3", "4-3", "0-2,", "a-b", &over] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
