//! A service as callers see it: its policies, its endpoints, their state.
//!
//! Snapshots come down (a task follows discovery and tells the balancer), outcomes go up (permits
//! in each answer's body). A route that is edited, or a door that is rebuilt, keeps its
//! destinations, and so circuits, budgets and verdicts survive.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use selvedge_registry::{Locality, ServiceName, client::ServiceWatch};
use selvedge_resilience::{
    TrafficPolicy,
    balance::{self, EndpointStatus, HashOn, Member, stable_hash},
    config::PolicyError,
    layer::{self, Stack},
};
use tokio::task::AbortHandle;

use crate::{ProxyMetrics, UpstreamKey, metrics::ClientMetrics};

/// What an answer's body holds of the call it belongs to.
pub(crate) type Held = layer::Held<UpstreamKey>;

/// A service that requests can be sent to.
#[derive(Debug)]
pub struct Destination {
    name: ServiceName,
    stack: Stack<UpstreamKey>,
    metrics: ClientMetrics,
    source: Mutex<Source>,
    /// Whether anybody has ever said where it is: asked on every request.
    heard: AtomicBool,
}

/// Where the endpoints come from.
#[derive(Debug)]
struct Source {
    watch: ServiceWatch,
    follower: AbortHandle,
}

impl Source {
    fn follow(stack: &Stack<UpstreamKey>, watch: ServiceWatch) -> Self {
        take_endpoints(stack, &watch);
        let follower = tokio::spawn(follow(stack.clone(), watch.clone())).abort_handle();
        Self { watch, follower }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Destination {
    /// A destination that follows `watch` until it is dropped.
    ///
    /// # Errors
    /// [`PolicyError`] if the policy cannot work.
    ///
    /// # Panics
    /// Outside a tokio runtime: the task that follows runs on the current one.
    pub fn new(
        name: ServiceName,
        policy: TrafficPolicy,
        watch: ServiceWatch,
        metrics: &ProxyMetrics,
    ) -> Result<Arc<Self>, PolicyError> {
        let stack = Stack::new(policy)?;
        let source = Mutex::new(Source::follow(&stack, watch));
        let metrics = metrics.destination(name.as_str());
        Ok(Arc::new(Self {
            name,
            stack,
            metrics,
            source,
            heard: AtomicBool::new(false),
        }))
    }

    /// Follows another source from now on. What is known of endpoints that stay is kept.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`new`](Self::new).
    pub fn follow(&self, watch: ServiceWatch) {
        *self.source.lock() = Source::follow(&self.stack, watch);
    }

    /// Takes a new policy at once; circuit, budget, limits and verdicts keep their state.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, policy: TrafficPolicy) -> Result<(), PolicyError> {
        self.stack.reconfigure(policy)
    }

    /// The service's name.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Whether anybody has said yet where it is.
    pub fn is_synced(&self) -> bool {
        self.source.lock().watch.current().synced
    }

    /// The policies and their state.
    pub fn stack(&self) -> &Stack<UpstreamKey> {
        &self.stack
    }

    /// Waits for discovery's first word, as long as a connection may take: the first request to a
    /// service, or after a start, is not refused for being early. Cancel-safe.
    pub(crate) async fn heard_of(&self) {
        if self.heard.load(Ordering::Relaxed) {
            return;
        }
        let mut watch = self.source.lock().watch.clone();
        let word = tokio::time::timeout(self.connect_timeout(), watch.synced()).await;
        if word.is_ok() {
            take_endpoints(&self.stack, &watch);
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// How long a new connection may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.stack.with_policy(|policy| policy.timeouts.connect.0)
    }

    /// Whether a client's address decides which endpoint it gets.
    pub(crate) fn places_by_source(&self) -> bool {
        self.stack
            .with_policy(|policy| policy.balance.hash_on == Some(HashOn::Source))
    }

    pub(crate) fn metrics(&self) -> &ClientMetrics {
        &self.metrics
    }

    /// State and counters for an operator, as `/clusters` shows them.
    pub fn status(&self) -> serde_json::Value {
        let status = self.stack.status();
        let breaker = status.breaker.map(|breaker| {
            serde_json::json!({
                "state": format!("{:?}", breaker.state).to_lowercase(),
                "probes_in_ms": millis(breaker.open_for),
                "opened": breaker.opened,
                "rejected": breaker.rejected,
            })
        });
        let bulkhead = status.bulkhead.map(|slots| {
            serde_json::json!({
                "in_flight": slots.in_flight,
                "limit": slots.limit,
                "waiting": slots.waiting,
                "newest_first": slots.newest_first,
                "refused": slots.full + slots.queue_full + slots.queue_timeout,
            })
        });
        let concurrency = status.concurrency.map(|slots| {
            serde_json::json!({
                "in_flight": slots.in_flight,
                "limit": slots.limit,
                "waiting": slots.waiting,
                "dropped": slots.dropped,
                "refused": slots.full + slots.queue_full + slots.queue_timeout,
            })
        });
        let rate_limit = status.rate_limit.map(|rate| {
            serde_json::json!({ "remaining": rate.remaining, "reset_ms": millis(rate.reset) })
        });
        serde_json::json!({
            "service": self.name,
            "synced": self.is_synced(),
            "breaker": breaker,
            "bulkhead": bulkhead,
            "concurrency": concurrency,
            "rate_limit": rate_limit,
            "throttle": status.throttle,
            "retry": {
                "balance": status.retry_balance,
                "made": status.retries.0,
                "refused": status.retries.1,
            },
            "ejections": { "made": status.ejections.0, "not_allowed": status.ejections.1 },
            "endpoints": status.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }
}

fn endpoint(status: &EndpointStatus<UpstreamKey>) -> serde_json::Value {
    serde_json::json!({
        "addr": status.key.addr,
        "incarnation": status.key.incarnation,
        "protocol": status.key.protocol,
        "state": status.state.as_str(),
        "region": status.locality.region,
        "zone": status.locality.zone,
        "weight": status.weight,
        "weight_now": status.weight_now,
        "in_flight": status.pending,
        "cost_ms": status.cost.as_secs_f64() * 1e3,
        "ejected_for_ms": millis(status.ejected_for),
        "ejections": status.ejections,
        "succeeded": status.succeeded,
        "failed": status.failed,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn follow(stack: Stack<UpstreamKey>, mut watch: ServiceWatch) {
    loop {
        take_endpoints(&stack, &watch);
        watch.changed().await;
    }
}

fn take_endpoints(stack: &Stack<UpstreamKey>, watch: &ServiceWatch) {
    let known = watch.current();
    stack.set_members(known.endpoints.iter().map(|endpoint| {
        let Locality { region, zone } = endpoint.locality.clone();
        Member::new(UpstreamKey {
            addr: endpoint.addr,
            incarnation: endpoint.incarnation,
            protocol: endpoint.protocol,
        })
        .weight(endpoint.weight)
        .locality(balance::Locality { region, zone })
        .placed(stable_hash(endpoint.id.as_str()))
    }));
}
