//! The v1 API: JSON over HTTP/1.1 and HTTP/2, in clear or over TLS, as `selvedge_registry::wire`
//! and `selvedge_registry::api` write it down.
//!
//! ```text
//! connection ─► serve ─► guard ─► instances · query · watch · poll · policies · regions
//!              TLS,      who,     each a thin layer over `Shared`
//!              limits    may, rate
//! ```
//!
//! Everything that is refused is a problem document. Every answer says how far it can be believed:
//! `X-Selvedge-Staleness` (milliseconds since this server last heard its peers; absent while it
//! hears them) and `X-Selvedge-Self-Preservation` (evictions are paused). `/v1/openapi.json`
//! describes it all, and is what the fuzzer of our tests goes by.

mod guard;
mod instances;
mod openapi;
pub(crate) mod patience;
mod policies;
mod poll;
mod query;
pub mod refusal;
mod regions;
mod serve;
mod streams;
mod watch;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequestParts, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request::Parts},
    middleware,
    routing::{get, patch, post, put},
};
use selvedge_registry::{
    api::{ServerState, ServerStatus},
    wire::{MAX_BODY, MemberList},
};
use tokio::sync::{Semaphore, watch as signal};

use self::refusal::Refusal;
use crate::{
    audit::Who,
    auth::Auth,
    config::RegistryConfig,
    limits::{LimitsConfig, PerClient},
    regions::Regions,
    replicate,
    server::Shared,
};

/// Bytes of a batch of leases: a thousand of the longest names.
pub(crate) const MAX_BATCH_BODY: usize = 512 << 10;

/// What the API's handlers share.
#[derive(Debug)]
pub struct Api {
    shared: Arc<Shared>,
    pub(crate) auth: Arc<Auth>,
    limits: LimitsConfig,
    per_client: Arc<PerClient>,
    watches: Arc<Semaphore>,
    regions: Arc<Regions>,
    locality: selvedge_registry::Locality,
    /// The server leaves: watches and long polls end.
    stop: signal::Receiver<bool>,
}

impl Api {
    /// Over `shared`, by a configuration that was validated.
    pub fn new(
        config: &RegistryConfig,
        shared: Arc<Shared>,
        regions: Arc<Regions>,
        stop: signal::Receiver<bool>,
    ) -> Self {
        Self {
            shared,
            auth: Arc::new(Auth::new(&config.auth)),
            limits: config.limits.clone(),
            per_client: Arc::new(PerClient::new(&config.limits)),
            watches: Arc::new(Semaphore::new(
                config.limits.watches.min(Semaphore::MAX_PERMITS),
            )),
            regions,
            locality: config.locality.clone(),
            stop,
        }
    }

    /// A server that is catching up must not answer as if it knew everything.
    fn serving(&self) -> Result<(), Refusal> {
        if self.shared.is_serving() {
            return Ok(());
        }
        Err(Refusal::not_ready())
    }

    /// How far this server can be believed.
    fn state(&self) -> ServerState {
        let preservation = self.shared.self_preservation();
        ServerState {
            self_preservation: preservation.active,
            reason: preservation.active.then(|| preservation.reason.clone()),
            staleness_ms: self.shared.staleness().map(millis),
        }
    }

    fn say_how_far_to_believe(&self, headers: &mut HeaderMap) {
        if let Some(staleness) = self.shared.staleness() {
            headers.insert(STALENESS, millis(staleness).into());
        }
        if self.shared.self_preservation().active {
            headers.insert(PRESERVATION, HeaderValue::from_static("true"));
        }
    }

    /// Resolves when the server leaves. Cancel-safe.
    async fn stopped(&self) {
        let mut stop = self.stop.clone();
        let _stopped_or_gone = stop.wait_for(|stop| *stop).await;
    }
}

const STALENESS: HeaderName = HeaderName::from_static("x-selvedge-staleness");
const PRESERVATION: HeaderName = HeaderName::from_static("x-selvedge-self-preservation");

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) addr: SocketAddr,
    /// The names on its certificate, if it showed one.
    pub(crate) names: Vec<String>,
}

type App = State<Arc<Api>>;

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        // The guard has put it there.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Refusal::new(status, "no-caller", "nobody has asked who this is")
        })
    }
}

/// Every path of the API, behind the guard, and the dialects beside it.
pub(crate) fn router(api: Arc<Api>, dialects: Router) -> Router {
    let instance = "/v1/services/{service}/instances/{id}";
    let v1 = Router::new()
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/status", get(status))
        .route("/v1/members", get(members))
        .route("/v1/drain", post(drain))
        .route("/v1/services", get(query::list))
        .route("/v1/services/{service}", get(query::service))
        .route("/v1/instances", get(query::instances))
        .route("/v1/catalog", get(query::catalog))
        .route(
            instance,
            put(instances::register)
                .delete(instances::deregister)
                .get(instances::one),
        )
        .route(&format!("{instance}/lease"), put(instances::renew))
        .route(&format!("{instance}/status"), put(instances::set_status))
        .route(
            &format!("{instance}/override"),
            put(instances::set_override).delete(instances::drop_override),
        )
        .route(&format!("{instance}/metadata"), patch(instances::metadata))
        .route(
            "/v1/leases",
            post(instances::renew_batch).layer(DefaultBodyLimit::max(MAX_BATCH_BODY)),
        )
        .route("/v1/watch", get(watch::watch))
        .route("/v1/policies", get(policies::list))
        .route(
            "/v1/policies/{service}",
            get(policies::one)
                .put(policies::put)
                .delete(policies::delete),
        )
        .route("/v1/policies/{service}/history", get(policies::history))
        .route("/v1/regions", get(regions::list))
        .route("/v1/regions/{region}", get(regions::one))
        .with_state(Arc::clone(&api))
        .merge(replicate::router(Arc::clone(&api.shared)))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .fallback(refusal::no_such_path);
    v1.merge(dialects)
        .layer(middleware::from_fn_with_state(api, guard::guard))
}

pub(crate) use self::serve::{Listener, serve};

async fn members(State(api): App) -> Json<MemberList> {
    Json(api.shared.member_list())
}

async fn status(State(api): App) -> Json<ServerStatus> {
    let catalogue = api.shared.catalogue();
    Json(ServerStatus {
        node: api.shared.node.to_string(),
        locality: api.locality.clone(),
        serving: api.shared.is_serving(),
        revision: catalogue.revision(),
        state: api.state(),
        instances: catalogue.len(),
        watches: api.shared.hub.watchers(),
        catalogue: Some(catalogue.digest()),
    })
}

/// The server hands its leases over and takes no new instance; the process stays, and answers
/// questions. Whether it is done shows in `/v1/members`: it owns nothing any more.
async fn drain(State(api): App, who: Who) -> StatusCode {
    api.shared.start_drain();
    who.wrote("drain", &api.shared.node, 202);
    StatusCode::ACCEPTED
}
