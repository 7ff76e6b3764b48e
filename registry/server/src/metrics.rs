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

use crate::{gossip::text, server::Shared};

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
