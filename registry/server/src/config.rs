//! `registry.toml`: one server of the registry.

use std::{net::SocketAddr, path::PathBuf};

use selvedge_registry::{
    Locality, ServiceName,
    node::{admin::AdminConfig, telemetry::TelemetryConfig},
};
use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize};

use crate::{lease::LeasesConfig, log::ReplicationConfig, persist::StorageConfig};

/// The configuration of one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// This server's name, unique in the cluster. Default: made up at each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<ServiceName>,
    /// The cluster's name: servers of another one are not heard. Default "selvedge".
    pub cluster: ServiceName,
    /// Where it runs.
    pub locality: Locality,
    /// The API's address. Default "127.0.0.1:7900".
    pub http: SocketAddr,
    /// Where it keeps what must survive a restart, one directory for each server. Not set: nothing
    /// survives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Gossip.
    pub gossip: GossipConfig,
    /// When a silent instance is taken out, and when it is not.
    pub leases: LeasesConfig,
    /// How servers keep each other up to date.
    pub replication: ReplicationConfig,
    /// What is saved, where there is a `state_dir`.
    pub storage: StorageConfig,
    /// The admin port.
    pub admin: AdminConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// How servers find each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GossipConfig {
    /// Where it gossips (UDP). Default "127.0.0.1:7946".
    pub bind: SocketAddr,
    /// Gossip addresses of other servers, `host:port`; the more the better, one reachable is enough.
    pub seeds: Vec<String>,
    /// How often it gossips. Default "500ms": detection of a dead server takes about eight times
    /// as long (chitchat's phi of 8).
    pub interval: Millis,
    /// How long a server that hears no seed waits before it answers alone. Default "5s": a guess.
    pub join_timeout: Millis,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 7946)),
            seeds: Vec::new(),
            interval: Millis::new(500),
            join_timeout: Millis::new(5_000),
        }
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            node: None,
            cluster: ServiceName::new("selvedge").expect("a valid name"),
            locality: Locality::default(),
            http: SocketAddr::from(([127, 0, 0, 1], 7900)),
            state_dir: None,
            gossip: GossipConfig::default(),
            leases: LeasesConfig::default(),
            replication: ReplicationConfig::default(),
            storage: StorageConfig::default(),
            admin: AdminConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl RegistryConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let ms = self.gossip.interval.0.as_millis();
        if !(20..=10_000).contains(&ms) {
            let allowed = "\"20ms\" to \"10s\"";
            return Err(PolicyError::new(
                "gossip.interval",
                self.gossip.interval,
                allowed,
            ));
        }
        for (field, addr) in [("http", self.http), ("gossip.bind", self.gossip.bind)] {
            if addr.ip().is_unspecified() {
                let allowed = "an address that the other servers can reach, as it is told to them";
                return Err(PolicyError::new(field, addr, allowed));
            }
        }
        if let Some(bad) = self.gossip.seeds.iter().find(|seed| !seed.contains(':')) {
            return Err(PolicyError::new("gossip.seeds", bad, "host:port"));
        }
        self.leases.validate()?;
        self.replication.validate()?;
        self.storage.validate()?;
        self.admin
            .validate()
            .map_err(|why| PolicyError::new("admin.bind", self.admin.bind, why))
    }
}
