//! Readies a service of one's own and makes one call with it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

pin_project! {
    /// As tower's `Oneshot`: the service is dropped as soon as the call is made.
    #[project = OneshotProj]
    pub(super) enum Oneshot<S, R, F> {
        Readying { call: Option<(S, R)> },
        Calling { #[pin] inner: F },
    }
}

impl<S: Service<R>, R> Oneshot<S, R, S::Future> {
    /// `service` need not be ready.
    pub(super) fn new(service: S, request: R) -> Self {
        Self::Readying {
            call: Some((service, request)),
        }
    }
}

impl<S: Service<R>, R> Future for Oneshot<S, R, S::Future> {
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let inner = match self.as_mut().project() {
                OneshotProj::Calling { inner } => return inner.poll(cx),
                OneshotProj::Readying { call } => {
                    let (service, _) = call.as_mut().expect("not polled after it is ready");
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        return Poll::Ready(Err(error));
                    }
                    let (mut service, request) = call.take().expect("checked above");
                    service.call(request)
                }
            };
            self.set(Self::Calling { inner });
        }
    }
}
