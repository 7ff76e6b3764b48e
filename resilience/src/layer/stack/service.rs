//! The stack as a Tower layer, for a client that reaches its destination by itself.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{Answer, Stack};
use crate::{
    TrafficPolicy,
    balance::Member,
    config::PolicyError,
    layer::{BoxError, Error, ReplayBody, ServiceTransport},
};

impl Stack<()> {
    /// A Tower layer for a client that reaches its destination by itself.
    ///
    /// # Errors
    /// [`PolicyError`] if the policy cannot work.
    pub fn layer(policy: TrafficPolicy) -> Result<StackLayer, PolicyError> {
        let stack = Self::new(policy)?;
        stack.set_members([Member::new(())]);
        Ok(StackLayer { stack })
    }
}

/// Wraps a client service in a [`Stack`] of its own.
#[derive(Debug, Clone)]
pub struct StackLayer {
    stack: Stack<()>,
}

impl StackLayer {
    /// The policies' state: to read it, to reconfigure it.
    pub fn stack(&self) -> &Stack<()> {
        &self.stack
    }
}

/// Leaves the request as it is: there is one destination.
type NoAim<B> = fn(&(), &mut Request<ReplayBody<B>>);

impl<S> Layer<S> for StackLayer {
    type Service = StackService<S>;
    fn layer(&self, inner: S) -> StackService<S> {
        StackService {
            stack: self.stack.clone(),
            inner,
        }
    }
}

/// See [`StackLayer`].
#[derive(Debug, Clone)]
pub struct StackService<S> {
    stack: Stack<()>,
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for StackService<S>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    RB: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Response = Answer<(), RB>;
    type Error = Error<BoxError>;
    type Future = StackFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Each try readies a clone of its own: a slot held here would be held by idle clones.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let stack = self.stack.clone();
        let aim: NoAim<B> = |(), _| ();
        let transport = ServiceTransport::new(self.inner.clone(), aim);
        StackFuture::new(async move { stack.call(&transport, request, ()).await })
    }
}

/// A call of a [`StackService`] or a [`StackClient`](super::StackClient): the answer, or why there is
/// none.
///
/// One allocation a call: these two are the convenience for clients, where a call costs a round trip.
/// The proxies call [`Stack::call`] and pay none.
#[must_use = "nothing is called before it is polled"]
pub struct StackFuture<A, E>(Pin<Box<dyn Future<Output = Result<A, E>> + Send>>);

impl<A, E> StackFuture<A, E> {
    pub(super) fn new(call: impl Future<Output = Result<A, E>> + Send + 'static) -> Self {
        Self(Box::pin(call))
    }
}

impl<A, E> Future for StackFuture<A, E> {
    type Output = Result<A, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<A, E> fmt::Debug for StackFuture<A, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackFuture").finish_non_exhaustive()
    }
}
