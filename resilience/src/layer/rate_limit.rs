//! Rate limits in front of a service: one for everybody, or one for each key.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Error, gate::Gate};
use crate::{
    outcome::Rejected,
    rate_limit::{KeyedRateLimit, RateLimit, Status, headers::PolicyName},
};

/// How many cells a request takes. Closures say so themselves.
pub trait Cost<B> {
    /// At least 1, or it is not limited at all.
    fn cells(&self, request: &Request<B>) -> u32;
}

impl<B, F: Fn(&Request<B>) -> u32> Cost<B> for F {
    fn cells(&self, request: &Request<B>) -> u32 {
        self(request)
    }
}

/// Every request takes one cell.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneEach;

impl<B> Cost<B> for OneEach {
    fn cells(&self, _: &Request<B>) -> u32 {
        1
    }
}

/// Refuses calls that come too fast. All services made by one layer share the limit.
#[derive(Debug, Clone)]
pub struct RateLimitLayer<C = OneEach> {
    limit: RateLimit,
    cost: C,
    name: Option<Arc<PolicyName>>,
}

impl RateLimitLayer {
    /// Keep a clone of `limit` to read its state or to change it while it runs.
    pub fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            cost: OneEach,
            name: None,
        }
    }
}

impl<C> RateLimitLayer<C> {
    /// What a request costs.
    #[must_use]
    pub fn cost<D>(self, cost: D) -> RateLimitLayer<D> {
        RateLimitLayer {
            limit: self.limit,
            cost,
            name: self.name,
        }
    }

    /// Answers tell callers what is left, in `RateLimit` and `RateLimit-Policy` under this name. For
    /// a refusal, which is an error here, whoever makes the 429 of it calls
    /// [`PolicyName::write_refused`].
    #[must_use]
    pub fn headers(mut self, name: PolicyName) -> Self {
        self.name = Some(Arc::new(name));
        self
    }
}

impl<C: Clone, S> Layer<S> for RateLimitLayer<C> {
    type Service = RateLimitService<S, C>;
    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`RateLimitLayer`].
#[derive(Debug, Clone)]
pub struct RateLimitService<S, C = OneEach> {
    layer: RateLimitLayer<C>,
    inner: S,
}

impl<S, C, B, RB> Service<Request<B>> for RateLimitService<S, C>
where
    S: Service<Request<B>, Response = Response<RB>>,
    C: Cost<B>,
{
    type Response = Response<RB>;
    type Error = Error<S::Error>;
    type Future = RateLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (now, layer) = (now(), &self.layer);
        let cells = layer.cost.cells(&request);
        let admitted = layer.limit.try_acquire_n(cells, now);
        let name = layer.name.as_ref();
        let told = name.map(|name| Box::new((Arc::clone(name), layer.limit.status(now))));
        RateLimitFuture::new(admitted.map(|_begun| told), || self.inner.call(request))
    }
}

/// Refuses calls of a key that come too fast. All services made by one layer share the keys.
///
/// `key`: what to tell requests apart by; a request without one is not limited.
#[derive(Clone)]
pub struct KeyedRateLimitLayer<F, C = OneEach> {
    limit: KeyedRateLimit<Arc<str>>,
    key: F,
    cost: C,
    name: Option<Arc<PolicyName>>,
}

impl<F> KeyedRateLimitLayer<F> {
    /// Keep a clone of `limit` to read its state or to change it while it runs.
    ///
    /// The bound is here so that a closure passed in place gets its lifetimes right.
    pub fn new<B>(limit: KeyedRateLimit<Arc<str>>, key: F) -> Self
    where
        F: for<'a> Fn(&'a Request<B>) -> Option<Cow<'a, str>>,
    {
        Self {
            limit,
            key,
            cost: OneEach,
            name: None,
        }
    }
}

impl<F, C> KeyedRateLimitLayer<F, C> {
    /// What a request costs.
    #[must_use]
    pub fn cost<D>(self, cost: D) -> KeyedRateLimitLayer<F, D> {
        KeyedRateLimitLayer {
            limit: self.limit,
            key: self.key,
            cost,
            name: self.name,
        }
    }

    /// As [`RateLimitLayer::headers`].
    #[must_use]
    pub fn headers(mut self, name: PolicyName) -> Self {
        self.name = Some(Arc::new(name));
        self
    }
}

impl<F, C> fmt::Debug for KeyedRateLimitLayer<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedRateLimitLayer")
            .field(&self.limit)
            .finish()
    }
}

impl<F: Clone, C: Clone, S> Layer<S> for KeyedRateLimitLayer<F, C> {
    type Service = KeyedRateLimitService<S, F, C>;
    fn layer(&self, inner: S) -> Self::Service {
        KeyedRateLimitService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`KeyedRateLimitLayer`].
#[derive(Clone)]
pub struct KeyedRateLimitService<S, F, C = OneEach> {
    layer: KeyedRateLimitLayer<F, C>,
    inner: S,
}

impl<S, F, C> fmt::Debug for KeyedRateLimitService<S, F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedRateLimitService")
            .field(&self.layer)
            .finish()
    }
}

impl<S, F, C, B, RB> Service<Request<B>> for KeyedRateLimitService<S, F, C>
where
    S: Service<Request<B>, Response = Response<RB>>,
    F: for<'a> Fn(&'a Request<B>) -> Option<Cow<'a, str>>,
    C: Cost<B>,
{
    type Response = Response<RB>;
    type Error = Error<S::Error>;
    type Future = RateLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (now, layer) = (now(), &self.layer);
        let cells = layer.cost.cells(&request);
        let admitted = match (layer.key)(&request) {
            None => Ok(None),
            Some(key) => layer.limit.try_acquire_n(&*key, cells, now).map(|_begun| {
                let name = layer.name.as_ref()?;
                Some(Box::new((Arc::clone(name), layer.limit.status(&*key, now))))
            }),
        };
        RateLimitFuture::new(admitted, || self.inner.call(request))
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

// Boxed: most limits tell nothing, and every call moves it about.
type Told = Option<Box<(Arc<PolicyName>, Status)>>;

pin_project! {
    /// The answer, or the refusal.
    #[derive(Debug)]
    pub struct RateLimitFuture<F> {
        #[pin]
        gate: Gate<F>,
        told: Told,
    }
}

impl<F> RateLimitFuture<F> {
    fn new(admitted: Result<Told, Rejected>, call: impl FnOnce() -> F) -> Self {
        let (gate, told) = Gate::new(admitted, call);
        Self {
            gate,
            told: told.flatten(),
        }
    }
}

impl<F, RB, E> Future for RateLimitFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
{
    type Output = Result<Response<RB>, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let inner = this.gate.admitted()?;
        let Some(told) = this.told else {
            return inner.poll(cx).map_err(Error::Service);
        };
        let mut answer = ready!(inner.poll(cx)).map_err(Error::Service)?;
        let (name, status) = &**told;
        name.write(answer.headers_mut(), *status);
        Poll::Ready(Ok(answer))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{
        Reason,
        keyed::KeyedConfig,
        rate_limit::{
            KeyedRateLimitConfig,
            headers::{RATE_LIMIT, RATE_LIMIT_POLICY},
        },
    };

    fn hello() -> impl Service<
        Request<u32>,
        Response = Response<()>,
        Error = Infallible,
        Future = std::future::Ready<Result<Response<()>, Infallible>>,
    > + Clone {
        service_fn(|_| std::future::ready(Ok(Response::new(()))))
    }

    fn refused<T>(result: Result<T, Error<Infallible>>) -> (Reason, Option<Duration>) {
        match result {
            Err(Error::Rejected(rejected)) => (rejected.reason, rejected.retry_after),
            _ => panic!("expected a refusal"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_say_what_is_left_and_requests_cost_what_they_cost() {
        let limit = RateLimit::new("10/s".parse().expect("rate"));
        let service = RateLimitLayer::new(limit.clone())
            .cost(|request: &Request<u32>| *request.body())
            .headers(PolicyName::new("burst").expect("valid"))
            .layer(hello());
        let call = |cost| service.clone().oneshot(Request::new(cost));
        let answer = call(4).await.expect("admitted");
        assert_eq!(answer.headers()[&RATE_LIMIT], r#""burst";r=6;t=1"#);
        assert_eq!(answer.headers()[&RATE_LIMIT_POLICY], r#""burst";q=10;w=1"#);
        let wait = Some(Duration::from_millis(100));
        assert_eq!(refused(call(7).await), (Reason::Exhausted, wait));
        assert_eq!(
            refused(call(11).await),
            (Reason::InsufficientCapacity, None)
        );
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(call(7).await.is_ok());
        assert_eq!(limit.rejected(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn tower_rate_limit_is_per_instance_ours_is_shared_by_clones() {
        let layer = RateLimitLayer::new(RateLimit::new("2/s".parse().expect("rate")));
        let (a, b) = (layer.layer(hello()), layer.layer(hello()));
        assert!(a.clone().oneshot(Request::new(0)).await.is_ok());
        assert!(b.oneshot(Request::new(0)).await.is_ok());
        assert!(a.oneshot(Request::new(0)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_has_its_own_limit() {
        let limit = KeyedRateLimit::new(KeyedRateLimitConfig {
            rate: "1/s".parse().expect("rate"),
            keys: KeyedConfig::default(),
        })
        .expect("valid");
        let service = KeyedRateLimitLayer::new(limit.clone(), |request: &Request<u32>| {
            request.uri().host().map(Cow::from)
        })
        .headers(PolicyName::new("each").expect("valid"))
        .layer(hello());
        let call = |uri: &str| {
            let request = Request::get(uri).body(0).expect("valid");
            service.clone().oneshot(request)
        };
        for host in ["http://a/", "http://b/"] {
            let answer = call(host).await.expect("admitted");
            assert_eq!(answer.headers()[&RATE_LIMIT], r#""each";r=0;t=1"#, "{host}");
            assert_eq!(refused(call(host).await).0, Reason::Exhausted, "{host}");
        }
        for _ in 0..3 {
            let answer = call("/no-host").await.expect("has no key");
            assert!(!answer.headers().contains_key(&RATE_LIMIT));
        }
        assert_eq!(limit.keys().tracked, 2);
    }
}
