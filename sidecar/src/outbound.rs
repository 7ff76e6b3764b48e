//! The app's way into the mesh: a request whose `Host` is a service's name goes to that service.
//!
//! Destinations come into being with the first request for them and go when nobody has asked for
//! long: an app calls a handful of services, but a wrong one may ask for a million names.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{StatusCode, request::Parts};
use parking_lot::Mutex;
use selvedge_proxy::{
    Admitted, Destination, Door, Limits, ProxyMetrics, Refusal, Route, Routed, Rules,
};
use selvedge_registry::{Locality, ServiceName, client::Discovery};
use tokio::{runtime::Handle, time::Instant};

use crate::config::Policies;

/// Services at once. A guess: ten times what one app is known to call.
const MOST: usize = 1_024;
/// Unused for as long, a destination goes. A guess between linkerd's 5 s and a deployment's length:
/// circuits and verdicts should survive a pause.
const UNUSED: Duration = Duration::from_mins(10);

/// The app's port to the mesh.
pub(crate) struct Outbound {
    discovery: Arc<dyn Discovery>,
    policies: Policies,
    /// Where this sidecar and its app run.
    home: Locality,
    metrics: ProxyMetrics,
    /// Where destinations follow discovery.
    runtime: Handle,
    known: ArcSwap<HashMap<Box<str>, Arc<Known>>>,
    /// Held while `known` is replaced.
    changing: Mutex<()>,
    start: Instant,
    rules: Rules,
}

struct Known {
    destination: Arc<Destination>,
    route: Arc<Route>,
    /// Seconds after `start`.
    used: AtomicU64,
}

impl Outbound {
    /// On the runtime that `new` is called in, destinations follow discovery.
    pub(crate) fn new(
        discovery: Arc<dyn Discovery>,
        policies: Policies,
        home: Locality,
        metrics: ProxyMetrics,
    ) -> Self {
        let outbound = Self {
            discovery,
            policies,
            home,
            metrics,
            runtime: Handle::current(),
            known: ArcSwap::default(),
            changing: Mutex::new(()),
            start: Instant::now(),
            rules: Rules {
                limits: Limits {
                    any_target: true,
                    ..Limits::default()
                },
                // The app's own word.
                believe_priority: true,
                ..Rules::default()
            },
        };
        // What is named in the configuration will be called: know where it is by then.
        let named: Vec<_> = outbound.policies.named.keys().cloned().collect();
        for name in named {
            let _known_or_full = outbound.learn(name.as_str());
        }
        outbound
    }

    /// Every destination's state, as `/clusters` shows it.
    pub(crate) fn status(&self) -> Vec<serde_json::Value> {
        let known = self.known.load();
        let mut all: Vec<_> = known.values().map(|known| &known.destination).collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all.iter().map(|destination| destination.status()).collect()
    }

    /// Lets go of what nobody has used for long.
    pub(crate) fn tidy(&self) {
        let now = self.start.elapsed().as_secs();
        let stale = |known: &Known| {
            let named = self.policies.named.contains_key(known.destination.name());
            !named && now.saturating_sub(known.used.load(Ordering::Relaxed)) > UNUSED.as_secs()
        };
        if self.known.load().values().any(|known| stale(known)) {
            let _alone = self.changing.lock();
            let mut known = HashMap::clone(&self.known.load());
            known.retain(|_, known| !stale(known));
            self.known.store(Arc::new(known));
        }
    }

    fn learn(&self, name: &str) -> Result<Arc<Known>, Refusal> {
        let service = ServiceName::new(name).map_err(|_| {
            Refusal::not_found("the request's host is not the name of a service of this mesh")
        })?;
        let _alone = self.changing.lock();
        let before = self.known.load();
        if let Some(known) = before.get(name) {
            return Ok(Arc::clone(known));
        }
        if before.len() >= MOST {
            let title = "this sidecar knows as many services as it may";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Refusal {
                retry_after: Some(UNUSED),
                ..Refusal::new(status, "too-many-services", title)
            });
        }
        let _follows_there = self.runtime.enter();
        let policy = self.policies.of(&service);
        let own = self.policies.named.contains_key(&service);
        let published = (!own).then(|| self.discovery.policy(&service));
        let watch = self.discovery.watch(&service);
        let destination =
            Destination::new(service, policy.clone(), watch, &self.home, &self.metrics)
                .expect("policies were validated with the configuration");
        // What is written down for the service counts; else what is published; else the default.
        if let Some(published) = published {
            destination
                .follow_policy(published, policy)
                .expect("policies were validated with the configuration");
        }
        let known = Arc::new(Known {
            destination,
            route: Arc::new(Route {
                name: format!("outbound {name}").into(),
                metrics: self.metrics.route("outbound"),
            }),
            used: AtomicU64::new(self.start.elapsed().as_secs()),
        });
        let mut all = HashMap::clone(&before);
        all.insert(name.into(), Arc::clone(&known));
        self.known.store(Arc::new(all));
        Ok(known)
    }
}

impl Door for Outbound {
    fn route(&self, admitted: &Admitted, _: &Parts) -> Result<Routed, Refusal> {
        let host = &*admitted.host;
        let name = host.strip_suffix(".mesh").unwrap_or(host);
        let known = self.known.load().get(name).map(Arc::clone);
        let known = match known {
            Some(known) => known,
            None => self.learn(name)?,
        };
        known
            .used
            .store(self.start.elapsed().as_secs(), Ordering::Relaxed);
        Ok(Routed {
            route: Arc::clone(&known.route),
            destination: Arc::clone(&known.destination),
            path: None,
            timeout: None,
        })
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }
}
