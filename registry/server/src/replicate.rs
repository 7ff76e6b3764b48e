//! Following the other servers' logs, each over one HTTP/2 stream.
//!
//! A follower says how far it is. If the log still reaches back to there it gets what came since;
//! else it gets the whole catalogue first. Every second the stream says where the log stands and
//! what the catalogue's hash is; two servers whose hashes differ and do not change have missed
//! something between them (a server that died between telling one and telling the other), and the
//! follower takes the whole catalogue anew. Merging is idempotent, so that costs time and no
//! correctness.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, task::AbortHandle, time::Instant};

use crate::{
    catalogue::{NodeId, Record},
    gossip::Member,
    log::Log,
    server::Shared,
};

/// How long changes are collected before they are sent: what replication adds to a write.
const COALESCE: Duration = Duration::from_millis(5);
/// How often a stream says where the log stands.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which a stream is given up: three missed heartbeats.
const STALL: Duration = Duration::from_secs(3);
/// Longest line: a record with all the metadata it may have.
const MAX_LINE: usize = 1 << 20;

/// A line of the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Frame {
    /// Something that was accepted.
    Record(Record),
    /// Everything up to here has been sent.
    At(Position),
}

/// A place in a server's log, and what its catalogue looks like from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The server's life.
    pub generation: u64,
    /// The number of the next entry.
    pub next: u64,
    /// Of its live records.
    pub hash: u64,
}

fn line(frame: &Frame) -> String {
    // Our frames always serialise.
    serde_json::to_string(frame).unwrap_or_default() + "\n"
}

/// The stream for a follower that has `from` of this server's life `generation`.
pub fn stream(
    shared: Arc<Shared>,
    from: Option<(u64, u64)>,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
    let next = from
        .filter(|(generation, _)| *generation == shared.generation)
        .map(|(_, next)| next);
    stream::unfold((shared, next, true), |(shared, next, first)| async move {
        if !first {
            let grown = shared.read_log(|log| Arc::clone(&log.grown));
            let more = grown.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if next == Some(shared.read_log(Log::next)) {
                let _a_heartbeat_then = tokio::time::timeout(HEARTBEAT, more).await;
                tokio::time::sleep(COALESCE).await;
            }
        }
        let (text, next) = batch(&shared, next);
        Some((Ok(Bytes::from(text)), (shared, Some(next), false)))
    })
}

/// What a follower at `next` is missing, or everything.
fn batch(shared: &Shared, next: Option<u64>) -> (String, u64) {
    let mut text = String::new();
    let entries =
        next.and_then(|next| shared.read_log(|log| log.since(next).map(|e| (e, log.next()))));
    let now = if let Some((entries, now)) = entries {
        for entry in entries {
            for part in ["{\"record\":", &entry, "}\n"] {
                text.push_str(part);
            }
        }
        now
    } else {
        // First where the log stands, then the catalogue: what happens in between comes twice,
        // never not at all.
        let now = shared.read_log(Log::next);
        let records: Vec<Record> = shared.read(|c| c.records().cloned().collect());
        for record in records {
            text += &line(&Frame::Record(record));
        }
        now
    };
    let hash = shared.read(crate::catalogue::Catalogue::hash);
    text += &line(&Frame::At(Position {
        generation: shared.generation,
        next: now,
        hash,
    }));
    (text, now)
}

/// Follows every server that gossip knows, for as long as it knows it.
pub async fn follow_everybody(shared: Arc<Shared>) {
    let mut members = shared.members();
    let mut following: HashMap<(NodeId, u64), AbortHandle> = HashMap::new();
    loop {
        let now = members.borrow_and_update().clone();
        following.retain(|(node, generation), task| {
            let alive = now
                .get(node)
                .is_some_and(|member| member.generation == *generation && member.is_present());
            if !alive {
                task.abort();
            }
            alive
        });
        for (node, member) in now {
            let key = (Arc::clone(&node), member.generation);
            let known = following.contains_key(&key);
            if node == shared.node || known || !member.is_present() {
                continue;
            }
            let task = tokio::spawn(follow(Arc::clone(&shared), node, member));
            following.insert(key, task.abort_handle());
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

async fn follow(shared: Arc<Shared>, node: NodeId, member: Member) {
    let mut position = None;
    let mut pause = Duration::from_millis(20);
    loop {
        let started = Instant::now();
        let result = follow_once(&shared, &node, &member, &mut position).await;
        let error = match result {
            // The hashes differed for too long: everything anew.
            Ok(()) => {
                tracing::info!(peer = %node, "catalogues differ, fetching the peer's whole");
                position = None;
                continue;
            }
            Err(error) => error,
        };
        tracing::debug!(peer = %node, %error, "replication stream ended");
        pause = if started.elapsed() > STALL {
            Duration::from_millis(20)
        } else {
            (pause * 2).min(Duration::from_secs(1))
        };
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn open(member: &Member, position: Option<Position>) -> Result<Incoming, BoxError> {
    let stream = TcpStream::connect(member.http).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "replication connection ended");
        }
    });
    let from = position.map_or(String::new(), |p| {
        format!("?from={}-{}", p.generation, p.next)
    });
    let uri = format!("http://{}/v1/replicate{from}", member.http);
    let response = sender
        .send_request(Request::get(uri).body(Empty::<Bytes>::new())?)
        .await?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("answered {}, expected 200", response.status()).into());
    }
    Ok(response.into_body())
}

/// Follows until something breaks, or (`Ok`) until it is clear that something was missed.
async fn follow_once(
    shared: &Shared,
    node: &NodeId,
    member: &Member,
    position: &mut Option<Position>,
) -> Result<(), BoxError> {
    let mut body = tokio::time::timeout(STALL, open(member, *position)).await??;
    let mut rest: Vec<u8> = Vec::new();
    // The last pair of hashes that differed.
    let mut differed: Option<(u64, u64)> = None;
    let mut compared = Instant::now();
    loop {
        let frame = tokio::time::timeout(STALL, body.frame())
            .await?
            .ok_or("the peer ended the stream")??;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        let mut done = 0;
        while let Some(end) = rest[done..].iter().position(|b| *b == b'\n') {
            match serde_json::from_slice(&rest[done..done + end])? {
                Frame::Record(record) => shared.accept(record),
                Frame::At(at) => {
                    *position = Some(at);
                    shared.synced_with(node);
                    if compared.elapsed() >= HEARTBEAT / 2 {
                        compared = Instant::now();
                        let pair = (shared.read(crate::catalogue::Catalogue::hash), at.hash);
                        if pair.0 == pair.1 {
                            differed = None;
                        } else if differed.replace(pair) == Some(pair) {
                            return Ok(());
                        }
                    }
                }
            }
            done += end + 1;
        }
        rest.drain(..done);
        if rest.len() > MAX_LINE {
            return Err("a line of more than 1 MiB".into());
        }
    }
}
