//! What a server has told us, and what its watchers are shown of it.
//!
//! # Guarantees
//! - A service that the server has not spoken of keeps its last list.
//! - While the server says that it pauses evictions (something large is wrong), a list that lost
//!   more than half of its members at once is not believed: the old one stays until the server is
//!   well again or the list has come back. Source: the lesson of Eureka's self-preservation, one
//!   hop further.
//! - A policy that this version does not understand changes nothing: the last good one stays.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    cache::Known,
    discovery::{EndpointSnapshot, PublishedPolicy},
    sse::Event,
    watcher::Shared,
};
use crate::{
    api::{DEFAULT_POLICY, FallbackEvent, PolicyEvent, RegionOf, ServerState, Synced},
    instance::{AppProtocol, Endpoint, InstanceStatus, Locality, Revision},
    name::{InstanceId, ServiceName},
    wire::{InstanceRecord, PolicyRecord, ServiceDelta, ServiceRecord},
};

/// One service, as last heard.
#[derive(Debug, Default)]
struct Service {
    revision: Revision,
    instances: BTreeMap<InstanceId, InstanceRecord>,
    /// Where else it can be called.
    elsewhere: Vec<RegionOf>,
    /// Its list is not believed at the moment.
    held: bool,
}

/// Everything that is known; survives streams and servers.
#[derive(Debug)]
pub(super) struct View {
    /// Where to resume, at the server it is of.
    token: Option<Revision>,
    services: HashMap<ServiceName, Service>,
    policies: HashMap<ServiceName, Arc<PublishedPolicy>>,
    state: ServerState,
    /// Services that the current stream was asked for.
    asked: HashSet<ServiceName>,
    /// Services that the current stream has told of, until it is synced.
    told: Option<HashSet<ServiceName>>,
    /// Something worth keeping has changed.
    pub(super) changed: bool,
    region_fallback: bool,
}

impl View {
    pub(super) fn new(region_fallback: bool) -> Self {
        Self {
            token: None,
            services: HashMap::new(),
            policies: HashMap::new(),
            state: ServerState::default(),
            asked: HashSet::new(),
            told: None,
            changed: false,
            region_fallback,
        }
    }

    /// Begins with what an earlier process knew.
    pub(super) fn restore(&mut self, known: Known) {
        for record in known.services {
            self.take_snapshot(record);
        }
        for record in known.policies {
            let policy = PublishedPolicy {
                document: record.service.clone(),
                version: record.version,
                policy: record.policy,
            };
            if policy.policy.validate().is_ok() {
                self.policies.insert(record.service, Arc::new(policy));
            }
        }
    }

    /// What the next process may begin with.
    pub(super) fn known(&self) -> Known {
        let services = self.services.iter().map(|(name, service)| ServiceRecord {
            service: name.clone(),
            revision: service.revision,
            instances: service.instances.values().cloned().collect(),
        });
        let policies = self.policies.iter().map(|(name, policy)| PolicyRecord {
            service: name.clone(),
            version: policy.version,
            updated_ms: 0,
            by: String::new(),
            policy: policy.policy.clone(),
        });
        Known::new(services.collect(), policies.collect())
    }

    /// Shows watchers that came late what is known already.
    pub(super) fn show_known(&mut self, shared: &Shared, names: &[ServiceName]) {
        for name in names {
            if self.services.contains_key(name) {
                self.publish(shared, name);
            }
            self.publish_policy(shared, name);
        }
    }

    /// A stream for `names` begins: where it may resume, and which of them the view holds nothing
    /// of: those need their snapshots, the others only what has changed. `None`: all is to be told,
    /// as nothing is known, or less than half.
    pub(super) fn begin(&mut self, names: &[ServiceName]) -> Option<(Revision, Vec<ServiceName>)> {
        self.told = Some(HashSet::new());
        self.asked = names.iter().cloned().collect();
        let fresh = names
            .iter()
            .filter(|name| !self.services.contains_key(*name));
        let fresh: Vec<_> = fresh.cloned().collect();
        self.token
            .filter(|_| fresh.len() * 2 <= names.len())
            .map(|token| (token, fresh))
    }

    /// Nothing of what was heard can be built upon. What is shown stays shown.
    pub(super) fn forget(&mut self) {
        self.token = None;
    }

    /// Whether the server that is heard is itself cut off.
    pub(super) fn is_stale(&self) -> bool {
        self.state.staleness_ms.is_some()
    }

    pub(super) fn apply(&mut self, shared: &Shared, event: Event) -> Result<(), serde_json::Error> {
        match event.event.as_str() {
            "snapshot" => {
                let record: ServiceRecord = read(&event)?;
                let name = record.service.clone();
                if let Some(told) = &mut self.told {
                    told.insert(name.clone());
                }
                self.take_snapshot(record);
                self.publish(shared, &name);
            }
            "delta" => {
                let delta: ServiceDelta = read(&event)?;
                let name = delta.service.clone();
                self.take_delta(delta);
                self.publish(shared, &name);
            }
            "policy" => {
                let policy: PolicyEvent = read(&event)?;
                self.take_policy(policy);
                self.publish_policies(shared);
            }
            "fallback" => {
                let fallback: FallbackEvent = read(&event)?;
                let name = fallback.service;
                self.services.entry(name.clone()).or_default().elsewhere = fallback.regions;
                self.publish(shared, &name);
            }
            "state" => {
                self.state = read(&event)?;
                self.release(shared);
            }
            "synced" => {
                let synced: Synced = read(&event)?;
                self.end_of_snapshots(shared, &synced);
            }
            // Kinds of later versions.
            _ => {}
        }
        if let Some(token) = event.id.and_then(|id| id.parse().ok()) {
            self.token = Some(token);
        }
        Ok(())
    }

    fn take_snapshot(&mut self, record: ServiceRecord) {
        let service = self.services.entry(record.service).or_default();
        service.revision = record.revision;
        service.instances = record
            .instances
            .into_iter()
            .map(|i| (i.id.clone(), i))
            .collect();
        self.changed = true;
    }

    fn take_delta(&mut self, delta: ServiceDelta) {
        let service = self.services.entry(delta.service).or_default();
        service.revision = delta.revision;
        for id in &delta.removed {
            service.instances.remove(id);
        }
        let changed = delta.changed.into_iter().map(|i| (i.id.clone(), i));
        service.instances.extend(changed);
        self.changed = true;
    }

    fn take_policy(&mut self, event: PolicyEvent) {
        self.changed = true;
        let Some(document) = event.policy else {
            self.policies.remove(&event.service);
            return;
        };
        let record: Result<PolicyRecord, String> =
            serde_json::from_value(document).map_err(|error| error.to_string());
        let valid = record.and_then(|record| match record.policy.validate() {
            Ok(()) => Ok(record),
            Err(error) => Err(error.to_string()),
        });
        match valid {
            Ok(record) => {
                let policy = PublishedPolicy {
                    document: event.service.clone(),
                    version: record.version,
                    policy: record.policy,
                };
                self.policies.insert(event.service, Arc::new(policy));
            }
            Err(error) => {
                tracing::warn!(service = %event.service, error, "published policy is not understood, the last good one stays");
            }
        }
    }

    fn end_of_snapshots(&mut self, shared: &Shared, synced: &Synced) {
        let told = self.told.take().unwrap_or_default();
        if synced.full {
            let untold = |name: &&ServiceName| !told.contains(*name);
            let empty: Vec<_> = self.services.keys().filter(untold).cloned().collect();
            for name in empty {
                self.take_snapshot(ServiceRecord {
                    service: name.clone(),
                    revision: synced.revision,
                    instances: Vec::new(),
                });
                self.publish(shared, &name);
            }
            // Watched and never told of: it has no instances. Told of and not watched: forgotten.
            let watched: HashSet<_> = shared.slots.lock().keys().cloned().collect();
            self.services.retain(|name, _| watched.contains(name));
            // Whoever is watched since the stream was asked for is told of by the next one: to say
            // now that it has no instances would refuse its first calls.
            let mut shown = Vec::new();
            for name in watched.intersection(&self.asked) {
                self.services.entry(name.clone()).or_default();
                shown.push(name.clone());
            }
            for name in shown {
                self.publish(shared, &name);
            }
        }
        let in_force: HashSet<&ServiceName> = synced.policies.iter().collect();
        self.policies.retain(|name, _| in_force.contains(name));
        self.publish_policies(shared);
    }

    /// The server is well again: what was not believed is.
    fn release(&mut self, shared: &Shared) {
        if self.state.self_preservation {
            return;
        }
        let held = self.services.iter().filter(|(_, service)| service.held);
        let held: Vec<_> = held.map(|(name, _)| name.clone()).collect();
        for name in held {
            self.publish(shared, &name);
        }
    }

    fn publish(&mut self, shared: &Shared, name: &ServiceName) {
        let slot = shared.slots.lock().get(name).cloned();
        let (Some(slot), Some(service)) = (slot, self.services.get_mut(name)) else {
            return;
        };
        let mut endpoints: Vec<Endpoint> = service
            .instances
            .values()
            .filter(|record| record.status == InstanceStatus::Up)
            .map(InstanceRecord::endpoint)
            .collect();
        if endpoints.is_empty() && self.region_fallback {
            endpoints = elsewhere(&service.elsewhere);
        }
        let before = slot.current();
        service.held = before.synced
            && self.state.self_preservation
            && endpoints.len() * 2 < before.endpoints.len();
        if service.held {
            tracing::warn!(service = %name, had = before.endpoints.len(), offered = endpoints.len(), "list shrank by more than half while the registry pauses evictions, keeping the old one");
            return;
        }
        if !before.synced || *before.endpoints != *endpoints {
            slot.publish(EndpointSnapshot {
                service: name.clone(),
                revision: service.revision,
                endpoints: endpoints.into(),
                synced: true,
            });
        }
    }

    fn publish_policies(&self, shared: &Shared) {
        let names: Vec<_> = shared.slots.lock().keys().cloned().collect();
        for name in names {
            self.publish_policy(shared, &name);
        }
    }

    /// The service's own, or the default.
    fn publish_policy(&self, shared: &Shared, name: &ServiceName) {
        let default = self.policies.get(DEFAULT_POLICY);
        let policy = self.policies.get(name).or(default).cloned();
        let slot = shared.slots.lock().get(name).cloned();
        if let Some(slot) = slot {
            slot.policy.publish(policy);
        }
    }
}

fn read<T: DeserializeOwned>(event: &Event) -> Result<T, serde_json::Error> {
    serde_json::from_str(&event.data)
}

/// The gateways of the first region that has the service.
fn elsewhere(regions: &[RegionOf]) -> Vec<Endpoint> {
    let Some(best) = regions.iter().find(|r| r.up > 0 && !r.gateways.is_empty()) else {
        return Vec::new();
    };
    let mut gateways: Vec<SocketAddr> = best.gateways.clone();
    gateways.sort_unstable();
    gateways.dedup();
    let endpoint = |addr: SocketAddr| {
        let id = InstanceId::new(format!(
            "region:{}",
            addr.to_string().replace(['[', ']'], "")
        ));
        Some(Endpoint {
            id: id.ok()?,
            addr,
            incarnation: 0,
            weight: 1,
            protocol: AppProtocol::Http1,
            locality: Locality {
                region: best.region.clone(),
                zone: String::new(),
            },
        })
    };
    gateways.into_iter().filter_map(endpoint).collect()
}
