//! Connections to upstreams: one pool a worker, one stack of idle connections an endpoint.
//!
//! A pool that threads share pays for locks and for connections that wake on another core than
//! their request; so each worker keeps its own. The connection used last is used next: it is the
//! one whose peer is least likely to have closed it, and the others may grow old and go.
//!
//! # Source
//! LIFO and idle time below the servers' own as linkerd2-proxy and reference clients; 100 streams a
//! connection as ztunnel.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use selvedge_registry::AppProtocol;
use selvedge_resilience::layer::ReplayBody;
use tokio::time::Instant;

use crate::body::{BodyState, RequestBody};

/// What a try sends as body.
pub(crate) type OutBody = ReplayBody<RequestBody>;

/// An endpoint, as balancers and pools tell them apart: a restart on the same address is another
/// one, with no connections and a clean record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamKey {
    /// Where it is.
    pub addr: SocketAddr,
    /// Which life of the instance.
    pub incarnation: u64,
    /// What it speaks.
    pub protocol: AppProtocol,
}

/// How long an idle connection is kept. Below the 5 s after which Node.js, the most impatient
/// common server, closes.
const IDLE: Duration = Duration::from_secs(4);
/// Streams on one HTTP/2 connection before the next is opened. Source: ztunnel.
const STREAMS: usize = 100;
/// Idle connections kept for one endpoint. A guess: as many as one worker has in flight to it.
const IDLE_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<HashMap<UpstreamKey, Idle>>);

#[derive(Debug, Default)]
struct Idle {
    http1: Vec<(http1::SendRequest<OutBody>, Instant)>,
    http2: Vec<Shared2>,
    /// One HTTP/2 connection is opened at a time: those who wait will share it.
    dialling: Arc<tokio::sync::Mutex<()>>,
}

/// An HTTP/2 connection and the streams on it.
#[derive(Debug, Clone)]
pub(crate) struct Shared2 {
    pub(crate) sender: http2::SendRequest<OutBody>,
    streams: Arc<AtomicUsize>,
    used: Instant,
}

impl Pool {
    /// An idle HTTP/1 connection to `key`.
    pub(crate) fn take_http1(
        self: &Arc<Self>,
        key: UpstreamKey,
        now: Instant,
    ) -> Option<http1::SendRequest<OutBody>> {
        let mut pool = self.0.lock();
        let idle = &mut pool.get_mut(&key)?.http1;
        while let Some((sender, since)) = idle.pop() {
            if !sender.is_closed() && now.saturating_duration_since(since) < IDLE {
                return Some(sender);
            }
        }
        None
    }

    /// An HTTP/2 connection to `key` that takes another stream.
    pub(crate) fn share_http2(self: &Arc<Self>, key: UpstreamKey, now: Instant) -> Option<Lease2> {
        let mut pool = self.0.lock();
        let list = &mut pool.get_mut(&key)?.http2;
        list.retain(|shared| !shared.sender.is_closed());
        let shared = list
            .iter_mut()
            .find(|shared| shared.streams.load(Ordering::Relaxed) < STREAMS)?;
        shared.used = now;
        Some(Lease2::new(shared))
    }

    /// To be held by whoever opens an HTTP/2 connection to `key`.
    pub(crate) fn dialling(&self, key: UpstreamKey) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.0.lock().entry(key).or_default().dialling)
    }

    /// Makes a new HTTP/2 connection known.
    pub(crate) fn add_http2(
        self: &Arc<Self>,
        key: UpstreamKey,
        sender: http2::SendRequest<OutBody>,
        now: Instant,
    ) -> Lease2 {
        let shared = Shared2 {
            sender,
            streams: Arc::default(),
            used: now,
        };
        let lease = Lease2::new(&shared);
        self.0.lock().entry(key).or_default().http2.push(shared);
        lease
    }

    fn put_http1(&self, key: UpstreamKey, sender: http1::SendRequest<OutBody>) {
        if sender.is_closed() {
            return;
        }
        let mut pool = self.0.lock();
        let idle = &mut pool.entry(key).or_default().http1;
        if idle.len() < IDLE_MAX {
            idle.push((sender, Instant::now()));
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn tick(&self, now: Instant) {
        self.0.lock().retain(|_, idle| {
            idle.http1
                .retain(|(sender, since)| !sender.is_closed() && *since + IDLE > now);
            idle.http2.retain(|shared| {
                let busy = shared.streams.load(Ordering::Relaxed) > 0;
                !shared.sender.is_closed() && (busy || shared.used + IDLE * 15 > now)
            });
            let dialled = Arc::strong_count(&idle.dialling) > 1;
            dialled || !idle.http1.is_empty() || !idle.http2.is_empty()
        });
    }
}

/// One stream's share of an HTTP/2 connection; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease2 {
    pub(crate) sender: http2::SendRequest<OutBody>,
    streams: Arc<AtomicUsize>,
}

impl Lease2 {
    fn new(shared: &Shared2) -> Self {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        Self {
            sender: shared.sender.clone(),
            streams: Arc::clone(&shared.streams),
        }
    }
}

impl Drop for Lease2 {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection in use by one request. Dropped without being given back, it is closed (HTTP/1) or
/// has one stream less (HTTP/2).
#[derive(Debug)]
pub(crate) enum Lease {
    Http1 {
        sender: http1::SendRequest<OutBody>,
        key: UpstreamKey,
        pool: Arc<Pool>,
        /// The connection is only good if all of this was sent.
        request: BodyState,
    },
    Http2(#[expect(dead_code, reason = "held for its end")] Lease2),
}

impl Lease {
    /// The answer has ended exactly.
    pub(crate) fn give_back(self) {
        if let Self::Http1 {
            sender,
            key,
            pool,
            request,
        } = self
            && request.has_ended()
        {
            pool.put_http1(key, sender);
        }
    }
}
