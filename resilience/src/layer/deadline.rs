//! Refusing, on arrival, what nobody waits for any more.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::{Extensions, HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{ArrivedAt, Error, gate::Gate, wall_if};
use crate::{
    context::{
        Deadline,
        deadline::{self, Said},
    },
    expired::ExpiredFilter,
};

/// When a call must be over: its extension says, else its headers, counted from `now`.
pub(super) fn deadline_of(
    extensions: &Extensions,
    headers: &HeaderMap,
    now: Instant,
) -> Option<Deadline> {
    match extensions.get::<Deadline>() {
        Some(deadline) => Some(*deadline),
        None => Deadline::after(now, deadline::extract(headers)?),
    }
}

/// Refuses requests whose deadline has passed. All services made by one layer share the account.
///
/// The deadline is the request's [`Deadline`] extension, else what its headers say, counted from
/// [`ArrivedAt`] if the server knows it. It goes on as an extension, so that layers further in and
/// the handler know it too. Put it behind whatever queues, in front of whatever costs.
#[derive(Debug, Clone)]
pub struct DeadlineLayer {
    filter: ExpiredFilter,
}

impl DeadlineLayer {
    /// Keep a clone of `filter` to read its counters or to change it while it runs.
    pub fn new(filter: ExpiredFilter) -> Self {
        Self { filter }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;
    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService {
            filter: self.filter.clone(),
            inner,
        }
    }
}

/// See [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct DeadlineService<S> {
    filter: ExpiredFilter,
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
{
    type Response = Response<RB>;
    type Error = Error<S::Error>;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let now = tokio::time::Instant::now().into_std();
        let extensions = request.extensions();
        let known = extensions.get::<Deadline>().copied();
        let deadline = known.or_else(|| {
            let arrived = extensions.get::<ArrivedAt>().map_or(now, |at| at.0);
            let said = Said::of(request.headers());
            let left = said.left(wall_if(said.needs_wall()))?;
            Deadline::after(arrived, left)
        });
        let admitted = self.filter.admit(deadline, now);
        let (gate, _) = Gate::new(admitted, || {
            if let (None, Some(deadline)) = (known, deadline) {
                request.extensions_mut().insert(deadline);
            }
            self.inner.call(request)
        });
        DeadlineFuture { gate }
    }
}

pin_project! {
    /// The answer, or the refusal.
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        #[pin]
        gate: Gate<F>,
    }
}

impl<F, RB, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
{
    type Output = Result<Response<RB>, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = self.project().gate.admitted()?;
        inner.poll(cx).map_err(Error::Service)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use http::HeaderName;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{Policy, Reason, Rejected, expired::ExpiredConfig};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    type Left = std::future::Ready<Result<Response<Option<u128>>, Infallible>>;

    /// Answers with the milliseconds that the handler knows to be left.
    fn handler()
    -> impl Service<
        Request<()>,
        Response = Response<Option<u128>>,
        Error = Infallible,
        Future = Left,
    > + Clone {
        service_fn(|request: Request<()>| {
            let deadline = request.extensions().get::<Deadline>();
            let left = deadline.map(|deadline| deadline.left(now()).as_millis());
            std::future::ready(Ok(Response::new(left)))
        })
    }

    fn now() -> std::time::Instant {
        tokio::time::Instant::now().into_std()
    }

    fn paid() -> ExpiredFilter {
        let filter = ExpiredFilter::new(ExpiredConfig::default()).expect("valid");
        (0..100).for_each(|_| filter.admit(None, now()).expect("no deadline"));
        filter
    }

    fn said(name: &HeaderName, value: &str) -> Request<()> {
        let request = Request::builder().header(name, value);
        request.body(()).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_is_refused_and_the_rest_knows_its_time() {
        let arrived = |mut request: Request<()>, before| {
            let at = now().checked_sub(ms(before)).expect("a clock that runs");
            request.extensions_mut().insert(ArrivedAt(at));
            request
        };
        let mut known = said(&deadline::GRPC_TIMEOUT, "9S");
        known
            .extensions_mut()
            .insert(Deadline::after(now(), ms(70)).expect("soon"));
        let grpc = |text| said(&deadline::GRPC_TIMEOUT, text);
        let cases = [
            ("no deadline", Request::new(()), Some(None)),
            ("in time", grpc("100m"), Some(Some(100))),
            ("expired when it was sent", grpc("0n"), None),
            (
                "waited in a queue",
                arrived(grpc("100m"), 40),
                Some(Some(60)),
            ),
            ("waited too long", arrived(grpc("100m"), 100), None),
            ("read further out already", known, Some(Some(70))),
            (
                "Finagle's, long ago",
                said(&deadline::FINAGLE, "5 10"),
                None,
            ),
            ("a riddle", grpc("soon"), Some(None)),
        ];
        let filter = paid();
        let layer = DeadlineLayer::new(filter.clone());
        for (name, request, want) in cases {
            let got = layer.layer(handler()).oneshot(request).await;
            match (got, want) {
                (Ok(answer), Some(left)) => assert_eq!(answer.into_body(), left, "{name}"),
                (Err(Error::Rejected(rejected)), None) => {
                    let want = Rejected::new(Policy::Deadline, Reason::Expired);
                    assert_eq!(rejected, want, "{name}");
                }
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
        assert_eq!(filter.stats().rejected, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_counts_wrong_does_not_bring_the_service_down() {
        let filter = ExpiredFilter::new(ExpiredConfig::default()).expect("valid");
        let service = DeadlineLayer::new(filter).layer(handler());
        let mut served = 0;
        for _ in 0..600 {
            let request = said(&deadline::GRPC_TIMEOUT, "0S");
            served += u32::from(service.clone().oneshot(request).await.is_ok());
        }
        assert!(served >= 500, "{served} of 600");
    }

    #[tokio::test(start_paused = true)]
    async fn dark_it_serves_all() {
        let filter = paid();
        let dark = ExpiredConfig {
            dark: true,
            ..ExpiredConfig::default()
        };
        filter.reconfigure(dark).expect("valid");
        let service = DeadlineLayer::new(filter.clone()).layer(handler());
        let answer = service.oneshot(said(&deadline::GRPC_TIMEOUT, "0S")).await;
        assert_eq!(answer.expect("served").into_body(), Some(0));
        assert_eq!(filter.stats().rejected, 1);
    }
}
