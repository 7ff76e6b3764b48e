//! Everybody who chooses between instances, asked whom they would choose.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::http_client::Asker;
use crate::process::{Process, State};

/// A process that balances: a gateway, a sidecar, a service with the layers inside.
#[derive(Debug, Clone)]
pub(crate) struct Balancer {
    pub(crate) owner: String,
    pub(crate) process: Arc<Process>,
    pub(crate) admin: SocketAddr,
    /// Whether it tells what its policies did, at `/events`: a gateway or a sidecar.
    pub(crate) tells: bool,
    /// Whom it calls, and how many of them there are.
    pub(crate) expects: Vec<(&'static str, usize)>,
}

/// How often a balancer is asked whether it has noticed.
const LOOK: Duration = Duration::from_millis(10);
/// After this it has not noticed: a lease has ended by then.
const GIVE_UP: Duration = Duration::from_secs(15);

impl Balancer {
    async fn destinations(&self, asker: &Asker) -> Option<Vec<Value>> {
        let answer = asker
            .get(self.admin, "/clusters", Duration::from_secs(1))
            .await;
        let mut json: Value = serde_json::from_slice(&answer.ok()?.1).ok()?;
        // A sidecar shows its two sides; the one towards the mesh is meant.
        if let Some(outbound) = json.get_mut("outbound") {
            json = outbound.take();
        }
        match json {
            Value::Array(list) => Some(list),
            _ => None,
        }
    }

    /// Whether it knows every instance that it calls.
    pub(crate) async fn is_complete(&self, asker: &Asker) -> bool {
        if self.expects.is_empty() {
            return true;
        }
        let Some(destinations) = self.destinations(asker).await else {
            return false;
        };
        self.expects.iter().all(|(service, count)| {
            let it = destinations.iter().find(|it| it["service"] == **service);
            let endpoints = it.and_then(|it| it["endpoints"].as_array());
            endpoints.is_some_and(|endpoints| endpoints.len() >= *count)
        })
    }

    /// Whether it would still send a call to `endpoint`; `None` if it did not say.
    async fn would_call(&self, asker: &Asker, endpoint: SocketAddr) -> Option<bool> {
        let destinations = self.destinations(asker).await?;
        let addr = endpoint.to_string();
        Some(destinations.iter().any(|destination| {
            let endpoints = destination["endpoints"].as_array();
            endpoints.into_iter().flatten().any(|it| {
                let ejected = it["ejected_for_ms"].as_u64().unwrap_or(0) > 0;
                it["addr"] == addr.as_str() && !ejected
            })
        }))
    }

    /// Retries that it has made towards all it calls.
    pub(crate) async fn retries(&self, asker: &Asker) -> u64 {
        let destinations = self.destinations(asker).await.unwrap_or_default();
        let made = destinations.iter();
        made.filter_map(|it| it["retry"]["made"].as_u64()).sum()
    }

    fn has_ended(&self) -> bool {
        self.process.state() != State::Running
    }
}

/// What came of a kill.
#[derive(Debug, Clone)]
pub(crate) struct Noticed {
    /// Until the last of them would not call it any more; `None` if one still would.
    pub(crate) after: Option<Duration>,
    /// How many had it among those they would call.
    pub(crate) balancers: usize,
    /// Who still would.
    pub(crate) late: Vec<String>,
}

/// Those among `balancers` that would call `endpoint` now.
pub(crate) async fn callers(balancers: &[Balancer], endpoint: SocketAddr) -> Vec<Balancer> {
    let asker = Asker::new();
    let mut found = Vec::new();
    for balancer in balancers {
        if balancer.would_call(&asker, endpoint).await == Some(true) {
            found.push(balancer.clone());
        }
    }
    found
}

/// Asks `callers` until none of them would call `endpoint`, which was killed at `since`.
pub(crate) async fn until_noticed(
    callers: Vec<Balancer>,
    endpoint: SocketAddr,
    since: Instant,
) -> Noticed {
    let asker = Asker::new();
    let mut left: BTreeSet<usize> = (0..callers.len()).collect();
    let mut after = Duration::ZERO;
    while !left.is_empty() && since.elapsed() < GIVE_UP {
        for n in left.clone() {
            let balancer = &callers[n];
            let out =
                balancer.has_ended() || balancer.would_call(&asker, endpoint).await == Some(false);
            if out {
                left.remove(&n);
                after = since.elapsed();
            }
        }
        if !left.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    }
    Noticed {
        after: left.is_empty().then_some(after),
        balancers: callers.len(),
        late: left.iter().map(|n| callers[*n].owner.clone()).collect(),
    }
}
