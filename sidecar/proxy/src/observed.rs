//! Whose policies are shown: destinations while they are there, listeners of a gateway.
//!
//! Cores count for themselves; here is only who there is. A destination is entered when it is made
//! and held weakly, so its series leave with it. A scrape reads one snapshot and takes no lock that
//! a call, or a change, could wait for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Instant,
};

use arc_swap::ArcSwap;
use selvedge_registry::node::policies::{Owner, TakeSample};
use selvedge_resilience::{layer::Inbound, metrics::Samples};

use crate::Destination;

/// Which way a destination is: the label that tells a service from the app of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// Services that are called.
    Client,
    /// The app that a sidecar stands before.
    App,
}

impl Side {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
        }
    }
}

/// What a listener takes on, shown until dropped.
#[derive(Debug)]
pub struct Listed {
    name: Box<str>,
    inbound: Inbound,
}

#[derive(Debug, Clone)]
enum Entry {
    Destination(Weak<Destination>),
    Listener(Weak<Listed>),
}

impl Entry {
    fn is_there(&self) -> bool {
        match self {
            Self::Destination(weak) => weak.strong_count() > 0,
            Self::Listener(weak) => weak.strong_count() > 0,
        }
    }
}

/// A destination's side, or none for a listener; and the name.
type Key = (Option<Side>, Box<str>);

/// Everything that is shown.
#[derive(Debug, Default)]
pub(crate) struct Observed(ArcSwap<BTreeMap<Key, Entry>>);

impl Observed {
    /// The newest of a name is the one that is shown.
    fn enter(&self, key: &Key, entry: &Entry) {
        self.0.rcu(|before| {
            let mut all = BTreeMap::clone(before);
            all.retain(|_, entry| entry.is_there());
            all.insert(key.clone(), entry.clone());
            all
        });
    }

    pub(crate) fn destination(&self, side: Side, destination: &Arc<Destination>) {
        let key = (Some(side), destination.name().as_str().into());
        self.enter(&key, &Entry::Destination(Arc::downgrade(destination)));
    }

    pub(crate) fn listener(&self, name: &str, inbound: &Inbound) -> Arc<Listed> {
        let listed = Arc::new(Listed {
            name: name.into(),
            inbound: inbound.clone(),
        });
        self.enter(
            &(None, name.into()),
            &Entry::Listener(Arc::downgrade(&listed)),
        );
        listed
    }

    /// Every destination that is there, in the order of sides and names.
    pub(crate) fn destinations(&self) -> Vec<(Side, Arc<Destination>)> {
        let all = self.0.load();
        let found = all.iter().filter_map(|((side, _), entry)| match entry {
            Entry::Destination(weak) => Some(((*side)?, weak.upgrade()?)),
            Entry::Listener(_) => None,
        });
        found.collect()
    }

    /// Does what is due by the clock.
    pub(crate) fn tick(&self) {
        for ((side, _), entry) in &**self.0.load() {
            match entry {
                Entry::Destination(weak) => {
                    if let Some(it) = weak.upgrade() {
                        it.stack().tick();
                        if *side == Some(Side::App) {
                            it.inbound().tick();
                        }
                    }
                }
                Entry::Listener(weak) => {
                    if let Some(it) = weak.upgrade() {
                        it.inbound.tick();
                    }
                }
            }
        }
    }

    pub(crate) fn samples(&self, now: Instant, take: &mut TakeSample<'_>) {
        for ((side, _), entry) in &**self.0.load() {
            match entry {
                Entry::Destination(weak) => {
                    if let Some((side, it)) = side.zip(weak.upgrade()) {
                        destination(side, &it, now, take);
                    }
                }
                Entry::Listener(weak) => {
                    if let Some(it) = weak.upgrade() {
                        let owner: [Owner<'_>; 2] = [("listener", &it.name), ("side", "server")];
                        it.inbound.samples(now, &mut |sample| take(&owner, &sample));
                    }
                }
            }
        }
    }
}

fn destination(side: Side, it: &Destination, now: Instant, take: &mut TakeSample<'_>) {
    let service = it.name().as_str();
    let owner = [("service", service), ("side", side.as_str())];
    it.stack().samples(now, &mut |sample| take(&owner, &sample));
    // Elsewhere the limits of the service are its own sidecar's business.
    if side == Side::App {
        let owner = [("service", service), ("side", "server")];
        it.inbound()
            .samples(now, &mut |sample| take(&owner, &sample));
    }
}
