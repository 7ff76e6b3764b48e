//! Handle or forward: a Tower layer that takes each request to the instance that owns its key.
//!
//! Any instance may be asked for any key. The one that is asked either owns the key and handles
//! the request, or passes it to the owner and the answer back. Two instances may disagree on the
//! ring for a moment, and then a request could be passed around for ever; so a request is
//! forwarded once at most, and says on which ring it was: an instance with another ring refuses
//! it, and the sender waits, looks the key up again and tries once more.
//!
//! # Guarantees
//! - A request that arrives forwarded is handled or refused, never forwarded.
//! - It is sent again only if the other refused it for its ring or has not seen it, or if its
//!   method may be repeated (RFC 9110 §9.2.2).
//!
//! # What it does not do
//! Authenticate the mark: a client that sends the headers itself, with the right checksum, is
//! handled where it asked. Where clients are not trusted, take [`FORWARDED`] off at the edge.
//!
//! # Source
//! ringpop-go `forward/request_sender.go`: retries after 0, 1 and 3.5 s, 3 at most, keys looked up
//! again each time, "ring checksum mismatch", "max retries exceeded"; `ringpop.go` HandleOrForward.

use std::{
    fmt::{self, Write as _},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use selvedge_resilience::config::ByteSize;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    HashRing, Ring,
    exchange::{Failed, Pool},
};
use crate::problem::{self, Problem};

/// Marks a forwarded request; its value is the sender's ring, as [`HashRing::replica_checksum`].
pub const FORWARDED: &str = "x-selvedge-ring-forwarded";
/// The keys that a forwarded request was looked up by, comma separated, percent-encoded.
pub const KEYS: &str = "x-selvedge-ring-keys";
/// On a refusal for another ring: this instance's checksum.
pub const MISMATCH: &str = "x-selvedge-ring-mismatch";

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer, the instance's own or another's.
pub type RingBody = UnsyncBoxBody<Bytes, BoxError>;
type KeysOf = dyn Fn(&Parts) -> Vec<String> + Send + Sync;

/// How requests are forwarded.
#[derive(Debug, Clone)]
pub struct ForwardConfig {
    /// Pauses before each retry; as many retries as pauses. Default 0 s, 1 s, 3.5 s: ringpop-go.
    pub pauses: Vec<Duration>,
    /// How long one try may take until the answer's head. Default 3 s: ringpop-go's
    /// `defaultTimeout`.
    pub timeout: Duration,
    /// Largest request body that is forwarded: it is kept for the retries. Default 1 MiB: a guess.
    pub max_body: ByteSize,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            pauses: [0, 1000, 3500].map(Duration::from_millis).to_vec(),
            timeout: Duration::from_secs(3),
            max_body: ByteSize(1 << 20),
        }
    }
}

/// Makes a service handle the keys it owns and forward the others.
///
/// ```
/// use axum::{Router, routing::get};
/// use selvedge_registry::ring::{ForwardLayer, HashRing, Member, Ring};
///
/// // `Ring::follow(registry.watch(&name), Labels::default())` where there is a registry.
/// let ring = Ring::new(HashRing::new([Member::new("10.0.0.7:80"), Member::new("10.0.0.8:80")]));
/// let app: Router = Router::new()
///     .route("/carts/{user}", get(|| async { "your cart" }))
///     .layer(ForwardLayer::new(ring, "10.0.0.7:80", |request| {
///         // The last segment of the path is the key; other paths belong to everybody.
///         let user = request.uri.path().strip_prefix("/carts/");
///         user.map(str::to_owned).into_iter().collect()
///     }));
/// ```
#[derive(Clone)]
pub struct ForwardLayer {
    shared: Arc<Shared>,
}

struct Shared {
    ring: Ring,
    me: Arc<str>,
    keys: Box<KeysOf>,
    config: ForwardConfig,
    pool: Pool,
}

impl fmt::Debug for ForwardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardLayer")
            .field("me", &self.shared.me)
            .field("ring", &self.shared.ring)
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

impl ForwardLayer {
    /// `me`: this instance's address as it is on the ring. `keys`: what a request is about; none
    /// is handled here, several must have one owner.
    pub fn new(
        ring: Ring,
        me: impl Into<Arc<str>>,
        keys: impl Fn(&Parts) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                ring,
                me: me.into(),
                keys: Box::new(keys),
                config: ForwardConfig::default(),
                pool: Pool::default(),
            }),
        }
    }

    /// With other pauses and limits.
    #[must_use]
    pub fn with_config(self, config: ForwardConfig) -> Self {
        let shared = match Arc::try_unwrap(self.shared) {
            Ok(shared) => Shared { config, ..shared },
            Err(_) => unreachable!("a builder is not shared"),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// A service behind a [`ForwardLayer`].
#[derive(Clone)]
pub struct Forward<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S: fmt::Debug> fmt::Debug for Forward<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward")
            .field("inner", &self.inner)
            .field("me", &self.shared.me)
            .finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for Forward<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + From<Bytes> + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<RingBody>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = Arc::clone(&self.shared);
        let here = |answer: Response<R>| answer.map(|b| b.map_err(Into::into).boxed_unsync());
        let ring = shared.ring.current();
        if let Some(mark) = request.headers().get(FORWARDED) {
            if let Some(refusal) = refuse_other_ring(mark, &ring) {
                return Box::pin(async { Ok(refusal) });
            }
            let handled = inner.call(request);
            return Box::pin(async move { Ok(here(handled.await?)) });
        }
        let (parts, body) = request.into_parts();
        let keys = (shared.keys)(&parts);
        if matches!(shared.owner(&ring, &keys), Owner::Me) {
            let handled = inner.call(Request::from_parts(parts, body));
            return Box::pin(async move { Ok(here(handled.await?)) });
        }
        Box::pin(async move {
            let body = match collect(body, shared.config.max_body).await {
                Ok(body) => body,
                Err(refusal) => return Ok(refusal),
            };
            match shared.forward(&parts, &keys, &body).await {
                Forwarded::Answer(answer) => Ok(answer),
                // The ring moved, and the key is this instance's now.
                Forwarded::Mine => {
                    let request = Request::from_parts(parts, B::from(body));
                    Ok(here(inner.call(request).await?))
                }
            }
        })
    }
}

enum Owner {
    Me,
    Other(Arc<str>),
    /// Several keys, several owners.
    Diverged,
}

enum Forwarded {
    Answer(Response<RingBody>),
    Mine,
}

impl Shared {
    /// Nobody on the ring: there is nobody better than this instance.
    fn owner(&self, ring: &HashRing, keys: &[String]) -> Owner {
        let mut owners = keys.iter().filter_map(|key| ring.lookup(key));
        let Some(first) = owners.next() else {
            return Owner::Me;
        };
        if owners.any(|other| other.address != first.address) {
            return Owner::Diverged;
        }
        if first.address == self.me {
            return Owner::Me;
        }
        Owner::Other(Arc::clone(&first.address))
    }

    async fn forward(&self, parts: &Parts, keys: &[String], body: &Bytes) -> Forwarded {
        let mut last = String::new();
        let pauses = std::iter::once(None).chain(self.config.pauses.iter().map(Some));
        for pause in pauses {
            if let Some(pause) = pause {
                tokio::time::sleep(*pause).await;
            }
            // Another ring each time: that is what the retries are for.
            let ring = self.ring.current();
            let address = match self.owner(&ring, keys) {
                Owner::Me => return Forwarded::Mine,
                Owner::Other(address) => address,
                Owner::Diverged => {
                    let detail = "the keys of this request have different owners";
                    return Forwarded::Answer(refusal(
                        StatusCode::CONFLICT,
                        "ring-keys-diverged",
                        detail,
                    ));
                }
            };
            let Some(request) = forwarded(parts, &ring, keys, body) else {
                let detail = "the request target has no path to forward";
                return Forwarded::Answer(refusal(StatusCode::BAD_REQUEST, "bad-request", detail));
            };
            let tried = self.pool.send(&address, request);
            match tokio::time::timeout(self.config.timeout, tried).await {
                Ok(Ok(answer)) if answer.headers().contains_key(MISMATCH) => {
                    last = format!("{address} has another ring");
                }
                Ok(Ok(answer)) => {
                    return Forwarded::Answer(answer.map(|b| b.map_err(Into::into).boxed_unsync()));
                }
                Ok(Err(Failed::NotSent(error))) => last = format!("{address}: {error}"),
                failed => {
                    last = match failed {
                        Ok(Err(Failed::Unanswered(error))) => format!("{address}: {error}"),
                        _ => format!("{address}: no answer within {:?}", self.config.timeout),
                    };
                    if !parts.method.is_idempotent() {
                        break;
                    }
                }
            }
            tracing::debug!(owner = %address, error = %last, "forward to the owner failed");
        }
        let detail = format!("max retries: {last}");
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        Forwarded::Answer(refusal(unavailable, "ring-owner-unreachable", detail))
    }
}

/// A forwarded request from an instance with another ring.
fn refuse_other_ring(mark: &HeaderValue, ring: &HashRing) -> Option<Response<RingBody>> {
    let mine = ring.replica_checksum();
    let theirs = mark.to_str().ok().and_then(|text| text.parse::<u32>().ok());
    if theirs == Some(mine) {
        return None;
    }
    let detail = "the sender's ring and this instance's are different: look the key up again";
    let mut answer = refusal(StatusCode::MISDIRECTED_REQUEST, "ring-mismatch", detail);
    answer.headers_mut().insert(MISMATCH, mine.into());
    Some(answer)
}

/// The request as it goes to its owner.
fn forwarded(
    parts: &Parts,
    ring: &HashRing,
    keys: &[String],
    body: &Bytes,
) -> Option<Request<Full<Bytes>>> {
    let target = parts.uri.path_and_query()?.as_str();
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = target.parse::<Uri>().ok()?;
    let headers = request.headers_mut();
    *headers = parts.headers.clone();
    strip_hop_by_hop(headers);
    if !headers.contains_key(header::HOST)
        && let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(header::HOST, host);
    }
    headers.insert(FORWARDED, ring.replica_checksum().into());
    if let Ok(keys) = HeaderValue::from_str(&encode(keys)) {
        headers.insert(KEYS, keys);
    }
    Some(request)
}

/// Headers that are about the connection the request came on. Source: RFC 9110 §7.6.1.
fn strip_hop_by_hop(headers: &mut http::HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "te", "upgrade"] {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::EXPECT,
    ] {
        headers.remove(name);
    }
}

fn encode(keys: &[String]) -> String {
    let mut text = String::new();
    for (i, key) in keys.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        for byte in key.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:/@".contains(&byte) {
                text.push(char::from(byte));
            } else {
                write!(text, "%{byte:02X}").expect("strings take everything");
            }
        }
    }
    text
}

async fn collect<B>(body: B, limit: ByteSize) -> Result<Bytes, Response<RingBody>>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, limit.as_usize()).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format!("a request for another instance's key may have {limit} at most");
            Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail))
        }
        Err(error) => {
            let detail = format!("the body ended early: {error}");
            Err(refusal(StatusCode::BAD_REQUEST, "bad-request", detail))
        }
    }
}

fn refusal(status: StatusCode, code: &str, detail: impl Into<String>) -> Response<RingBody> {
    let title = "the request did not reach the owner of its key";
    let problem = Problem::new(status, code, title).detail(detail);
    let body = Full::new(Bytes::from(problem.to_json())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let json = HeaderValue::from_static(problem::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let again = HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, again);
    }
    response
}
