//! Load shedding on the way in, and where the wait that it measures ends.
//!
//! ```text
//! arrival ─► ShedLayer ─► … limits with queues, auth, whatever waits … ─► BegunLayer ─► handler
//!            └──────────────── the wait that moves the cursor ─────────┘
//! ```
//!
//! The two belong together: without a [`BegunLayer`] every call would seem to wait until its answer
//! is there, so one constructor, [`shed`], makes both. A call that never reaches the handler
//! (refused by a limit, timed out in its queue, cancelled) counts with all the time that it took,
//! for it has waited for nothing.
//!
//! What lies before the layer is not seen by itself. Whoever knows better when a request arrived
//! (the server that read its first byte) says so in the extension [`ArrivedAt`].

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{Request, Response};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Error, gate::Gate};
use crate::{
    context::priority::Priority,
    shed::{Shedder, Ticket},
};

/// When a request arrived, for a server that knows it better than the layer: an extension of the
/// request.
#[derive(Debug, Clone, Copy)]
pub struct ArrivedAt(pub Instant);

/// The layer that refuses, to be put outermost, and the one that says when a handler begins, to be
/// put innermost.
pub fn shed(shedder: Shedder) -> (ShedLayer, BegunLayer) {
    (ShedLayer { shedder }, BegunLayer(()))
}

/// Refuses what matters least while the service is overloaded. The priority is the request's
/// [`Priority`] extension, else its header; an edge must not believe what strangers write there.
#[derive(Debug, Clone)]
pub struct ShedLayer {
    shedder: Shedder,
}

impl<S> Layer<S> for ShedLayer {
    type Service = ShedService<S>;
    fn layer(&self, inner: S) -> ShedService<S> {
        ShedService {
            shedder: self.shedder.clone(),
            inner,
        }
    }
}

/// See [`ShedLayer`].
#[derive(Debug, Clone)]
pub struct ShedService<S> {
    shedder: Shedder,
    inner: S,
}

/// The ticket on its way through the layers: whoever takes it first decides.
#[derive(Debug, Clone)]
struct Mark(Arc<Mutex<Option<Ticket>>>);

impl Mark {
    fn begun(&self) {
        if let Some(ticket) = self.0.lock().take() {
            ticket.begun(now());
        }
    }

    fn gone(&self) {
        if let Some(ticket) = self.0.lock().take() {
            ticket.gone(now());
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl<S, B, RB> Service<Request<B>> for ShedService<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
{
    type Response = Response<RB>;
    type Error = Error<S::Error>;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let extensions = request.extensions();
        let priority = extensions.get::<Priority>().copied();
        let priority = priority.unwrap_or_else(|| Priority::extract(request.headers()));
        let arrived = extensions.get::<ArrivedAt>().map(|at| at.0);
        let now = now();
        let admitted = self
            .shedder
            .admit_since(priority, arrived.unwrap_or(now), now)
            .map(|ticket| {
                let mark = Mark(Arc::new(Mutex::new(Some(ticket))));
                request.extensions_mut().insert(mark.clone());
                // A guard from here on: a panic in `call` must not leave a request waiting for ever.
                Waits(mark)
            });
        let (gate, waits) = Gate::new(admitted, || self.inner.call(request));
        ShedFuture { gate, waits }
    }
}

/// A call whose handler may not have begun; if it never does, its wait ends with this.
#[derive(Debug)]
struct Waits(Mark);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.gone();
    }
}

pin_project! {
    /// The answer, or the refusal.
    #[derive(Debug)]
    pub struct ShedFuture<F> {
        #[pin]
        gate: Gate<F>,
        waits: Option<Waits>,
    }
}

impl<F, RB, E> Future for ShedFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
{
    type Output = Result<Response<RB>, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.gate.admitted()?.poll(cx));
        *this.waits = None;
        Poll::Ready(result.map_err(Error::Service))
    }
}

/// Tells the [`ShedLayer`] outside that the handler begins. Made by [`shed`]; transparent.
#[derive(Debug, Clone, Copy)]
pub struct BegunLayer(());

impl<S> Layer<S> for BegunLayer {
    type Service = BegunService<S>;
    fn layer(&self, inner: S) -> BegunService<S> {
        BegunService { inner }
    }
}

/// See [`BegunLayer`].
#[derive(Debug, Clone)]
pub struct BegunService<S> {
    inner: S,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for BegunService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if let Some(mark) = request.extensions().get::<Mark>() {
            mark.begun();
        }
        self.inner.call(request)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use bytes::Bytes;
    use http_body_util::Full;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::{
        Policy,
        bulkhead::{Bulkhead, BulkheadConfig},
        context::priority,
        layer::QueueLayer,
    };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    type Answer = Result<Response<Full<Bytes>>, Infallible>;

    /// Shed → a bulkhead of one with a queue → a handler of `handler`.
    fn service(
        shedder: &Shedder,
        queue: &str,
        handler: Duration,
    ) -> impl Service<Request<()>, Response: Send, Error = Error<Error<Infallible>>, Future: Send>
    + Clone
    + Send
    + use<> {
        let config: BulkheadConfig = toml::from_str(queue).expect(queue);
        let (shed, begun) = shed(shedder.clone());
        ServiceBuilder::new()
            .layer(shed)
            .layer(QueueLayer::new(
                Bulkhead::with_config(&config).expect(queue),
            ))
            .layer(begun)
            .service(service_fn(move |_: Request<()>| async move {
                tokio::time::sleep(handler).await;
                Answer::Ok(Response::default())
            }))
    }

    fn shedder(text: &str) -> Shedder {
        Shedder::new(toml::from_str(text).expect(text)).expect(text)
    }

    fn request(priority: &str) -> Request<()> {
        let builder = Request::get("/").header(&priority::HEADER, priority);
        builder.body(()).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_handler_is_no_overload_a_queue_is() {
        for (calls, overloaded) in [(1, 0), (4, 1)] {
            let shedder = shedder("samples = 2");
            let service = service(&shedder, "max = 1\nqueue = { wait = \"1s\" }", ms(100));
            let calls = (0..calls).map(|_| {
                let call = service.clone().oneshot(request("default"));
                async { call.await.is_ok() }
            });
            let done = futures_util::future::join_all(calls).await;
            assert!(done.into_iter().all(|ok| ok));
            let status = shedder.status();
            assert_eq!(status.waiting, 0);
            assert_eq!(status.overloaded.min(1), overloaded, "{status:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_times_out_in_the_queue_or_is_cancelled_there_counts_with_its_wait() {
        let shedder = shedder("samples = 1000");
        let service = service(&shedder, "max = 1\nqueue = { wait = \"50ms\" }", ms(500));
        let running = tokio::spawn(service.clone().oneshot(request("critical")));
        tokio::task::yield_now().await;
        assert!(service.clone().oneshot(request("default")).await.is_err());
        let cancelled = service.clone().oneshot(request("default"));
        assert!(tokio::time::timeout(ms(40), cancelled).await.is_err());
        assert_eq!(shedder.status().waiting, 0);
        assert!(running.await.expect("no panic").is_ok());
        tokio::time::advance(ms(1000)).await;
        // The mean of 0, 50 and 40 ms is above the target of 20; one of three was begun.
        assert!(service.clone().oneshot(request("critical")).await.is_ok());
        assert_eq!(shedder.status().overloaded, 1);
        let error = match service.oneshot(request("batch")).await {
            Err(error) => Error::flat(error),
            Ok(_) => panic!("batch goes first"),
        };
        assert_eq!(error.rejected().expect("refused").policy, Policy::Shed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_may_say_when_the_request_arrived_and_how_much_it_matters() {
        let shedder = shedder("samples = 1");
        let service = service(&shedder, "max = 1", ms(1));
        let mut late = request("batch");
        let arrived = now();
        tokio::time::advance(ms(30)).await;
        late.extensions_mut().insert(ArrivedAt(arrived));
        late.extensions_mut().insert(Priority::CRITICAL);
        assert!(service.oneshot(late).await.is_ok());
        let status = shedder.status();
        assert_eq!(
            (status.overloaded, status.cursor),
            (1, Some(Priority::CRITICAL))
        );
    }
}
