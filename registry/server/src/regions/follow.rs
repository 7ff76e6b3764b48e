//! Asking other regions, or whoever of this one has asked them.

use std::{net::SocketAddr, sync::Arc};

use selvedge_registry::{
    api::RegionSummary,
    client::{
        Call, RegistryClient,
        connect::{Connector, TlsError, TlsFiles},
    },
    wire::MemberState,
};

use super::{Heard, Regions};
use crate::server::Shared;

/// Rounds without news from the elected server after which each fetches for itself.
const PATIENCE: u32 = 3;

/// Follows every other region, for ever.
///
/// # Errors
/// [`TlsError`] if a region's certificates cannot be used.
pub fn follow(
    regions: &Arc<Regions>,
    shared: &Arc<Shared>,
    ours: &Connector,
) -> Result<Vec<impl Future<Output = ()> + Send + 'static>, TlsError> {
    let peers = regions.config.peers.iter();
    peers
        .map(|peer| {
            let mut connector = match &peer.ca {
                None => Connector::plain(),
                Some(ca) => Connector::tls(&TlsFiles {
                    ca: ca.clone(),
                    identity: None,
                    server_name: peer.server_name.clone(),
                })?,
            };
            if let Some(token) = &peer.token {
                connector = connector.with_token(token.expose())?;
            }
            let there = Follower {
                region: peer.region.clone(),
                servers: peer.servers.clone(),
                connector,
                ours: ours.clone(),
                regions: Arc::clone(regions),
                shared: Arc::clone(shared),
            };
            Ok(there.run())
        })
        .collect()
}

struct Follower {
    region: String,
    servers: Vec<String>,
    /// To that region's servers.
    connector: Connector,
    /// To this region's.
    ours: Connector,
    regions: Arc<Regions>,
    shared: Arc<Shared>,
}

impl Follower {
    async fn run(self) {
        // Asks, and turns from one server to the next; watches nothing, so nothing runs in it.
        let there = RegistryClient::builder(self.servers.clone())
            .connector(self.connector.clone())
            .spawn();
        let mut missed = 0;
        loop {
            let every = self.regions.config.every.0;
            tokio::time::sleep(every.mul_f64(0.9 + fastrand::f64() * 0.2)).await;
            let elected = self.elected();
            let heard = match elected {
                Some(addr) if missed < PATIENCE => {
                    let here = RegistryClient::builder([addr.to_string()])
                        .connector(self.ours.clone())
                        .spawn();
                    self.ask(&here).await
                }
                _ => self.ask(&there).await,
            };
            match heard {
                Ok(heard) => {
                    missed = 0;
                    self.regions.hear(&self.region, heard);
                }
                Err(error) => {
                    missed += 1;
                    tracing::debug!(region = self.region, error, "region does not answer");
                    if missed == PATIENCE {
                        tracing::warn!(
                            region = self.region,
                            error,
                            "nothing new from the region, its last news stay"
                        );
                    }
                }
            }
        }
    }

    /// The server of this region that asks for all, if it is another one.
    fn elected(&self) -> Option<SocketAddr> {
        let members = self.shared.members();
        let members = members.borrow();
        let score = |node: &str| {
            let text = format!("{}/{node}", self.region);
            xxhash_rust::xxh3::xxh3_64(text.as_bytes())
        };
        let serving = members
            .iter()
            .filter(|(_, member)| member.state == MemberState::Serving);
        let best = serving.max_by_key(|(node, _)| (score(node), Arc::clone(node)))?;
        (*best.0 != self.shared.node).then_some(best.1.http)
    }

    async fn ask(&self, whom: &RegistryClient) -> Result<Heard, String> {
        let path = format!("/v1/regions/{}", self.region);
        let tag = {
            let news = self.regions.news.load();
            news.get(&self.region).map(|news| news.tag.clone())
        };
        let condition = tag.map(|tag| (http::header::IF_NONE_MATCH, format!("\"{tag}\"")));
        let call = Call {
            path: &path,
            headers: condition.into_iter().collect(),
            ..Call::default()
        };
        let reply = whom.call("GET", &call).await;
        let reply = reply.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        match reply.status.as_u16() {
            304 => Ok(Heard::Same),
            200 => {
                let summary: RegionSummary =
                    serde_json::from_slice(&reply.body).map_err(|error| error.to_string())?;
                if summary.region != self.region {
                    return Err(format!("it calls itself {:?}", summary.region));
                }
                let tag = reply.headers.get(http::header::ETAG);
                let tag = tag.and_then(|tag| tag.to_str().ok()).unwrap_or_default();
                Ok(Heard::New(summary, tag.trim_matches('"').to_owned()))
            }
            _ => Err(reply.problem()),
        }
    }
}
