//! Regions: full replication within, summaries between.
//!
//! Replicating every instance everywhere makes each region pay for the churn of all others, and a
//! cut between continents a matter for everybody's failure detector. So servers of one region are
//! one cluster, with its own gossip; between regions travels only how many instances of each
//! service take calls, and at which addresses (of gateways) a region lets others' calls in.
//!
//! ```text
//!   region eu                                  region us
//!   n1  n2  n3  ── the one server elected ──►  any server:  GET /v1/regions/us  (ETag)
//!    ▲   │
//!    └───┴── the others fetch what it knows:   GET /v1/regions/us  from it
//! ```
//!
//! Which server fetches is decided by rendezvous hashing over the cluster's members, so that one
//! link carries each pair of regions; if the elected one knows nothing newer for long, the others
//! fetch for themselves.
//!
//! A caller that asks with `region=any` gets this region's instances as long as one takes calls;
//! else the gateways of the next region that has the service, in the configured order.
//!
//! # Guarantees
//! News of a region replaces older news of it, never by nothing: what cannot be fetched stays, and
//! says its age. After [`FORGET`] it no longer counts as a place to go.
//!
//! # What it does not do
//! Balance between regions, or check their gateways: a fallback is for when there is nothing here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use selvedge_registry::{
    InstanceStatus, ServiceName,
    api::{RegionInfo, RegionList, RegionOf, RegionSummary},
    client::{
        Call, RegistryClient,
        connect::{Connector, TlsError, TlsFiles},
    },
    node::config::Secret,
    wire::{MAX_LOCALITY, MemberState},
};
use selvedge_resilience::config::{Millis, PolicyError};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{catalogue::Catalogue, server::Shared};

/// News older than this is no reason to send calls anywhere. A guess: long against a restart of a
/// region's registry, short against what its gateways would go on for.
pub const FORGET: Duration = Duration::from_secs(300);
/// Rounds without news from the elected server after which each fetches for itself.
const PATIENCE: u32 = 3;

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

/// What was last heard of another region.
#[derive(Debug, Clone)]
struct News {
    summary: Arc<RegionSummary>,
    heard: Instant,
    /// Its tag at whoever told us.
    tag: String,
}

/// Every region's last news.
#[derive(Debug)]
pub struct Regions {
    here: String,
    config: RegionsConfig,
    news: ArcSwap<BTreeMap<String, News>>,
    version: AtomicU64,
}

impl Regions {
    /// Of a server in region `here`.
    pub fn new(here: &str, config: &RegionsConfig) -> Self {
        Self {
            here: here.to_owned(),
            config: config.clone(),
            news: ArcSwap::default(),
            version: AtomicU64::new(0),
        }
    }

    /// Grows with each change of any region's news.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Where else `service` takes calls, the best first.
    pub fn of(&self, service: &ServiceName) -> Vec<RegionOf> {
        let news = self.news.load();
        let mut regions: Vec<_> = news
            .values()
            .filter(|news| news.heard.elapsed() < FORGET)
            .filter_map(|news| {
                let summary = &news.summary;
                let up = *summary.services.get(service)?;
                let region = RegionOf {
                    region: summary.region.clone(),
                    up,
                    gateways: summary.gateways.clone(),
                };
                (up > 0 && !region.gateways.is_empty()).then_some(region)
            })
            .collect();
        regions.sort_by_cached_key(|r| (self.rank(&r.region), r.region.clone()));
        regions
    }

    fn rank(&self, region: &str) -> usize {
        let order = &self.config.order;
        order
            .iter()
            .position(|name| name == region)
            .unwrap_or(order.len())
    }

    /// Every service that another region has.
    pub fn services(&self) -> Vec<ServiceName> {
        let news = self.news.load();
        let services = news.values().flat_map(|news| news.summary.services.keys());
        let services: BTreeSet<_> = services.cloned().collect();
        services.into_iter().collect()
    }

    /// What is known of `region`, and its tag: what it says of itself, if it is this one.
    pub fn summary(
        &self,
        region: &str,
        catalogue: &Catalogue,
    ) -> Option<(Arc<RegionSummary>, String)> {
        if region == self.here && !region.is_empty() {
            return Some((
                Arc::new(self.own(catalogue)),
                catalogue.revision().to_string(),
            ));
        }
        let news = self.news.load();
        let news = news.get(region)?;
        Some((Arc::clone(&news.summary), news.tag.clone()))
    }

    fn own(&self, catalogue: &Catalogue) -> RegionSummary {
        let list = catalogue.list().services.into_iter();
        let mut gateways: BTreeSet<_> = self.config.gateways.iter().copied().collect();
        if let Some(service) = &self.config.gateway_service {
            let instances = catalogue.service(service).instances.into_iter();
            let up = instances.filter(|i| i.status == InstanceStatus::Up);
            gateways.extend(up.map(|instance| instance.addr));
        }
        RegionSummary {
            region: self.here.clone(),
            gateways: gateways.into_iter().collect(),
            services: list
                .filter(|service| service.up > 0)
                .map(|service| (service.name, service.up))
                .collect(),
        }
    }

    /// Every region that is configured, this one first, then in the order of failover.
    pub fn list(&self, catalogue: &Catalogue) -> RegionList {
        let own = self.own(catalogue);
        let mut regions = vec![RegionInfo {
            region: own.region,
            local: true,
            services: own.services.len(),
            gateways: own.gateways,
            age_ms: Some(0),
        }];
        let news = self.news.load();
        let mut others: Vec<_> = self.config.peers.iter().map(|peer| &peer.region).collect();
        others.sort_by_key(|region| (self.rank(region), *region));
        regions.extend(others.into_iter().map(|region| {
            let news = news.get(region);
            RegionInfo {
                region: region.clone(),
                local: false,
                services: news.map_or(0, |news| news.summary.services.len()),
                gateways: news.map_or_else(Vec::new, |news| news.summary.gateways.clone()),
                age_ms: news.map(|news| news.heard.elapsed().as_millis() as u64),
            }
        }));
        RegionList { regions }
    }

    fn hear(&self, region: &str, heard: Heard) {
        let mut all = BTreeMap::clone(&self.news.load());
        let changed = match heard {
            Heard::Same => {
                let Some(news) = all.get_mut(region) else {
                    return;
                };
                news.heard = Instant::now();
                false
            }
            Heard::New(summary, tag) => {
                let before = all.get(region).map(|news| Arc::clone(&news.summary));
                let changed = before.is_none_or(|before| *before != summary);
                let news = News {
                    summary: Arc::new(summary),
                    heard: Instant::now(),
                    tag,
                };
                all.insert(region.to_owned(), news);
                changed
            }
        };
        self.news.store(Arc::new(all));
        if changed {
            self.version.fetch_add(1, Ordering::Release);
        }
    }
}

/// What a question brought.
enum Heard {
    /// Nothing new.
    Same,
    /// News, and its tag.
    New(RegionSummary, String),
}

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

    #[tokio::test(start_paused = true)]
    async fn the_order_of_failover_is_the_configured_one_and_old_news_do_not_count() {
        let orders = ServiceName::new("orders").expect("name");
        let peers = ["ap", "us", "uk"].map(|r| format!(r#"{{"region":"{r}","servers":["a:1"]}}"#));
        let text = format!(r#"{{"peers":[{}],"order":["us"]}}"#, peers.join(","));
        let regions = Regions::new("eu", &config(&text));
        let news = |region: &str, up: usize, gateways: usize| {
            let addr: SocketAddr = "10.0.0.1:80".parse().expect("addr");
            let summary = RegionSummary {
                region: region.into(),
                gateways: vec![addr; gateways],
                services: BTreeMap::from([(orders.clone(), up)]),
            };
            Heard::New(summary, "t".into())
        };
        let names = || -> Vec<String> {
            let list = regions.of(&orders).into_iter();
            list.map(|region| region.region).collect()
        };
        regions.hear("ap", news("ap", 1, 1));
        regions.hear("uk", news("uk", 1, 1));
        regions.hear("us", news("us", 2, 1));
        assert_eq!(names(), ["us", "ap", "uk"]);
        let version = regions.version();
        regions.hear("us", news("us", 2, 1));
        regions.hear("uk", Heard::Same);
        assert_eq!(regions.version(), version, "nothing new");
        regions.hear("ap", news("ap", 1, 0));
        regions.hear("us", news("us", 0, 1));
        assert_eq!(names(), ["uk"], "no gateway, no instance");
        tokio::time::advance(FORGET).await;
        assert!(names().is_empty(), "old");
    }
}
