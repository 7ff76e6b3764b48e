//! Eureka's REST interface over the catalogue, for clients that know nothing of us.
//!
//! A registry that asks for a new client in every service is not taken into use; most services
//! that have one speak to Eureka. So its clients find here what they expect, down to the form of
//! each field, and what they register is seen by v1's clients, by DNS and by gateways, as what those
//! register is seen by them.
//!
//! ```text
//!   JSON, XML ──► model::read ──► ops ──► Shared (register, renew, change) ──► catalogue
//!   JSON, XML ◄── json, xml ◄── view, feed ◄── record::instance ◄───────────── catalogue
//!                                              peers ──► a Eureka beside us, while one moves
//! ```
//!
//! # Guarantees
//! - What is written has no key that Eureka's Java classes do not know, and lists are lists.
//! - A full answer or a delta is of one moment: its hash is that of the instances of that moment.
//! - `versions__delta` is never the same for two states, also across restarts and servers.
//! - A server that is catching up answers 403 and never a shorter list.
//!
//! # What it does not do
//! - Double the lease: an instance that falls silent leaves after its `durationInSecs`, where
//!   Eureka waits twice as long and up to a minute more (`LeaseInfo`, "isExpired").
//! - Remember each renewal: `lastRenewalTimestamp` is when a record last changed. Renewals touch one
//!   server's memory only.
//! - Remote regions and AWS's autoscaling groups: `regions=` is taken and changes nothing.
//!
//! # Source
//! Netflix/eureka 2.x and spring-cloud-netflix of August 2026, and what eureka-js-client 4.5.0 and
//! py-eureka-client 0.13.3 were seen to send and need.

mod answer;
mod asked;
mod batch;
mod beside;
mod config;
mod feed;
mod http;
mod json;
mod model;
mod names;
mod ops;
mod peers;
mod record;
mod request;
mod view;
mod word;
mod xml;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[cfg(test)]
pub(crate) use self::request::document;
pub(crate) use self::{beside::Beside, names::service, request::segments, word::turned};
pub use self::{config::EurekaConfig, word::StatusWord};
use self::{
    feed::Feed,
    model::Applications,
    peers::Peers,
    view::{Answers, Asked, Of},
};
use crate::{catalogue::Catalogue, server::Shared};

/// The name of what is kept beside a record.
const DIALECT: &str = "eureka";
/// Says that a peer has told the others.
const REPLICA: &str = "x-netflix-discovery-replication";
/// Asked with `ask`: by one of us that seeds. Answered with whether we do too, and whether all whom we
/// wait for do.
const SEEDING: &str = "x-selvedge-seeding";
/// How Java says that there is no metadata.
const EMPTY_MAP: &str = "java.util.Collections$EmptyMap";

/// The Eureka dialect of one server.
#[derive(Debug)]
pub struct Eureka {
    shared: Arc<Shared>,
    feed: Mutex<Feed>,
    answers: Answers,
    /// One large answer is made at a time, on however many connections it is asked for.
    making: tokio::sync::Semaphore,
    peers: Peers,
    /// A peer has said what it has, or none did in time, or there is none.
    seeded: AtomicBool,
    /// Each peer has said that it waits for its peers as well.
    stuck: AtomicBool,
    /// Where this process's versions begin.
    first_version: i64,
}

impl Eureka {
    /// Follows `shared` from now on. `config` has been validated.
    pub fn new(shared: Arc<Shared>, config: &EurekaConfig) -> Arc<Self> {
        if !config.peers.is_empty() {
            shared.beside.has_peers();
        }
        // Far apart for two lives and two servers, and far from −1, which means "no deltas".
        let seed = xxh3_64_with_seed(shared.node.as_bytes(), shared.generation);
        Arc::new(Self {
            feed: Mutex::new(Feed::new(shared.hub.listen())),
            answers: Answers::default(),
            making: tokio::sync::Semaphore::new(1),
            peers: Peers::new(config),
            seeded: AtomicBool::new(config.peers.is_empty()),
            stuck: AtomicBool::new(false),
            first_version: (seed >> 2) as i64,
            shared,
        })
    }

    /// Eureka's paths, to be merged with others.
    pub fn router(self: &Arc<Self>) -> axum::Router {
        http::router(Arc::clone(self))
    }

    /// What it does beside answering: keeps the delta's memory short and tells the peers. Never
    /// ends; cancel-safe.
    pub async fn run(self: Arc<Self>) {
        let follow = Arc::clone(&self).follow();
        tokio::join!(follow, peers::run(&self));
    }

    /// Takes changes as they come, so that none is lost while nobody asks.
    async fn follow(self: Arc<Self>) {
        let mut waker = self.shared.hub.listen();
        let idle = std::time::Duration::from_secs(30);
        loop {
            let _changed_lagged_or_idle = tokio::time::timeout(idle, waker.recv()).await;
            self.feed.lock().catch_up(now());
            let counter = self.shared.catalogue().revision().counter;
            self.answers.forget_other_than(counter, now());
        }
    }

    fn is_ready(&self) -> bool {
        self.shared.is_serving() && self.seeded.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.shared.wall_ms()).unwrap_or(i64::MAX)
    }

    fn version(&self, catalogue: &Catalogue) -> i64 {
        self.first_version + catalogue.revision().counter as i64
    }

    /// The last answer of this kind, if nothing has changed since.
    fn kept(&self, asked: Asked) -> Option<Bytes> {
        let mut feed = self.feed.lock();
        feed.catch_up(now());
        let counter = self.shared.catalogue().revision().counter;
        let of = (counter, if asked.delta { feed.state() } else { 0 });
        drop(feed);
        self.answers.get(asked, of, now())
    }

    /// Everything, or what has changed of late.
    fn applications(&self, delta: bool) -> (Applications, Of) {
        let catalogue = self.shared.catalogue();
        let version = self.version(&catalogue);
        let counter = catalogue.revision().counter;
        if !delta {
            return (view::full(&catalogue, version), (counter, 0));
        }
        // After the snapshot: every change up to it is then in the feed.
        let mut feed = self.feed.lock();
        feed.catch_up(now());
        let of = (counter, feed.state());
        (view::delta(&catalogue, &feed, version), of)
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
