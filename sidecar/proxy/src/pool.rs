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
    hash::BuildHasherDefault,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use selvedge_registry::AppProtocol;
use selvedge_resilience::layer::ReplayBody;

use crate::{
    body::{BodyState, RequestBody},
    hash::Fx,
};

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

/// How often the pool looks after what is idle in it, and the unit of its time.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Ticks that an idle connection is kept. Below the 5 s after which Node.js, the most impatient
/// common server, closes.
const IDLE: u32 = 4;
/// The same for an HTTP/2 connection, which says good-bye before it goes. A guess.
const IDLE_HTTP2: u32 = 60;
/// Streams on one HTTP/2 connection before the next is opened. Source: ztunnel.
const STREAMS: usize = 100;
/// Idle connections kept for one endpoint. A guess: as many as one worker has in flight to it.
const IDLE_MAX: usize = 1_024;

/// Time is counted in ticks: to the second is exact enough for what is idle, and reading a clock
/// twice a request is not free.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<UpstreamKey, Idle, BuildHasherDefault<Fx>>>,
    ticks: AtomicU32,
}

#[derive(Debug, Default)]
struct Idle {
    /// With the tick since when.
    http1: Vec<(http1::SendRequest<OutBody>, u32)>,
    http2: Vec<Shared2>,
    /// One HTTP/2 connection is opened at a time: those who wait will share it.
    dialling: Arc<tokio::sync::Mutex<()>>,
}

/// An HTTP/2 connection and the streams on it.
#[derive(Debug, Clone)]
pub(crate) struct Shared2 {
    pub(crate) sender: http2::SendRequest<OutBody>,
    streams: Arc<AtomicUsize>,
    used: u32,
}

impl Pool {
    /// An idle HTTP/1 connection to `key`.
    pub(crate) fn take_http1(
        self: &Arc<Self>,
        key: UpstreamKey,
    ) -> Option<http1::SendRequest<OutBody>> {
        let now = self.now();
        let mut pool = self.idle.lock();
        let idle = &mut pool.get_mut(&key)?.http1;
        while let Some((sender, since)) = idle.pop() {
            if !sender.is_closed() && now.wrapping_sub(since) < IDLE {
                return Some(sender);
            }
        }
        None
    }

    /// An HTTP/2 connection to `key` that takes another stream.
    pub(crate) fn share_http2(self: &Arc<Self>, key: UpstreamKey) -> Option<Lease2> {
        let now = self.now();
        let mut pool = self.idle.lock();
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
        Arc::clone(&self.idle.lock().entry(key).or_default().dialling)
    }

    /// Makes a new HTTP/2 connection known.
    pub(crate) fn add_http2(
        self: &Arc<Self>,
        key: UpstreamKey,
        sender: http2::SendRequest<OutBody>,
    ) -> Lease2 {
        let shared = Shared2 {
            sender,
            streams: Arc::default(),
            used: self.now(),
        };
        let lease = Lease2::new(&shared);
        self.idle.lock().entry(key).or_default().http2.push(shared);
        lease
    }

    fn put_http1(&self, key: UpstreamKey, sender: http1::SendRequest<OutBody>) {
        if sender.is_closed() {
            return;
        }
        let now = self.now();
        let mut pool = self.idle.lock();
        let idle = &mut pool.entry(key).or_default().http1;
        if idle.len() < IDLE_MAX {
            idle.push((sender, now));
        }
    }

    fn now(&self) -> u32 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Another [`TICK`] has passed: closes what has been idle for too long.
    pub(crate) fn tick(&self) {
        let now = self.ticks.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.idle.lock().retain(|_, idle| {
            idle.http1
                .retain(|(sender, since)| !sender.is_closed() && now.wrapping_sub(*since) < IDLE);
            idle.http2.retain(|shared| {
                let busy = shared.streams.load(Ordering::Relaxed) > 0;
                !shared.sender.is_closed() && (busy || now.wrapping_sub(shared.used) < IDLE_HTTP2)
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
