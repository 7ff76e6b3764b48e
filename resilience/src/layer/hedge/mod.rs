//! Hedges around any HTTP service, on the budget that retries use.
//!
//! # What it holds to
//! - The first *good* answer wins. A failure that comes first does not end the race (tower's hedge
//!   takes it); it is the answer only if nothing better comes.
//! - When one has won, the others are dropped before the caller sees the answer: what they hold
//!   further in (a bulkhead's slot, a connection) is free again.
//! - A hedge is sent only if repeating the call is harmless, its body is there as a whole, the
//!   deadline is still to come, the service is ready for another call *now*, and the budget pays.
//! - gRPC: while tries race, the head of an answer is held for its first frame, so that a verdict in
//!   the trailers of an empty answer counts.
//! - A call that is not hedged costs no allocation beyond those of its extensions.
//!
//! # What it does not do
//! It does not try again what has failed before a hedge was due: put a
//! [`RetryLayer`](super::RetryLayer) on the same budget inside. It stands *outside* the policies of
//! one try: inside a bulkhead, hedges would multiply the load behind its back. And it looks at
//! heads: a body that is late behind a head in time is not hedged.

mod call;
mod future;
mod racer;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    mem,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

pub use self::future::HedgeFuture;
use self::{
    call::{Call, announce},
    racer::Racer,
};
use super::{
    BoxError, Completes, GuardedBody, Moment, PeekedBody, ReplayBody, TransportError,
    deadline::deadline_of, replay::Replay,
};
use crate::{
    hedge::Hedge,
    outcome::Outcome,
    retry::{
        Safety,
        budget::{Budget, Counted, Extra, Logical},
    },
};

/// Sends a second try beside one that is late. All services made by one layer share what it has
/// measured.
///
/// The service underneath takes a [`ReplayBody`] around the caller's body; its error says what kind
/// of failure it was ([`TransportError`]: `BoxError` does).
///
/// ```
/// # use std::{convert::Infallible, time::Duration};
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// use selvedge_resilience::{
///     hedge::{Hedge, HedgeConfig},
///     layer::{HedgeLayer, ReplayBody, RetryLayer},
///     retry::RetryConfig,
/// };
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let retry = RetryLayer::new(RetryConfig::default())?;
/// let hedge = Hedge::new(HedgeConfig { after: "50ms".parse()?, ..HedgeConfig::default() })?;
/// # let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
/// # let client = service_fn(move |_: Request<ReplayBody<ReplayBody<Full<Bytes>>>>| {
/// #     let late = first.swap(false, std::sync::atomic::Ordering::Relaxed);
/// #     async move {
/// #         if late { std::future::pending::<()>().await }
/// #         Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
/// #     }
/// # });
/// // The first try of `client` hangs, the second does not.
/// let client = ServiceBuilder::new()
///     .layer(HedgeLayer::new(hedge.clone(), retry.budget().clone()))
///     .layer(retry)
///     .service(client);
/// let answer = client.oneshot(Request::get("/").body(Full::default())?).await?;
/// assert_eq!(answer.status(), 200);
/// assert_eq!(hedge.stats().won, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct HedgeLayer {
    hedge: Hedge,
    budget: Budget,
}

impl HedgeLayer {
    /// Keep a clone of `hedge` to read its state or to change it while it runs. `budget`: the one
    /// that retries of the same calls use.
    pub fn new(hedge: Hedge, budget: Budget) -> Self {
        Self { hedge, budget }
    }
}

impl<S> Layer<S> for HedgeLayer {
    type Service = HedgeService<S>;
    fn layer(&self, inner: S) -> HedgeService<S> {
        HedgeService {
            layer: self.clone(),
            inner,
        }
    }
}

/// See [`HedgeLayer`].
#[derive(Debug, Clone)]
pub struct HedgeService<S> {
    layer: HedgeLayer,
    inner: S,
}

/// An answer's body: it holds the call's place in the budget until it ends.
pub type HedgeBody<RB> = GuardedBody<PeekedBody<RB>, HedgeHeld>;

/// What a call holds of its budget: itself, and the hedge that won.
#[derive(Debug)]
pub struct HedgeHeld {
    // Dropped when the call is over: that is all the budget wants to know.
    _logical: Logical,
    _extra: Option<Extra>,
}

impl Completes for HedgeHeld {
    fn complete(self, _: Outcome, _: &mut Moment, _: Option<Duration>) {}
}

impl<S, B, RB> Service<Request<B>> for HedgeService<S>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    type Response = Response<HedgeBody<RB>>;
    type Error = S::Error;
    type Future = HedgeFuture<S, B, RB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (HedgeLayer { hedge, budget }, now) = (&self.layer, now());
        let (mut head, body) = request.into_parts();
        let config = hedge.config();
        let deadline = deadline_of(&head.extensions, &head.headers, now);
        let safety = Safety::of(
            &head.method,
            &head.headers,
            &head.extensions,
            config.non_idempotent,
        );
        let race = hedge.begin(safety, now, deadline.map(|deadline| deadline.0));
        let logical = Counted::begin(budget, &head.extensions, now);
        head.extensions.insert(Counted(budget.clone()));
        let first = announce(&mut head, None, &config);
        let kept = race.due().map(|_| head.clone());
        let limit = kept.as_ref().map_or(0, |_| config.replay.as_usize());
        let mut body = Replay::new(body, limit);
        let view = body.view().expect("the first view of a body");

        let clone = self.inner.clone();
        let mut service = mem::replace(&mut self.inner, clone);
        let timer = race.due().map(sleep_until);
        let future = service.call(Request::from_parts(head, view));
        HedgeFuture {
            first: Some(Racer::new(future, now, None)),
            hedges: Vec::new(),
            timer,
            call: Some(Call {
                service,
                config,
                race,
                logical,
                head: kept,
                body,
                deadline,
                first,
                best: None,
            }),
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn sleep_until(instant: Instant) -> Sleep {
    tokio::time::sleep_until(tokio::time::Instant::from_std(instant))
}
