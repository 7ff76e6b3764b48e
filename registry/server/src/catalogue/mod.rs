//! The catalogue: what is registered, merged from every server by one order.
//!
//! Two servers may hear of the same instance in different order, and each must end with the same
//! record. So a record carries a [`Stamp`] that says which of two is later, the merge takes the
//! later one whatever the order of arrival, and a deletion is a record too (a tombstone), or a
//! late copy would bring the dead back.
//!
//! Those who read it (a fetch of everything, a snapshot for a new server) take long compared with
//! a write. So a reader gets the catalogue as it was when it asked, and a writer copies the little
//! that it changes where a reader still holds it: a shard of some sixty names and one service.
//!
//! # Guarantees
//! Merging is commutative, associative and idempotent: servers that have seen the same records
//! hold the same catalogue. Reading never waits for more than one write, writing never for a reader.

mod clock;
mod record;
mod store;

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry as Slot},
    sync::Arc,
};

use selvedge_registry::{
    InstanceId, InstanceStatus, Revision, ServiceName,
    api::CatalogueDigest,
    wire::{InstanceRecord, PolicyRecord, ServiceList, ServiceRecord, ServiceSummary},
};

pub use clock::Clock;
pub use record::{
    BUCKETS, Body, Entry, Key, Live, NodeId, PastPolicy, PolicyEntry, Record, Stamp, bucket,
    name_hash, plain,
};
pub use store::{Owned, Store};

/// What a merge changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// Nothing: something as late or later was known.
    None,
    /// Only what callers do not see (who keeps the lease).
    Hidden,
    /// Something callers see.
    Visible(Visible),
}

/// A change that callers see.
#[derive(Debug, Clone)]
pub struct Visible {
    /// The catalogue's state after it.
    pub revision: Revision,
    /// What has changed.
    pub entry: Entry,
    /// What was known of the instance before.
    pub before: Option<Arc<Record>>,
}

/// What became of a record.
struct Merged {
    change: Change,
    /// What was known before, and what is known now; `None` if nothing changed.
    replaced: Option<(Option<Arc<Record>>, Arc<Record>)>,
}

#[derive(Debug, Default, Clone)]
struct Service {
    records: BTreeMap<InstanceId, Arc<Record>>,
    /// The counter of its last visible change.
    changed_at: u64,
    live: usize,
    up: usize,
}

impl Service {
    fn live(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.records.values().filter(|record| record.is_live())
    }
}

/// Pieces of the catalogue that are copied on their own.
const SHARDS: usize = 256;

type Shard = HashMap<ServiceName, Arc<Service>>;

/// All services.
#[derive(Debug, Clone)]
pub struct Catalogue {
    shards: Vec<Arc<Shard>>,
    policies: Arc<BTreeMap<ServiceName, Arc<PolicyEntry>>>,
    policies_hash: u64,
    /// The counter of the last change of any policy.
    policies_changed_at: u64,
    revision: Revision,
    /// Of all live records, in any order: what two servers compare.
    hash: u64,
    live: usize,
    up: usize,
    /// Services with live instances.
    services: usize,
    /// The counter when a service was last forgotten.
    forgotten_at: u64,
}

fn shard(service: &str) -> usize {
    xxhash_rust::xxh3::xxh3_64(service.as_bytes()) as usize % SHARDS
}

impl Catalogue {
    /// An empty one; `epoch` is never used twice.
    pub fn new(epoch: u64) -> Self {
        Self {
            shards: vec![Arc::default(); SHARDS],
            policies: Arc::default(),
            policies_hash: 0,
            policies_changed_at: 0,
            revision: Revision { epoch, counter: 0 },
            hash: 0,
            live: 0,
            up: 0,
            services: 0,
            forgotten_at: 0,
        }
    }

    /// Where it stands.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The same for two servers that hold the same live records, and hardly ever otherwise.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The same for two servers that hold the same policies.
    pub fn policies_hash(&self) -> u64 {
        self.policies_hash
    }

    /// Both hashes and what they are of: what servers are compared by from outside.
    pub fn digest(&self) -> CatalogueDigest {
        CatalogueDigest {
            records: self.live,
            hash: format!("{:016x}", self.hash),
            policies: self.policies().count(),
            policies_hash: format!("{:016x}", self.policies_hash),
        }
    }

    /// Takes `record` if it is later than what is known.
    fn merge(&mut self, mut record: Record) -> Merged {
        let shard = Arc::make_mut(&mut self.shards[shard(record.service.as_str())]);
        // One name for one service, however many instances say it.
        let service = if let Some((name, _)) = shard.get_key_value(&record.service) {
            record.service = name.clone();
            shard.get_mut(&record.service).expect("was found just now")
        } else {
            shard.entry(record.service.clone()).or_default()
        };
        let service = Arc::make_mut(service);
        let (before, now) = match service.records.entry(record.id.clone()) {
            Slot::Occupied(known) if known.get().stamp >= record.stamp => {
                return Merged {
                    change: Change::None,
                    replaced: None,
                };
            }
            Slot::Occupied(mut known) => {
                record.id = known.key().clone();
                let now = Arc::new(record);
                (Some(known.insert(Arc::clone(&now))), now)
            }
            Slot::Vacant(slot) => {
                let now = Arc::new(record);
                slot.insert(Arc::clone(&now));
                (None, now)
            }
        };
        self.hash ^= now.fingerprint() ^ before.as_ref().map_or(0, |before| before.fingerprint());
        let lived = service.live > 0;
        for (record, sign) in before.iter().map(|b| (b, false)).chain([(&now, true)]) {
            if let Body::Live(live) = &record.body {
                let up = usize::from(live.status == InstanceStatus::Up);
                for (all, n) in [
                    (&mut service.live, 1),
                    (&mut service.up, up),
                    (&mut self.live, 1),
                    (&mut self.up, up),
                ] {
                    *all = if sign { *all + n } else { *all - n };
                }
            }
        }
        match (lived, service.live > 0) {
            (false, true) => self.services += 1,
            (true, false) => self.services -= 1,
            _ => {}
        }
        let change = match (before.as_ref().map(|before| &before.body), &now.body) {
            (Some(Body::Live(before)), Body::Live(now)) if before == now => Change::Hidden,
            (_, Body::Live(_)) | (Some(Body::Live(_)), _) => {
                self.revision.counter += 1;
                service.changed_at = self.revision.counter;
                Change::Visible(Visible {
                    revision: self.revision,
                    entry: Entry::Instance(Arc::clone(&now)),
                    before: before.clone(),
                })
            }
            _ => Change::Hidden,
        };
        Merged {
            change,
            replaced: Some((before, now)),
        }
    }

    fn merge_policy(&mut self, entry: PolicyEntry) -> Change {
        let known = self.policies.get(&entry.service);
        if known.is_some_and(|known| !entry.is_after(known)) {
            return Change::None;
        }
        self.policies_hash ^= entry.fingerprint() ^ known.map_or(0, |known| known.fingerprint());
        self.revision.counter += 1;
        self.policies_changed_at = self.revision.counter;
        let entry = Arc::new(entry);
        Arc::make_mut(&mut self.policies).insert(entry.service.clone(), Arc::clone(&entry));
        Change::Visible(Visible {
            revision: self.revision,
            entry: Entry::Policy(entry),
            before: None,
        })
    }

    /// Forgets a tombstone.
    fn forget(&mut self, grave: &Record) {
        let shard = Arc::make_mut(&mut self.shards[shard(grave.service.as_str())]);
        let Some(service) = shard.get_mut(&grave.service) else {
            return;
        };
        let service = Arc::make_mut(service);
        service.records.remove(&grave.id);
        if service.records.is_empty() {
            shard.remove(&grave.service);
            self.forgotten_at = self.revision.counter;
        }
    }

    fn find(&self, service: &ServiceName) -> Option<&Service> {
        self.shards[shard(service.as_str())]
            .get(service)
            .map(|service| &**service)
    }

    /// A record, live or not.
    pub fn get(&self, service: &ServiceName, id: &InstanceId) -> Option<&Arc<Record>> {
        self.find(service)?.records.get(id)
    }

    /// The record of a live instance.
    pub fn live_record(&self, service: &ServiceName, id: &InstanceId) -> Option<&Arc<Record>> {
        self.get(service, id).filter(|record| record.is_live())
    }

    /// A live instance.
    pub fn live(&self, service: &ServiceName, id: &InstanceId) -> Option<InstanceRecord> {
        self.get(service, id)?.instance()
    }

    /// Every record, tombstones too, in any order: what another server needs to know all that this
    /// one does.
    pub fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.values())
            .flat_map(|service| service.records.values())
    }

    /// Every service that has live instances, by name, with those. Decoding them takes two
    /// microseconds each: nobody waits for it, but it is not free either.
    pub fn services(
        &self,
    ) -> impl Iterator<Item = (&ServiceName, impl Iterator<Item = InstanceRecord> + '_)> {
        self.sorted().into_iter().map(|(name, service)| {
            let live = service.live().filter_map(|record| record.instance());
            (name, live)
        })
    }

    fn sorted(&self) -> Vec<(&ServiceName, &Service)> {
        let services = self.shards.iter().flat_map(|shard| shard.iter());
        let mut services: Vec<_> = services
            .filter(|(_, service)| service.live > 0)
            .map(|(name, service)| (name, &**service))
            .collect();
        services.sort_unstable_by_key(|(name, _)| *name);
        services
    }

    /// The instances of `service`; none if it is not known.
    pub fn service(&self, name: &ServiceName) -> ServiceRecord {
        let live = self.find(name).into_iter().flat_map(Service::live);
        ServiceRecord {
            service: name.clone(),
            revision: self.revision,
            instances: live.filter_map(|record| record.instance()).collect(),
        }
    }

    /// Live instances of `service`, and how many of them are up.
    pub fn count(&self, service: &ServiceName) -> (usize, usize) {
        self.find(service).map_or((0, 0), |s| (s.live, s.up))
    }

    /// Whether `service` has changed after `counter`.
    pub fn changed_since(&self, service: &ServiceName, counter: u64) -> bool {
        let at = self.find(service).map(|service| service.changed_at);
        // Of a service that is not known it is only known when the last such was forgotten.
        at.unwrap_or(self.forgotten_at) > counter
    }

    /// The counter of the last change of `service` that callers saw.
    pub fn changed_at(&self, service: &ServiceName) -> u64 {
        let at = self.find(service).map(|service| service.changed_at);
        at.unwrap_or(self.forgotten_at)
    }

    /// Whether any policy has changed after `counter`.
    pub fn policies_changed_since(&self, counter: u64) -> bool {
        self.policies_changed_at > counter
    }

    /// The names of services that have live instances, sorted.
    pub fn names(&self) -> Vec<ServiceName> {
        let sorted = self.sorted().into_iter();
        sorted.map(|(name, _)| name.clone()).collect()
    }

    /// As [`names`](Self::names), with those whose instances are gone and not yet forgotten.
    pub fn all_names(&self) -> Vec<ServiceName> {
        let names = self.shards.iter().flat_map(|shard| shard.keys());
        let mut names: Vec<_> = names.cloned().collect();
        names.sort_unstable();
        names
    }

    /// How many services have live instances.
    pub fn services_len(&self) -> usize {
        self.services
    }

    /// Every service that has instances.
    pub fn list(&self) -> ServiceList {
        let services = self
            .sorted()
            .into_iter()
            .map(|(name, service)| ServiceSummary {
                name: name.clone(),
                instances: service.live,
                up: service.up,
            });
        ServiceList {
            revision: self.revision,
            services: services.collect(),
        }
    }

    /// Live instances in all.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Those of them that are up.
    pub fn up(&self) -> usize {
        self.up
    }

    /// Whether nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The policy of `service`.
    pub fn policy(&self, service: &ServiceName) -> Option<&PolicyRecord> {
        self.policies.get(service)?.record.as_ref()
    }

    /// Every policy, by service.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyRecord> {
        self.policies
            .values()
            .filter_map(|entry| entry.record.as_ref())
    }

    /// Every policy, withdrawn ones too.
    pub fn policy_entries(&self) -> impl Iterator<Item = &Arc<PolicyEntry>> {
        self.policies.values()
    }

    /// The last word on the policy of `service`.
    pub fn policy_entry(&self, service: &ServiceName) -> Option<&Arc<PolicyEntry>> {
        self.policies.get(service)
    }
}

#[cfg(test)]
mod tests;
