//! A policy for each key of a request: a breaker per method, a rate limit per tenant.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{Admission, BoxError, Error, GuardedBody, Moment, policy_layer::PolicyFuture};
use crate::keyed::{Keep, Keyed};

/// Puts a table of cores in front of a service and asks, for each request, the core of its key.
///
/// `key`: what to tell requests apart by; a borrowed answer costs no allocation for a key that is
/// tracked already. All services made by one layer share the table, as does whoever holds its `Arc`.
///
/// ```
/// # use std::sync::Arc;
/// # use selvedge_resilience::{breaker::{BreakerConfig, CircuitBreaker}, keyed::{Keyed, KeyedConfig}};
/// # use selvedge_resilience::layer::KeyedLayer;
/// # use http::Request;
/// let make = || CircuitBreaker::new(BreakerConfig::default());
/// let table = Arc::new(Keyed::new(KeyedConfig::default(), make()?, move |_: &Arc<str>| {
///     make().expect("the default works")
/// })?);
/// let layer = KeyedLayer::new(Arc::clone(&table), |request: &Request<()>| {
///     request.uri().host().unwrap_or("").into()
/// });
/// # let _ = layer;
/// # Ok::<_, selvedge_resilience::config::PolicyError>(())
/// ```
pub struct KeyedLayer<A, F> {
    table: Arc<Keyed<Arc<str>, A>>,
    key: F,
}

impl<A, F> KeyedLayer<A, F> {
    /// Keep a clone of `table` to read its state or to change it while it runs.
    ///
    /// The bound is here so that a closure passed in place gets its lifetimes right.
    pub fn new<B>(table: Arc<Keyed<Arc<str>, A>>, key: F) -> Self
    where
        F: for<'a> Fn(&'a Request<B>) -> Cow<'a, str>,
    {
        Self { table, key }
    }
}

impl<A, F: Clone> Clone for KeyedLayer<A, F> {
    fn clone(&self) -> Self {
        Self {
            table: Arc::clone(&self.table),
            key: self.key.clone(),
        }
    }
}

impl<A, F> fmt::Debug for KeyedLayer<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedLayer").field(&self.table).finish()
    }
}

impl<A, F: Clone, S> Layer<S> for KeyedLayer<A, F> {
    type Service = KeyedService<A, F, S>;
    fn layer(&self, inner: S) -> Self::Service {
        KeyedService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`KeyedLayer`].
pub struct KeyedService<A, F, S> {
    layer: KeyedLayer<A, F>,
    inner: S,
}

impl<A, F: Clone, S: Clone> Clone for KeyedService<A, F, S> {
    fn clone(&self) -> Self {
        Self {
            layer: self.layer.clone(),
            inner: self.inner.clone(),
        }
    }
}

impl<A, F, S> fmt::Debug for KeyedService<A, F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyedService").field(&self.layer).finish()
    }
}

impl<A, F, S, B, RB> Service<Request<B>> for KeyedService<A, F, S>
where
    A: Admission + Keep,
    F: for<'a> Fn(&'a Request<B>) -> Cow<'a, str>,
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<GuardedBody<RB, A::Permit>>;
    type Error = Error<S::Error>;
    type Future = PolicyFuture<S::Future, A::Permit>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut now = Moment::now();
        let found = {
            let key = (self.layer.key)(&request);
            self.layer.table.find(&*key, now.instant())
        };
        PolicyFuture::new(found.core.admit(&mut now), || self.inner.call(request))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use http_body_util::Empty;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{
        Reason,
        breaker::{BreakerConfig, CircuitBreaker, State},
        keyed::KeyedConfig,
    };

    fn per_path(request: &Request<()>) -> Cow<'_, str> {
        request.uri().path().into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_broken_path_does_not_close_the_others() {
        let make = || {
            CircuitBreaker::new(BreakerConfig {
                consecutive: 2,
                ..BreakerConfig::default()
            })
            .expect("valid")
        };
        let config = KeyedConfig::default();
        let table =
            Arc::new(Keyed::new(config, make(), move |_: &Arc<str>| make()).expect("valid"));
        let inner = service_fn(|request: Request<()>| async move {
            let status = if request.uri().path() == "/bad" {
                503
            } else {
                200
            };
            let response = Response::builder()
                .status(status)
                .body(Empty::<Bytes>::new());
            Ok::<_, Infallible>(response.expect("valid"))
        });
        let service = KeyedLayer::new(Arc::clone(&table), per_path).layer(inner);
        let call = |path: &'static str| {
            let request = Request::get(path).body(()).expect("valid");
            service.clone().oneshot(request)
        };
        for _ in 0..2 {
            assert_eq!(call("/bad").await.expect("answered").status(), 503);
            assert_eq!(call("/good").await.expect("answered").status(), 200);
        }
        let refused = call("/bad").await.expect_err("open");
        assert_eq!(refused.rejected().expect("by us").reason, Reason::Open);
        assert_eq!(call("/good").await.expect("answered").status(), 200);
        assert_eq!(table.peek("/bad").expect("tracked").state(), State::Open);
        tokio::time::advance(Duration::from_millis(5_001)).await;
        assert_eq!(call("/bad").await.expect("a probe").status(), 503);
        assert_eq!(table.stats().tracked, 2);
    }
}
