//! The mesh's way to the app: whatever comes to the mesh port goes to it.

use std::sync::Arc;

use http::request::Parts;
use selvedge_proxy::{
    Admitted, Destination, Door, Limits, ProxyMetrics, Refusal, Route, Routed, Rules,
};
use selvedge_registry::{
    Endpoint, InstanceId,
    client::{Discovery, RegistryClient, StaticDiscovery},
};
use selvedge_resilience::config::PolicyError;

use crate::config::Service;

/// The mesh port.
#[derive(Debug)]
pub(crate) struct Inbound {
    app: Arc<Destination>,
    route: Arc<Route>,
    rules: Rules,
}

impl Inbound {
    /// Needs a tokio runtime, as every destination does.
    pub(crate) fn new(
        service: &Service,
        id: InstanceId,
        registry: Option<&RegistryClient>,
        metrics: &ProxyMetrics,
    ) -> Result<Self, PolicyError> {
        let written = &service.file;
        let name = written.name.clone();
        let app = Endpoint {
            id,
            addr: written.app,
            incarnation: 0,
            weight: 1,
            protocol: written.protocol,
            locality: written.locality.clone(),
        };
        let watch = StaticDiscovery::new([(name.clone(), vec![app])]).watch(&name);
        let policy = service.policy.clone();
        let app = Destination::new(
            name.clone(),
            policy.clone(),
            watch,
            &written.locality,
            &metrics.for_app(),
        )?;
        // What is written down here counts; else what the app takes on is what is published.
        if let (None, Some(registry)) = (&written.policy, registry) {
            app.follow_inbound(registry.policy(&name), policy)?;
        }
        Ok(Self {
            app,
            route: Arc::new(Route {
                name: "inbound".into(),
                metrics: metrics.route("inbound"),
            }),
            rules: Rules {
                limits: Limits {
                    // Source: Envoy and linkerd for traffic within a mesh; the edge has cut the rest.
                    head: 16 << 10,
                    ..Limits::default()
                },
                // Whoever reaches this port is of the mesh; its edge has dealt with strangers.
                believe_priority: true,
                ..Rules::default()
            },
        })
    }

    pub(crate) fn app(&self) -> &Destination {
        &self.app
    }
}

impl Door for Inbound {
    fn route(&self, _: &Admitted, _: &Parts) -> Result<Routed, Refusal> {
        Ok(Routed {
            route: Arc::clone(&self.route),
            destination: Arc::clone(&self.app),
            path: None,
            timeout: None,
        })
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn guard(&self, _: &Routed) -> Option<selvedge_resilience::layer::Inbound> {
        // The stack before the app refuses what has expired; there is nothing else to ask then.
        let inbound = self.app.inbound();
        (!inbound.takes_all()).then(|| inbound.clone())
    }
}
