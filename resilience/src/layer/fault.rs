//! Faults on purpose, innermost, so that every policy outside sees them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use super::{EitherBody, Error, FixedBody, oneshot::Oneshot};
use crate::{
    classify::GRPC_STATUS,
    fault::{Abort, Fault, Faults},
    outcome::{Policy, Reason, Rejected},
};

/// Marks an answer that a fault has touched: an extension of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Injected {
    /// The call was delayed.
    pub delay: bool,
    /// The callee never saw it.
    pub abort: bool,
}

impl Injected {
    /// The flags of an access log for it, as Envoy's.
    pub fn flags(self) -> &'static str {
        match (self.delay, self.abort) {
            (true, true) => "DI,FI",
            (true, false) => "DI",
            (false, true) => "FI",
            (false, false) => "",
        }
    }
}

/// Delays and aborts calls. A broken connection is an error with [`Policy::Fault`].
#[derive(Debug, Clone)]
pub struct FaultLayer(Faults);

impl FaultLayer {
    /// Keep a clone of `faults` to read its state or to change it while it runs.
    pub fn new(faults: Faults) -> Self {
        Self(faults)
    }
}

impl<S> Layer<S> for FaultLayer {
    type Service = FaultService<S>;
    fn layer(&self, inner: S) -> FaultService<S> {
        FaultService {
            faults: self.0.clone(),
            inner,
        }
    }
}

/// See [`FaultLayer`].
#[derive(Debug, Clone)]
pub struct FaultService<S> {
    faults: Faults,
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for FaultService<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body<Data = Bytes>,
{
    type Response = Response<EitherBody<RB, FixedBody>>;
    type Error = Error<S::Error>;
    type Future = FaultFuture<S, B, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(fault) = self.faults.decide(request.headers()) else {
            return FaultFuture {
                state: State::Calling {
                    inner: self.inner.call(request),
                },
                injected: None,
            };
        };
        let injected = Injected {
            delay: fault.delay.is_some(),
            abort: fault.abort.is_some(),
        };
        let state = match (fault.delay, fault.abort) {
            (Some(delay), _) => State::Delaying {
                timer: tokio::time::sleep(delay),
                // Not the readied one: what is delayed must not keep others from what is ready.
                call: Some((self.inner.clone(), request)),
                fault: Some(fault),
            },
            (None, Some(abort)) => State::Aborted { abort },
            (None, None) => State::Calling {
                inner: self.inner.call(request),
            },
        };
        FaultFuture {
            state,
            injected: Some(injected),
        }
    }
}

pin_project! {
    /// The answer, after or instead of which something happens on purpose.
    pub struct FaultFuture<S, B, F> {
        #[pin]
        state: State<S, B, F>,
        injected: Option<Injected>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        Delaying {
            #[pin]
            timer: Sleep,
            call: Option<(S, Request<B>)>,
            fault: Option<Fault>,
        },
        // Late: the service is readied after the delay.
        Late { #[pin] inner: Oneshot<S, Request<B>, F> },
        Calling { #[pin] inner: F },
        Aborted { abort: Abort },
    }
}

impl<S, B, RB> Future for FaultFuture<S, B, S::Future>
where
    S: Service<Request<B>, Response = Response<RB>>,
{
    type Output = Result<Response<EitherBody<RB, FixedBody>>, Error<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut answer = loop {
            match this.state.as_mut().project() {
                StateProj::Delaying { timer, call, fault } => {
                    ready!(timer.poll(cx));
                    let abort = fault.take().and_then(|fault| fault.abort);
                    let next = match (abort, call.take()) {
                        (None, Some((service, request))) => State::Late {
                            inner: Oneshot::new(service, request),
                        },
                        (Some(abort), _) => State::Aborted { abort },
                        (None, None) => unreachable!("taken once, when the delay ends"),
                    };
                    this.state.set(next);
                }
                StateProj::Late { inner } => {
                    let answer = ready!(inner.poll(cx)).map_err(Error::Service)?;
                    break answer.map(EitherBody::own);
                }
                StateProj::Calling { inner } => {
                    let answer = ready!(inner.poll(cx)).map_err(Error::Service)?;
                    break answer.map(EitherBody::own);
                }
                StateProj::Aborted { abort } => break aborted(*abort)?.map(EitherBody::other),
            }
        };
        if let Some(injected) = *this.injected {
            answer.extensions_mut().insert(injected);
        }
        Poll::Ready(Ok(answer))
    }
}

/// What comes instead of an answer.
pub(super) fn aborted(abort: Abort) -> Result<Response<FixedBody>, Rejected> {
    let mut answer = Response::new(FixedBody::default());
    match abort {
        Abort::Status(status) => *answer.status_mut() = status,
        Abort::Grpc(code) => {
            let headers = answer.headers_mut();
            let content_type = HeaderValue::from_static("application/grpc");
            headers.insert(CONTENT_TYPE, content_type);
            headers.insert(&GRPC_STATUS, HeaderValue::from(u16::from(code)));
            let message = HeaderValue::from_static("fault filter abort");
            headers.insert("grpc-message", message);
        }
        Abort::Reset => return Err(Rejected::new(Policy::Fault, Reason::Injected)),
    }
    Ok(answer)
}

impl<S, B, F> fmt::Debug for FaultFuture<S, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultFuture")
            .field("injected", &self.injected)
            .finish_non_exhaustive()
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
        time::Duration,
    };

    use http_body_util::{BodyExt, Full};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::{Rng, fault::KillSwitch};

    type Callee = tower::util::BoxCloneService<
        Request<()>,
        Response<EitherBody<Full<Bytes>, FixedBody>>,
        Error<Infallible>,
    >;

    /// A callee that counts, under these faults; and the faults.
    fn service(text: &str) -> (Faults, Arc<AtomicU32>, Callee) {
        let switch: &'static KillSwitch = Box::leak(Box::default());
        let config = toml::from_str(text).expect(text);
        let faults = Faults::with_switch(&config, Rng::new(1), switch).expect(text);
        let calls = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&calls);
        let service = FaultLayer::new(faults.clone()).layer(service_fn(move |_: Request<()>| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("own"))) }
        }));
        (faults, calls, Callee::new(service))
    }

    #[tokio::test(start_paused = true)]
    async fn what_each_fault_looks_like() {
        let cases = [
            ("", 200, "own", None, 0),
            (
                "abort = { status = 503, percentage = 1.0 }",
                503,
                "",
                Some("FI"),
                0,
            ),
            (
                "abort = { grpc_status = 14, percentage = 1.0 }",
                200,
                "",
                Some("FI"),
                0,
            ),
            (
                "delay = { fixed = \"3s\", percentage = 1.0 }",
                200,
                "own",
                Some("DI"),
                3,
            ),
            (
                "delay = { fixed = \"3s\", percentage = 1.0 }\nabort = { status = 500, percentage = 1.0 }",
                500,
                "",
                Some("DI,FI"),
                3,
            ),
        ];
        for (text, status, body, flags, secs) in cases {
            let (faults, calls, service) = service(text);
            let start = tokio::time::Instant::now();
            let answer = service.oneshot(Request::new(())).await.expect("answer");
            assert_eq!(start.elapsed(), Duration::from_secs(secs), "{text}");
            assert_eq!(answer.status().as_u16(), status, "{text}");
            let mark = answer
                .extensions()
                .get::<Injected>()
                .map(|mark| mark.flags());
            assert_eq!(mark, flags, "{text}");
            let grpc = answer.headers().get(&GRPC_STATUS).cloned();
            assert_eq!(grpc.is_some(), text.contains("grpc"), "{text}");
            let own = answer.into_body().collect().await.expect("body").to_bytes();
            assert_eq!(own, body, "{text}");
            assert_eq!(calls.load(Ordering::Relaxed), u32::from(body == "own"));
            assert_eq!(faults.status().active, 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_is_an_error_with_its_own_flag() {
        let (_, calls, service) = service("abort = { reset = true, percentage = 1.0 }");
        let Err(error) = service.oneshot(Request::new(())).await else {
            panic!("there is no answer")
        };
        let rejected = error.rejected().expect("by a policy");
        assert_eq!((rejected.policy, rejected.flag()), (Policy::Fault, "FI"));
        assert_eq!(calls.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_dropped_while_it_is_delayed_leaves_no_fault_active() {
        let text = "delay = { fixed = \"3s\", percentage = 1.0 }\nmax_active = 1";
        let (faults, calls, service) = service(text);
        let delayed = service.clone().oneshot(Request::new(()));
        let cut = tokio::time::timeout(Duration::from_secs(1), async {
            tokio::join!(delayed, async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert_eq!(faults.status().active, 1);
                // One suffers already: this one passes unharmed, and at once.
                let answer = service.clone().oneshot(Request::new(())).await;
                assert!(
                    answer
                        .expect("own")
                        .extensions()
                        .get::<Injected>()
                        .is_none()
                );
            })
        });
        assert!(cut.await.is_err());
        let status = faults.status();
        assert_eq!((status.active, status.overflow), (0, 1));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
