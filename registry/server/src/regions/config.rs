//! Which other regions there are, as it is written down.

use std::{collections::BTreeSet, net::SocketAddr};

use selvedge_registry::{ServiceName, node::config::Secret, wire::MAX_LOCALITY};
use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize};

/// `[regions]`: what this region has to do with others. Its own name is `locality.region`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionsConfig {
    /// In which order others are tried when a service takes no calls here. Those that are not
    /// named come after, by name.
    pub order: Vec<String>,
    /// Where this region lets others' calls in.
    pub gateways: Vec<SocketAddr>,
    /// Or: the service whose instances that take calls are those gateways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_service: Option<ServiceName>,
    /// How often others are asked. Default "2s": a guess; an answer that has not changed is 200
    /// bytes.
    pub every: Millis,
    /// The others.
    pub peers: Vec<PeerRegion>,
}

impl Default for RegionsConfig {
    fn default() -> Self {
        Self {
            order: Vec::new(),
            gateways: Vec::new(),
            gateway_service: None,
            every: Millis::new(2_000),
            peers: Vec::new(),
        }
    }
}

/// `[[regions.peers]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerRegion {
    /// Its name.
    pub region: String,
    /// Its registry servers, `host:port`.
    pub servers: Vec<String>,
    /// A token of that region with the role `read`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// PEM file of the authorities of its servers' certificates. Not set: in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<std::path::PathBuf>,
    /// The name on those certificates, if not the servers' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl RegionsConfig {
    /// Refuses what cannot work in a server of region `here`.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path.
    pub fn validate(&self, here: &str) -> Result<(), PolicyError> {
        if !(200..=60_000).contains(&self.every.0.as_millis()) {
            let allowed = "\"200ms\" to \"1m\"";
            return Err(PolicyError::new("regions.every", self.every, allowed));
        }
        if !self.peers.is_empty() && here.is_empty() {
            let allowed = "this region needs a name too: set locality.region";
            return Err(PolicyError::new("regions.peers", "set", allowed));
        }
        let mut names = BTreeSet::from([here]);
        for (n, peer) in self.peers.iter().enumerate() {
            let path = |field: &str| format!("regions.peers[{n}].{field}");
            let ok = (1..=MAX_LOCALITY).contains(&peer.region.len())
                && peer
                    .region
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if !ok || peer.region == "any" {
                let allowed = "1 to 63 of a-z, A-Z, 0-9 and '-', and not \"any\"";
                return Err(PolicyError::new(path("region"), &peer.region, allowed));
            }
            if !names.insert(&peer.region) {
                let allowed = "another name than this region's and each other's";
                return Err(PolicyError::new(path("region"), &peer.region, allowed));
            }
            if peer.servers.is_empty() || peer.servers.iter().any(|s| !s.contains(':')) {
                let servers = format!("{:?}", peer.servers);
                return Err(PolicyError::new(
                    path("servers"),
                    servers,
                    "at least one host:port",
                ));
            }
        }
        if let Some(unknown) = self
            .order
            .iter()
            .find(|name| !names.contains(name.as_str()))
        {
            let allowed = "the names of regions.peers";
            return Err(PolicyError::new("regions.order", unknown, allowed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> RegionsConfig {
        serde_json::from_str(text).expect(text)
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let us = r#"{"region":"us","servers":["10.1.0.1:7900"]}"#;
        for (text, here, path) in [
            (format!(r#"{{"peers":[{us}]}}"#), "", "regions.peers"),
            (
                format!(r#"{{"peers":[{us}]}}"#),
                "us",
                "regions.peers[0].region",
            ),
            (
                format!(r#"{{"peers":[{us},{us}]}}"#),
                "eu",
                "regions.peers[1].region",
            ),
            (
                format!(r#"{{"peers":[{us}],"order":["uk"]}}"#),
                "eu",
                "regions.order",
            ),
            (
                r#"{"peers":[{"region":"any","servers":["a:1"]}]}"#.into(),
                "eu",
                "regions.peers[0].region",
            ),
            (
                r#"{"peers":[{"region":"us","servers":[]}]}"#.into(),
                "eu",
                "regions.peers[0].servers",
            ),
            (r#"{"every":"1ms"}"#.into(), "eu", "regions.every"),
        ] {
            let error = config(&text).validate(here).expect_err(&text);
            assert_eq!(error.path, path, "{error}");
        }
        let good = config(&format!(r#"{{"peers":[{us}],"order":["us"]}}"#));
        assert!(good.validate("eu").is_ok());
        assert!(RegionsConfig::default().validate("").is_ok());
    }
}
