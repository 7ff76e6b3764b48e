//! What an operator sees of a server: members, instances, watches, renewals, evictions.
//!
//! All of it lives in the server's own state; it is read when somebody scrapes.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use selvedge_registry::{
    node::metrics::{Metrics, Name, Observed, Sample},
    wire::MemberState,
};

use crate::{
    gossip::{
        Event, Gossip, text,
        traffic::{DropReason, Form},
    },
    server::Shared,
};

/// Shows `shared` among `metrics` from now on.
pub fn show(shared: &Arc<Shared>, metrics: &Metrics) {
    let of = || Arc::clone(shared);
    let (members, instances, hub, renewals, evictions) = (of(), of(), of(), of(), of());
    metrics.register(
        Name::RegistryMembers,
        Observed::gauges(move || members_by_state(&members)),
    );
    metrics.register(
        Name::RegistryInstances,
        Observed::gauges(move || instances_by_status(&instances)),
    );
    metrics.register(
        Name::RegistryWatchers,
        Observed::gauge(move || hub.hub.watchers() as u64),
    );
    metrics.register(
        Name::RegistryRenewals,
        Observed::counter(move || renewals.counters.renewals.load(Ordering::Relaxed)),
    );
    metrics.register(
        Name::RegistryEvictions,
        Observed::counter(move || evictions.counters.evictions.load(Ordering::Relaxed)),
    );
}

/// Shows `gossip` among `metrics` from now on.
pub fn show_gossip(gossip: &Gossip, metrics: &Metrics) {
    let traffic = || Arc::clone(gossip.traffic());
    let (dropped, bytes, digest, digests) = (traffic(), traffic(), traffic(), traffic());
    metrics.register(
        Name::GossipDropped,
        Observed::counters(move || {
            let sample = |reason: DropReason| {
                let labels = vec![("reason", reason.text().to_owned())];
                (labels, dropped.count(reason))
            };
            DropReason::ALL.map(sample).to_vec()
        }),
    );
    metrics.register(
        Name::GossipIo,
        Observed::counters(move || {
            let sample = |way: &str, n| (vec![("direction", way.to_owned())], n);
            let (sent, received) = (bytes.sent_bytes(), bytes.received_bytes());
            vec![sample("transmit", sent), sample("receive", received)]
        }),
    );
    metrics.register(
        Name::GossipDigest,
        Observed::gauge(move || digest.digest_bytes()),
    );
    metrics.register(
        Name::GossipDigests,
        Observed::counters(move || {
            let sample = |form: Form| {
                (
                    vec![("form", form.text().to_owned())],
                    digests.digests(form),
                )
            };
            Form::ALL.map(sample).to_vec()
        }),
    );
    let events = gossip.event_counts();
    metrics.register(
        Name::GossipEvents,
        Observed::counters(move || {
            let sample = |(event, n): (Event, u64)| (vec![("event", event.text().to_owned())], n);
            events.all().map(sample).to_vec()
        }),
    );
    let isolated = gossip.is_isolated();
    metrics.register(
        Name::GossipIsolated,
        Observed::gauge(move || u64::from(*isolated.borrow())),
    );
    let health = gossip.local_health();
    metrics.register(
        Name::GossipHealthScore,
        Observed::gauge(move || u64::from(*health.borrow())),
    );
}

/// Every state, those that no server is in as well: a series that comes and goes cannot be alerted
/// on.
fn members_by_state(shared: &Shared) -> Vec<Sample> {
    let mut count = BTreeMap::from([
        (text(MemberState::Joining), 0),
        (text(MemberState::Serving), 0),
        (text(MemberState::Draining), 0),
        (text(MemberState::Left), 0),
    ]);
    for member in shared.members().borrow().values() {
        *count.entry(text(member.state)).or_default() += 1;
    }
    let sample = |(state, n): (&str, u64)| (vec![("state", state.to_owned())], n);
    count.into_iter().map(sample).collect()
}

fn instances_by_status(shared: &Shared) -> Vec<Sample> {
    let (all, up) = shared.read(|catalogue| (catalogue.len() as u64, catalogue.up() as u64));
    let sample = |status: &str, n| (vec![("status", status.to_owned())], n);
    vec![sample("up", up), sample("other", all - up)]
}
