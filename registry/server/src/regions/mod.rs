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

mod config;
mod follow;

use std::{
    collections::{BTreeMap, BTreeSet},
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
};
use tokio::time::Instant;

pub use self::{
    config::{PeerRegion, RegionsConfig},
    follow::follow,
};
use crate::catalogue::Catalogue;

/// News older than this is no reason to send calls anywhere. A guess: long against a restart of a
/// region's registry, short against what its gateways would go on for.
pub const FORGET: Duration = Duration::from_secs(300);
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn config(text: &str) -> RegionsConfig {
        serde_json::from_str(text).expect(text)
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
