//! `[eureka]`.

use std::fmt;

use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize, Serializer};

use super::peers::Peer;

/// The Eureka dialect.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EurekaConfig {
    /// Whether Eureka's paths are served, beside v1's on the same port. Default true.
    pub enabled: bool,
    /// Eureka servers beside this one during a migration, such as `"http://10.0.0.9:8761/eureka"`:
    /// what is registered here is passed on to them. Those servers must name this one as their
    /// peer for the other direction. Default: none. Other Selvedge servers of this cluster do not
    /// belong here. A URL's password is not shown.
    #[serde(serialize_with = "without_passwords")]
    pub peers: Vec<String>,
    /// How long Eureka's reads wait at start for one of `peers` to say what it has. Default "30s":
    /// Eureka's own `registrySyncRetryWaitMs`.
    pub seed_timeout: Millis,
    /// How often `peers` hear that the instances registered here are still there. Default "10s": a
    /// third of the shortest lease that they are told of.
    pub peer_heartbeat: Millis,
}

/// A URL without who asks there.
fn shown(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("http://***@{host}"),
        None => url.to_owned(),
    }
}

fn without_passwords<S: Serializer>(peers: &[String], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(peers.iter().map(|url| shown(url)))
}

impl fmt::Debug for EurekaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<String> = self.peers.iter().map(|url| shown(url)).collect();
        f.debug_struct("EurekaConfig")
            .field("enabled", &self.enabled)
            .field("peers", &peers)
            .field("seed_timeout", &self.seed_timeout)
            .field("peer_heartbeat", &self.peer_heartbeat)
            .finish()
    }
}

impl Default for EurekaConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            peers: Vec::new(),
            seed_timeout: Millis::new(30_000),
            peer_heartbeat: Millis::new(10_000),
        }
    }
}

impl EurekaConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for peer in &self.peers {
            if let Err(allowed) = Peer::parse(peer) {
                // A URL may hold a password, and this is shown.
                let shown = peer.rsplit('@').next().unwrap_or_default();
                return Err(PolicyError::new("eureka.peers", shown, allowed));
            }
        }
        let ms = self.peer_heartbeat.0.as_millis();
        if !(100..=30_000).contains(&ms) {
            let allowed = "\"100ms\" to \"30s\"";
            return Err(PolicyError::new(
                "eureka.peer_heartbeat",
                self.peer_heartbeat,
                allowed,
            ));
        }
        if !self.enabled && !self.peers.is_empty() {
            let allowed = "true where eureka.peers are named";
            return Err(PolicyError::new("eureka.enabled", "false", allowed));
        }
        Ok(())
    }
}
