//! `registry.toml`: one server of the registry.

use std::{net::SocketAddr, path::PathBuf};

use selvedge_registry::{
    Locality, ServiceName,
    client::connect::{Connector, TlsError},
    node::{
        admin::AdminConfig,
        cidr::Cidr,
        config::Secret,
        telemetry::{LogFormat, TelemetryConfig},
    },
};
use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize};

use crate::{
    auth::AuthConfig,
    dns::DnsConfig,
    eureka::EurekaConfig,
    gossip::keyring::{Key, Keyring},
    lease::LeasesConfig,
    limits::LimitsConfig,
    log::ReplicationConfig,
    persist::StorageConfig,
    regions::RegionsConfig,
    tls::TlsConfig,
};

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
    /// Who may do what.
    pub auth: AuthConfig,
    /// Certificates of the API.
    pub tls: TlsConfig,
    /// How much clients may take.
    pub limits: LimitsConfig,
    /// Other regions.
    pub regions: RegionsConfig,
    /// Eureka's clients, and Eureka servers beside this one.
    pub eureka: EurekaConfig,
    /// Services as names.
    pub dns: DnsConfig,
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
    /// as long.
    pub interval: Millis,
    /// How long a server that hears no seed waits before it answers alone. Default "5s": a guess.
    pub join_timeout: Millis,
    /// The keys that gossip is sealed with, each 32 bytes in base64 (`selvedge-registry keygen`).
    /// The first one seals, every one opens. Needed, unless `bind` is loopback. Default: none.
    pub keys: Vec<Secret>,
    /// Whether datagrams that are not sealed are refused. Default true: Consul's
    /// `encrypt_verify_incoming`. False only while a cluster gets its first key.
    pub verify_incoming: bool,
    /// Whether what is sent is sealed. Default true: Consul's `encrypt_verify_outgoing`. False only
    /// while a cluster gets its first key.
    pub verify_outgoing: bool,
    /// Gossip without keys elsewhere than on loopback, where anybody can rewrite the membership.
    /// Default false.
    pub insecure: bool,
    /// Networks that datagrams are taken from, as `10.0.0.0/8`; empty: all. Default: all.
    pub allowed: Vec<String>,
    /// Whether a server that left on purpose looks for its last peers when it starts again, as one
    /// that crashed does. Default false: Serf's `rejoin_after_leave`. Needs `state_dir`.
    pub rejoin_after_leave: bool,
}

impl GossipConfig {
    /// Refuses what cannot work, or is not safe.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed; never with a key.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let ms = self.interval.0.as_millis();
        if !(20..=10_000).contains(&ms) {
            let allowed = "\"20ms\" to \"10s\"";
            return Err(PolicyError::new("gossip.interval", self.interval, allowed));
        }
        if self.bind.ip().is_unspecified() {
            return Err(PolicyError::new("gossip.bind", self.bind, REACHABLE));
        }
        if let Some(bad) = self.seeds.iter().find(|seed| !is_seed(seed)) {
            return Err(PolicyError::new("gossip.seeds", bad, "host:port"));
        }
        self.allowed_networks()?;
        self.keyring()?;
        if self.keys.is_empty() && !self.bind.ip().is_loopback() && !self.insecure {
            let allowed = "a key (selvedge-registry keygen), as gossip.bind is not loopback; or \
                           gossip.insecure = true";
            return Err(PolicyError::new("gossip.keys", "[]", allowed));
        }
        Ok(())
    }

    /// The keys, ready for use.
    ///
    /// # Errors
    /// [`PolicyError`], without the key.
    pub fn keyring(&self) -> Result<Keyring, PolicyError> {
        let mut keys = Vec::new();
        for (at, secret) in self.keys.iter().enumerate() {
            let key = Key::parse(secret.expose());
            keys.push(key.map_err(|why| {
                PolicyError::new(format!("gossip.keys[{at}]"), "***", why.to_string())
            })?);
        }
        Keyring::new(keys, self.verify_incoming, self.verify_outgoing)
            .map_err(|why| PolicyError::new("gossip.keys", "***", why.to_string()))
    }

    /// Networks that datagrams are taken from; empty: all.
    ///
    /// # Errors
    /// [`PolicyError`] naming the one that is none.
    pub fn allowed_networks(&self) -> Result<Vec<Cidr>, PolicyError> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|_| PolicyError::new("gossip.allowed", text, "networks, as 10.0.0.0/8"))
        };
        self.allowed.iter().map(parse).collect()
    }
}

fn is_seed(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

const REACHABLE: &str = "an address that the other servers can reach, as it is told to them";

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 7946)),
            seeds: Vec::new(),
            interval: Millis::new(500),
            join_timeout: Millis::new(5_000),
            keys: Vec::new(),
            verify_incoming: true,
            verify_outgoing: true,
            insecure: false,
            allowed: Vec::new(),
            rejoin_after_leave: false,
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
            auth: AuthConfig::default(),
            tls: TlsConfig::default(),
            limits: LimitsConfig::default(),
            regions: RegionsConfig::default(),
            eureka: EurekaConfig::default(),
            dns: DnsConfig::default(),
            admin: AdminConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// Servers of a cluster to try things with.
pub const DEV_SERVERS: u16 = 9;
/// The first port of such a cluster, unless another one is asked for: the API's of the first server.
pub const DEV_PORT: u16 = 7900;

impl RegistryConfig {
    /// Server `n` (1 to [`DEV_SERVERS`]) of a cluster on this machine's loopback, to try things
    /// with. It has ten ports from `first`: API, admin, gossip and DNS are its first, second,
    /// fourth and fifth. The first three find each other whoever starts first.
    pub fn dev(n: u16, first: u16) -> Self {
        let at = |n: u16, port: u16| {
            let port = first.saturating_add(10 * n.saturating_sub(1) + port);
            SocketAddr::from(([127, 0, 0, 1], port))
        };
        let seeds = (1..=3).filter(|seed| *seed != n);
        let default = Self::default();
        Self {
            node: ServiceName::new(format!("dev-{n}")).ok(),
            http: at(n, 0),
            admin: AdminConfig {
                bind: at(n, 1),
                ..default.admin
            },
            gossip: GossipConfig {
                bind: at(n, 3),
                seeds: seeds.map(|seed| at(seed, 3).to_string()).collect(),
                join_timeout: Millis::new(1_000),
                ..default.gossip
            },
            dns: DnsConfig {
                bind: Some(at(n, 4)),
                ..default.dns
            },
            telemetry: TelemetryConfig {
                format: LogFormat::Text,
                ..default.telemetry
            },
            ..default
        }
    }

    /// How this server reaches its peers.
    ///
    /// # Errors
    /// [`TlsError`] naming the file and what is wrong with it.
    pub fn peer_connector(&self) -> Result<Connector, TlsError> {
        let connector = self.tls.connector()?;
        match &self.auth.peer {
            Some(peer) => connector.with_token(peer.expose()),
            None => Ok(connector),
        }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        if self.http.ip().is_unspecified() {
            return Err(PolicyError::new("http", self.http, REACHABLE));
        }
        self.gossip.validate()?;
        self.leases.validate()?;
        self.replication.validate()?;
        self.storage.validate()?;
        self.tls.validate()?;
        self.auth.validate(self.http, self.tls.is_mutual())?;
        self.limits.validate()?;
        self.regions.validate(&self.locality.region)?;
        self.eureka.validate()?;
        self.dns.validate()?;
        self.admin
            .validate()
            .map_err(|why| PolicyError::new("admin.bind", self.admin.bind, why))
    }
}
