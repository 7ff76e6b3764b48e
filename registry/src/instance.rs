//! An instance of a service: what it says of itself, and what a caller needs of that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    str::FromStr,
};

use selvedge_resilience::config::Millis;
use serde::{Deserialize, Serialize};

use crate::name::{InstanceId, ServiceName};

/// Whether an instance takes calls, in Eureka's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InstanceStatus {
    /// Not ready yet.
    Starting,
    /// Takes calls.
    #[default]
    Up,
    /// Its health check fails.
    Down,
    /// Taken out on purpose.
    OutOfService,
    /// Nobody knows.
    Unknown,
}

/// What an instance speaks on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, known beforehand (gRPC).
    H2c,
}

/// Where something runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Locality {
    /// Such as `eu-west`; empty if it does not matter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Such as `eu-west-1a`; empty if it does not matter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
}

/// Whose a service is: what a person needs who has never seen it before and whose pager rings.
///
/// Source: Backstage's `spec.owner`, `spec.system`, `spec.lifecycle`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ownership {
    /// The team that answers for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// What it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Where its source is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Where it is described.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docs: Option<String>,
    /// Whom to call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_call: Option<String>,
    /// Such as `experimental`, `production`, `deprecated`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<String>,
    /// How much depends on it, such as `1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// What to do when it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runbook: Option<String>,
}

impl Ownership {
    /// What is said, by name.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("team", &self.team),
            ("system", &self.system),
            ("repository", &self.repository),
            ("docs", &self.docs),
            ("on_call", &self.on_call),
            ("lifecycle", &self.lifecycle),
            ("tier", &self.tier),
            ("runbook", &self.runbook),
        ]
        .into_iter()
        .filter_map(|(name, text)| Some((name, text.as_deref()?)))
    }
}

/// An instance as it registers itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The service it belongs to.
    pub service: ServiceName,
    /// Its name within the service.
    pub id: InstanceId,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Its share of calls relative to the others; at least 1.
    pub weight: u32,
    /// Whether it takes calls.
    pub status: InstanceStatus,
    /// What it speaks.
    pub protocol: AppProtocol,
    /// Where it runs.
    pub locality: Locality,
    /// Its lease: silent for longer, it is taken out.
    pub ttl: Millis,
    /// The version of its software; at most 64 bytes.
    pub version: Option<String>,
    /// Words to choose it by; at most 32, of at most 64 bytes.
    pub tags: BTreeSet<String>,
    /// Whose it is.
    pub ownership: Option<Box<Ownership>>,
    /// Anything else, for people and for queries.
    pub metadata: BTreeMap<String, String>,
}

impl Instance {
    /// An instance that is up, of weight 1, with a lease of 10 s.
    ///
    /// 10 s is a guess between Eureka's 90 and the 1–2 s of gossip: callers see a crash by
    /// themselves within a request or three, so the lease is the last resort and may be calm.
    pub fn new(service: ServiceName, id: InstanceId, addr: SocketAddr) -> Self {
        Self {
            service,
            id,
            addr,
            weight: 1,
            status: InstanceStatus::Up,
            protocol: AppProtocol::Http1,
            locality: Locality::default(),
            ttl: Millis::new(10_000),
            version: None,
            tags: BTreeSet::new(),
            ownership: None,
            metadata: BTreeMap::new(),
        }
    }
}

/// An instance as a caller needs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Its name within the service.
    pub id: InstanceId,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Which life of the instance this is: a restart is another endpoint, with a clean record.
    pub incarnation: u64,
    /// Its share of calls relative to the others.
    pub weight: u32,
    /// What it speaks.
    pub protocol: AppProtocol,
    /// Where it runs.
    pub locality: Locality,
}

/// A state of a server's catalogue: comparable within one epoch, and a watcher's resume token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Revision {
    /// A server's life; never the same for two lives or two servers.
    pub epoch: u64,
    /// Grows by one with each change.
    pub counter: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.epoch, self.counter)
    }
}

impl FromStr for Revision {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, counter) = text.split_once('-').ok_or(())?;
        Ok(Self {
            epoch: u64::from_str_radix(epoch, 16).map_err(|_| ())?,
            counter: counter.parse().map_err(|_| ())?,
        })
    }
}

impl Serialize for Revision {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse()
            .map_err(|()| serde::de::Error::custom(format!("{text:?} is not a revision")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_round_trip_and_garbage_is_refused() {
        let revision = Revision {
            epoch: u64::MAX,
            counter: 42,
        };
        assert_eq!(revision.to_string().parse(), Ok(revision));
        for text in ["", "1", "x-1", "1-x", "-"] {
            assert!(text.parse::<Revision>().is_err(), "{text}");
        }
    }
}
