//! The seam between who knows endpoints and who needs them.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use selvedge_resilience::TrafficPolicy;
use tokio::sync::watch;

use crate::{
    instance::{Endpoint, Revision},
    name::ServiceName,
};

/// The endpoints of a service that take calls, as last heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSnapshot {
    /// The service.
    pub service: ServiceName,
    /// The state of the catalogue that this is of.
    pub revision: Revision,
    /// Sorted by id; may be empty.
    pub endpoints: Arc<[Endpoint]>,
    /// Whether anybody has said so yet: an empty list that is not synced means "not known".
    pub synced: bool,
}

impl EndpointSnapshot {
    /// A service nobody has told us of yet.
    pub(super) fn unknown(service: ServiceName) -> Self {
        Self {
            service,
            revision: Revision::default(),
            endpoints: Arc::new([]),
            synced: false,
        }
    }
}

/// Knows where services are.
pub trait Discovery: Send + Sync + fmt::Debug {
    /// Follows `service` from now on.
    fn watch(&self, service: &ServiceName) -> ServiceWatch;

    /// Follows the policy that is published for `service`, from now on. Who knows of none says so.
    fn policy(&self, _service: &ServiceName) -> PolicyWatch {
        PolicyWatch::none()
    }
}

/// A policy that was published for a service, or for all that have none of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedPolicy {
    /// The document's name: the service's, or the default's.
    pub document: ServiceName,
    /// Grows with each change of the document.
    pub version: u64,
    /// What it says; valid.
    pub policy: TrafficPolicy,
}

/// Where a watcher puts policies, and where watches read them.
#[derive(Debug, Default)]
pub(super) struct PolicySlot {
    current: ArcSwapOption<PublishedPolicy>,
    changes: watch::Sender<u64>,
}

impl PolicySlot {
    pub(super) fn publish(&self, policy: Option<Arc<PublishedPolicy>>) {
        if self.current.load().as_deref() == policy.as_deref() {
            return;
        }
        self.current.store(policy);
        self.changes.send_modify(|n| *n += 1);
    }
}

/// The published policy of one service, kept up to date for as long as anybody holds this.
#[derive(Debug, Clone)]
pub struct PolicyWatch {
    slot: Arc<PolicySlot>,
    changes: watch::Receiver<u64>,
    /// The service stays watched, and its source alive, as long as anybody looks.
    service: Option<ServiceWatch>,
}

impl PolicyWatch {
    /// Of a service that nobody publishes policies for.
    pub fn none() -> Self {
        Self::of(&Arc::default(), None)
    }

    pub(super) fn of(slot: &Arc<PolicySlot>, service: Option<ServiceWatch>) -> Self {
        Self {
            slot: Arc::clone(slot),
            changes: slot.changes.subscribe(),
            service,
        }
    }

    /// What is published now, the service's own or the default; `None`: nothing, or nobody has
    /// said yet. Cheap: a reference count.
    pub fn current(&self) -> Option<Arc<PublishedPolicy>> {
        self.slot.current.load_full()
    }

    /// Resolves when something has changed since the last time it resolved; never, where nobody
    /// publishes. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.service.is_none() || self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Hands `apply` what is in force: now, and after each change. That is what is published, or
    /// `otherwise` while nothing is. What `apply` refuses is logged, and for it to have changed
    /// nothing then. Never ends. Cancel-safe.
    ///
    /// With a stack of policies around a client:
    ///
    /// ```no_run
    /// # use selvedge_registry::{ServiceName, client::{Discovery, RegistryClient}};
    /// # use selvedge_resilience::{TrafficPolicy, layer::Stack};
    /// # fn example(registry: &RegistryClient, policy: TrafficPolicy) -> Result<(), Box<dyn std::error::Error>> {
    /// let stack: Stack<std::net::SocketAddr> = Stack::new(policy.clone())?;
    /// let orders = registry.policy(&ServiceName::new("orders")?);
    /// let follower = stack.clone();
    /// tokio::spawn(orders.follow(policy, move |policy| follower.reconfigure(policy)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn follow<E: fmt::Display>(
        mut self,
        otherwise: TrafficPolicy,
        mut apply: impl FnMut(TrafficPolicy) -> Result<(), E>,
    ) {
        let mut applied: Option<TrafficPolicy> = None;
        loop {
            let published = self.current();
            let policy = published.as_ref().map_or(&otherwise, |p| &p.policy);
            if applied.as_ref() != Some(policy) {
                let version = published.as_ref().map(|published| published.version);
                match apply(policy.clone()) {
                    Ok(()) => applied = Some(policy.clone()),
                    Err(error) => {
                        tracing::error!(version, %error, "policy refused, the old one stays");
                    }
                }
            }
            self.changed().await;
        }
    }
}

/// The endpoints of one service, kept up to date for as long as anybody holds a watch on it.
#[derive(Debug, Clone)]
pub struct ServiceWatch {
    slot: Arc<Slot>,
    changes: watch::Receiver<u64>,
    /// Whether the source hears anybody.
    stale: Option<Arc<AtomicBool>>,
    /// Whoever publishes into the slot lives as long as anybody looks.
    _source: Option<Arc<dyn Any + Send + Sync>>,
}

/// Where a watcher puts what it hears, and where watches read it.
#[derive(Debug)]
pub(super) struct Slot {
    snapshot: ArcSwap<EndpointSnapshot>,
    changes: watch::Sender<u64>,
    pub(super) policy: Arc<PolicySlot>,
}

impl Slot {
    pub(super) fn new(snapshot: EndpointSnapshot) -> Arc<Self> {
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            changes: watch::channel(0).0,
            policy: Arc::default(),
        })
    }

    pub(super) fn publish(&self, snapshot: EndpointSnapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.changes.send_modify(|n| *n += 1);
    }

    pub(super) fn current(&self) -> Arc<EndpointSnapshot> {
        self.snapshot.load_full()
    }

    /// Whether nobody looks any more.
    pub(super) fn is_unused(&self) -> bool {
        self.changes.receiver_count() == 0
    }

    pub(super) fn watch(
        self: &Arc<Self>,
        stale: Option<Arc<AtomicBool>>,
        source: Option<Arc<dyn Any + Send + Sync>>,
    ) -> ServiceWatch {
        let changes = self.changes.subscribe();
        ServiceWatch {
            slot: Arc::clone(self),
            changes,
            stale,
            _source: source,
        }
    }
}

impl ServiceWatch {
    /// What is known now. Cheap: a reference count.
    pub fn current(&self) -> Arc<EndpointSnapshot> {
        self.slot.current()
    }

    /// Whether what is known may be old: no server has been heard for a while, or the one that is
    /// heard is cut off from its peers. The endpoints stay as they were.
    pub fn is_stale(&self) -> bool {
        let stale = self.stale.as_ref();
        stale.is_some_and(|stale| stale.load(Ordering::Relaxed))
    }

    /// Resolves when something has changed since the last time it resolved, or never again when the
    /// source has ended. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Resolves when the service has been heard of at least once. Cancel-safe.
    pub async fn synced(&mut self) {
        while !self.current().synced {
            self.changed().await;
        }
    }
}

/// Endpoints that are written down instead of discovered.
#[derive(Debug, Clone, Default)]
pub struct StaticDiscovery {
    services: Arc<HashMap<ServiceName, Arc<[Endpoint]>>>,
}

impl StaticDiscovery {
    /// Knows these services and no other.
    pub fn new(services: impl IntoIterator<Item = (ServiceName, Vec<Endpoint>)>) -> Self {
        let services = services
            .into_iter()
            .map(|(name, list)| (name, list.into()))
            .collect();
        Self {
            services: Arc::new(services),
        }
    }
}

impl Discovery for StaticDiscovery {
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        let endpoints = self.services.get(service).cloned().unwrap_or_default();
        let known = EndpointSnapshot::unknown(service.clone());
        Slot::new(EndpointSnapshot {
            endpoints,
            synced: true,
            ..known
        })
        .watch(None, None)
    }
}
