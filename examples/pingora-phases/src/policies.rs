//! What is enforced, and the state of it.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use selvedge_resilience::{
    Rng, Timeouts,
    balance::{BalanceConfig, Balancer, Member, OutlierConfig},
    breaker::{BreakerConfig, CircuitBreaker},
    bulkhead::{Bulkhead, BulkheadConfig, QueueConfig},
    config::{Millis, PolicyError, Rate, Ratio},
    expired::{ExpiredConfig, ExpiredFilter},
    keyed::KeyedConfig,
    rate_limit::{KeyedRateLimit, KeyedRateLimitConfig, headers::PolicyName},
    retry::{RetryConfig, budget::Budget},
    shed::{ShedConfig, Shedder},
};

/// What the proxy takes on, and how it calls each upstream. The sections are those of a
/// `TrafficPolicy`: each derives `Deserialize`, if you would rather read them from a file.
#[derive(Debug, Clone)]
pub(crate) struct Policies {
    pub(crate) timeouts: Timeouts,
    pub(crate) shed: ShedConfig,
    pub(crate) expired: ExpiredConfig,
    /// For each caller's address.
    pub(crate) rate_limit: Rate,
    pub(crate) bulkhead: BulkheadConfig,
    pub(crate) retry: RetryConfig,
    pub(crate) breaker: BreakerConfig,
    pub(crate) outlier: OutlierConfig,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            timeouts: Timeouts {
                request: Millis::new(5_000),
                backend_request: Some(Millis::new(2_000)),
                ..Timeouts::default()
            },
            shed: ShedConfig::default(),
            expired: ExpiredConfig::default(),
            rate_limit: Rate {
                count: 100,
                per: Duration::from_secs(1),
                burst: 200,
            },
            bulkhead: BulkheadConfig {
                queue: Some(QueueConfig::default()),
                ..BulkheadConfig::new(200)
            },
            retry: RetryConfig::default(),
            breaker: BreakerConfig {
                failure_rate: Ratio::percent(50),
                ..BreakerConfig::default()
            },
            outlier: OutlierConfig::default(),
        }
    }
}

/// What protects the proxy from its callers: once a request.
pub(crate) struct Door {
    pub(crate) shedder: Shedder,
    pub(crate) expired: ExpiredFilter,
    pub(crate) rate: Rate,
    pub(crate) rates: KeyedRateLimit<IpAddr>,
    pub(crate) rate_name: PolicyName,
    pub(crate) bulkhead: Bulkhead,
}

impl Door {
    pub(crate) fn new(policies: &Policies) -> Result<Self, PolicyError> {
        Ok(Self {
            shedder: Shedder::new(policies.shed.clone())?,
            expired: ExpiredFilter::new(policies.expired.clone())?,
            rate: policies.rate_limit,
            rates: KeyedRateLimit::new(KeyedRateLimitConfig {
                rate: policies.rate_limit,
                keys: KeyedConfig::default(),
            })?,
            rate_name: PolicyName::new("caller")?,
            bulkhead: Bulkhead::with_config(&policies.bulkhead)?,
        })
    }
}

/// What protects one upstream and those who wait for it: once a try. A breaker and a budget for the
/// upstream as a whole, and among its endpoints a balancer that leaves out the bad ones.
pub(crate) struct Upstream {
    pub(crate) prefix: String,
    pub(crate) breaker: CircuitBreaker,
    pub(crate) budget: Budget,
    pub(crate) balancer: Balancer<SocketAddr>,
}

impl Upstream {
    pub(crate) fn new(
        route: Route,
        policies: &Policies,
        now: Instant,
    ) -> Result<Self, PolicyError> {
        let breaker = CircuitBreaker::builder(policies.breaker.clone())
            .name(route.prefix.clone())
            .build()?;
        let balancer = Balancer::new(
            BalanceConfig::default(),
            policies.outlier.clone(),
            Rng::from_entropy(),
        )?;
        balancer.set_members(route.endpoints.into_iter().map(Member::new), now);
        policies.retry.validate()?;
        Ok(Self {
            prefix: route.prefix,
            breaker,
            budget: policies.retry.new_budget()?,
            balancer,
        })
    }

    /// The one whose prefix fits `path` and is the longest.
    pub(crate) fn find<'a>(all: &'a [Arc<Self>], path: &str) -> Option<&'a Arc<Self>> {
        let fits = |it: &&Arc<Self>| {
            let rest = path.strip_prefix(it.prefix.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        all.iter().filter(fits).max_by_key(|it| it.prefix.len())
    }
}

/// `/prefix=address,address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) prefix: String,
    pub(crate) endpoints: Vec<SocketAddr>,
}

impl FromStr for Route {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let form = || format!("{text:?} is no upstream: write it as /prefix=address,address");
        let (prefix, endpoints) = text
            .split_once('=')
            .ok_or_else(|| anyhow::anyhow!(form()))?;
        anyhow::ensure!(prefix.starts_with('/'), form());
        let endpoints = endpoints.split(',').map(str::parse);
        Ok(Self {
            prefix: prefix.to_owned(),
            endpoints: endpoints
                .collect::<Result<_, _>>()
                .map_err(|error| anyhow::anyhow!("{}: {error}", form()))?,
        })
    }
}
