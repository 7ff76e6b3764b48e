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
use selvedge_registry::{
    Locality, ServiceName,
    client::{PolicyWatch, ServiceWatch},
};
use selvedge_resilience::{
    TrafficPolicy,
    balance::{self, EndpointStatus, HashOn, Member, stable_hash},
    config::PolicyError,
    layer::{self, Inbound, Stack},
};
use tokio::task::AbortHandle;

use crate::{ProxyMetrics, UpstreamKey, metrics::ClientMetrics};

/// What an answer's body holds of the call it belongs to.
pub(crate) type Held = Box<layer::Held<UpstreamKey>>;

/// A service that requests can be sent to.
#[derive(Debug)]
pub struct Destination {
    name: ServiceName,
    enforced: Enforced,
    metrics: Arc<ClientMetrics>,
    source: Mutex<Source>,
    published: Mutex<Option<Published>>,
    /// Whether anybody has ever said where it is: asked on every request.
    heard: AtomicBool,
}

/// One policy, in its two halves: how the service is called, and what it takes on.
#[derive(Debug, Clone)]
struct Enforced {
    stack: Stack<UpstreamKey>,
    inbound: Inbound,
}

impl Enforced {
    fn new(name: &str, policy: TrafficPolicy, metrics: &ProxyMetrics) -> Result<Self, PolicyError> {
        let inbound = policy.inbound.clone();
        Ok(Self {
            // Elsewhere than before the app nobody asks it, and it has nothing to tell.
            inbound: if metrics.is_for_app() {
                Inbound::with_events(name, inbound, metrics.server_events())?
            } else {
                Inbound::named(name, inbound)?
            },
            stack: Stack::<UpstreamKey>::builder(policy)
                .name(name)
                .events(metrics.destination_events())
                .label(|key| key.addr.to_string())
                .build()?,
        })
    }

    /// Both or none: the stack looks at the whole policy first.
    fn reconfigure(&self, policy: TrafficPolicy) -> Result<(), PolicyError> {
        let inbound = policy.inbound.clone();
        self.stack.reconfigure(policy)?;
        self.inbound.reconfigure(inbound)
    }
}

/// What of a published policy is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Both,
    Inbound,
}

/// Puts what is published in force.
struct Following {
    enforced: Enforced,
    name: ServiceName,
    half: Half,
    watch: PolicyWatch,
    /// While nothing is published.
    otherwise: TrafficPolicy,
}

impl Following {
    async fn for_ever(mut self) {
        loop {
            self.watch.changed().await;
            self.take();
        }
    }

    fn take(&self) {
        let published = self.watch.current();
        let policy = match (&published, self.half) {
            (None, _) => self.otherwise.clone(),
            (Some(published), Half::Both) => published.policy.clone(),
            (Some(published), Half::Inbound) => TrafficPolicy {
                inbound: published.policy.inbound.clone(),
                ..self.otherwise.clone()
            },
        };
        let (name, enforced) = (&self.name, &self.enforced);
        if enforced.stack.with_policy(|now| *now == policy) {
            return;
        }
        let version = published.as_ref().map(|published| published.version);
        match enforced.reconfigure(policy) {
            Ok(()) => tracing::info!(service = %name, version, "policy taken"),
            // Both were validated; a newer version of ours may know better than the one that did.
            Err(error) => {
                tracing::error!(service = %name, version, %error, "policy refused, the old one stays")
            }
        }
    }
}

/// A policy that somebody else decides on.
#[derive(Debug)]
struct Published {
    watch: PolicyWatch,
    follower: AbortHandle,
}

impl Drop for Published {
    fn drop(&mut self) {
        self.follower.abort();
    }
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
    /// A destination that follows `watch` until it is dropped, called from `home`: what the policy's
    /// `locality` starts from.
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
        home: &Locality,
        metrics: &ProxyMetrics,
    ) -> Result<Arc<Self>, PolicyError> {
        let enforced = Enforced::new(name.as_str(), policy, metrics)?;
        enforced.stack.set_locality(balanced(home));
        let source = Mutex::new(Source::follow(&enforced.stack, watch));
        let destination = Arc::new(Self {
            metrics: metrics.client(name.as_str()),
            name,
            enforced,
            source,
            published: Mutex::new(None),
            heard: AtomicBool::new(false),
        });
        metrics.show(&destination);
        Ok(destination)
    }

    /// Follows another source from now on. What is known of endpoints that stay is kept.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`new`](Self::new).
    pub fn follow(&self, watch: ServiceWatch) {
        *self.source.lock() = Source::follow(&self.enforced.stack, watch);
    }

    /// Takes a new policy at once; circuit, budget, limits and verdicts keep their state.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, policy: TrafficPolicy) -> Result<(), PolicyError> {
        self.enforced.reconfigure(policy)
    }

    /// Follows the policy that is published for the service from now on; while there is none,
    /// `otherwise` is in force. Circuit, budget, limits and verdicts keep their state through every
    /// change.
    ///
    /// # Errors
    /// [`PolicyError`] if `otherwise` cannot work; nothing changes then.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`new`](Self::new).
    pub fn follow_policy(
        &self,
        watch: PolicyWatch,
        otherwise: TrafficPolicy,
    ) -> Result<(), PolicyError> {
        self.follow_half(Half::Both, watch, otherwise)
    }

    /// As [`follow_policy`](Self::follow_policy), of what is published for the service only what it
    /// takes on (`inbound`): for who stands right before it. How it is called is its callers'
    /// business, who follow the rest.
    ///
    /// # Errors
    /// [`PolicyError`] if `otherwise` cannot work; nothing changes then.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`new`](Self::new).
    pub fn follow_inbound(
        &self,
        watch: PolicyWatch,
        otherwise: TrafficPolicy,
    ) -> Result<(), PolicyError> {
        self.follow_half(Half::Inbound, watch, otherwise)
    }

    fn follow_half(
        &self,
        half: Half,
        watch: PolicyWatch,
        otherwise: TrafficPolicy,
    ) -> Result<(), PolicyError> {
        otherwise.validate()?;
        let following = Following {
            enforced: self.enforced.clone(),
            name: self.name.clone(),
            half,
            watch: watch.clone(),
            otherwise,
        };
        following.take();
        let follower = tokio::spawn(following.for_ever()).abort_handle();
        *self.published.lock() = Some(Published { watch, follower });
        Ok(())
    }

    /// Takes `policy`, whatever is published from now on.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn keep_policy(&self, policy: TrafficPolicy) -> Result<(), PolicyError> {
        policy.validate()?;
        // First nobody may put another one in its place.
        *self.published.lock() = None;
        self.reconfigure(policy)
    }

    /// The service's name.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Whether anybody has said yet where it is.
    pub fn is_synced(&self) -> bool {
        self.source.lock().watch.current().synced
    }

    /// The limits of the service itself. Who stands right before it enforces them.
    pub fn inbound(&self) -> &Inbound {
        &self.enforced.inbound
    }

    /// The policies and their state.
    pub fn stack(&self) -> &Stack<UpstreamKey> {
        &self.enforced.stack
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
            take_endpoints(&self.enforced.stack, &watch);
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// How long a new connection may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.enforced
            .stack
            .with_policy(|policy| policy.timeouts.connect.0)
    }

    /// Whether a client's address decides which endpoint it gets.
    pub(crate) fn places_by_source(&self) -> bool {
        self.enforced
            .stack
            .with_policy(|policy| policy.balance.hash_on == Some(HashOn::Source))
    }

    pub(crate) fn metrics(&self) -> &ClientMetrics {
        &self.metrics
    }

    fn policy_source(&self) -> serde_json::Value {
        let published = self.published.lock();
        let published = published.as_ref().and_then(|p| p.watch.current());
        match published {
            Some(policy) => serde_json::json!({
                "from": "published",
                "document": policy.document,
                "version": policy.version,
            }),
            None => serde_json::json!({ "from": "configuration" }),
        }
    }

    /// State and counters for an operator, as `/clusters` shows them.
    pub fn status(&self) -> serde_json::Value {
        let status = self.enforced.stack.status();
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
            "policy": self.policy_source(),
            "breaker": breaker,
            "bulkhead": bulkhead,
            "concurrency": concurrency,
            "rate_limit": rate_limit,
            "throttle": status.throttle,
            "hedge": status.hedge.map(|hedge| serde_json::json!({
                "sent": hedge.sent, "won": hedge.won, "wasted": hedge.wasted,
            })),
            "fault": status.fault.map(|fault| serde_json::json!({
                "active": fault.active, "delayed": fault.delayed, "aborted": fault.aborted,
            })),
            "coalesce": status.coalesce.map(|calls| serde_json::json!({
                "in_flight": calls.in_flight,
                "waiting": calls.waiting,
                "leaders": calls.led,
                "followers": calls.followed,
                "answered": calls.answered,
            })),
            "retry": {
                "balance": status.budget.map(|budget| budget.balance),
                "made": status.budget.map_or(0, |budget| budget.made),
                "refused": status.budget.map_or(0, |budget| budget.rejected),
            },
            "ejections": { "made": status.ejections.made, "not_allowed": status.ejections.not_allowed },
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
        Member::new(UpstreamKey {
            addr: endpoint.addr,
            incarnation: endpoint.incarnation,
            protocol: endpoint.protocol,
        })
        .weight(endpoint.weight)
        .locality(balanced(&endpoint.locality))
        .placed(stable_hash(endpoint.id.as_str()))
    }));
}

/// The registry's word for a place in the balancer's.
fn balanced(locality: &Locality) -> balance::Locality {
    balance::Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
    }
}
