//! The v1 API: JSON over HTTP/1.1 and HTTP/2, as `selvedge_registry::wire` writes it down.

use std::{future::Future, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        DefaultBodyLimit, FromRequest, Path, RawQuery, Request, State, rejection::JsonRejection,
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use bytes::Bytes;
use futures_util::stream;
use selvedge_registry::{
    InstanceId, InstanceStatus, Revision, ServiceName,
    problem::{CONTENT_TYPE, Problem},
    wire::{HEARTBEAT, MAX_BODY, MAX_WATCHED, RegisterRequest, RenewRequest},
};
use serde::Deserialize;

use crate::{
    hub::{Lagged, Watching, event},
    replicate,
    server::{Origin, Refused, Shared},
};

type App = State<Arc<Shared>>;

/// Serves the API until `until` resolves; watches end with it.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    until: impl Future<Output = ()> + Send + 'static,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "registry API cannot listen");
            return;
        }
    };
    let served = axum::serve(listener, router(shared))
        .with_graceful_shutdown(until)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "registry API ended");
    }
}

/// Every path of the API.
pub fn router(shared: Arc<Shared>) -> Router {
    let instance = "/v1/services/{service}/instances/{id}";
    Router::new()
        .route("/v1/services", get(list))
        .route("/v1/services/{service}", get(service))
        .route(instance, put(register).delete(deregister).get(one))
        .route(&format!("{instance}/lease"), put(renew))
        .route(&format!("{instance}/status"), put(set_status))
        .route("/v1/members", get(members))
        .route("/v1/watch", get(watch))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .fallback(|| async {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "no-such-path",
                "there is no such path in the v1 API",
            )
        })
        .method_not_allowed_fallback(|| async {
            Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                "this path does not take this method",
            )
        })
        .with_state(Arc::clone(&shared))
        .merge(replicate::router(shared))
}

/// A refusal on its way out.
struct Refusal {
    // Boxed: most results carry none.
    problem: Box<Problem>,
    retry_after: Option<u32>,
}

impl Refusal {
    fn new(status: StatusCode, code: &str, title: &str) -> Self {
        Self {
            problem: Box::new(Problem::new(status, code, title)),
            retry_after: None,
        }
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.problem.detail = Some(detail.into());
        self
    }

    fn bad(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "the request cannot be understood",
        )
        .detail(detail)
    }

    fn unknown(service: &ServiceName, id: &InstanceId) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-instance",
            "the instance is not registered",
        )
        .detail(format!("{id} of {service}: register it (again)"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::BAD_REQUEST);
        let mut response = (
            status,
            [(header::CONTENT_TYPE, CONTENT_TYPE)],
            self.problem.to_json(),
        )
            .into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A JSON body whose errors are problems.
struct Document<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Document<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(document)) => Ok(Self(document)),
            Err(JsonRejection::BytesRejection(error))
                if error.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                let title = "the body is too large";
                Err(
                    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title)
                        .detail(format!("at most {MAX_BODY} bytes")),
                )
            }
            Err(JsonRejection::MissingJsonContentType(_)) => {
                let title = "the body must be JSON";
                Err(
                    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", title)
                        .detail("send content-type: application/json"),
                )
            }
            Err(error) => Err(Refusal::bad(error.body_text())),
        }
    }
}

/// The names in a path, checked.
fn names(service: &str, id: &str) -> Result<(ServiceName, InstanceId), Refusal> {
    let service = name(service)?;
    let id = InstanceId::new(id).map_err(|error| Refusal::bad(error.to_string()))?;
    Ok((service, id))
}

fn name(service: &str) -> Result<ServiceName, Refusal> {
    ServiceName::new(service).map_err(|error| Refusal::bad(error.to_string()))
}

/// A server that is catching up must not answer as if it knew everything.
fn serving(shared: &Shared) -> Result<(), Refusal> {
    if shared.is_serving() {
        return Ok(());
    }
    Err(not_ready())
}

fn not_ready() -> Refusal {
    let title = "this server is still fetching the catalogue, or leaves";
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", title);
    Refusal {
        retry_after: Some(1),
        ..refusal.detail("ask another server, or again in a second")
    }
}

async fn register(
    State(shared): App,
    Path((service, id)): Path<(String, String)>,
    Document(request): Document<RegisterRequest>,
) -> Result<Response, Refusal> {
    let (service, id) = names(&service, &id)?;
    request.validate().map_err(Refusal::bad)?;
    let record = shared.register(service.clone(), id.clone(), request, Origin::v1());
    let record = record.map_err(|refused| refusal(refused, &service, &id))?;
    Ok(Json(record).into_response())
}

fn refusal(refused: Refused, service: &ServiceName, id: &InstanceId) -> Refusal {
    match refused {
        Refused::Unknown => Refusal::unknown(service, id),
        Refused::Later { incarnation } => {
            let title = "a later life of this instance is registered";
            Refusal::new(StatusCode::CONFLICT, "later-incarnation", title).detail(format!(
                "its incarnation is {incarnation}: a new life needs a higher one"
            ))
        }
        Refused::Limit { what, limit } => {
            let title = "there is no room for it";
            Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "too-many", title)
                .detail(format!("at most {limit} {what}"))
        }
        Refused::NotServing => not_ready(),
    }
}

async fn renew(
    State(shared): App,
    Path((service, id)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let (service, id) = names(&service, &id)?;
    let request: RenewRequest = match body.len() {
        0 => RenewRequest::default(),
        _ => serde_json::from_slice(&body).map_err(|error| Refusal::bad(error.to_string()))?,
    };
    shared
        .renew(&service, &id, request.incarnation)
        .map(|_| StatusCode::NO_CONTENT)
        .map_err(|refused| refusal(refused, &service, &id))
}

async fn deregister(
    State(shared): App,
    Path((service, id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (service, id) = names(&service, &id)?;
    shared
        .deregister(&service, &id)
        .map(|()| StatusCode::NO_CONTENT)
        .map_err(|refused| refusal(refused, &service, &id))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusRequest {
    status: InstanceStatus,
}

async fn set_status(
    State(shared): App,
    Path((service, id)): Path<(String, String)>,
    Document(request): Document<StatusRequest>,
) -> Result<StatusCode, Refusal> {
    let (service, id) = names(&service, &id)?;
    shared
        .set_reported(&service, &id, request.status)
        .map(|_| StatusCode::NO_CONTENT)
        .map_err(|refused| refusal(refused, &service, &id))
}

async fn one(
    State(shared): App,
    Path((service, id)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let (service, id) = names(&service, &id)?;
    serving(&shared)?;
    let found = shared.read(|c| c.live(&service, &id));
    found
        .map(|i| Json(i).into_response())
        .ok_or_else(|| Refusal::unknown(&service, &id))
}

async fn list(State(shared): App) -> Result<Response, Refusal> {
    serving(&shared)?;
    Ok(Json(shared.read(crate::catalogue::Catalogue::list)).into_response())
}

async fn service(State(shared): App, Path(service): Path<String>) -> Result<Response, Refusal> {
    let service = name(&service)?;
    serving(&shared)?;
    let record = shared.read(|c| c.service(&service));
    if record.instances.is_empty() {
        let title = "no instance of this service is registered";
        return Err(
            Refusal::new(StatusCode::NOT_FOUND, "no-such-service", title)
                .detail(service.to_string()),
        );
    }
    Ok(Json(record).into_response())
}

async fn members(State(shared): App) -> Response {
    Json(shared.member_list()).into_response()
}

/// `?key=value&key=value`, as it stands: our names need no escapes.
fn query<'a>(raw: Option<&'a str>, key: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = raw
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    pairs
        .filter(move |(name, _)| *name == key)
        .map(|(_, value)| value)
}

async fn watch(
    State(shared): App,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let names = query(raw.as_deref(), "service")
        .map(name)
        .collect::<Result<Vec<_>, _>>()?;
    if !(1..=MAX_WATCHED).contains(&names.len()) {
        return Err(Refusal::bad(format!(
            "{} services named: a watch takes 1 to {MAX_WATCHED}",
            names.len()
        )));
    }
    let token = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .or_else(|| query(raw.as_deref(), "resume").next());
    let resume: Option<Revision> = match token {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|()| Refusal::bad(format!("{text:?} is not a resume token")))?,
        ),
    };
    serving(&shared)?;
    let changes = shared.hub.watch(names);
    let watch = Watch {
        shared,
        changes,
        seen: 0,
        resume,
        stage: Stage::Snapshots,
    };
    let body = Body::from_stream(stream::unfold(watch, |mut watch| async {
        let bytes = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), watch))
    }));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, body).into_response())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Snapshots,
    Deltas,
}

/// One client's watch.
struct Watch {
    shared: Arc<Shared>,
    changes: Watching,
    /// Changes up to this one are in what was sent.
    seen: u64,
    resume: Option<Revision>,
    stage: Stage,
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        if self.stage == Stage::Snapshots {
            self.stage = Stage::Deltas;
            return Some(self.snapshots());
        }
        let deadline = tokio::time::Instant::now() + HEARTBEAT;
        loop {
            match tokio::time::timeout_at(deadline, self.changes.recv()).await {
                Ok(Ok(change)) => {
                    if change.counter > self.seen {
                        self.seen = change.counter;
                        return Some(change.event.clone());
                    }
                }
                // Too slow: what is true now instead of what happened.
                Ok(Err(Lagged)) => return Some(self.snapshots()),
                Err(_) => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }

    /// Each service whole, but those that have not changed since the client last heard of them.
    fn snapshots(&mut self) -> Bytes {
        let resume = self.resume.take();
        let (now, records) = self.shared.read(|catalogue| {
            let now = catalogue.revision();
            let known = |name: &ServiceName| {
                resume.is_some_and(|token| {
                    token.epoch == now.epoch && !catalogue.changed_since(name, token.counter)
                })
            };
            let records: Vec<_> = self
                .changes
                .names()
                .iter()
                .filter(|name| !known(name))
                .map(|name| catalogue.service(name))
                .collect();
            (now, records)
        });
        self.seen = now.counter;
        // At once, so that the client knows that somebody is there.
        let mut text = b":\n\n".to_vec();
        for record in records {
            text.extend_from_slice(&event("snapshot", &now, &record));
        }
        text.into()
    }
}
