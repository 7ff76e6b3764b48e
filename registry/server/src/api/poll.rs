//! Long polls: the answer comes when there is something new, or when the time is over.
//!
//! For those who cannot hold an event stream: a shell script, a proxy that buffers.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use selvedge_registry::{
    Revision, ServiceName,
    api::{Changes, DEFAULT_POLICY, MAX_WAIT_SECONDS},
};
use selvedge_resilience::config::Millis;

use super::{Api, query::Pairs, refusal::Refusal};
use crate::catalogue::Catalogue;

/// `?wait=30s&index=REV`
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    limit: Duration,
    /// The state that the client has.
    index: Option<Revision>,
}

impl Wait {
    pub(super) fn parse(pairs: &mut Pairs) -> Result<Option<Self>, Refusal> {
        let most = Duration::from_secs(MAX_WAIT_SECONDS);
        let limit = match pairs.one("wait")? {
            None => None,
            Some(text) => {
                let parsed: Option<Millis> = text.parse().ok();
                let limit = parsed.filter(|limit| limit.0 <= most);
                Some(limit.ok_or_else(|| {
                    let text: String = text.chars().take(40).collect();
                    Refusal::bad(format!(
                        "wait={text}: allowed are \"0s\" to \"{MAX_WAIT_SECONDS}s\""
                    ))
                })?)
            }
        };
        let index = match pairs.one("index")? {
            None => None,
            Some(text) => Some(text.parse().map_err(|()| {
                let text: String = text.chars().take(80).collect();
                Refusal::bad(format!(
                    "index={text}: expected a revision that an answer carried"
                ))
            })?),
        };
        match (limit, index) {
            (Some(limit), index) => Ok(Some(Self {
                limit: limit.0,
                index,
            })),
            (None, None) => Ok(None),
            // What has changed, without waiting for it.
            (None, index) => Ok(Some(Self {
                limit: Duration::ZERO,
                index,
            })),
        }
    }

    /// Resolves when one of `names` (none: any service) is in a later state than the client's, or
    /// with the end of the time; at once if the client has none. Cancel-safe.
    pub(super) async fn for_change(
        &self,
        api: &Arc<Api>,
        names: &[ServiceName],
        policies: bool,
    ) -> Result<(), Refusal> {
        let Some(index) = self.index else {
            return Ok(());
        };
        let changed = |catalogue: &Catalogue| has_changed(catalogue, names, index, policies);
        if !names.is_empty() {
            return self.until(api, names, policies, changed).await;
        }
        let any = async {
            let mut all = api.shared.hub.subscribe();
            if !changed(&api.shared.catalogue()) {
                let _changed_or_lagged = all.recv().await;
            }
        };
        self.at_most(api, any).await
    }

    /// Resolves when `name` is in a later state than the client's; if the client has none, when
    /// there is something to answer. Or with the end of the time. Cancel-safe.
    pub(super) async fn for_service(
        &self,
        api: &Arc<Api>,
        name: &ServiceName,
        has_answer: impl Fn(&Catalogue) -> bool,
    ) -> Result<(), Refusal> {
        let names = std::slice::from_ref(name);
        match self.index {
            Some(_) => self.for_change(api, names, false).await,
            None => self.until(api, names, false, has_answer).await,
        }
    }

    /// Until `so`, which is asked again with each change of `names`.
    async fn until(
        &self,
        api: &Arc<Api>,
        names: &[ServiceName],
        policies: bool,
        so: impl Fn(&Catalogue) -> bool,
    ) -> Result<(), Refusal> {
        let default = ServiceName::new(DEFAULT_POLICY).ok().filter(|_| policies);
        let mut watching = api.shared.hub.watch(names.iter().cloned().chain(default));
        let waiting = async {
            while !so(&api.shared.catalogue()) {
                let _changed_or_lagged = watching.recv().await;
            }
        };
        self.at_most(api, waiting).await
    }

    /// Waits for no longer than the client, and in one of the places that there are.
    async fn at_most(
        &self,
        api: &Arc<Api>,
        waiting: impl Future<Output = ()>,
    ) -> Result<(), Refusal> {
        let _place = Arc::clone(&api.watches)
            .try_acquire_owned()
            .map_err(|_| Refusal::full("watches", api.limits.watches))?;
        tokio::select! {
            _ = tokio::time::timeout(self.limit, waiting) => Ok(()),
            () = api.stopped() => Err(Refusal::not_ready()),
        }
    }
}

/// Whether the client's state is of another server, or older.
fn has_changed(
    catalogue: &Catalogue,
    names: &[ServiceName],
    index: Revision,
    policies: bool,
) -> bool {
    let now = catalogue.revision();
    if index.epoch != now.epoch || index.counter > now.counter {
        return true;
    }
    if names.is_empty() {
        return now.counter > index.counter;
    }
    let changed = |name: &ServiceName| catalogue.changed_since(name, index.counter);
    names.iter().any(changed) || policies && catalogue.policies_changed_since(index.counter)
}

/// The answer of a long poll on a watch.
pub(super) async fn changes(
    api: &Arc<Api>,
    names: Vec<ServiceName>,
    wait: Wait,
) -> Result<Response, Refusal> {
    wait.for_change(api, &names, true).await?;
    let catalogue = api.shared.catalogue();
    let now = catalogue.revision();
    let resumed = wait
        .index
        .filter(|index| index.epoch == now.epoch && index.counter <= now.counter);
    let mut policies: Vec<_> = catalogue.policies().cloned().collect();
    let all = names.is_empty();
    if !all {
        policies.retain(|p| names.contains(&p.service) || p.service.as_str() == DEFAULT_POLICY);
    }
    let names = if all { catalogue.names() } else { names };
    let changed = |name: &&ServiceName| {
        resumed.is_none_or(|index| catalogue.changed_since(name, index.counter))
    };
    let services = names
        .iter()
        .filter(changed)
        .map(|name| catalogue.service(name));
    let changes = Changes {
        revision: now,
        full: resumed.is_none(),
        services: services.collect(),
        policies,
    };
    Ok(Json(changes).into_response())
}
