//! The race itself: tries beside each other until one is good.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use super::{
    super::{BoxError, ReplayBody, TransportError},
    HedgeBody,
    call::Call,
    now,
    racer::{Finished, Racer},
    sleep_until,
};
use crate::{config::Millis, hedge::Race};

pin_project! {
    /// The first good answer, or the best of those that are not.
    pub struct HedgeFuture<S, B, RB>
    where
        S: Service<Request<ReplayBody<B>>>,
        RB: Body,
    {
        #[pin]
        pub(super) first: Option<Racer<S::Future, RB>>,
        // Empty for nearly all calls.
        pub(super) hedges: Vec<Pin<Box<Racer<S::Future, RB>>>>,
        #[pin]
        pub(super) timer: Option<Sleep>,
        pub(super) call: Option<Call<S, B, RB, S::Error>>,
    }

    impl<S, B, RB> PinnedDrop for HedgeFuture<S, B, RB>
    where
        S: Service<Request<ReplayBody<B>>>,
        RB: Body,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // Given up by the caller: what hung until then must be seen.
            if let Some(call) = this.call {
                give_up(&call.race, this.first.as_ref().get_ref().as_ref(), this.hedges);
            }
        }
    }
}

/// Those still running have lost.
fn give_up<F, RB: Body>(
    race: &Race,
    first: Option<&Racer<F, RB>>,
    hedges: &[Pin<Box<Racer<F, RB>>>],
) {
    let now = now();
    let hedges = hedges.iter().map(|racer| racer.began);
    for began in first.map(|racer| racer.began).into_iter().chain(hedges) {
        race.cancelled(began, now);
    }
}

impl<S, B, RB> Future for HedgeFuture<S, B, RB>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    type Output = Result<Response<HedgeBody<RB>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let call = this.call.as_mut().expect("not polled after it is ready");
            let trailers = call.config.grpc_trailers;
            while let Some(finished) = poll_any(this.first.as_mut(), this.hedges, trailers, cx) {
                call.race.ended(finished.outcome, finished.began, now());
                let last = this.first.is_none() && this.hedges.is_empty();
                if !finished.is_good() && !last {
                    call.failed(finished);
                    continue;
                }
                let mut call = this.call.take().expect("there above");
                let answer = if finished.is_good() {
                    if finished.extra.is_some() {
                        call.race.won();
                    }
                    finished
                } else {
                    call.failed(finished);
                    call.best.take().expect("the one before was kept")
                };
                give_up(
                    &call.race,
                    this.first.as_ref().get_ref().as_ref(),
                    this.hedges,
                );
                this.first.set(None);
                this.hedges.clear();
                return Poll::Ready(call.finish(answer));
            }
            let Some(timer) = this.timer.as_mut().as_pin_mut() else {
                return Poll::Pending;
            };
            ready!(timer.poll(cx));
            let hedge = call.hedge(cx);
            this.timer.set(call.race.due().map(sleep_until));
            // Polled with the rest, or the new timer is.
            this.hedges.extend(hedge.map(Box::pin));
        }
    }
}

/// The next try that has ended, taken out of the race.
fn poll_any<F, RB, E>(
    mut first: Pin<&mut Option<Racer<F, RB>>>,
    hedges: &mut Vec<Pin<Box<Racer<F, RB>>>>,
    trailers: Millis,
    cx: &mut Context<'_>,
) -> Option<Finished<RB, E>>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body<Data = Bytes> + Unpin,
    E: TransportError,
{
    let running = usize::from(first.is_some()) + hedges.len();
    let racing = running > 1;
    if let Some(racer) = first.as_mut().as_pin_mut()
        && let Poll::Ready(finished) = racer.poll(racing, trailers, cx)
    {
        first.set(None);
        return Some(finished);
    }
    let (n, finished) = hedges.iter_mut().enumerate().find_map(|(n, racer)| {
        match racer.as_mut().poll(racing, trailers, cx) {
            Poll::Ready(finished) => Some((n, finished)),
            Poll::Pending => None,
        }
    })?;
    drop(hedges.swap_remove(n));
    Some(finished)
}

impl<S, B, RB> fmt::Debug for HedgeFuture<S, B, RB>
where
    S: Service<Request<ReplayBody<B>>>,
    RB: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeFuture")
            .field("hedges", &self.hedges.len())
            .finish_non_exhaustive()
    }
}
