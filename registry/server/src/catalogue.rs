//! The catalogue: what is registered, merged from every server by one order.
//!
//! Two servers may hear of the same instance in different order, and each must end with the same
//! record. So a record carries a [`Stamp`] that says which of two is later, the merge takes the
//! later one whatever the order of arrival, and a deletion is a record too (a tombstone), or a
//! late copy would bring the dead back.
//!
//! # Guarantees
//! Merging is commutative, associative and idempotent: servers that have seen the same records
//! hold the same catalogue.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use selvedge_registry::{
    InstanceId, InstanceStatus, Revision, ServiceName,
    wire::{InstanceRecord, ServiceDelta, ServiceList, ServiceRecord, ServiceSummary},
};
use serde::{Deserialize, Serialize};

/// The name of a server.
pub type NodeId = Arc<str>;

/// Which of two records of an instance is later: the instance's own count of its lives, then the
/// hybrid clock of the server that wrote it, then that server's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The instance's life.
    pub incarnation: u64,
    /// The writer's hybrid logical clock.
    pub hlc: u64,
    /// The writer: who keeps the lease.
    pub owner: NodeId,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// It is registered.
    Live(Box<InstanceRecord>),
    /// It said good-bye.
    Cancelled,
    /// Its lease ran out.
    Evicted,
}

/// One instance as one server last knew it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its service.
    pub service: ServiceName,
    /// Its name within the service.
    pub id: InstanceId,
    /// Which record is later.
    pub stamp: Stamp,
    /// What it says.
    pub body: Body,
}

/// A hybrid logical clock: wall time in its upper bits, never going back, never standing still.
///
/// Source: Kulkarni et al., "Logical Physical Clocks", 2014.
#[derive(Debug, Default)]
pub struct Clock(u64);

impl Clock {
    /// The next stamp, given the wall clock in milliseconds.
    pub fn tick(&mut self, wall_ms: u64) -> u64 {
        self.0 = (wall_ms << 16).max(self.0 + 1);
        self.0
    }

    /// Takes notice of another server's stamp, so that what comes after it here is later. One that
    /// is more than a minute ahead of the wall is not believed: a wrong clock must not drag every
    /// other along.
    pub fn observe(&mut self, hlc: u64, wall_ms: u64) {
        if hlc >> 16 <= wall_ms + 60_000 {
            self.0 = self.0.max(hlc);
        }
    }
}

/// What a merge changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing: something as late or later was known.
    None,
    /// Only what callers do not see (who keeps the lease).
    Hidden,
    /// Something callers see.
    Visible(Box<ServiceDelta>),
}

#[derive(Debug, Default)]
struct Service {
    records: BTreeMap<InstanceId, Record>,
    /// The counter of its last visible change.
    changed_at: u64,
}

/// All services.
#[derive(Debug)]
pub struct Catalogue {
    services: BTreeMap<ServiceName, Service>,
    revision: Revision,
    /// Of all live records, in any order: what two servers compare.
    hash: u64,
}

impl Catalogue {
    /// An empty one; `epoch` is never used twice.
    pub fn new(epoch: u64) -> Self {
        Self {
            services: BTreeMap::new(),
            revision: Revision { epoch, counter: 0 },
            hash: 0,
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

    /// Takes `record` if it is later than what is known.
    pub fn merge(&mut self, record: Record) -> Change {
        let service = self.services.entry(record.service.clone()).or_default();
        let before = match service.records.entry(record.id.clone()) {
            Entry::Occupied(known) if known.get().stamp >= record.stamp => return Change::None,
            Entry::Occupied(mut known) => Some(known.insert(record.clone())),
            Entry::Vacant(slot) => {
                slot.insert(record.clone());
                None
            }
        };
        self.hash ^= fingerprint(&record) ^ before.as_ref().map_or(0, fingerprint);
        let before = before.and_then(|known| match known.body {
            Body::Live(instance) => Some(instance),
            Body::Cancelled | Body::Evicted => None,
        });
        let (changed, removed) = match (before, record.body) {
            (Some(before), Body::Live(now)) if same_for_callers(&before, &now) => {
                return Change::Hidden;
            }
            (_, Body::Live(now)) => (vec![*now], Vec::new()),
            (Some(_), _) => (Vec::new(), vec![record.id]),
            (None, _) => return Change::Hidden,
        };
        self.revision.counter += 1;
        service.changed_at = self.revision.counter;
        let (service, revision) = (record.service, self.revision);
        Change::Visible(Box::new(ServiceDelta {
            service,
            revision,
            changed,
            removed,
        }))
    }

    /// A record, live or not.
    pub fn get(&self, service: &ServiceName, id: &InstanceId) -> Option<&Record> {
        self.services.get(service)?.records.get(id)
    }

    /// A live instance.
    pub fn live(
        &self,
        service: &ServiceName,
        id: &InstanceId,
    ) -> Option<(&Record, &InstanceRecord)> {
        let record = self.get(service, id)?;
        match &record.body {
            Body::Live(instance) => Some((record, instance)),
            Body::Cancelled | Body::Evicted => None,
        }
    }

    /// Every record, tombstones too: what another server needs to know all that this one does.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.services
            .values()
            .flat_map(|service| service.records.values())
    }

    /// The instances of `service`; none if it is not known.
    pub fn service(&self, name: &ServiceName) -> ServiceRecord {
        let instances = self
            .services
            .get(name)
            .map_or_else(Vec::new, |s| live(s).cloned().collect());
        ServiceRecord {
            service: name.clone(),
            revision: self.revision,
            instances,
        }
    }

    /// Whether `service` has changed after `counter`.
    pub fn changed_since(&self, service: &ServiceName, counter: u64) -> bool {
        self.services
            .get(service)
            .is_some_and(|service| service.changed_at > counter)
    }

    /// Every service that has instances.
    pub fn list(&self) -> ServiceList {
        let services = self.services.iter().filter_map(|(name, service)| {
            let instances = live(service).count();
            let up = live(service)
                .filter(|i| i.status == InstanceStatus::Up)
                .count();
            (instances > 0).then(|| ServiceSummary {
                name: name.clone(),
                instances,
                up,
            })
        });
        ServiceList {
            revision: self.revision,
            services: services.collect(),
        }
    }

    /// Live instances in all.
    pub fn len(&self) -> usize {
        self.services
            .values()
            .map(|service| live(service).count())
            .sum()
    }

    /// Whether nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets tombstones written before `hlc`: no copy of what they bury is under way any more.
    pub fn forget_before(&mut self, hlc: u64) {
        for service in self.services.values_mut() {
            service
                .records
                .retain(|_, r| matches!(r.body, Body::Live(_)) || r.stamp.hlc >= hlc);
        }
    }
}

fn live(service: &Service) -> impl Iterator<Item = &InstanceRecord> {
    service
        .records
        .values()
        .filter_map(|record| match &record.body {
            Body::Live(instance) => Some(&**instance),
            Body::Cancelled | Body::Evicted => None,
        })
}

/// What a record adds to the catalogue's hash; tombstones add nothing, as each server forgets them
/// in its own time.
fn fingerprint(record: &Record) -> u64 {
    if !matches!(record.body, Body::Live(_)) {
        return 0;
    }
    let Stamp {
        incarnation,
        hlc,
        owner,
    } = &record.stamp;
    let text = format!(
        "{}/{}/{incarnation}/{hlc}/{owner}",
        record.service, record.id
    );
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// Whether callers would notice. Who keeps the lease is the servers' own affair.
fn same_for_callers(a: &InstanceRecord, b: &InstanceRecord) -> bool {
    InstanceRecord {
        owner: String::new(),
        ..a.clone()
    } == InstanceRecord {
        owner: String::new(),
        ..b.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use selvedge_registry::{AppProtocol, Locality, wire::RegisterRequest};

    fn record(id: &str, incarnation: u64, hlc: u64, owner: &str, live: bool) -> Record {
        let request: RegisterRequest =
            serde_json::from_str(r#"{"addr":"10.0.0.1:80"}"#).expect("valid");
        let instance = InstanceRecord {
            id: InstanceId::new(id).expect("id"),
            addr: request.addr,
            status: InstanceStatus::Up,
            weight: 1,
            protocol: AppProtocol::Http1,
            locality: Locality::default(),
            ttl: request.ttl,
            incarnation,
            owner: owner.into(),
            metadata: BTreeMap::new(),
        };
        Record {
            service: ServiceName::new("orders").expect("name"),
            id: instance.id.clone(),
            stamp: Stamp {
                incarnation,
                hlc,
                owner: owner.into(),
            },
            body: if live {
                Body::Live(Box::new(instance))
            } else {
                Body::Evicted
            },
        }
    }

    #[test]
    fn the_later_record_wins_and_a_change_of_owner_is_hidden() {
        let mut catalogue = Catalogue::new(1);
        assert!(matches!(
            catalogue.merge(record("a", 1, 5, "n1", true)),
            Change::Visible(_)
        ));
        assert_eq!(catalogue.merge(record("a", 1, 5, "n1", true)), Change::None);
        assert_eq!(
            catalogue.merge(record("a", 1, 4, "n2", false)),
            Change::None
        );
        assert_eq!(
            catalogue.merge(record("a", 1, 6, "n2", true)),
            Change::Hidden
        );
        let Change::Visible(delta) = catalogue.merge(record("a", 1, 7, "n2", false)) else {
            panic!("an eviction is seen");
        };
        assert_eq!((delta.removed.len(), delta.revision.counter), (1, 2));
        assert_eq!(
            catalogue.merge(record("a", 1, 6, "n3", true)),
            Change::None,
            "no zombie"
        );
        assert!(
            matches!(
                catalogue.merge(record("a", 2, 1, "n3", true)),
                Change::Visible(_)
            ),
            "a new life wins over an older one's clock"
        );
        assert_eq!((catalogue.len(), catalogue.list().services[0].up), (1, 1));
    }

    #[test]
    fn tombstones_are_forgotten_and_the_living_are_not() {
        let mut catalogue = Catalogue::new(1);
        catalogue.merge(record("a", 1, 5, "n1", false));
        catalogue.merge(record("b", 1, 5, "n1", true));
        catalogue.forget_before(6);
        assert_eq!(catalogue.records().count(), 1);
    }

    #[test]
    fn the_clock_never_goes_back_and_does_not_believe_the_absurd() {
        let mut clock = Clock::default();
        let first = clock.tick(1000);
        assert!(clock.tick(1000) > first && clock.tick(10) > first);
        let other = 2000 << 16;
        clock.observe(other, 1000);
        assert!(clock.tick(1000) > other);
        clock.observe(u64::MAX, 1000);
        assert!(clock.tick(1000) < 3000 << 16);
    }

    proptest! {
        #[test]
        fn servers_that_saw_the_same_agree_in_whatever_order(
            seen in proptest::collection::vec((0u8..3, 1u64..3, 0u64..5, 0u8..3), 0..40),
            seed: u64,
        ) {
            // One writer never stamps two different records alike, so `live` follows the stamp.
            let records: Vec<_> = seen.iter().map(|(id, inc, hlc, owner)| {
                let live = (inc + hlc + u64::from(*owner)) % 2 == 0;
                record(&format!("i{id}"), *inc, *hlc, &format!("n{owner}"), live)
            }).collect();
            let mut shuffled = records.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            let state = |records: Vec<Record>| {
                let mut catalogue = Catalogue::new(1);
                for record in records {
                    catalogue.merge(record);
                }
                catalogue.records().cloned().collect::<Vec<_>>()
            };
            prop_assert_eq!(state(records), state(shuffled));
        }
    }
}
