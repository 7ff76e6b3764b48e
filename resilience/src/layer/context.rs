//! What a request carries, read once on arrival and passed on with every call made for it.
//!
//! ```
//! # use std::convert::Infallible;
//! # use http::{Request, Response};
//! use selvedge_resilience::{context::CallContext, layer::{ContextLayer, propagate}};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! # let client = service_fn(|call: Request<()>| async move {
//! #     assert_eq!(call.headers()["baggage"], "tenant=acme");
//! #     assert!(call.headers().contains_key("traceparent"));
//! #     Ok::<_, Infallible>(Response::new(()))
//! # });
//! // In axum, a handler takes `Extension<CallContext>`.
//! let handler = service_fn(move |request: Request<()>| async move {
//!     let context = request.extensions().get::<CallContext>().expect("a ContextLayer outside");
//!     let mut call = Request::get("http://orders/1").body(()).expect("a valid request");
//!     propagate(context, &mut call);
//!     client.oneshot(call).await
//! });
//! let service = ContextLayer::new().layer(handler);
//! # let request = Request::builder().header("baggage", "tenant=acme").body(())?;
//! # service.oneshot(request).await?;
//! # Ok(())
//! # }
//! ```

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use super::ArrivedAt;
use crate::{
    context::{CallContext, Deadline, TraceFormat, attempt, baggage, priority},
    rng::Rng,
};

/// Reads what a request carries and puts it into its extensions: [`CallContext`], and on their own
/// for the layers further in, [`Deadline`] and [`Priority`](crate::context::Priority) if the caller
/// said them. Put it outermost.
///
/// The deadline counts from [`ArrivedAt`], if the server knows it.
#[derive(Debug, Clone)]
pub struct ContextLayer {
    rng: Arc<Rng>,
    at_edge: bool,
}

impl Default for ContextLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl ContextLayer {
    /// For a service that is called by services it trusts.
    pub fn new() -> Self {
        Self::with_rng(Rng::from_entropy())
    }

    /// The same with a source of chance, for the ids of new traces, that a test can replay.
    pub fn with_rng(rng: Rng) -> Self {
        Self {
            rng: Arc::new(rng),
            at_edge: false,
        }
    }

    /// For a service that strangers call: what they say of their importance, their tries and their
    /// baggage is removed from the request. Their trace is theirs, and their deadline can only
    /// shorten their own time: both are kept.
    #[must_use]
    pub fn at_edge(mut self) -> Self {
        self.at_edge = true;
        self
    }
}

impl<S> Layer<S> for ContextLayer {
    type Service = ContextService<S>;
    fn layer(&self, inner: S) -> ContextService<S> {
        ContextService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`ContextLayer`].
#[derive(Debug, Clone)]
pub struct ContextService<S> {
    layer: ContextLayer,
    inner: S,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for ContextService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if self.layer.at_edge {
            let headers = request.headers_mut();
            for name in [
                &priority::HEADER,
                &baggage::BAGGAGE,
                &attempt::ENVOY_ATTEMPT_COUNT,
                &attempt::GRPC_PREVIOUS_ATTEMPTS,
                &attempt::ENVOY_IS_TIMEOUT_RETRY,
            ] {
                headers.remove(name);
            }
        }
        let arrived = request.extensions().get::<ArrivedAt>().map(|at| at.0);
        let arrived = arrived.unwrap_or_else(now);
        let (headers, rng) = (request.headers(), &self.layer.rng);
        let context = CallContext::read(headers, arrived, SystemTime::now(), rng);
        let extensions = request.extensions_mut();
        if let Some(deadline) = context.deadline {
            extensions.insert(deadline);
        }
        if context.has_priority {
            extensions.insert(context.priority);
        }
        extensions.insert(context);
        self.inner.call(request)
    }
}

/// Passes on what `context` carries with a call that is made for it: in its headers, with the trace
/// in W3C form, and in its extensions, for the layers that it goes through.
pub fn propagate<B>(context: &CallContext, request: &mut Request<B>) {
    propagate_as(context, request, &[TraceFormat::W3c]);
}

/// The same with the trace in other forms.
pub fn propagate_as<B>(context: &CallContext, request: &mut Request<B>, formats: &[TraceFormat]) {
    context.propagate(request.headers_mut(), now(), formats);
    let extensions = request.extensions_mut();
    let own = extensions.get::<Deadline>().copied();
    if let Some(deadline) = Deadline::earlier(own, context.deadline) {
        extensions.insert(deadline);
    }
    if context.has_priority {
        extensions.insert(context.priority);
    }
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{convert::Infallible, future::Ready, time::Duration};

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::context::Priority;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn request(pairs: &[(&str, &str)]) -> Request<()> {
        let request = pairs
            .iter()
            .fold(Request::builder(), |request, (name, value)| {
                request.header(*name, *value)
            });
        request.body(()).expect("valid")
    }

    /// Gives back the request as the handler sees it.
    fn handler() -> impl Service<
        Request<()>,
        Response = Request<()>,
        Error = Infallible,
        Future = Ready<Result<Request<()>, Infallible>>,
    > {
        service_fn(|request| std::future::ready(Ok(request)))
    }

    const ALL: &[(&str, &str)] = &[
        ("traceparent", PARENT),
        ("baggage", "tenant=acme"),
        ("x-priority", "batch"),
        ("x-envoy-attempt-count", "3"),
        ("grpc-timeout", "2S"),
    ];

    #[tokio::test(start_paused = true)]
    async fn a_handler_finds_it_and_its_calls_carry_it_on() {
        let seen = ContextLayer::new().layer(handler()).oneshot(request(ALL));
        let seen = seen.await.expect("infallible");
        let context = seen.extensions().get::<CallContext>().expect("read");
        let deadline = Deadline::after(now(), Duration::from_secs(2));
        assert_eq!(seen.extensions().get::<Deadline>().copied(), deadline);
        assert_eq!(seen.extensions().get::<Priority>(), Some(&context.priority));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut call = request(&[("baggage", "stale=1")]);
        propagate(context, &mut call);
        let headers = call.headers();
        assert_eq!(headers["traceparent"], PARENT);
        assert_eq!(headers["baggage"], "tenant=acme");
        assert_eq!(headers["x-priority"], "batch");
        assert_eq!(headers["x-envoy-expected-rq-timeout-ms"], "1500");
        assert!(!headers.contains_key("x-envoy-attempt-count"), "of one hop");
        assert_eq!(call.extensions().get::<Deadline>().copied(), deadline);
        assert_eq!(call.extensions().get::<Priority>(), Some(&context.priority));
        let mut b3 = request(&[]);
        propagate_as(context, &mut b3, &[TraceFormat::B3Single]);
        assert!(b3.headers().contains_key("b3") && !b3.headers().contains_key("traceparent"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_s_own_shorter_deadline_stays() {
        let seen = ContextLayer::new().layer(handler()).oneshot(request(ALL));
        let seen = seen.await.expect("infallible");
        let context = seen.extensions().get::<CallContext>().expect("read");
        for (own, want) in [(1, 1), (5, 2)] {
            let after = |seconds| Deadline::after(now(), Duration::from_secs(seconds));
            let mut call = request(&[]);
            call.extensions_mut().insert(after(own).expect("soon"));
            propagate(context, &mut call);
            assert_eq!(call.extensions().get::<Deadline>().copied(), after(want));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_edge_does_not_believe_strangers() {
        let layer = ContextLayer::with_rng(Rng::new(7)).at_edge();
        let seen = layer.layer(handler()).oneshot(request(ALL)).await;
        let seen = seen.expect("infallible");
        let context = seen.extensions().get::<CallContext>().expect("read");
        assert!(!context.has_priority && context.baggage.is_empty());
        assert_eq!(context.attempt, None);
        assert_eq!(context.trace.header(), PARENT);
        assert!(context.deadline.is_some());
        assert_eq!(seen.headers().len(), 2, "{:?}", seen.headers());
        assert!(seen.extensions().get::<Priority>().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn time_spent_before_the_layer_is_off_the_deadline() {
        let mut early = request(ALL);
        let at = now().checked_sub(Duration::from_secs(1));
        early
            .extensions_mut()
            .insert(ArrivedAt(at.expect("a clock that runs")));
        let seen = ContextLayer::new().layer(handler()).oneshot(early).await;
        let seen = seen.expect("infallible");
        let deadline = seen.extensions().get::<Deadline>().copied();
        assert_eq!(deadline, Deadline::after(now(), Duration::from_secs(1)));
    }
}
