//! A listener's mind: from an admitted request to its route, by the snapshot of the moment.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::request::Parts;
use selvedge_proxy::{Admitted, Door, Limits, Refusal, Routed, Rules};

use selvedge_registry::node::cidr::Cidr;
use selvedge_resilience::layer::Inbound;

use crate::{config::Listener, seats::Seats, snapshot::Snapshot};

/// One listener. All workers share it, and with it the seats.
#[derive(Debug)]
pub(crate) struct ListenerDoor {
    pub(crate) name: String,
    pub(crate) seats: Arc<Seats>,
    pub(crate) trusted: Arc<[Cidr]>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    rules: Rules,
}

impl ListenerDoor {
    pub(crate) fn new(listener: &Listener, snapshot: Arc<ArcSwap<Snapshot>>) -> Self {
        let limits = &listener.limits;
        Self {
            name: listener.name.clone(),
            seats: Seats::new(limits.connections, limits.per_source),
            trusted: Arc::clone(&listener.trusted),
            snapshot,
            rules: Rules {
                limits: Limits {
                    head: limits.headers.as_usize(),
                    ..Limits::default()
                },
                body: limits.body.map(|body| body.as_usize() as u64),
                h2_streams: limits.h2_streams,
                idle_timeout: limits.idle.0,
                ..Rules::default()
            },
        }
    }
}

impl Door for ListenerDoor {
    fn route(&self, admitted: &Admitted, head: &Parts) -> Result<Routed, Refusal> {
        let snapshot = self.snapshot.load();
        let path = admitted.path(head);
        let found = snapshot.find(
            &admitted.host,
            path,
            head.uri.query(),
            &head.method,
            &head.headers,
        );
        let way = found.ok_or_else(|| {
            Refusal::not_found("no route of this gateway matches the request's host, path and rest")
        })?;
        Ok(Routed {
            route: Arc::clone(&way.route),
            destination: Arc::clone(&way.destination),
            path: way.rewrite.as_ref().map(|rewrite| rewrite.apply(path)),
            timeout: way.timeout,
        })
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn guard(&self, _: &Routed) -> Option<Inbound> {
        self.snapshot.load().inbound(&self.name).cloned()
    }
}
