//! What servers tell each other about an instance, and which of two such words is the later.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use selvedge_registry::{
    InstanceId, InstanceStatus, ServiceName,
    api::{MAX_HISTORY, PolicyChange, PolicyHistory},
    wire::{InstanceRecord, PolicyRecord},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeStruct,
};
use serde_json::value::RawValue;

/// The name of a server.
pub type NodeId = Arc<str>;

/// An instance.
pub type Key = (ServiceName, InstanceId);

/// Parts that the catalogue is compared and repaired by. A guess: at 100,000 instances one is
/// 0.6 MB to fetch, and the hashes of all are 512 bytes.
pub const BUCKETS: usize = 64;

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

/// A registered instance, as the JSON that was made of it once.
///
/// A decoded [`InstanceRecord`] is a kilobyte in a dozen pieces; a hundred thousand of them are
/// read far less often than they are kept, compared, logged, sent and saved. So the text is what
/// is kept, and it is decoded for those who ask. The owner is not in it: whether two texts are
/// equal is whether callers see a difference.
#[derive(Debug, Clone)]
pub struct Live {
    text: Box<RawValue>,
    /// Its lease in milliseconds.
    pub ttl_ms: u32,
    /// Whether it takes calls.
    pub status: InstanceStatus,
}

impl PartialEq for Live {
    fn eq(&self, other: &Self) -> bool {
        self.text.get() == other.text.get()
    }
}
impl Eq for Live {}

impl Live {
    /// Writes `instance` down.
    pub fn of(instance: &InstanceRecord) -> Self {
        let unowned = InstanceRecord {
            owner: String::new(),
            ..instance.clone()
        };
        Self {
            // Its keys are strings and its numbers finite: it always serialises.
            text: serde_json::value::to_raw_value(&unowned).expect("a record serialises"),
            ttl_ms: ttl_ms(instance),
            status: instance.status,
        }
    }

    /// Takes what another server wrote down, if it can be read.
    fn read(text: Box<RawValue>) -> serde_json::Result<Self> {
        let instance: InstanceRecord = serde_json::from_str(text.get())?;
        Ok(Self {
            ttl_ms: ttl_ms(&instance),
            status: instance.status,
            text,
        })
    }

    /// As JSON, without the owner.
    pub fn text(&self) -> &str {
        self.text.get()
    }
}

fn ttl_ms(instance: &InstanceRecord) -> u32 {
    u32::try_from(instance.ttl.0.as_millis()).unwrap_or(u32::MAX)
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// It is registered.
    Live(Live),
    /// It said good-bye.
    Cancelled,
    /// Its lease ran out.
    Evicted {
        /// An operator's word about it holds for when it comes back.
        overridden: Option<InstanceStatus>,
    },
}

/// One instance as one server last knew it.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl Record {
    /// Whether it is registered.
    pub fn is_live(&self) -> bool {
        matches!(self.body, Body::Live(_))
    }

    /// The instance, if it is registered. Decodes it: about two microseconds.
    pub fn instance(&self) -> Option<InstanceRecord> {
        let Body::Live(live) = &self.body else {
            return None;
        };
        let mut instance: InstanceRecord =
            serde_json::from_str(live.text()).expect("was read or written by us before");
        self.stamp.owner.as_ref().clone_into(&mut instance.owner);
        Some(instance)
    }

    /// Its lease, if it is registered.
    pub fn ttl(&self) -> Option<Duration> {
        match &self.body {
            Body::Live(live) => Some(Duration::from_millis(u64::from(live.ttl_ms))),
            _ => None,
        }
    }

    /// The operator's word about it.
    pub fn overridden(&self) -> Option<InstanceStatus> {
        match &self.body {
            Body::Live(_) => self.instance()?.overridden,
            Body::Cancelled => None,
            Body::Evicted { overridden } => *overridden,
        }
    }

    /// Its name.
    pub fn key(&self) -> Key {
        (self.service.clone(), self.id.clone())
    }

    /// Bytes that it takes, roughly.
    pub fn cost(&self) -> usize {
        let text = match &self.body {
            Body::Live(live) => live.text().len(),
            _ => 0,
        };
        text + self.id.as_str().len() + 160
    }

    /// What it adds to the hashes that servers compare; tombstones add nothing, as each server
    /// forgets them in its own time.
    pub fn fingerprint(&self) -> u64 {
        use xxhash_rust::xxh3::xxh3_64_with_seed as hash;
        if !self.is_live() {
            return 0;
        }
        let name = name_hash(&self.service, &self.id);
        let owner = hash(self.stamp.owner.as_bytes(), name ^ self.stamp.incarnation);
        hash(&self.stamp.hlc.to_le_bytes(), owner)
    }

    /// The bucket it is compared in.
    pub fn bucket(&self) -> usize {
        bucket(&self.service, &self.id)
    }
}

/// A hash of an instance's name, the same everywhere.
pub fn name_hash(service: &ServiceName, id: &InstanceId) -> u64 {
    use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
    xxh3_64_with_seed(id.as_str().as_bytes(), xxh3_64(service.as_str().as_bytes()))
}

/// The bucket that an instance is compared in.
pub fn bucket(service: &ServiceName, id: &InstanceId) -> usize {
    name_hash(service, id) as usize % BUCKETS
}

/// A record on its way: short names, as there are many.
#[derive(Deserialize)]
struct Wire {
    s: ServiceName,
    i: InstanceId,
    n: u64,
    h: u64,
    o: String,
    #[serde(default)]
    b: Option<Box<RawValue>>,
    #[serde(default)]
    x: Option<Grave>,
    #[serde(default)]
    v: Option<InstanceStatus>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Grave {
    Cancelled,
    Evicted,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut out = s.serialize_struct("Record", 7)?;
        out.serialize_field("s", &self.service)?;
        out.serialize_field("i", &self.id)?;
        out.serialize_field("n", &self.stamp.incarnation)?;
        out.serialize_field("h", &self.stamp.hlc)?;
        out.serialize_field("o", &*self.stamp.owner)?;
        match &self.body {
            Body::Live(live) => out.serialize_field("b", &live.text)?,
            Body::Cancelled => out.serialize_field("x", &Grave::Cancelled)?,
            Body::Evicted { overridden } => {
                out.serialize_field("x", &Grave::Evicted)?;
                if let Some(status) = overridden {
                    out.serialize_field("v", status)?;
                }
            }
        }
        out.end()
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(d)?;
        let body = match (wire.b, wire.x) {
            (Some(text), None) => Body::Live(Live::read(text).map_err(D::Error::custom)?),
            (None, Some(Grave::Cancelled)) => Body::Cancelled,
            (None, Some(Grave::Evicted)) => Body::Evicted { overridden: wire.v },
            _ => return Err(D::Error::custom("a record is either live or buried")),
        };
        Ok(Self {
            service: wire.s,
            id: wire.i,
            stamp: Stamp {
                incarnation: wire.n,
                hlc: wire.h,
                owner: wire.o.into(),
            },
            body,
        })
    }
}

/// A service's policy as one server last knew it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// Its service.
    pub service: ServiceName,
    /// The number of changes of it: the higher is later.
    pub version: u64,
    /// The writer's hybrid logical clock, where two servers made the same change number.
    pub hlc: u64,
    /// The writer.
    pub owner: NodeId,
    /// The policy; `None` once it was withdrawn.
    pub record: Option<PolicyRecord>,
    /// Earlier changes, and the withdrawal itself; the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<PastPolicy>,
}

/// A change of a policy that is no longer in force. Its text is kept rather than its values: it is
/// read when somebody asks, perhaps by a later version of this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastPolicy {
    /// The number of the change.
    #[serde(rename = "v")]
    pub version: u64,
    /// When, in Unix milliseconds.
    #[serde(rename = "t")]
    pub updated_ms: u64,
    /// By whom.
    #[serde(rename = "b")]
    pub by: String,
    /// The policy as JSON; `None`: a withdrawal.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl From<&PolicyRecord> for PastPolicy {
    fn from(record: &PolicyRecord) -> Self {
        Self {
            version: record.version,
            updated_ms: record.updated_ms,
            by: record.by.clone(),
            // It has come as JSON or could have.
            text: serde_json::to_string(&record.policy).ok(),
        }
    }
}

impl PolicyEntry {
    /// Whether it is later than `other`.
    pub fn is_after(&self, other: &Self) -> bool {
        (self.version, self.hlc, &self.owner) > (other.version, other.hlc, &other.owner)
    }

    /// Its changes, the newest first.
    pub fn history(&self) -> PolicyHistory {
        let now = self.record.as_ref().map(PastPolicy::from);
        let all = now.iter().chain(&self.past).take(MAX_HISTORY);
        let change = |past: &PastPolicy| PolicyChange {
            version: past.version,
            updated_ms: past.updated_ms,
            by: past.by.clone(),
            policy: past
                .text
                .as_ref()
                .and_then(|text| serde_json::from_str(text).ok()),
        };
        PolicyHistory {
            service: self.service.clone(),
            changes: all.map(change).collect(),
        }
    }

    /// What a change of it remembers.
    pub(crate) fn remembered(&self) -> Vec<PastPolicy> {
        let now = self.record.as_ref().map(PastPolicy::from);
        let all = now.into_iter().chain(self.past.iter().cloned());
        all.take(MAX_HISTORY - 1).collect()
    }

    /// What it adds to the hash of all policies, withdrawn ones too: there are few.
    pub fn fingerprint(&self) -> u64 {
        use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed as hash};
        let name = hash(
            self.owner.as_bytes(),
            xxh3_64(self.service.as_str().as_bytes()),
        );
        hash(&self.hlc.to_le_bytes(), name ^ self.version)
    }
}

/// Something that was accepted, as it is logged and sent.
#[derive(Debug, Clone)]
pub enum Entry {
    /// About an instance.
    Instance(Arc<Record>),
    /// About a policy.
    Policy(Arc<PolicyEntry>),
}

impl Entry {
    /// Bytes that it takes, roughly.
    pub fn cost(&self) -> usize {
        match self {
            Self::Instance(record) => record.cost(),
            Self::Policy(policy) => {
                let past = policy.past.iter();
                let texts = past.filter_map(|past| past.text.as_ref()).map(String::len);
                // The largest policy that passes validation is far below.
                2048 + texts.sum::<usize>()
            }
        }
    }
}

/// An instance that nothing is said of but its address: what tests and examples start from.
#[doc(hidden)]
pub fn plain(id: &InstanceId, addr: SocketAddr) -> InstanceRecord {
    InstanceRecord {
        id: id.clone(),
        addr,
        status: InstanceStatus::Up,
        reported: InstanceStatus::Up,
        overridden: None,
        weight: 1,
        protocol: selvedge_registry::AppProtocol::Http1,
        locality: selvedge_registry::Locality::default(),
        ttl: selvedge_resilience::config::Millis::new(10_000),
        incarnation: 1,
        owner: String::new(),
        version: None,
        tags: std::collections::BTreeSet::new(),
        ownership: None,
        metadata: std::collections::BTreeMap::new(),
        dialects: std::collections::BTreeMap::new(),
        registered_ms: 0,
        changed_ms: 0,
    }
}
