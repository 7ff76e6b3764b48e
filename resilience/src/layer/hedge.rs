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

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    BoxError, CallGuard, Completes, GuardedBody, Moment, PeekedBody, ReplayBody, TransportError,
    peek::First, replay::Replay,
};
use crate::{
    classify::{GrpcCode, awaits_grpc_trailers, outcome_of_head},
    context::{AttemptNumber, Deadline, deadline},
    hedge::{Hedge, HedgeConfig, Race, Unsent},
    outcome::{FailureClass, Outcome, Policy},
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
        let deadline = match head.extensions.get::<Deadline>() {
            Some(deadline) => Some(*deadline),
            None => deadline::extract(&head.headers).and_then(|left| Deadline::after(now, left)),
        };
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

/// Says in `head` which try this is: the caller's number, `hedges` later. Gives the first's.
fn announce(
    head: &mut Parts,
    hedge: Option<(AttemptNumber, u32)>,
    config: &HedgeConfig,
) -> AttemptNumber {
    let said = head.extensions.get::<AttemptNumber>().copied();
    let number = match (hedge, said) {
        (Some((first, hedges)), _) => AttemptNumber(first.0.saturating_add(hedges)),
        // A retry further out has said it.
        (None, Some(said)) => return said,
        (None, None) => AttemptNumber(1),
    };
    if config.announce {
        number.inject(&mut head.headers, false);
    }
    number.announce(&mut head.extensions);
    number
}

/// A call, and what it needs to be hedged.
struct Call<S, B, RB: Body, E> {
    service: S,
    config: std::sync::Arc<HedgeConfig>,
    race: Race,
    logical: Logical,
    head: Option<Parts>,
    body: Replay<B>,
    deadline: Option<Deadline>,
    first: AttemptNumber,
    /// The best of the answers that were not good.
    best: Option<Finished<RB, E>>,
}

/// What a try came to.
struct Finished<RB: Body, E> {
    result: Result<Response<PeekedBody<RB>>, E>,
    outcome: Outcome,
    began: Instant,
    extra: Option<Extra>,
}

impl<RB: Body, E: TransportError> Finished<RB, E> {
    fn is_good(&self) -> bool {
        self.result.is_ok() && matches!(self.outcome, Outcome::Success | Outcome::Ignored)
    }

    /// Whether a policy further in refused the try: the callee never saw it.
    fn was_refused(&self) -> bool {
        let rejected = self.result.as_ref().err().and_then(E::rejected);
        rejected.is_some_and(|rejected| rejected.policy != Policy::Deadline)
    }

    /// Of two that are not good: the callee's own words before an error, that before a refusal of
    /// ours.
    fn rank(&self) -> u8 {
        match &self.result {
            Ok(_) => 2,
            Err(_) if self.was_refused() => 0,
            Err(_) => 1,
        }
    }
}

impl<S, B, RB> Call<S, B, RB, S::Error>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    /// Sends the hedge that is due, if it can be sent.
    fn hedge(&mut self, cx: &mut Context<'_>) -> Option<Racer<S::Future, RB>> {
        let now = now();
        if self
            .deadline
            .is_some_and(|deadline| deadline.has_passed(now))
        {
            self.race.expire();
            return None;
        }
        // Two tries must not read one body that is still being sent: only one would be woken.
        if !self.body.is_complete() {
            self.race.skip(Unsent::Body);
            return None;
        }
        let mut service = self.service.clone();
        if !matches!(service.poll_ready(cx), Poll::Ready(Ok(()))) {
            self.race.skip(Unsent::NotReady);
            return None;
        }
        let extra = self.race.send(&self.logical, now).ok()?;
        let mut head = if self.race.due().is_some() {
            self.head.clone()?
        } else {
            self.head.take()?
        };
        announce(
            &mut head,
            Some((self.first, self.race.sent())),
            &self.config,
        );
        if let Some(deadline) = self.deadline {
            deadline::inject(&mut head.headers, deadline.left(now));
        }
        let body = self.body.view()?;
        let future = service.call(Request::from_parts(head, body));
        Some(Racer::new(future, now, Some(extra)))
    }

    /// A try ended otherwise than well while others run: the better of it and those before it is
    /// kept.
    fn failed(&mut self, mut finished: Finished<RB, S::Error>) {
        if finished.was_refused()
            && let Some(extra) = finished.extra.take()
        {
            extra.forgive();
        }
        match &self.best {
            Some(best) if best.rank() >= finished.rank() => {}
            _ => self.best = Some(finished),
        }
    }

    /// Hands the answer to the caller, and the call's place in the budget to its body.
    fn finish(self, finished: Finished<RB, S::Error>) -> Result<Response<HedgeBody<RB>>, S::Error> {
        let Finished {
            result,
            outcome,
            extra,
            ..
        } = finished;
        let guard = CallGuard::new(HedgeHeld {
            _logical: self.logical,
            _extra: extra,
        });
        result.map(|response| response.map(|body| GuardedBody::new(body, guard, outcome, None)))
    }
}

pin_project! {
    /// One try under way.
    struct Racer<F, RB: Body> {
        #[pin]
        state: State<F, RB>,
        began: Instant,
        extra: Option<Extra>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, RB: Body> {
        Sending {
            #[pin]
            future: F,
        },
        /// The head is there, but its verdict is not.
        Peeking {
            response: Option<Response<PeekedBody<RB>>>,
            #[pin]
            sleep: Sleep,
        },
    }
}

impl<F, RB: Body> Racer<F, RB> {
    fn new(future: F, began: Instant, extra: Option<Extra>) -> Self {
        Self {
            state: State::Sending { future },
            began,
            extra,
        }
    }
}

impl<F, RB, E> Racer<F, RB>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: Body<Data = Bytes> + Unpin,
    E: TransportError,
{
    /// `racing`: others run, so a verdict that is still to come is worth waiting for.
    fn poll(
        self: Pin<&mut Self>,
        racing: bool,
        trailers: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<Finished<RB, E>> {
        let mut this = self.project();
        loop {
            let (result, outcome) = match this.state.as_mut().project() {
                StateProj::Sending { future } => match ready!(future.poll(cx)) {
                    Ok(response) => {
                        let (status, headers) = (response.status(), response.headers());
                        let outcome = outcome_of_head(status, headers);
                        let peek = racing
                            && !trailers.is_zero()
                            && awaits_grpc_trailers(status, headers)
                            && !response.body().is_end_stream();
                        let response = response.map(PeekedBody::new);
                        if peek {
                            this.state.set(State::Peeking {
                                response: Some(response),
                                sleep: tokio::time::sleep(trailers),
                            });
                            continue;
                        }
                        (Ok(response), outcome)
                    }
                    Err(error) => {
                        let outcome = outcome_of_error(&error);
                        (Err(error), outcome)
                    }
                },
                StateProj::Peeking { response, sleep } => {
                    let body = response.as_mut().expect("taken once").body_mut();
                    let outcome = match body.poll_peek(cx) {
                        Poll::Ready(First::Trailers(trailers)) => {
                            GrpcCode::find(trailers).map_or(Outcome::Success, GrpcCode::outcome)
                        }
                        Poll::Ready(First::Broken) => Outcome::Failure(FailureClass::Reset),
                        Poll::Ready(First::Other) => Outcome::Success,
                        Poll::Pending => {
                            if racing {
                                ready!(sleep.poll(cx));
                            }
                            Outcome::Success
                        }
                    };
                    (Ok(response.take().expect("there above")), outcome)
                }
            };
            return Poll::Ready(Finished {
                result,
                outcome,
                began: *this.began,
                extra: this.extra.take(),
            });
        }
    }
}

fn outcome_of_error<E: TransportError>(error: &E) -> Outcome {
    match error.rejected() {
        Some(rejected) if rejected.policy == Policy::Deadline => {
            Outcome::Failure(FailureClass::Timeout)
        }
        Some(_) => Outcome::Cancelled,
        None if error.is_callers_fault() => Outcome::Cancelled,
        None => Outcome::Failure(error.class()),
    }
}

pin_project! {
    /// The first good answer, or the best of those that are not.
    pub struct HedgeFuture<S, B, RB>
    where
        S: Service<Request<ReplayBody<B>>>,
        RB: Body,
    {
        #[pin]
        first: Option<Racer<S::Future, RB>>,
        // Empty for nearly all calls.
        hedges: Vec<Pin<Box<Racer<S::Future, RB>>>>,
        #[pin]
        timer: Option<Sleep>,
        call: Option<Call<S, B, RB, S::Error>>,
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
            let trailers = call.config.grpc_trailers.0;
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
    trailers: Duration,
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

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn sleep_until(instant: Instant) -> Sleep {
    tokio::time::sleep_until(tokio::time::Instant::from_std(instant))
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

#[cfg(all(test, not(loom)))]
#[path = "hedge_tests.rs"]
mod tests;
