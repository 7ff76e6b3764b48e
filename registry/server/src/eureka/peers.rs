//! Eureka servers beside this one, for as long as a migration takes.
//!
//! While services move one by one, those that still ask the old servers must see those that have
//! moved. Eureka's servers tell each other what their own clients did, once, and mark it, so that
//! nobody passes it on; this is one more such server. It compares rather than remembers: whatever
//! differs between what a peer was told and what the catalogue says of this server's own instances
//! is sent, so that an outage of a peer costs nothing but time.
//!
//! # Guarantees
//! - What came from a peer is not sent to a peer.
//! - Of several servers of one cluster, the one that keeps an instance's lease speaks for it.
//! - A peer that is away is asked again ever more seldom; what it is owed is bounded by what there
//!   is.
//!
//! # What it does not do
//! TLS: a peer is reached over `http://`.
//!
//! # Source
//! Netflix's `PeerEurekaNode` and `AcceptorExecutor`: 250 items, 500 ms; 503 means congestion (1 s).

mod link;
mod outbox;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::Value;

pub(crate) use self::link::Peer;
use self::{link::Link, outbox::Outbox};
use super::{
    Eureka, EurekaConfig, model,
    model::Instance,
    now,
    ops::{Done, Via},
    record::{self, dirty_of},
};
use crate::catalogue::Key;

/// How long changes are collected. Source: `maxBatchingDelay`, 500 ms.
const COLLECT: Duration = Duration::from_millis(500);
/// How often peers are asked for what they have. A guess: a restart takes seconds.
const ASK: Duration = Duration::from_secs(1);
/// The same while all of them wait as well.
const ASK_STUCK: Duration = Duration::from_millis(200);
/// Items of one batch. Source: `maxElementsInReplicationPool`'s batches of 250.
const BATCH: usize = 250;
/// The longest pause before a peer is tried again. A guess.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// What is known of the peers.
#[derive(Debug)]
pub(crate) struct Peers {
    list: Vec<Peer>,
    heartbeat: Duration,
    seed_timeout: Duration,
}

impl Peers {
    pub(crate) fn new(config: &EurekaConfig) -> Self {
        // Validated before: what does not parse was refused with its reason.
        let list = config.peers.iter().filter_map(|url| Peer::parse(url).ok());
        Self {
            list: list.collect(),
            heartbeat: config.peer_heartbeat.0,
            seed_timeout: config.seed_timeout.0,
        }
    }
}

/// Talks to every peer; never ends.
pub(crate) async fn run(eureka: &Arc<Eureka>) {
    if eureka.peers.list.is_empty() {
        return std::future::pending().await;
    }
    let talks = eureka.peers.list.iter().map(|peer| talk(eureka, peer));
    tokio::join!(seed(eureka), futures_util::future::join_all(talks));
}

/// Takes what the first peer that answers has, so that nobody is shown an empty registry. Where every
/// peer is one of us and waits as we do, that would take until everybody's time is over: then what
/// each of them has is all that there is.
async fn seed(eureka: &Arc<Eureka>) {
    let deadline = tokio::time::Instant::now() + eureka.peers.seed_timeout;
    let mut serving = eureka.shared.serving();
    // The sender lives in `shared`.
    while !*serving.borrow_and_update() && serving.changed().await.is_ok() {}
    if let Ok(answered) = tokio::time::timeout_at(deadline, ask(eureka)).await {
        for (peer, document) in answered {
            let taken = take_all(eureka, &document);
            tracing::info!(peer = %peer, instances = taken, "took a eureka peer's registry");
        }
    } else {
        tracing::warn!("no eureka peer has said what it has: answering without");
    }
    eureka.seeded.store(true, Ordering::Relaxed);
}

/// What there is to be taken, and of whom.
async fn ask(eureka: &Eureka) -> Vec<(&Peer, Value)> {
    let list = &eureka.peers.list;
    loop {
        let mut waiting = Vec::new();
        let mut all_stuck = eureka.stuck.load(Ordering::Relaxed);
        for peer in list {
            match Link::new(peer).apps().await {
                Ok(apps) => {
                    let Some(stuck) = apps.seeding else {
                        return vec![(peer, apps.document)];
                    };
                    all_stuck &= stuck;
                    waiting.push((peer, apps.document));
                }
                Err(error) => {
                    tracing::warn!(peer = %peer, error = %error, "fetch a eureka peer's registry failed");
                }
            }
        }
        // Who is away may be one that does not wait.
        let all_wait = waiting.len() == list.len();
        if all_wait && all_stuck {
            return waiting;
        }
        eureka.stuck.store(all_wait, Ordering::Relaxed);
        tokio::time::sleep(if all_wait { ASK_STUCK } else { ASK }).await;
    }
}

fn list_of(value: Option<&Value>) -> &[Value] {
    match value {
        Some(Value::Array(list)) => list,
        Some(one @ Value::Object(_)) => std::slice::from_ref(one),
        _ => &[],
    }
}

fn take_all(eureka: &Eureka, document: &Value) -> usize {
    let applications = document.get("applications").unwrap_or(document);
    let apps = list_of(applications.get("application"));
    let instances = apps.iter().flat_map(|app| list_of(app.get("instance")));
    let mut taken = 0;
    for instance in instances.filter_map(|instance| model::read(instance).ok()) {
        taken += usize::from(adopt(eureka, &instance));
    }
    taken
}

/// Takes a peer's copy of an instance unless ours is as new.
fn adopt(eureka: &Eureka, instance: &Instance) -> bool {
    let Some(named) = super::ops::Named::new(&instance.app, &instance.id) else {
        return false;
    };
    let known = eureka.find(&named);
    let newer = known.is_none_or(|(known, extra)| {
        dirty_of(&known, extra.as_ref()) < instance.dirty_ms.unwrap_or_default()
    });
    newer && eureka.register(&instance.app, instance, Via::Peer) == Done::Ok
}

async fn talk(eureka: &Arc<Eureka>, peer: &Peer) {
    let mut outbox = Outbox::new(eureka);
    let mut link = Link::new(peer);
    let mut tick = tokio::time::interval(COLLECT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_beat = now() + eureka.peers.heartbeat;
    let mut failures = 0u32;
    loop {
        tick.tick().await;
        outbox.collect();
        if now() >= next_beat {
            next_beat = now() + eureka.peers.heartbeat;
            outbox.queue_heartbeats();
            eureka.shared.forget_heard_beside();
        }
        while let Some(batch) = outbox.next_batch(BATCH) {
            let sent = link.batch(&batch.items).await;
            let pause = match sent {
                Ok(answers) => {
                    failures = 0;
                    if outbox.settle(batch, answers) {
                        continue;
                    }
                    // Some items failed there: with the next tick.
                    break;
                }
                Err(error) => {
                    outbox.take_back(batch);
                    failures += 1;
                    let message = "tell a eureka peer failed";
                    if failures == 1 {
                        tracing::warn!(peer = %peer, error = %error, message);
                    } else {
                        tracing::debug!(peer = %peer, error = %error, message);
                    }
                    let least = if error.is_congestion() { 1000 } else { 100 };
                    Duration::from_millis(least << failures.min(6)).min(MAX_PAUSE)
                }
            };
            tokio::time::sleep(pause).await;
            outbox.collect();
        }
    }
}

/// A peer renews what we renew: its lease must outlast a few of our rounds.
fn lease_for_peers(instance: &mut Instance, heartbeat: Duration) {
    let round = i32::try_from(heartbeat.as_secs())
        .unwrap_or(i32::MAX)
        .max(1);
    let lease = &mut instance.lease;
    lease.renewal_secs = lease.renewal_secs.max(round);
    lease.duration_secs = lease.duration_secs.max(round.saturating_mul(3));
}

/// An instance as peers are told of it.
fn for_peers(
    eureka: &Eureka,
    key: &Key,
    found: &selvedge_registry::wire::InstanceRecord,
) -> Box<Instance> {
    let mut instance = record::instance(&key.0, found, model::Action::Added);
    lease_for_peers(&mut instance, eureka.peers.heartbeat);
    Box::new(instance)
}
