//! A worse answer where there would be none, and marked as one.

mod backup;

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub(super) use self::backup::mark;
pub use self::backup::{Backup, Fixed, FromFn, OneshotFuture, Refusal, ToService};
use super::{EitherBody, FixedBody};
use crate::{
    config::PolicyError,
    fallback::{Cause, FallbackConfig},
};

/// Answers in the place of calls that have no answer.
///
/// ```
/// # use selvedge_resilience::{fallback::FallbackConfig, layer::FallbackLayer};
/// let empty_list: FallbackConfig = toml::from_str(r#"answer = { body = "[]" }"#)?;
/// let layer = FallbackLayer::fixed(empty_list)?;
/// # let _ = layer;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct FallbackLayer<K> {
    config: Arc<FallbackConfig>,
    backup: K,
}

impl FallbackLayer<Fixed> {
    /// Always answers as configured.
    ///
    /// # Errors
    /// [`PolicyError`] if that cannot work.
    pub fn fixed(config: FallbackConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self {
            backup: Fixed::of(&config.answer),
            config: Arc::new(config),
        })
    }
}

impl<F: Fn(Request<()>, Cause) -> Response<FixedBody>> FallbackLayer<FromFn<F>> {
    /// Answers with what `answer` makes of the request's head and the cause; the configured answer
    /// is not used.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn from_fn(config: FallbackConfig, answer: F) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self {
            backup: FromFn(answer),
            config: Arc::new(config),
        })
    }
}

impl<S, B> FallbackLayer<ToService<S, B>> {
    /// Asks `service` instead; the configured answer is not used.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn to_service(config: FallbackConfig, service: S) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self {
            backup: ToService {
                service,
                body: PhantomData,
            },
            config: Arc::new(config),
        })
    }
}

impl<K: Clone, S> Layer<S> for FallbackLayer<K> {
    type Service = FallbackService<S, K>;
    fn layer(&self, inner: S) -> Self::Service {
        FallbackService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`FallbackLayer`].
#[derive(Debug, Clone)]
pub struct FallbackService<S, K> {
    layer: FallbackLayer<K>,
    inner: S,
}

impl<S, K, B, RB> Service<Request<B>> for FallbackService<S, K>
where
    S: Service<Request<B>, Response = Response<RB>>,
    S::Error: Refusal,
    K: Backup<S::Error>,
    RB: Body<Data = Bytes>,
{
    type Response = Response<EitherBody<RB, K::Body>>;
    type Error = S::Error;
    type Future = FallbackFuture<S::Future, K, K::Kept, K::Future>;

    /// A service below that fails to get ready has failed for good: that is no call to answer.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let kept = Some(self.layer.backup.keep(&request));
        FallbackFuture {
            state: State::Calling {
                inner: self.inner.call(request),
            },
            layer: self.layer.clone(),
            kept,
        }
    }
}

pin_project! {
    /// The answer, or the one in its place.
    pub struct FallbackFuture<F, K, T, G> {
        #[pin]
        state: State<F, G>,
        layer: FallbackLayer<K>,
        kept: Option<T>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, G> {
        Calling { #[pin] inner: F },
        Answering { #[pin] inner: G, cause: Cause },
    }
}

impl<F, K, RB, E> Future for FallbackFuture<F, K, K::Kept, K::Future>
where
    F: Future<Output = Result<Response<RB>, E>>,
    E: Refusal,
    K: Backup<E>,
{
    type Output = Result<Response<EitherBody<RB, K::Body>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let cause = match this.state.as_mut().project() {
                StateProj::Calling { inner } => {
                    let result = ready!(inner.poll(cx));
                    let cause = match &result {
                        Ok(answer) => Cause::Status(answer.status()),
                        Err(error) => error.refusal().map_or(Cause::Failed, Cause::Rejected),
                    };
                    if !this.layer.config.applies(cause) {
                        return Poll::Ready(result.map(|answer| answer.map(EitherBody::own)));
                    }
                    cause
                }
                StateProj::Answering { inner, cause } => {
                    let mut answer = ready!(inner.poll(cx))?;
                    mark(&mut answer, *cause);
                    return Poll::Ready(Ok(answer.map(EitherBody::other)));
                }
            };
            let kept = this.kept.take().expect("not polled after it is ready");
            let inner = this.layer.backup.answer(kept, cause);
            this.state.set(State::Answering { inner, cause });
        }
    }
}

impl<F, K, T, G> fmt::Debug for FallbackFuture<F, K, T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answering = matches!(self.state, State::Answering { .. });
        f.debug_struct("FallbackFuture")
            .field("answering", &answering)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{panic::AssertUnwindSafe, time::Duration};

    use futures_util::FutureExt;
    use http::StatusCode;
    use http_body_util::{BodyExt, Full};
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::{
        Policy, Reason, Rejected,
        breaker::{BreakerConfig, CircuitBreaker, State as Circuit},
        fallback::{DEGRADED, Degraded},
        layer::{BreakerLayer, Error, TimeoutLayer},
    };

    type Call = Result<Response<Full<Bytes>>, Error<&'static str>>;

    /// Answers with the status that the request's body names; 0 fails, 1 is refused, 2 is over its
    /// rate, 3 hangs.
    async fn callee(request: Request<u16>) -> Call {
        let refuse = |policy| Err(Rejected::new(policy, Reason::Exhausted).into());
        match *request.body() {
            0 => Err(Error::Service("broken")),
            1 => refuse(Policy::Bulkhead),
            2 => refuse(Policy::RateLimit),
            3 => std::future::pending().await,
            status => Ok(Response::builder()
                .status(status)
                .body(Full::from("own"))
                .expect("valid")),
        }
    }

    async fn text<B>(answer: Response<B>) -> (u16, Option<Cause>, Bytes)
    where
        B: Body<Data = Bytes>,
        B::Error: fmt::Debug,
    {
        let mark = answer.extensions().get::<Degraded>().map(|mark| mark.0);
        let header = answer.headers().get(&DEGRADED).cloned();
        assert_eq!(
            header,
            mark.map(Cause::header),
            "header and extension agree"
        );
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("body");
        (status, mark, body.to_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_answer_is_marked_and_an_own_one_is_not() {
        let config = toml::from_str("answer = { status = 203, body = \"[]\" }").expect("parses");
        let layer = FallbackLayer::fixed(config).expect("valid");
        let service = layer.layer(service_fn(callee));
        let call = |n| service.clone().oneshot(Request::new(n));
        assert_eq!(
            text(call(200).await.expect("own")).await,
            (200, None, "own".into())
        );
        assert_eq!(
            text(call(500).await.expect("own")).await.0,
            500,
            "not listed"
        );
        let (status, cause, body) = text(call(503).await.expect("fallback")).await;
        assert_eq!((status, body), (203, Bytes::from("[]")));
        assert_eq!(cause, Some(Cause::Status(StatusCode::SERVICE_UNAVAILABLE)));
        let (_, cause, _) = text(call(0).await.expect("fallback")).await;
        assert_eq!(cause, Some(Cause::Failed));
        let (_, cause, _) = text(call(1).await.expect("fallback")).await;
        assert_eq!(cause.map(Cause::as_str), Some("bulkhead"));
        assert!(call(2).await.is_err(), "must hear that it asks too much");
    }

    #[tokio::test(start_paused = true)]
    async fn a_function_sees_head_and_cause_and_another_service_may_fail_itself() {
        let from_fn = FallbackLayer::from_fn(FallbackConfig::default(), |head, cause| {
            let text = format!("{} {}", head.uri().path(), cause.as_str());
            Response::new(FixedBody::from(Bytes::from(text)))
        })
        .expect("valid")
        .layer(service_fn(callee));
        let request = Request::get("/list").body(502).expect("valid");
        let (_, _, body) = text(from_fn.oneshot(request).await.expect("fallback")).await;
        assert_eq!(body, "/list status");

        let other = service_fn(|request: Request<String>| async move {
            let cause = request.extensions().get::<Degraded>().expect("told").0;
            match cause {
                Cause::Failed => Err(Error::Service("broken too")),
                _ => Ok(Response::new(Full::<Bytes>::from("other's"))),
            }
        });
        let service = FallbackLayer::to_service(FallbackConfig::default(), other)
            .expect("valid")
            .layer(service_fn(callee));
        let (_, cause, body) = text(
            service
                .clone()
                .oneshot(Request::new(504))
                .await
                .expect("other's"),
        )
        .await;
        assert_eq!((cause.is_some(), body), (true, Bytes::from("other's")));
        assert!(service.oneshot(Request::new(0)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_stands_in_for_still_counts_against_the_callee() {
        let breaker = CircuitBreaker::new(BreakerConfig {
            consecutive: 2,
            ..BreakerConfig::default()
        })
        .expect("valid");
        let service = ServiceBuilder::new()
            .layer(FallbackLayer::fixed(FallbackConfig::default()).expect("valid"))
            .layer(BreakerLayer::new(breaker.clone()))
            .layer(TimeoutLayer::new(Duration::from_secs(1)))
            .service(service_fn(callee));
        // The page of a 503 is dropped unread; that is no cancelled call.
        for _ in 0..2 {
            let answer = service.clone().oneshot(Request::new(503)).await;
            assert!(text(answer.expect("fallback")).await.1.is_some());
        }
        assert_eq!(breaker.state(), Circuit::Open);
        let (_, cause, _) = text(service.oneshot(Request::new(200)).await.expect("fallback")).await;
        assert_eq!(cause.map(Cause::as_str), Some("breaker"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_gets_no_fallback_and_a_panic_stays_one() {
        let layer = FallbackLayer::from_fn(FallbackConfig::default(), |_, _| -> Response<_> {
            panic!("nobody waits for it")
        })
        .expect("valid");
        let service = layer.layer(service_fn(callee));
        let hangs = service.clone().oneshot(Request::new(3));
        assert!(
            tokio::time::timeout(Duration::from_secs(1), hangs)
                .await
                .is_err()
        );
        let panics = AssertUnwindSafe(service.oneshot(Request::new(503))).catch_unwind();
        assert!(panics.await.is_err());
    }
}
