//! What is below the stack: something that takes a request to one endpoint.

use std::{convert::Infallible, error::Error as StdError, fmt, future::Future, io};

use bytes::Bytes;
use http::{
    Request, Response, Uri,
    uri::{Authority, PathAndQuery},
};
use http_body::Body;
use tower_service::Service;

use super::{BoxError, Error, ReplayBody};
use crate::outcome::{FailureClass, Policy, Rejected};

/// Takes a request to the endpoint that the balancer picked.
pub trait Transport<K, B> {
    /// The body of an answer. One that is not `Unpin` is boxed: its first bytes may be looked at.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Unpin;
    /// Why there is none.
    type Error: TransportError;

    /// Sends `request` to `key`; resolves with the head of the answer.
    ///
    /// Dropping the future cancels the request.
    fn send(
        &self,
        key: &K,
        request: Request<ReplayBody<B>>,
    ) -> impl Future<Output = Result<Response<Self::Body>, Self::Error>> + Send;
}

/// What a policy needs to know of a failed try.
pub trait TransportError {
    /// What kind of failure it was.
    fn class(&self) -> FailureClass;

    /// Whether the callee cannot have processed the request: it was never sent, or was refused
    /// unprocessed. Such a try may always be repeated, whatever its method.
    fn is_unprocessed(&self) -> bool {
        self.class() == FailureClass::Connect
    }

    /// The refusal, if a policy of ours refused the try: the callee never saw it.
    fn rejected(&self) -> Option<&Rejected> {
        None
    }

    /// Whether the *caller's* side broke (its body failed): no fault of the endpoint, no retry.
    fn is_callers_fault(&self) -> bool {
        false
    }
}

/// Layers stacked on each other: what the innermost says, and their own refusals.
impl<E: TransportError> TransportError for Error<E> {
    fn class(&self) -> FailureClass {
        match self {
            Self::Rejected(rejected) if rejected.policy == Policy::Deadline => {
                FailureClass::Timeout
            }
            Self::Rejected(_) => FailureClass::Other,
            Self::Service(error) => error.class(),
        }
    }
    fn is_unprocessed(&self) -> bool {
        match self {
            Self::Rejected(rejected) => rejected.policy != Policy::Deadline,
            Self::Service(error) => error.is_unprocessed(),
        }
    }
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Service(error) => error.rejected(),
        }
    }
    fn is_callers_fault(&self) -> bool {
        match self {
            Self::Rejected(_) => false,
            Self::Service(error) => error.is_callers_fault(),
        }
    }
}

impl TransportError for Infallible {
    fn class(&self) -> FailureClass {
        match *self {}
    }
}

/// Judged by the I/O error at the bottom, if there is one: a connection that did not come about is
/// known whatever client wraps the error.
impl TransportError for BoxError {
    fn class(&self) -> FailureClass {
        let mut source: Option<&(dyn StdError + 'static)> = Some(&**self);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return class_of(error.kind());
            }
            source = error.source();
        }
        FailureClass::Other
    }
}

fn class_of(kind: io::ErrorKind) -> FailureClass {
    use io::ErrorKind as Kind;
    match kind {
        Kind::ConnectionRefused
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::NetworkDown
        | Kind::AddrNotAvailable => FailureClass::Connect,
        Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::BrokenPipe
        | Kind::UnexpectedEof
        | Kind::NotConnected => FailureClass::Reset,
        Kind::TimedOut => FailureClass::Timeout,
        _ => FailureClass::Other,
    }
}

/// Any Tower service as a transport: a hyper client, a tonic channel, axum's router in a test.
///
/// `aim` points a request at the endpoint that was picked, usually by rewriting its URI; see
/// [`over_http`]. Where each endpoint has a service of its own, see [`ByEndpoint`].
#[derive(Clone)]
pub struct ServiceTransport<S, F> {
    service: S,
    aim: F,
}

impl<S, F> ServiceTransport<S, F> {
    /// `service` must be cheap to clone, as clients are.
    pub fn new(service: S, aim: F) -> Self {
        Self { service, aim }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for ServiceTransport<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceTransport")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

impl<K, B, RB, S, F> Transport<K, B> for ServiceTransport<S, F>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone + Send + Sync,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    RB: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    F: Fn(&K, &mut Request<ReplayBody<B>>) + Sync,
    K: Sync,
    B: Send,
{
    type Body = RB;
    type Error = BoxError;

    async fn send(
        &self,
        key: &K,
        mut request: Request<ReplayBody<B>>,
    ) -> Result<Response<RB>, BoxError> {
        (self.aim)(key, &mut request);
        let mut service = self.service.clone();
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .map_err(Into::into)?;
        service.call(request).await.map_err(Into::into)
    }
}

/// An `aim` for [`ServiceTransport`]: the request goes to `http://` and the endpoint, which is an
/// address or a host with a port; its path and query stay.
pub fn over_http<K: fmt::Display, B>(endpoint: &K, request: &mut Request<B>) {
    let path = request.uri().path_and_query().map(PathAndQuery::as_str);
    // `*`, of `OPTIONS`, would become a part of the authority.
    let path = path.filter(|path| path.starts_with('/')).unwrap_or("/");
    // An endpoint that is no authority leaves the request as it is, for its client to refuse.
    if let Ok(authority) = Authority::try_from(endpoint.to_string())
        && let Ok(uri) = Uri::try_from(format!("http://{authority}{path}"))
    {
        *request.uri_mut() = uri;
    }
}

/// A Tower service for each endpoint as a transport: tonic's channels, which know where they lead.
#[derive(Clone)]
pub struct ByEndpoint<F>(F);

impl<F> ByEndpoint<F> {
    /// `service` gives the service of an endpoint, and is asked for each try: a clone from a map,
    /// say. It must be cheap.
    pub fn new(service: F) -> Self {
        Self(service)
    }
}

impl<F> fmt::Debug for ByEndpoint<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByEndpoint").finish_non_exhaustive()
    }
}

impl<K, B, RB, S, F> Transport<K, B> for ByEndpoint<F>
where
    F: Fn(&K) -> S + Sync,
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Send,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    RB: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    K: Sync,
    B: Send,
{
    type Body = RB;
    type Error = BoxError;

    async fn send(
        &self,
        key: &K,
        request: Request<ReplayBody<B>>,
    ) -> Result<Response<RB>, BoxError> {
        let mut service = (self.0)(key);
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .map_err(Into::into)?;
        service.call(request).await.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_aimed_at_its_endpoint_and_keeps_its_path() {
        let cases = [
            ("127.0.0.1:80", "/a?b=c", "http://127.0.0.1:80/a?b=c"),
            ("[::1]:80", "https://orders/a", "http://[::1]:80/a"),
            ("orders:80", "*", "http://orders:80/"),
            ("no authority", "/a", "/a"),
            ("a/path", "/a", "/a"),
        ];
        for (endpoint, uri, want) in cases {
            let mut request = Request::get(uri).body(()).expect("valid");
            over_http(&endpoint, &mut request);
            assert_eq!(*request.uri(), *want, "{endpoint} {uri}");
        }
    }

    #[tokio::test]
    async fn each_endpoint_is_reached_by_its_own_service() {
        use http_body_util::{BodyExt, Empty, Full};
        let transport = ByEndpoint::new(|key: &u8| {
            let text = Bytes::from(key.to_string());
            tower::service_fn(move |_: Request<ReplayBody<Empty<Bytes>>>| {
                let text = text.clone();
                async move { Ok::<_, Infallible>(Response::new(Full::new(text))) }
            })
        });
        let stack = super::super::Stack::<u8>::new(crate::TrafficPolicy::default());
        let stack = stack.expect("valid");
        stack.set_members([1, 2].map(crate::balance::Member::new));
        let mut client = stack.client(transport);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..64 {
            let answer = client.call(Request::new(Empty::new())).await;
            let body = answer.expect("answers").into_body().collect().await;
            seen.insert(body.expect("a body").to_bytes());
        }
        assert_eq!(seen, ["1", "2"].map(Bytes::from).into());
    }

    #[derive(Debug, thiserror::Error)]
    #[error("a client's own words")]
    struct Client(#[source] io::Error);

    #[test]
    fn an_error_is_judged_by_what_is_at_its_bottom() {
        let wrapped = |kind: io::ErrorKind| -> BoxError { Client(kind.into()).into() };
        let cases = [
            (
                wrapped(io::ErrorKind::ConnectionRefused),
                FailureClass::Connect,
            ),
            (wrapped(io::ErrorKind::ConnectionReset), FailureClass::Reset),
            (wrapped(io::ErrorKind::TimedOut), FailureClass::Timeout),
            ("no I/O at all".into(), FailureClass::Other),
        ];
        for (error, want) in cases {
            assert_eq!(error.class(), want, "{error:?}");
        }
    }
}
