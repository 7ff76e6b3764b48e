//! One try: a connection from the pool or a new one, the request written anew, the answer's head.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use selvedge_registry::AppProtocol;
use selvedge_resilience::{
    FailureClass,
    layer::{Transport, TransportError},
};
use tokio::net::TcpStream;

use crate::{
    body::{BodyState, RequestBody, UpstreamBody},
    headers::from_upstream,
    pool::{Lease, Lease2, OutBody, Pool, UpstreamKey},
};

/// How a try failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct UpstreamError {
    pub(crate) what: &'static str,
    pub(crate) class: FailureClass,
    unprocessed: bool,
    /// Whether the client's body broke, and not the upstream.
    pub(crate) client: bool,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl UpstreamError {
    fn new(what: &'static str, class: FailureClass) -> Self {
        Self {
            what,
            class,
            unprocessed: class == FailureClass::Connect,
            client: false,
            source: None,
        }
    }

    fn because(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            source: Some(source.into()),
            ..self
        }
    }
}

impl TransportError for UpstreamError {
    fn class(&self) -> FailureClass {
        self.class
    }

    fn is_unprocessed(&self) -> bool {
        self.unprocessed
    }

    fn is_callers_fault(&self) -> bool {
        self.client
    }
}

/// The way to the upstreams for one request.
pub(crate) struct Upstream<'a> {
    pub(crate) pool: &'a Arc<Pool>,
    /// How long a new connection may take.
    pub(crate) connect: Duration,
    /// How the client's body stands.
    pub(crate) request: BodyState,
    /// Whether the client asks for a WebSocket.
    pub(crate) websocket: bool,
}

impl Transport<UpstreamKey, RequestBody> for Upstream<'_> {
    type Body = UpstreamBody;
    type Error = UpstreamError;

    async fn send(
        &self,
        key: &UpstreamKey,
        request: Request<OutBody>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        // Lent, not given: a future keeps its arguments beside what it makes of them.
        let mut unsent = Some(request);
        match key.protocol {
            AppProtocol::Http1 => self.http1(*key, &mut unsent).await,
            AppProtocol::H2c => self.http2(*key, &mut unsent).await,
        }
    }
}

impl Upstream<'_> {
    async fn http1(
        &self,
        key: UpstreamKey,
        unsent: &mut Option<Request<OutBody>>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        if let Some(request) = unsent {
            to_http1(request, self.websocket);
        }
        loop {
            let (mut sender, reused) = match self.pool.take_http1(key) {
                Some(sender) => (sender, true),
                // Boxed, because it is rare, and would make every request's future larger.
                None => (Box::pin(self.connect_http1(key)).await?, false),
            };
            // Given back at the last byte, its task may not have seen yet that it is idle.
            if !sender.is_ready() && sender.ready().await.is_err() && reused {
                continue;
            }
            let request = unsent.take().expect("comes back where it is not sent");
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let lease = Lease::Http1 {
                        sender,
                        key,
                        pool: Arc::clone(self.pool),
                        request: self.request.clone(),
                    };
                    return self.answer(response, lease);
                }
                Err(mut error) => match error.take_message() {
                    // Nothing of it was written: closed between two requests.
                    Some(request) if reused => *unsent = Some(request),
                    message => return Err(self.failed(error.into_error(), message.is_some())),
                },
            }
        }
    }

    async fn http2(
        &self,
        key: UpstreamKey,
        unsent: &mut Option<Request<OutBody>>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        if let Some(request) = unsent {
            to_http2(request)?;
        }
        loop {
            let (mut lease, reused) = match self.pool.share_http2(key) {
                Some(lease) => (lease, true),
                None => Box::pin(self.share_or_connect_http2(key)).await?,
            };
            if lease.sender.ready().await.is_err() && reused {
                continue;
            }
            let request = unsent.take().expect("comes back where it is not sent");
            match lease.sender.try_send_request(request).await {
                Ok(response) => return self.answer(response, Lease::Http2(lease)),
                Err(mut error) => match error.take_message() {
                    Some(request) if reused => *unsent = Some(request),
                    message => return Err(self.failed(error.into_error(), message.is_some())),
                },
            }
        }
    }

    fn answer(
        &self,
        response: Response<Incoming>,
        lease: Lease,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let (mut head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !self.websocket {
                let what = "the upstream switched protocols unasked";
                return Err(UpstreamError::new(what, FailureClass::Protocol));
            }
            // The connection is a tunnel from now on; its head keeps the fields that say so.
            return Ok(Response::from_parts(head, UpstreamBody::new(body, None)));
        }
        let lease = (!from_upstream(&mut head.headers, head.version)).then_some(lease);
        one_length(&mut head.headers, &body);
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, UpstreamBody::new(body, lease)))
    }

    async fn dial(&self, key: UpstreamKey) -> Result<TcpStream, UpstreamError> {
        let refused = |error: io::Error| {
            UpstreamError::new("no connection to the upstream", FailureClass::Connect)
                .because(error)
        };
        let stream = tokio::time::timeout(self.connect, TcpStream::connect(key.addr))
            .await
            .map_err(|_| {
                UpstreamError::new(
                    "no connection to the upstream in time",
                    FailureClass::Connect,
                )
            })?
            .map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        Ok(stream)
    }

    async fn connect_http1(
        &self,
        key: UpstreamKey,
    ) -> Result<http1::SendRequest<OutBody>, UpstreamError> {
        let stream = self.dial(key).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(64 << 10)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| {
                UpstreamError::new("no connection to the upstream", FailureClass::Connect)
                    .because(error)
            })?;
        tokio::spawn(async move {
            // What broke it is told to the request that it broke.
            let _told_elsewhere = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    async fn share_or_connect_http2(
        &self,
        key: UpstreamKey,
    ) -> Result<(Lease2, bool), UpstreamError> {
        let dialling = self.pool.dialling(key);
        let _one_at_a_time = dialling.lock().await;
        // Somebody may have opened one while we waited for our turn.
        match self.pool.share_http2(key) {
            Some(lease) => Ok((lease, true)),
            None => Ok((self.connect_http2(key).await?, false)),
        }
    }

    async fn connect_http2(&self, key: UpstreamKey) -> Result<Lease2, UpstreamError> {
        let stream = self.dial(key).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(64 << 10)
            .initial_connection_window_size(1 << 20)
            .max_send_buf_size(64 << 10)
            .keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| {
                UpstreamError::new("no HTTP/2 with the upstream", FailureClass::Connect)
                    .because(error)
            })?;
        tokio::spawn(async move {
            let _told_elsewhere = connection.await;
        });
        Ok(self.pool.add_http2(key, sender))
    }

    fn failed(&self, error: hyper::Error, unsent: bool) -> UpstreamError {
        let mut failed = judge(&error).because(error);
        failed.unprocessed |= unsent;
        failed.client = self.request.has_failed() || self.request.is_too_large();
        failed
    }
}

fn judge(error: &hyper::Error) -> UpstreamError {
    if error.is_parse() {
        let what = "the upstream's answer is not HTTP";
        return UpstreamError::new(what, FailureClass::Protocol);
    }
    if error.is_timeout() {
        return UpstreamError::new("the upstream does not answer", FailureClass::Timeout);
    }
    let refused = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM));
    UpstreamError {
        unprocessed: refused,
        ..UpstreamError::new("the upstream closed the connection", FailureClass::Reset)
    }
}

/// Origin form, and what only this connection may say.
fn to_http1(request: &mut Request<OutBody>, websocket: bool) {
    *request.version_mut() = Version::HTTP_11;
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    let unknown_length =
        !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    let headers = request.headers_mut();
    if websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    if unknown_length && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(
            header::TRANSFER_ENCODING,
            HeaderValue::from_static("chunked"),
        );
    }
}

/// Absolute form: HTTP/2 has `:authority` instead of `Host`.
fn to_http2(request: &mut Request<OutBody>) -> Result<(), UpstreamError> {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(header::HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = authority.or(parts.authority);
    parts
        .path_and_query
        .get_or_insert(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| UpstreamError {
        client: true,
        ..UpstreamError::new("the request has no form in HTTP/2", FailureClass::Other)
            .because(error)
    })?;
    Ok(())
}

/// hyper takes `5, 5` as 5 and would pass it on as it stands.
fn one_length(headers: &mut HeaderMap, body: &Incoming) {
    let Some(first) = headers.get(header::CONTENT_LENGTH) else {
        return;
    };
    let many = headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .nth(1)
        .is_some();
    if (many || first.as_bytes().contains(&b','))
        && let Some(length) = body.size_hint().exact()
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}
