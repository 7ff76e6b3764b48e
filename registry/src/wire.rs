//! The documents of the registry's v1 API, for its server and its clients alike.
//!
//! | call | request | answer |
//! |---|---|---|
//! | `PUT /v1/services/{service}/instances/{id}` | [`RegisterRequest`] | 200 [`InstanceRecord`] |
//! | `PUT /v1/services/{service}/instances/{id}/lease` | [`RenewRequest`] or nothing | 204, or 404: register again |
//! | `DELETE /v1/services/{service}/instances/{id}` | | 204, or 404 |
//! | `GET /v1/services` | | [`ServiceList`] |
//! | `GET /v1/services/{service}` | | [`ServiceRecord`], or 404 |
//! | `GET /v1/members` | | [`MemberList`] |
//! | `GET /v1/watch?service=a&service=b` | `Last-Event-ID` or `?resume=` | server-sent events |
//!
//! A watch sends, for each service, one `snapshot` ([`ServiceRecord`]) and then a `delta`
//! ([`ServiceDelta`]) for each change; every event's `id` is the [`Revision`] to resume from. A
//! service that has not changed since that revision is not sent again. A comment line at least
//! every [`HEARTBEAT`] says that the server lives.
//!
//! Every refusal is a [`Problem`](crate::problem::Problem).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use selvedge_resilience::{TrafficPolicy, config::Millis};
use serde::{Deserialize, Serialize};

use crate::{
    instance::{AppProtocol, Endpoint, Instance, InstanceStatus, Locality, Ownership, Revision},
    name::{InstanceId, ServiceName},
};

/// In the refusal of a registration because a later life of the instance is known: that life's
/// incarnation.
pub const INCARNATION_HEADER: &str = "x-selvedge-incarnation";
/// How often a watch says at least something.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Metadata entries an instance may have.
pub const MAX_METADATA: usize = 64;
/// Bytes of one metadata key.
pub const MAX_KEY: usize = 128;
/// Bytes of one metadata value.
pub const MAX_VALUE: usize = 4 << 10;
/// Bytes of all metadata of an instance.
pub const MAX_METADATA_BYTES: usize = 16 << 10;
/// Bytes of a region's or zone's name.
pub const MAX_LOCALITY: usize = 63;
/// Bytes of a version.
pub const MAX_VERSION: usize = 64;
/// Tags an instance may have.
pub const MAX_TAGS: usize = 32;
/// Bytes of one tag.
pub const MAX_TAG: usize = 64;
/// Bytes of one field of the ownership.
pub const MAX_OWNERSHIP: usize = 512;
/// Bytes of a request body.
pub const MAX_BODY: usize = 64 << 10;
/// Services one watch may name.
pub const MAX_WATCHED: usize = 1000;
/// The shortest and the longest lease.
pub const TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// What an instance says when it registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Where it is reached, as `10.0.0.7:8080`.
    pub addr: SocketAddr,
    /// Its lease, `"1s"` to `"1h"`.
    #[serde(default = "default_ttl")]
    pub ttl: Millis,
    /// Its share of calls; 1 to 1000.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Whether it takes calls.
    #[serde(default)]
    pub status: InstanceStatus,
    /// What it speaks.
    #[serde(default)]
    pub protocol: AppProtocol,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
    /// Which life of the instance this is; must grow with each start. Not given: the server's.
    #[serde(default)]
    pub incarnation: Option<u64>,
    /// The version of the software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Words to choose instances by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Box<Ownership>>,
    /// Anything else.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

fn default_ttl() -> Millis {
    Millis::new(10_000)
}

fn default_weight() -> u32 {
    1
}

impl RegisterRequest {
    /// What `instance` says in its life number `incarnation`.
    pub fn of(instance: &Instance, incarnation: u64) -> Self {
        Self {
            addr: instance.addr,
            ttl: instance.ttl,
            weight: instance.weight,
            status: instance.status,
            protocol: instance.protocol,
            locality: instance.locality.clone(),
            incarnation: Some(incarnation),
            version: instance.version.clone(),
            tags: instance.tags.clone(),
            ownership: instance.ownership.clone(),
            metadata: instance.metadata.clone(),
        }
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// The field, what it holds and what is allowed, as one sentence.
    pub fn validate(&self) -> Result<(), String> {
        if !TTL.contains(&self.ttl.0) {
            return Err(format!("ttl is {}: allowed are \"1s\" to \"1h\"", self.ttl));
        }
        if !(1..=1000).contains(&self.weight) {
            return Err(format!("weight is {}: allowed are 1 to 1000", self.weight));
        }
        if self.addr.port() == 0 || self.addr.ip().is_unspecified() {
            return Err(format!(
                "addr is {}: an address that callers can reach is needed",
                self.addr
            ));
        }
        for (name, text) in [
            ("region", &self.locality.region),
            ("zone", &self.locality.zone),
        ] {
            if text.len() > MAX_LOCALITY {
                return Err(format!(
                    "{name} has {} bytes: at most {MAX_LOCALITY}",
                    text.len()
                ));
            }
        }
        self.check_words()?;
        check_metadata(&self.metadata)
    }

    fn check_words(&self) -> Result<(), String> {
        if let Some(version) = &self.version
            && !(1..=MAX_VERSION).contains(&version.len())
        {
            return Err(format!(
                "version has {} bytes: allowed are 1 to {MAX_VERSION}",
                version.len()
            ));
        }
        if self.tags.len() > MAX_TAGS {
            return Err(format!(
                "tags are {} words: at most {MAX_TAGS}",
                self.tags.len()
            ));
        }
        for tag in &self.tags {
            if !(1..=MAX_TAG).contains(&tag.len()) {
                return Err(format!(
                    "tags hold a word of {} bytes: allowed are 1 to {MAX_TAG}",
                    tag.len()
                ));
            }
        }
        let fields = self
            .ownership
            .iter()
            .flat_map(|ownership| ownership.fields());
        for (name, text) in fields {
            if text.len() > MAX_OWNERSHIP {
                return Err(format!(
                    "ownership.{name} has {} bytes: at most {MAX_OWNERSHIP}",
                    text.len()
                ));
            }
        }
        Ok(())
    }
}

/// Checks metadata as registration and every later change of it must.
///
/// # Errors
/// What is too much, and what is allowed, as one sentence.
pub fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), String> {
    if metadata.len() > MAX_METADATA {
        return Err(format!(
            "metadata has {} entries: at most {MAX_METADATA}",
            metadata.len()
        ));
    }
    let mut total = 0;
    for (key, value) in metadata {
        if key.is_empty() || key.len() > MAX_KEY || value.len() > MAX_VALUE {
            let key: String = key.chars().take(40).collect();
            return Err(format!(
                "metadata {key:?} is too long or empty: keys have 1 to {MAX_KEY} bytes, values at most {MAX_VALUE}"
            ));
        }
        total += key.len() + value.len();
    }
    if total > MAX_METADATA_BYTES {
        return Err(format!(
            "metadata has {total} bytes: at most {MAX_METADATA_BYTES}"
        ));
    }
    Ok(())
}

/// What an instance may say when it renews.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// Its life, so that a renewal of an earlier one is told to register again.
    #[serde(default)]
    pub incarnation: Option<u64>,
}

/// An instance as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its name within the service.
    pub id: InstanceId,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Whether it takes calls: an operator's word, or else its own.
    pub status: InstanceStatus,
    /// What it says of itself.
    #[serde(default)]
    pub reported: InstanceStatus,
    /// What an operator says of it; survives re-registration and restarts, forgotten when it
    /// deregisters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<InstanceStatus>,
    /// Its share of calls.
    pub weight: u32,
    /// What it speaks.
    pub protocol: AppProtocol,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
    /// Its lease.
    pub ttl: Millis,
    /// Which life of it this is.
    pub incarnation: u64,
    /// The server that keeps its lease.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The version of its software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Words to choose it by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Box<Ownership>>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// What another dialect must give back and v1 does not know, by the dialect's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dialects: BTreeMap<String, String>,
    /// When this life of it registered, in Unix milliseconds of some server's wall clock: for
    /// people, never compared.
    #[serde(default)]
    pub registered_ms: u64,
    /// When something that callers see last changed, likewise.
    #[serde(default)]
    pub changed_ms: u64,
}

impl InstanceRecord {
    /// Settles the effective status: an operator's word, or else what the instance says.
    pub fn settle(&mut self) {
        self.status = self.overridden.unwrap_or(self.reported);
    }

    /// What a caller needs of it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            id: self.id.clone(),
            addr: self.addr,
            incarnation: self.incarnation,
            weight: self.weight,
            protocol: self.protocol,
            locality: self.locality.clone(),
        }
    }
}

/// All instances of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Its name.
    pub service: ServiceName,
    /// The catalogue's state that this is of.
    pub revision: Revision,
    /// Its instances, by id.
    pub instances: Vec<InstanceRecord>,
}

/// What has changed in one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDelta {
    /// Its name.
    pub service: ServiceName,
    /// The catalogue's state after it.
    pub revision: Revision,
    /// New or changed instances, whole.
    pub changed: Vec<InstanceRecord>,
    /// Instances that are gone.
    pub removed: Vec<InstanceId>,
}

/// A service in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its name.
    pub name: ServiceName,
    /// Its instances.
    pub instances: usize,
    /// Those that take calls.
    pub up: usize,
}

/// Every service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceList {
    /// The catalogue's state that this is of.
    pub revision: Revision,
    /// By name.
    pub services: Vec<ServiceSummary>,
}

/// A traffic policy, published for a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// The service it is for.
    pub service: ServiceName,
    /// Grows by one with each change of this service's policy.
    pub version: u64,
    /// When it was published, in Unix milliseconds of some server's wall clock: for people.
    pub updated_ms: u64,
    /// Who published it.
    pub by: String,
    /// What it says.
    pub policy: TrafficPolicy,
}

/// What a registry server does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Catching up: does not answer as if it knew everything.
    Joining,
    /// Answers.
    Serving,
    /// Leaving: hands its leases over.
    Draining,
    /// Has left: nobody misses it.
    Left,
    /// No longer heard of, and has not said goodbye. Told of for a quarter of an hour.
    Dead,
}

impl MemberState {
    /// Whether it takes part: it is heard of and has not left.
    pub fn is_present(self) -> bool {
        !matches!(self, Self::Left | Self::Dead)
    }
}

/// A registry server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its name.
    pub node: String,
    /// Where its API is.
    pub http: SocketAddr,
    /// Where it gossips.
    pub gossip: SocketAddr,
    /// What it does.
    pub state: MemberState,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
    /// Records it owns.
    pub owned: usize,
    /// Whether this is the server that answers.
    pub me: bool,
}

/// Every registry server that the answering one knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// By name.
    pub members: Vec<MemberInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> Result<RegisterRequest, String> {
        let request: RegisterRequest = serde_json::from_str(json).map_err(|e| e.to_string())?;
        request.validate().map(|()| request)
    }

    #[test]
    fn a_registration_says_little_and_is_checked_in_full() {
        let least = request(r#"{"addr":"10.0.0.7:80"}"#).expect("enough");
        assert_eq!((least.ttl.to_string().as_str(), least.weight), ("10s", 1));
        let many = (0..65)
            .map(|i| format!(r#""k{i}":"v""#))
            .collect::<Vec<_>>()
            .join(",");
        let long = "x".repeat(5000);
        for (what, json) in [
            ("addr", r"{}".to_owned()),
            ("addr", r#"{"addr":"10.0.0.7"}"#.to_owned()),
            ("addr", r#"{"addr":"0.0.0.0:80"}"#.to_owned()),
            ("addr", r#"{"addr":"10.0.0.7:0"}"#.to_owned()),
            ("ttl", r#"{"addr":"10.0.0.7:80","ttl":"1ms"}"#.to_owned()),
            ("weight", r#"{"addr":"10.0.0.7:80","weight":0}"#.to_owned()),
            (
                "prot",
                r#"{"addr":"10.0.0.7:80","prot":"http1"}"#.to_owned(),
            ),
            (
                "metadata",
                format!(r#"{{"addr":"10.0.0.7:80","metadata":{{{many}}}}}"#),
            ),
            (
                "metadata",
                format!(r#"{{"addr":"10.0.0.7:80","metadata":{{"k":"{long}"}}}}"#),
            ),
            (
                "zone",
                format!(r#"{{"addr":"10.0.0.7:80","locality":{{"zone":"{long}"}}}}"#),
            ),
        ] {
            let error = request(&json).expect_err(what);
            assert!(
                error.contains(what) || error.contains("socket address"),
                "{what}: {error}"
            );
        }
    }
}
