//! The doorman as a layer, and the answer of whom it turns away.

use std::{
    fmt,
    future::Future,
    mem,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    super::{ArrivedAt, BoxError, CallGuard, EitherBody, FixedBody, GuardedBody},
    Caller, Inbound, InboundHeld, Refused,
    refused::answer,
};
use crate::{
    classify::outcome_of_head,
    outcome::{FailureClass, Outcome},
};

/// Protects a service. What is refused is answered (a problem document that names the policy and
/// says when to come back; a gRPC status if gRPC was asked), so that it fits in front of services
/// that cannot fail, such as axum's and tonic's.
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// use selvedge_resilience::{inbound::InboundConfig, layer::{Inbound, InboundLayer}};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let config: InboundConfig = toml::from_str(r#"
///     shed       = {}
///     rate_limit = { rate = "1/h", by = { header = "x-api-key" } }
/// "#)?;
/// let layer = InboundLayer::new(Inbound::new(config)?);
/// # let handler = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
/// let service = layer.layer(handler);
/// assert_eq!(service.clone().oneshot(Request::new(())).await?.status(), 200);
/// let refused = service.oneshot(Request::new(())).await?;
/// assert_eq!(refused.status(), 429);
/// assert!(refused.headers().contains_key("retry-after"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct InboundLayer(Inbound);

impl InboundLayer {
    /// Keep a clone of `inbound` to reconfigure it while it runs.
    pub fn new(inbound: Inbound) -> Self {
        Self(inbound)
    }
}

impl<S> Layer<S> for InboundLayer {
    type Service = InboundService<S>;
    fn layer(&self, inner: S) -> InboundService<S> {
        InboundService {
            inbound: self.0.clone(),
            inner,
        }
    }
}

/// See [`InboundLayer`].
#[derive(Debug, Clone)]
pub struct InboundService<S> {
    inbound: Inbound,
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for InboundService<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    B: Send + 'static,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<EitherBody<GuardedBody<RB, InboundHeld>, FixedBody>>;
    type Error = S::Error;
    type Future = InboundFuture<S, B, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let service = mem::replace(&mut self.inner, clone);
        let source = request.extensions().get::<IpAddr>().copied();
        let arrived = request.extensions().get::<ArrivedAt>().map(|at| at.0);
        let caller = Caller {
            source,
            priority: None,
            arrived,
        };
        let inbound = self.inbound.clone();
        let (head, body) = request.into_parts();
        let admitting = Box::pin(async move {
            let admitted = inbound.admit(&head, caller).await;
            (admitted, Request::from_parts(head, body))
        });
        InboundFuture {
            state: State::Admitting {
                admitting,
                service: Some(service),
            },
            guard: None,
        }
    }
}

type Admitting<B> =
    Pin<Box<dyn Future<Output = (Result<InboundHeld, Refused>, Request<B>)> + Send>>;

pin_project! {
    /// The answer, or the refusal's.
    pub struct InboundFuture<S, B, F> {
        #[pin]
        state: State<S, B, F>,
        guard: Option<CallGuard<InboundHeld>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        Admitting { admitting: Admitting<B>, service: Option<S> },
        Readying { service: Option<S>, request: Option<Request<B>> },
        Calling { #[pin] inner: F },
    }
}

const NOT_AGAIN: &str = "a future is not polled after it is ready";

impl<S, B, RB> Future for InboundFuture<S, B, S::Future>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Output = Result<Response<EitherBody<GuardedBody<RB, InboundHeld>, FixedBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Admitting { admitting, service } => {
                    let (admitted, request) = ready!(admitting.as_mut().poll(cx));
                    match admitted {
                        Ok(held) => *this.guard = Some(CallGuard::new(held)),
                        Err(refused) => {
                            let answer = answer(&refused, request.headers());
                            return Poll::Ready(Ok(answer.map(EitherBody::other)));
                        }
                    }
                    State::Readying {
                        service: service.take(),
                        request: Some(request),
                    }
                }
                // It was ready when it was called, and may not be after a wait.
                StateProj::Readying { service, request } => {
                    let readied = service.as_mut().expect(NOT_AGAIN);
                    ready!(readied.poll_ready(cx))?;
                    let request = request.take().expect(NOT_AGAIN);
                    State::Calling {
                        inner: readied.call(request),
                    }
                }
                StateProj::Calling { inner } => {
                    let result = ready!(inner.poll(cx));
                    let mut guard = this.guard.take().expect(NOT_AGAIN);
                    return Poll::Ready(match result {
                        Ok(answer) => {
                            let outcome = outcome_of_head(answer.status(), answer.headers());
                            Ok(answer.map(|body| {
                                EitherBody::own(GuardedBody::new(body, guard, outcome, None))
                            }))
                        }
                        Err(error) => {
                            guard.complete(Outcome::Failure(FailureClass::Other), None);
                            Err(error)
                        }
                    });
                }
            };
            this.state.set(next);
        }
    }
}

impl<S, B, F> fmt::Debug for InboundFuture<S, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundFuture").finish_non_exhaustive()
    }
}
