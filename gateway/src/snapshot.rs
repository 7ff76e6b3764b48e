//! Everything that a request needs to know, as one value that is swapped and never changed.
//!
//! A reload that took effect piece by piece would route a request by half of the old file and half
//! of the new one. So routes and destinations are built beside those in use and swapped in one
//! store; destinations are carried over by name, with their circuits, budgets and verdicts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{HeaderMap, Method};
use selvedge_proxy::{Destination, Listed, ProxyMetrics, Route};
use selvedge_registry::{
    ServiceName,
    client::{Discovery, RegistryClient, ServiceWatch, StaticDiscovery},
};
use selvedge_resilience::{config::PolicyError, layer::Inbound};

use crate::{
    config::{Config, Rewrite, Service},
    routing::RouteTable,
};

/// Routes and destinations of one configuration.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    table: RouteTable,
    /// By the table's index.
    ways: Vec<Way>,
    pub(crate) destinations: BTreeMap<ServiceName, Arc<Destination>>,
    /// What listeners take on, by name.
    inbound: BTreeMap<String, (Inbound, Arc<Listed>)>,
}

/// What becomes of a request that a rule matched.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) route: Arc<Route>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) rewrite: Option<Rewrite>,
}

impl Snapshot {
    /// The snapshot that `config` describes; what `before` knows of a service is kept.
    ///
    /// Needs a tokio runtime: destinations follow discovery on it.
    ///
    /// # Errors
    /// [`PolicyError`], never for a configuration that was built: its policies are valid.
    pub(crate) fn build(
        config: &mut Config,
        before: &Self,
        registry: Option<&RegistryClient>,
        metrics: &ProxyMetrics,
    ) -> Result<Self, PolicyError> {
        let mut destinations = BTreeMap::new();
        for service in &config.services {
            let watch = watch(service, registry);
            let destination = if let Some(kept) = before.destinations.get(&service.name) {
                kept.follow(watch);
                Arc::clone(kept)
            } else {
                let name = service.name.clone();
                Destination::new(
                    name,
                    service.policy.clone(),
                    watch,
                    &config.locality,
                    metrics,
                )?
            };
            policy(service, &destination, registry)?;
            destinations.insert(service.name.clone(), destination);
        }
        let mut inbound = BTreeMap::new();
        for (name, config) in &config.inbound {
            let taken = if let Some(kept) = before.inbound.get(name) {
                kept.0.reconfigure(config.clone())?;
                kept.clone()
            } else {
                let inbound =
                    Inbound::with_events(name.as_str(), config.clone(), metrics.listener_events())?;
                let listed = metrics.listener(name, &inbound);
                (inbound, listed)
            };
            inbound.insert(name.clone(), taken);
        }
        let ways = config.routes.iter().filter_map(|route| {
            let service = config.services.get(route.service)?;
            Some(Way {
                route: Arc::new(Route {
                    name: Arc::clone(&route.name),
                    metrics: metrics.route(&route.name),
                }),
                destination: Arc::clone(destinations.get(&service.name)?),
                timeout: route.timeout,
                rewrite: route.rewrite.clone(),
            })
        });
        Ok(Self {
            ways: ways.collect(),
            table: std::mem::take(&mut config.table),
            destinations,
            inbound,
        })
    }

    /// What `listener` takes on; `None` if all.
    pub(crate) fn inbound(&self, listener: &str) -> Option<&Inbound> {
        self.inbound.get(listener).map(|(inbound, _)| inbound)
    }

    /// The way of a request, if there is one.
    pub(crate) fn find(
        &self,
        host: &str,
        path: &str,
        query: Option<&str>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Option<&Way> {
        let index = self.table.find(host, path, query, method, headers)?;
        self.ways.get(index)
    }

    /// Every destination's state, as `/clusters` shows it.
    pub(crate) fn clusters(&self) -> serde_json::Value {
        self.destinations.values().map(|to| to.status()).collect()
    }
}

/// What is written down here counts; else what is published; else the defaults.
fn policy(
    service: &Service,
    destination: &Destination,
    registry: Option<&RegistryClient>,
) -> Result<(), PolicyError> {
    match registry.filter(|_| service.published) {
        Some(registry) => {
            let published = registry.policy(&service.name);
            destination.follow_policy(published, service.policy.clone())
        }
        None => destination.keep_policy(service.policy.clone()),
    }
}

fn watch(service: &Service, registry: Option<&RegistryClient>) -> ServiceWatch {
    match (&service.endpoints, registry) {
        (None, Some(registry)) => registry.watch(&service.name),
        (endpoints, _) => {
            let endpoints = endpoints.clone().unwrap_or_default();
            StaticDiscovery::new([(service.name.clone(), endpoints)]).watch(&service.name)
        }
    }
}
