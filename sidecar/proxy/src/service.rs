//! One request's way: admitted, routed, written anew, sent, answered.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use parking_lot::Mutex;
use selvedge_resilience::{
    Rng,
    balance::stable_hash,
    context::priority,
    layer::{Caller, Error, HashKey, Injected, RequestTimeout},
};

use crate::{
    AccessLog, Admitted, Destination, Door, ProxyMetrics,
    access_log::LogBuffer,
    admit::admit,
    body::{AnswerBody, RequestBody, ResponseBody},
    clock::Clock,
    door::{Refusal, Routed},
    error::{Failure, Head},
    exchange::{Exchange, Tries},
    headers::{self, Origin},
    pool::{Pool, TICK},
    tunnel::Tunnel,
    upstream::{Upstream, UpstreamError},
};

/// What a thread that carries requests keeps from one to the next: connections, log lines, chance.
///
/// Make one for each worker thread; it may be shared, but then threads wait for each other.
#[derive(Debug)]
pub struct Worker {
    pub(crate) node: &'static str,
    pub(crate) via: HeaderValue,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) log: Option<LogBuffer>,
    pub(crate) rng: Rng,
    pool: Arc<Pool>,
    ticking: AtomicBool,
}

impl Worker {
    /// A worker of `node` (such as "selvedge-gateway"), which is how `Via` and `Proxy-Status` name
    /// us to others.
    pub fn new(node: &'static str, metrics: ProxyMetrics, log: Option<&AccessLog>) -> Arc<Self> {
        let via = HeaderValue::try_from(format!("1.1 {node}"));
        Arc::new(Self {
            node,
            via: via.expect("a node's name is a token"),
            metrics,
            log: log.map(AccessLog::buffer),
            rng: Rng::from_entropy(),
            pool: Arc::default(),
            ticking: AtomicBool::new(false),
        })
    }

    /// Begins, once, to look after idle things for as long as the worker lives.
    pub(crate) fn start(self: &Arc<Self>) {
        if self.ticking.swap(true, Ordering::Relaxed) {
            return;
        }
        let worker = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                let Some(worker) = worker.upgrade() else {
                    return;
                };
                worker.pool.tick();
                worker.flush();
            }
        });
    }

    /// Hands over log lines that wait for their buffer to fill.
    pub fn flush(&self) {
        if let Some(log) = &self.log {
            log.flush();
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) peer: SocketAddr,
    pub(crate) origin: Origin,
}

impl Client {
    /// `trusted`: a proxy of ours, whose `X-Forwarded-*` is believed. `scheme`: "http" or "https".
    pub fn new(peer: SocketAddr, trusted: bool, scheme: &'static str) -> Self {
        Self {
            peer,
            origin: Origin::new(peer.ip(), scheme, trusted),
        }
    }
}

/// What the requests of one connection share.
#[derive(Debug)]
pub(crate) struct Connection<D> {
    pub(crate) worker: Arc<Worker>,
    pub(crate) door: Arc<D>,
    pub(crate) client: Client,
    pub(crate) clock: Arc<Clock>,
    /// Set when the connection becomes a tunnel.
    pub(crate) tunnel: Mutex<Option<Tunnel>>,
}

/// Answers one request. Never fails: what goes wrong is an answer too.
pub(crate) async fn serve<D: Door>(
    connection: Arc<Connection<D>>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (head, body) = request.into_parts();
    let exchange = Exchange::new(&connection, &head);
    let mut exchange = Abandoned(Some(exchange));
    let kind = Head::of(&head);
    let result = handle(&connection, head, body, exchange.get()).await;
    let exchange = exchange.take();
    Ok(match result {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            if let Some(id) = &exchange.request_id {
                head.headers.insert(headers::REQUEST_ID.clone(), id.clone());
            }
            let mut exchange = exchange;
            exchange.status = head.status;
            if let Some(injected) = head.extensions.get::<Injected>() {
                exchange.flag = injected.flags();
            }
            Response::from_parts(head, ResponseBody::upstream(body, exchange))
        }
        Err(failure) => failure.response(connection.worker.node, kind, exchange),
    })
}

/// Ends the exchange of a request whose client went away while it was under way.
struct Abandoned(Option<Box<Exchange>>);

impl Abandoned {
    fn get(&mut self) -> &mut Exchange {
        self.0.as_mut().expect("taken only when it is answered")
    }

    fn take(&mut self) -> Box<Exchange> {
        self.0.take().expect("taken only once")
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(mut exchange) = self.0.take() {
            exchange.abandon();
        }
    }
}

type Answer = Response<AnswerBody>;

async fn handle<D: Door>(
    connection: &Connection<D>,
    mut head: Parts,
    body: Incoming,
    exchange: &mut Exchange,
) -> Result<Answer, Failure> {
    let worker = &connection.worker;
    let refused = |refusal: Refusal| {
        worker.metrics.refused(refusal.reason);
        Failure::refused(refusal)
    };
    let rules = connection.door.rules();
    let mut admitted = admit(&head, &rules.limits).map_err(refused)?;
    exchange.request_id = Some(headers::request_id(
        &mut head.headers,
        admitted.seen,
        &worker.rng,
    ));
    exchange.host = admitted.host.clone();
    let routed = connection.door.route(&admitted, &head).map_err(refused)?;
    exchange.route = Some(Arc::clone(&routed.route));
    exchange.destination = Some(Arc::clone(&routed.destination));
    let body = RequestBody::new(body, rules.body);
    if is_too_long(&body, rules.body) {
        worker.metrics.refused("body-too-large");
        return Err(Failure::too_large());
    }
    let believed = rules.believe_priority || connection.client.origin.is_trusted();
    if admitted.seen.priority && !believed {
        head.headers.remove(&priority::HEADER);
    }
    if let Some(inbound) = connection.door.guard(&routed) {
        let caller = Caller {
            source: Some(connection.client.peer.ip()),
            priority: None,
            arrived: Some(exchange.started()),
        };
        match inbound.admit(&head, caller).await {
            Ok(held) => exchange.take_on(held),
            Err(refused) => {
                routed.destination.metrics().rejected(&refused.rejected);
                return Err(Failure::not_taken_on(refused));
            }
        }
    }
    let client_side = admitted
        .websocket
        .then(|| head.extensions.remove::<OnUpgrade>())
        .flatten();
    rewrite(&mut head, &mut admitted, &routed, connection);
    exchange.trace(&mut head.headers);
    let state = body.state();
    let upstream = Upstream {
        pool: &worker.pool,
        connect: routed.destination.connect_timeout(),
        request: state.clone(),
        websocket: client_side.is_some(),
    };
    let destination = &*routed.destination;
    if destination.places_by_source() {
        let source = connection.client.peer.ip().to_canonical().to_string();
        let hash = HashKey(stable_hash(source.as_bytes()));
        head.extensions.insert(hash);
    }
    destination.heard_of().await;
    let result = destination
        .stack()
        .call(
            &upstream,
            Request::from_parts(head, body),
            Tries::new(exchange, destination),
        )
        .await;
    match result {
        Ok(answer) => Ok(match client_side {
            Some(client_side) => join(connection, answer, client_side),
            None => answer,
        }),
        Err(error) => Err(failed(destination, &error, state.is_too_large())),
    }
}

fn failed(destination: &Destination, error: &Error<UpstreamError>, too_large: bool) -> Failure {
    match error {
        Error::Rejected(rejected) => destination.metrics().rejected(rejected),
        Error::Service(error) => tracing::debug!(
            service = %destination.name(),
            error = error as &dyn std::error::Error,
            "no answer from upstream",
        ),
        _ => {}
    }
    Failure::of(error, too_large)
}

fn is_too_long(body: &RequestBody, limit: Option<u64>) -> bool {
    use http_body::Body;
    limit.is_some_and(|limit| body.size_hint().lower() > limit)
}

/// Makes the head that came the head that goes.
fn rewrite<D>(
    head: &mut Parts,
    admitted: &mut Admitted,
    routed: &Routed,
    connection: &Connection<D>,
) {
    headers::for_upstream(
        &mut head.headers,
        admitted.seen,
        &connection.client.origin,
        &connection.worker.via,
    );
    let host = match admitted.authority.take() {
        Some(authority) => Some(authority),
        // HTTP/1.0 may come without; HTTP/1.1 must not go without.
        None if !head.headers.contains_key(header::HOST) => Some(HeaderValue::from_static("")),
        None => None,
    };
    if let Some(host) = host {
        head.headers.insert(header::HOST, host);
    }
    let path = routed.path.as_deref().or(admitted.path.as_deref());
    if let Some(path) = path {
        head.uri = with_path(&head.uri, path);
    } else if head.uri.scheme() == Some(&Scheme::HTTP) && head.version != Version::HTTP_2 {
        let path = head.uri.path_and_query().cloned();
        head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    if let Some(timeout) = routed.timeout {
        head.extensions.insert(RequestTimeout(timeout));
    }
}

/// `uri`'s query behind another path.
fn with_path(uri: &Uri, path: &str) -> Uri {
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    // A normalised path and a query that was parsed before are a target.
    PathAndQuery::try_from(text).map_or_else(|_| uri.clone(), Uri::from)
}

/// Puts client and upstream together where the upstream has agreed to switch protocols.
fn join<D>(connection: &Connection<D>, mut answer: Answer, client_side: OnUpgrade) -> Answer {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(upstream_side) = answer.extensions_mut().remove::<OnUpgrade>()
    {
        *connection.tunnel.lock() = Some(Tunnel::new(client_side, upstream_side));
    }
    answer
}
