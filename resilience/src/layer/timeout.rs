//! A deadline for a whole call, its body included, that travels with it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::{BoxError, CallGuard, Error, GuardedBody, wall_if};
use crate::{
    context::{Deadline, deadline::Said},
    outcome::{Outcome, Policy, Reason, Rejected},
};

/// Ends calls after a time, or earlier where the caller's deadline is earlier; tells the callee.
///
/// The caller's deadline is the request's [`Deadline`] extension, else what its headers say. What
/// comes of the two goes on in both, so that layers further in and the callee know it. An expired
/// call is not even begun, and one whose time is up is dropped before its caller hears of it. Stood
/// outside a retry it bounds the whole call, inside it bounds each try.
#[derive(Debug, Clone, Copy)]
pub struct TimeoutLayer {
    total: Duration,
}

impl TimeoutLayer {
    /// At most `total`, from the call to the end of the answer's body; [`Duration::MAX`] is as long
    /// as the caller says.
    pub fn new(total: Duration) -> Self {
        Self { total }
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = TimeoutService<S>;
    fn layer(&self, inner: S) -> TimeoutService<S> {
        TimeoutService {
            inner,
            total: self.total,
        }
    }
}

/// See [`TimeoutLayer`].
#[derive(Debug, Clone)]
pub struct TimeoutService<S> {
    inner: S,
    total: Duration,
}

impl<S, B, RB> Service<Request<B>> for TimeoutService<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<GuardedBody<RB, ()>>;
    type Error = Error<S::Error>;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let now = Instant::now();
        let said = Said::of(request.headers());
        let wall = wall_if(said.needs_wall());
        let caller = match request.extensions().get::<Deadline>() {
            Some(deadline) => Some(deadline.left(now.into_std())),
            None => said.left(wall),
        };
        let left = caller.unwrap_or(Duration::MAX).min(self.total);
        if left.is_zero() {
            return TimeoutFuture {
                inner: None,
                sleep: None,
                deadline: None,
                refused: Reason::Expired,
            };
        }
        // Further than the clock goes is for ever.
        let deadline = now.checked_add(left);
        if let Some(deadline) = deadline {
            said.replace_at(request.headers_mut(), left, wall);
            let extensions = request.extensions_mut();
            extensions.insert(Deadline(deadline.into_std()));
        }
        TimeoutFuture {
            inner: Some(self.inner.call(request)),
            sleep: None,
            deadline,
            refused: Reason::Elapsed,
        }
    }
}

pin_project! {
    /// The answer's head, or a refusal when the time is up.
    #[derive(Debug)]
    pub struct TimeoutFuture<F> {
        #[pin]
        inner: Option<F>,
        // Only for an answer that keeps us waiting.
        #[pin]
        sleep: Option<Sleep>,
        deadline: Option<Instant>,
        refused: Reason,
    }
}

impl<F, RB, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<GuardedBody<RB, ()>>, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut() {
            if let Poll::Ready(result) = inner.poll(cx) {
                let deadline = *this.deadline;
                return Poll::Ready(result.map_err(Error::Service).map(|response| {
                    response.map(|body| {
                        GuardedBody::new(body, CallGuard::new(()), Outcome::Success, deadline)
                    })
                }));
            }
            let Some(deadline) = *this.deadline else {
                return Poll::Pending;
            };
            if this.sleep.is_none() {
                this.sleep.set(Some(tokio::time::sleep_until(deadline)));
            }
            let sleep = this.sleep.as_pin_mut().expect("set above");
            ready!(sleep.poll(cx));
            // What it holds further in is free before the caller knows.
            this.inner.set(None);
        }
        Poll::Ready(Err(Rejected::new(Policy::Deadline, *this.refused).into()))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use http_body_util::{BodyExt, Full};
    use tower::{Layer as _, ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::{bulkhead::Bulkhead, context::deadline, layer::BulkheadLayer};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    type Say = Box<dyn Fn(&mut Request<()>)>;

    fn reason<T: std::fmt::Debug>(result: Result<T, Error<Infallible>>) -> Reason {
        let error = result.expect_err("refused");
        error.rejected().expect("by a policy").reason
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_deadline_counts_and_is_told_to_everybody_further_in() {
        let extension = |left| {
            move |request: &mut Request<()>| {
                let deadline = Deadline::after(Instant::now().into_std(), ms(left));
                request.extensions_mut().insert(deadline.expect("soon"));
            }
        };
        let header = |name: &'static str, value: &'static str| {
            move |request: &mut Request<()>| {
                request
                    .headers_mut()
                    .insert(name, value.parse().expect("valid"));
            }
        };
        let none: Say = Box::new(|_| ());
        let cases: [(&str, Duration, Say, Option<u128>); 6] = [
            ("its own", ms(800), none, Some(800)),
            (
                "a header",
                ms(800),
                Box::new(header("grpc-timeout", "300m")),
                Some(300),
            ),
            (
                "a later header",
                ms(800),
                Box::new(header("grpc-timeout", "3S")),
                Some(800),
            ),
            ("an extension", ms(800), Box::new(extension(200)), Some(200)),
            (
                "only the caller's",
                Duration::MAX,
                Box::new(extension(200)),
                Some(200),
            ),
            ("for ever", Duration::MAX, Box::new(|_| ()), None),
        ];
        for (name, total, say, want) in cases {
            let service =
                TimeoutLayer::new(total).layer(service_fn(|request: Request<()>| async move {
                    let known = request.extensions().get::<Deadline>();
                    let left = known.map(|d| d.left(Instant::now().into_std()).as_millis());
                    let told = request.headers().get(&deadline::EXPECTED_TIMEOUT_MS);
                    let told =
                        told.map(|ms| ms.to_str().expect("digits").parse().expect("a number"));
                    assert_eq!(left, told);
                    let body = Full::<Bytes>::from(format!("{left:?}"));
                    Ok::<_, Infallible>(Response::new(body))
                }));
            let mut request = Request::new(());
            say(&mut request);
            let answer = service.oneshot(request).await.expect("an answer");
            let body = answer.into_body().collect().await.expect("a body");
            assert_eq!(body.to_bytes(), format!("{want:?}"), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_call_is_not_begun() {
        let begun = Arc::new(AtomicU32::new(0));
        let service = {
            let begun = Arc::clone(&begun);
            TimeoutLayer::new(ms(800)).layer(service_fn(move |_: Request<()>| {
                begun.fetch_add(1, Ordering::Relaxed);
                async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
            }))
        };
        let mut late = Request::new(());
        let deadline = Deadline(Instant::now().into_std());
        late.extensions_mut().insert(deadline);
        let grpc = Request::builder().header("grpc-timeout", "0m").body(());
        for request in [late, grpc.expect("valid")] {
            assert_eq!(
                reason(service.clone().oneshot(request).await),
                Reason::Expired
            );
        }
        assert_eq!(begun.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_late_call_holds_is_free_before_its_caller_knows() {
        let bulkhead = Bulkhead::new(1);
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(ms(100)))
            .layer(BulkheadLayer::new(bulkhead.clone()))
            .service(service_fn(|_: Request<()>| {
                std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
            }));
        let mut call = Box::pin(service.oneshot(Request::new(())));
        let start = Instant::now();
        let late = (&mut call).await.map_err(Error::flat);
        assert_eq!((reason(late), start.elapsed()), (Reason::Elapsed, ms(100)));
        assert_eq!(bulkhead.status().in_flight, 0, "the future is still there");
        drop(call);
    }
}
