//! Where the answer in another's place comes from, and what it needs of the call.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, Ready, ready},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    fallback::{Cause, DEGRADED, Degraded, FixedAnswer},
    layer::{BoxError, Error, FixedBody, oneshot::Oneshot},
    outcome::Rejected,
};

/// An error that may be a policy's refusal.
pub trait Refusal {
    /// The refusal, if it is one.
    fn refusal(&self) -> Option<Rejected>;
}

impl<E> Refusal for Error<E> {
    fn refusal(&self) -> Option<Rejected> {
        self.rejected().copied()
    }
}

impl Refusal for BoxError {
    fn refusal(&self) -> Option<Rejected> {
        let own = self.downcast_ref::<Rejected>().copied();
        own.or_else(|| self.downcast_ref::<Error<BoxError>>()?.refusal())
    }
}

impl Refusal for Infallible {
    fn refusal(&self) -> Option<Rejected> {
        match *self {}
    }
}

/// Where the answer in another's place comes from.
pub trait Backup<E>: Clone {
    /// What is kept of a request while it is under way.
    type Kept;
    /// The body of the answer.
    type Body: Body<Data = Bytes>;
    /// Makes the answer.
    type Future: Future<Output = Result<Response<Self::Body>, E>>;

    /// What the answer will need of the request.
    fn keep<B>(&self, request: &Request<B>) -> Self::Kept;
    /// The answer.
    fn answer(&self, kept: Self::Kept, cause: Cause) -> Self::Future;
}

/// Always the same answer.
#[derive(Debug, Clone)]
pub struct Fixed(Arc<(StatusCode, HeaderValue, Bytes)>);

impl Fixed {
    /// `answer` has been validated.
    pub(in crate::layer) fn of(answer: &FixedAnswer) -> Self {
        let status = StatusCode::from_u16(answer.status).expect("validated");
        let content_type = HeaderValue::try_from(&answer.content_type).expect("validated");
        let body = Bytes::from(answer.body.clone());
        Self(Arc::new((status, content_type, body)))
    }

    pub(in crate::layer) fn response(&self) -> Response<FixedBody> {
        let (status, content_type, body) = &*self.0;
        let mut answer = Response::new(FixedBody::from(body.clone()));
        *answer.status_mut() = *status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, content_type.clone());
        answer
    }
}

/// Says of an answer that it stands in for another.
pub(in crate::layer) fn mark<B>(answer: &mut Response<B>, cause: Cause) {
    answer.headers_mut().insert(&DEGRADED, cause.header());
    answer.extensions_mut().insert(Degraded(cause));
}

impl<E> Backup<E> for Fixed {
    type Kept = ();
    type Body = FixedBody;
    type Future = Ready<Result<Response<FixedBody>, E>>;

    fn keep<B>(&self, _: &Request<B>) {}

    fn answer(&self, (): (), _: Cause) -> Self::Future {
        ready(Ok(self.response()))
    }
}

/// What a function makes of the request's head and the cause.
#[derive(Clone)]
pub struct FromFn<F>(pub(super) F);

impl<F, E> Backup<E> for FromFn<F>
where
    F: Fn(Request<()>, Cause) -> Response<FixedBody> + Clone,
{
    type Kept = Request<()>;
    type Body = FixedBody;
    type Future = Ready<Result<Response<FixedBody>, E>>;

    fn keep<B>(&self, request: &Request<B>) -> Request<()> {
        head(request)
    }

    fn answer(&self, kept: Request<()>, cause: Cause) -> Self::Future {
        ready(Ok((self.0)(kept, cause)))
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromFn")
    }
}

/// What another service answers to the request's head with an empty body. The cause is an
/// extension of that request, as [`Degraded`].
pub struct ToService<S, B> {
    pub(super) service: S,
    pub(super) body: PhantomData<fn() -> B>,
}

impl<S: Clone, B> Clone for ToService<S, B> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            body: PhantomData,
        }
    }
}

impl<S: fmt::Debug, B> fmt::Debug for ToService<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ToService").field(&self.service).finish()
    }
}

impl<S, B, RB> Backup<S::Error> for ToService<S, B>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    B: Default,
    RB: Body<Data = Bytes>,
{
    type Kept = Request<()>;
    type Body = RB;
    type Future = OneshotFuture<S, B, S::Future>;

    fn keep<A>(&self, request: &Request<A>) -> Request<()> {
        head(request)
    }

    fn answer(&self, kept: Request<()>, cause: Cause) -> Self::Future {
        let mut request = kept.map(|()| B::default());
        request.extensions_mut().insert(Degraded(cause));
        OneshotFuture {
            inner: Oneshot::new(self.service.clone(), request),
        }
    }
}

pin_project! {
    /// Readies the other service and calls it.
    pub struct OneshotFuture<S, B, F> {
        #[pin]
        inner: Oneshot<S, Request<B>, F>,
    }
}

impl<S: Service<Request<B>>, B> Future for OneshotFuture<S, B, S::Future> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx)
    }
}

impl<S, B, F> fmt::Debug for OneshotFuture<S, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneshotFuture")
    }
}

/// A request's head, without extensions: those go with the call itself.
fn head<B>(request: &Request<B>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    head
}
