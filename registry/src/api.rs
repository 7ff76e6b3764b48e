//! Documents of the v1 API beyond the catalogue's own records (those are in [`wire`](crate::wire)).
//!
//! | call | request | answer |
//! |---|---|---|
//! | `POST /v1/leases` | [`RenewBatch`] | 200 [`Renewals`] |
//! | `PUT`, `DELETE …/instances/{id}/override` | [`StatusRequest`] | 204 |
//! | `PUT …/instances/{id}/status` | [`StatusRequest`] | 204 |
//! | `PATCH …/instances/{id}/metadata` | [`MetadataPatch`] | 200 the instance |
//! | `GET /v1/instances?service=&zone=&…` | | [`InstancePage`] |
//! | `GET /v1/catalog` | | [`CatalogPage`] |
//! | `GET /v1/status` | | [`ServerStatus`] |
//! | `GET`, `PUT`, `DELETE /v1/policies/{service}` | a policy | [`PolicyRecord`] |
//! | `GET /v1/policies` | | [`PolicyList`] |
//! | `GET /v1/policies/{service}/history` | | [`PolicyHistory`] |
//! | `GET /v1/watch?service=a&wait=30s&index=REV` | | [`Changes`] |
//! | `GET /v1/regions`, `GET /v1/regions/{region}` | | [`RegionList`], [`RegionSummary`] |
//!
//! Events of a watch stream, besides `snapshot` and `delta`: `policy` ([`PolicyEvent`]), `fallback`
//! ([`FallbackEvent`]), `state` ([`ServerState`]) and `synced` ([`Synced`]).

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    instance::{InstanceStatus, Locality, Ownership, Revision},
    name::{InstanceId, ServiceName},
    wire::{InstanceRecord, PolicyRecord, ServiceRecord},
};

/// Leases that one request may renew.
pub const MAX_BATCH: usize = 1_000;
/// Instances or services in one page, at most.
pub const MAX_PAGE: usize = 5_000;
/// Instances or services in one page, unless the client says otherwise.
pub const PAGE: usize = 500;
/// The longest that a long poll may wait, in seconds. Source: Consul's default for blocking queries.
pub const MAX_WAIT_SECONDS: u64 = 300;
/// Changes of a policy that are remembered, the one in force included. A guess: who goes back
/// further has the document under version control.
pub const MAX_HISTORY: usize = 10;
/// The policy document of services that have none of their own. A service of this name has no
/// policy but this.
pub const DEFAULT_POLICY: &str = "default";

/// One lease in a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub id: InstanceId,
    /// Its life, so that a renewal of an earlier one is told to register again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// Leases to renew; at most [`MAX_BATCH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewBatch {
    /// In any order.
    pub leases: Vec<Lease>,
}

/// What came of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Renewals {
    /// How many were renewed.
    pub renewed: usize,
    /// Those that were not.
    pub refused: Vec<LeaseRefused>,
}

/// A lease that was not renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRefused {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub id: InstanceId,
    /// Why.
    pub reason: LeaseReason,
}

/// Why a lease was not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseReason {
    /// It is not registered, or not in this life: register again.
    Unknown,
    /// The client may not register this service.
    Forbidden,
}

/// A status to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusRequest {
    /// The new status.
    pub status: InstanceStatus,
}

/// Changes to an instance's metadata: a value sets its key, `null` removes it, keys that are not
/// named stay. Source: RFC 7396 (JSON merge patch).
pub type MetadataPatch = BTreeMap<String, Option<String>>;

/// An instance, with its service's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEntry {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceRecord,
}

/// Some of the instances that a query asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePage {
    /// The catalogue's state that this page is of; the next page may be of a later one.
    pub revision: Revision,
    /// By service, then by id.
    pub instances: Vec<InstanceEntry>,
    /// Where the next page begins, as `?cursor=`; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A service as its users see it: whose it is and how much of it there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// Its name.
    pub name: ServiceName,
    /// Its instances.
    pub instances: usize,
    /// Those that take calls.
    pub up: usize,
    /// How many run each version; instances that say none are not counted.
    pub versions: BTreeMap<String, usize>,
    /// How many run in each zone (`region/zone`); instances that say none are not counted.
    pub zones: BTreeMap<String, usize>,
    /// What the newest instance that says so says of its ownership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Box<Ownership>>,
    /// The version of its published policy, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<u64>,
}

/// Some of the services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogPage {
    /// The catalogue's state that this page is of.
    pub revision: Revision,
    /// By name.
    pub services: Vec<CatalogEntry>,
    /// Where the next page begins, as `?cursor=`; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How far a server can be believed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerState {
    /// Whether evictions are paused because too much went silent at once.
    #[serde(default)]
    pub self_preservation: bool,
    /// Why, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when the server has not heard from its peers, in milliseconds; absent: it hears them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staleness_ms: Option<u64>,
}

/// One server, by its own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name.
    pub node: String,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
    /// Whether it answers as one that knows everything.
    pub serving: bool,
    /// Where its catalogue stands.
    pub revision: Revision,
    /// How far it can be believed.
    pub state: ServerState,
    /// Live instances.
    pub instances: usize,
    /// Open watches.
    pub watches: usize,
    /// What its catalogue holds; absent from servers before this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogue: Option<CatalogueDigest>,
}

/// What a server's catalogue holds, in so few words that two can be compared: servers of one
/// cluster that say the same here hold the same instances, kept by the same servers, and the same
/// policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueDigest {
    /// Live instances.
    pub records: usize,
    /// A hash of them, as sixteen hexadecimal digits. What is deleted is not in it: each server
    /// forgets that in its own time.
    pub hash: String,
    /// Policies in force.
    pub policies: usize,
    /// A hash of them and of what was withdrawn, as sixteen hexadecimal digits.
    pub policies_hash: String,
}

/// Every published policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyList {
    /// By service.
    pub policies: Vec<PolicyRecord>,
}

/// One change of a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyChange {
    /// The number of the change.
    pub version: u64,
    /// When it was made, in Unix milliseconds of some server's wall clock: for people.
    pub updated_ms: u64,
    /// Who made it.
    pub by: String,
    /// The policy since then, as it was understood at that time; `null`: it was withdrawn.
    pub policy: Option<serde_json::Value>,
}

/// The last changes of a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyHistory {
    /// The service it is for.
    pub service: ServiceName,
    /// The newest first; at most [`MAX_HISTORY`].
    pub changes: Vec<PolicyChange>,
}

/// A policy was published or withdrawn.
///
/// The record is kept as it stands: a client that does not understand a newer server's policy must
/// still follow its endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyEvent {
    /// The service it is for.
    pub service: ServiceName,
    /// A [`PolicyRecord`]; absent once it was withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<serde_json::Value>,
}

/// Every watched service has been told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// Up to here.
    pub revision: Revision,
    /// Whether everything was told, rather than what has changed since the resume token: a service
    /// that was not told of has no instances then.
    pub full: bool,
    /// The policies in force among those that concern the watch; any other is gone.
    pub policies: Vec<ServiceName>,
}

/// What a long poll answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// The state to wait after next, as `?index=`.
    pub revision: Revision,
    /// Whether these are all watched services, rather than those that have changed.
    pub full: bool,
    /// Each whole.
    pub services: Vec<ServiceRecord>,
    /// The policies in force among those that concern the watch.
    pub policies: Vec<PolicyRecord>,
}

/// Where a service is, in another region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionOf {
    /// The region.
    pub region: String,
    /// Instances there that take calls.
    pub up: usize,
    /// Where that region lets others' calls in.
    pub gateways: Vec<SocketAddr>,
}

/// Where else a service can be called, the best first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackEvent {
    /// The service.
    pub service: ServiceName,
    /// Regions where it takes calls; empty: nowhere else.
    pub regions: Vec<RegionOf>,
}

/// What one region tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionSummary {
    /// Its name.
    pub region: String,
    /// Where it lets others' calls in.
    pub gateways: Vec<SocketAddr>,
    /// Its services, and how many instances of each take calls.
    pub services: BTreeMap<ServiceName, usize>,
}

/// A region, as this server last heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionInfo {
    /// Its name.
    pub region: String,
    /// Whether it is this server's own.
    pub local: bool,
    /// Services with instances that take calls.
    pub services: usize,
    /// Where it lets others' calls in.
    pub gateways: Vec<SocketAddr>,
    /// How old the news is, in milliseconds; absent: there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

/// Every region, in the order of failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionList {
    /// The server's own first.
    pub regions: Vec<RegionInfo>,
}
