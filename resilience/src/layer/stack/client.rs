//! A stack over its transport as one Tower service: what clients that take a service are given.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Request;
use http_body::Body;
use tower_service::Service;

use super::{Answer, Stack, StackFuture};
use crate::{
    balance::Key,
    layer::{Error, Transport},
};

impl<K: Key> Stack<K> {
    /// A client of all the stack's endpoints: a Tower service that takes requests to whichever of
    /// them the policies choose. For what builds on such a service, as tonic's clients do.
    ///
    /// ```
    /// # use std::{convert::Infallible, net::SocketAddr};
    /// # use http::{Request, Response};
    /// # use http_body_util::Empty;
    /// # use bytes::Bytes;
    /// # use selvedge_resilience::layer::{BoxError, ReplayBody};
    /// use selvedge_resilience::{TrafficPolicy, balance::Member, layer::{ServiceTransport, Stack, over_http}};
    /// use tower::{ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let http = service_fn(|request: Request<ReplayBody<Empty<Bytes>>>| async move {
    /// #     assert_eq!(request.uri(), "http://127.0.0.1:9001/1?all");
    /// #     Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    /// # });
    /// let stack = Stack::<SocketAddr>::new(TrafficPolicy::default())?;
    /// stack.set_members([Member::new(([127, 0, 0, 1], 9001).into())]);
    /// let client = stack.client(ServiceTransport::new(http, over_http));
    /// let answer = client.oneshot(Request::get("/1?all").body(Empty::new())?).await?;
    /// assert_eq!(answer.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn client<T>(&self, transport: T) -> StackClient<K, T> {
        StackClient {
            stack: self.clone(),
            transport: Arc::new(transport),
        }
    }
}

/// See [`Stack::client`]. Clones share everything.
#[derive(Debug)]
pub struct StackClient<K, T> {
    stack: Stack<K>,
    transport: Arc<T>,
}

impl<K, T> Clone for StackClient<K, T> {
    fn clone(&self) -> Self {
        Self {
            stack: self.stack.clone(),
            transport: Arc::clone(&self.transport),
        }
    }
}

impl<K, T> StackClient<K, T> {
    /// The policies' state: to read it, to reconfigure it, to change the endpoints.
    pub fn stack(&self) -> &Stack<K> {
        &self.stack
    }
}

impl<K, T, B> Service<Request<B>> for StackClient<K, T>
where
    K: Key,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    T: Transport<K, B, Body: Send + 'static, Error: Send> + Send + Sync + 'static,
{
    type Response = Answer<K, T::Body>;
    type Error = Error<T::Error>;
    type Future = StackFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Permits are taken in `call`: what is only ready must not hold what a busy one waits for.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { stack, transport } = self.clone();
        StackFuture::new(async move { stack.call(&*transport, request, ()).await })
    }
}
