//! `[dns]`.

use std::net::SocketAddr;

use hickory_proto::rr::Name;
use selvedge_resilience::config::{Millis, PolicyError, Rate};
use serde::{Deserialize, Serialize};

/// The DNS interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Where it listens, UDP and TCP. Default: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<SocketAddr>,
    /// The domain that services are under. Default "mesh", as in the names that sidecars take.
    pub domain: String,
    /// How long answers may be kept, in whole seconds. Default "1s": a guess; some resolvers take
    /// 0 for "for ever", and with one second a crash costs no more than a failed connection.
    pub ttl: Millis,
    /// How long "no such name" may be kept. Default "1s", for the same reason.
    pub negative_ttl: Millis,
    /// Longest answer over UDP to who says that it takes as much. Default 1232: DNS flag day 2020,
    /// no fragments on any path.
    pub udp_payload: u16,
    /// Questions over UDP that one address may ask before it is sent to TCP, so that a forged
    /// address is not flooded. Default "2000/s": a guess; a busy resolver asks some hundred.
    pub per_client: Rate,
    /// TCP connections at once, a quarter of them from one address. Default 256: a guess.
    pub connections: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            bind: None,
            domain: "mesh".to_owned(),
            ttl: Millis::new(1_000),
            negative_ttl: Millis::new(1_000),
            udp_payload: 1232,
            per_client: "2000/s".parse().expect("a rate"),
            connections: 256,
        }
    }
}

impl DnsConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        // Leaves room for the longest names below it.
        let name = Name::from_ascii(&self.domain).ok();
        let whole = self.domain.strip_suffix('.').unwrap_or(&self.domain);
        let labels = whole.split('.').all(|label| !label.is_empty());
        if !labels || !name.is_some_and(|name| !name.is_root() && self.domain.len() <= 80) {
            let allowed = "a domain of 1 to 80 bytes, such as \"mesh\" or \"mesh.example.com\"";
            return Err(PolicyError::new("dns.domain", &self.domain, allowed));
        }
        for (field, ttl) in [
            ("dns.ttl", self.ttl),
            ("dns.negative_ttl", self.negative_ttl),
        ] {
            if ttl.0.as_secs() > 86_400 || ttl.0.subsec_nanos() != 0 {
                return Err(PolicyError::new(
                    field,
                    ttl,
                    "whole seconds, \"0s\" to \"24h\"",
                ));
            }
        }
        if !(512..=4096).contains(&self.udp_payload) {
            let value = self.udp_payload;
            return Err(PolicyError::new("dns.udp_payload", value, "512 to 4096"));
        }
        if !(1..=65_536).contains(&self.connections) {
            let value = self.connections;
            return Err(PolicyError::new("dns.connections", value, "1 to 65536"));
        }
        Ok(())
    }
}
