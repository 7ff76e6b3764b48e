//! Retries around any HTTP service, on a budget.
//!
//! # What it holds to
//! - Each try is made by a service that was polled ready for it, and not while it waits: a slot held
//!   through a backoff is a slot that another call starves for.
//! - The answer at hand is given up only when a retry is certain: its result is worth one, repeating
//!   the call is harmless, the body can be had again, the wait ends before the deadline, the service
//!   is ready for another call *now*, and the budget pays.
//! - The answer that is given up is dropped before the wait, so that what it holds further in (a
//!   bulkhead's slot, a connection) is not waited for by its own retry.
//! - What a policy further in refused (an open circuit, a full bulkhead) is not tried again, and the
//!   retry that met it costs nothing.
//! - gRPC: the head of an answer is held for [`grpc_trailers`](crate::retry::RetryConfig) where its
//!   request has been sent to its end, so that a verdict in the trailers of an empty answer counts.
//!
//! # What it does not do
//! It has no timeout: put a [`TimeoutLayer`](super::TimeoutLayer) outside for the whole call and
//! another inside for each try. It does not retry what came after data, nor tunnels and upgrades.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Extensions, Request, Response, header::RETRY_AFTER, request::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    BoxError, CallGuard, Completes, Error, GuardedBody, Moment, PeekedBody, ReplayBody,
    TransportError, peek::First, replay::Replay, wall_for,
};
use crate::{
    classify,
    config::PolicyError,
    context::{AttemptNumber, Deadline, deadline},
    lanes::Lane,
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    retry::{
        Final, Judgement, RetryConfig, Tries,
        budget::{Budget, Counted, Extra},
        cost::{Cost, CostBucket},
    },
    rng::Rng,
    shared::{Lent, Shared},
    sync::{AtomicU64, Ordering},
};

/// Tries calls again. All services made by one layer share its budget.
///
/// The service underneath takes a [`ReplayBody`] around the caller's body; its error says what kind
/// of failure it was ([`TransportError`]: `BoxError` does).
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Request, Response, StatusCode};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// use selvedge_resilience::{layer::{ReplayBody, RetryLayer}, retry::RetryConfig};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let retry = RetryLayer::new(RetryConfig::default())?;
/// # let flaky = std::sync::atomic::AtomicBool::new(true);
/// # let client = service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
/// #     let status = if flaky.swap(false, std::sync::atomic::Ordering::Relaxed) { 503 } else { 200 };
/// #     async move { Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::default()).unwrap()) }
/// # });
/// # let client = std::sync::Arc::new(tokio::sync::Mutex::new(client));
/// # let client = service_fn(move |request| { let client = client.clone(); async move { client.lock().await.call(request).await } });
/// # use tower::Service;
/// // `client` answers 503 once, then 200.
/// let answer = retry.layer(client).oneshot(Request::get("/").body(Full::default())?).await?;
/// assert_eq!(answer.status(), StatusCode::OK);
/// assert_eq!(retry.stats().retries, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RetryLayer(Arc<Current>);

/// What the next call begins with.
#[derive(Debug)]
struct Current {
    plan: ArcSwap<Shared<Plan>>,
    core: Arc<Core>,
}

/// What one call goes by from its beginning to its end. It is lent to calls, so that their threads
/// do not meet at a count of references.
#[derive(Debug)]
struct Plan {
    config: RetryConfig,
    core: Arc<Core>,
}

/// What stays when the configuration changes.
#[derive(Debug)]
struct Core {
    budget: Budget,
    /// Whether anybody else can have the budget: a call need not say on which it is counted
    /// otherwise.
    lent: AtomicBool,
    cost: Option<CostBucket>,
    rng: Rng,
    stats: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    retries: AtomicU64,
    recovered: AtomicU64,
    overflow: AtomicU64,
    body: AtomicU64,
    deadline: AtomicU64,
    refused: AtomicU64,
}

/// What retries came to so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryStats {
    /// Tries after the first.
    pub retries: u64,
    /// Calls that a retry turned into a success.
    pub recovered: u64,
    /// Retries not made because the service was not ready for another call.
    pub overflow: u64,
    /// Retries not made because the body was too long to be had again, or broke.
    pub body_not_replayable: u64,
    /// Retries not made because the wait would have outlasted the deadline.
    pub out_of_time: u64,
    /// Retries that the budget or the cost bucket did not pay for.
    pub exhausted: u64,
}

impl RetryLayer {
    /// With a budget of its own, as `config` describes it.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: RetryConfig) -> Result<Self, PolicyError> {
        let budget = config.new_budget()?;
        Self::with(config, budget, false, Rng::from_entropy())
    }

    /// With a budget that others (a [`HedgeLayer`](super::HedgeLayer)) share, and a source of
    /// chance that a test can replay.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_budget(config: RetryConfig, budget: Budget, rng: Rng) -> Result<Self, PolicyError> {
        Self::with(config, budget, true, rng)
    }

    fn with(
        config: RetryConfig,
        budget: Budget,
        lent: bool,
        rng: Rng,
    ) -> Result<Self, PolicyError> {
        config.validate()?;
        let cost = config.cost.map(CostBucket::new).transpose()?;
        let core = Arc::new(Core {
            budget,
            lent: AtomicBool::new(lent),
            cost,
            rng,
            stats: Counters::default(),
        });
        let plan = Plan {
            config,
            core: Arc::clone(&core),
        };
        let plan = ArcSwap::from_pointee(Shared::new(plan));
        Ok(Self(Arc::new(Current { plan, core })))
    }

    /// The budget, to share it or to read it.
    pub fn budget(&self) -> &Budget {
        self.0.core.lent.store(true, Ordering::Relaxed);
        &self.0.core.budget
    }

    /// Counters so far.
    pub fn stats(&self) -> RetryStats {
        let (stats, of) = (&self.0.core.stats, |c: &AtomicU64| {
            c.load(Ordering::Relaxed)
        });
        RetryStats {
            retries: of(&stats.retries),
            recovered: of(&stats.recovered),
            overflow: of(&stats.overflow),
            body_not_replayable: of(&stats.body),
            out_of_time: of(&stats.deadline),
            exhausted: of(&stats.refused),
        }
    }

    /// Takes a new configuration for the calls that begin from now on; the budget keeps its
    /// balance, and the cost bucket what was spent. That bucket is not added or removed.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: RetryConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let core = Arc::clone(&self.0.core);
        if let (Some(bucket), Some(cost)) = (&core.cost, config.cost) {
            bucket.reconfigure(cost)?;
        }
        core.budget.reconfigure(config.budget, config.in_flight)?;
        let plan = Shared::new(Plan { config, core });
        self.0.plan.store(Arc::new(plan));
        Ok(())
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;
    fn layer(&self, inner: S) -> RetryService<S> {
        RetryService {
            current: Arc::clone(&self.0),
            inner,
        }
    }
}

/// See [`RetryLayer`].
#[derive(Debug, Clone)]
pub struct RetryService<S> {
    current: Arc<Current>,
    inner: S,
}

/// An answer's body: it holds the call's place in the budget until it ends.
pub type RetryBody<RB> = GuardedBody<PeekedBody<RB>, RetryHeld>;

/// What a call holds of its budget.
#[derive(Debug)]
pub struct RetryHeld {
    begun: Begun,
    // Dropped with the rest when the call is over: that is all the budget wants to know.
    _extra: Option<Extra>,
    paid: Option<Cost>,
}

impl Completes for RetryHeld {
    fn complete(self, outcome: Outcome, _: &mut Moment, _: Option<Duration>) {
        if let (Some(bucket), Outcome::Success) = (&self.begun.plan.core.cost, outcome) {
            bucket.succeeded(self.paid);
        }
    }
}

/// A call under way, and what it goes by. The plan keeps the budget: a guard of the budget's own
/// would keep it a second time.
#[derive(Debug)]
struct Begun {
    plan: Lent<Plan>,
    /// Whether it is this layer that has told the budget of the call.
    counts: bool,
}

impl Begun {
    fn new(plan: Lent<Plan>, extensions: &Extensions, now: std::time::Instant) -> Self {
        let budget = &plan.core.budget;
        let counts = !Counted::has_begun(budget, extensions);
        if counts {
            budget.enter(now);
        }
        Self { plan, counts }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.counts {
            self.plan.core.budget.leave();
        }
    }
}

impl<S, B, RB> Service<Request<B>> for RetryService<S>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    type Response = Response<RetryBody<RB>>;
    type Error = Error<S::Error>;
    type Future = RetryFuture<S, B, RB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let mut service = mem::replace(&mut self.inner, clone);
        let (mut head, body) = request.into_parts();
        let now = Instant::now().into_std();
        let plan = self.current.plan.load().lend(Lane::here());
        let begun = Begun::new(plan, &head.extensions, now);
        let Plan { config, core } = &*begun.plan;
        if core.lent.load(Ordering::Relaxed) {
            // A hedge further in may be of this call.
            head.extensions.insert(Counted(core.budget.clone()));
        }
        let deadline = match head.extensions.get::<Deadline>() {
            Some(deadline) => Some(*deadline),
            None => deadline::extract(&head.headers).and_then(|left| Deadline::after(now, left)),
        };
        let safety = config.safety(&head.method, &head.headers, &head.extensions);
        let tries = Tries::new(config, safety);
        let may_continue = tries.may_continue(config);
        let limit = if may_continue {
            config.replay.as_usize()
        } else {
            0
        };
        let mut body = Replay::new(body, limit);
        let kept = may_continue.then(|| head.clone());
        let state = if deadline.is_some_and(|deadline| deadline.has_passed(now)) {
            State::Refused {
                rejected: Rejected::new(Policy::Deadline, Reason::Expired),
            }
        } else {
            config.announce(AttemptNumber(1), false, &mut head);
            let view = body.view().expect("the first view of a body");
            // The service was polled ready by our caller, who has written the deadline too.
            State::Sending {
                future: service.call(Request::from_parts(head, view)),
            }
        };
        // Put together where it stands, and not a piece earlier: it is large.
        RetryFuture {
            state,
            call: Some(Call {
                begun: Some(begun),
                service,
                tries,
                extra: None,
                paid: None,
                head: kept,
                body,
                deadline,
                after_timeout: false,
            }),
        }
    }
}

impl RetryConfig {
    /// Says which try `head` is of, to layers further in and, if it is to, to the callee.
    fn announce(&self, number: AttemptNumber, after_timeout: bool, head: &mut Parts) {
        if self.announce {
            number.inject(&mut head.headers, after_timeout);
        }
        number.announce(&mut head.extensions);
    }
}

/// A call and what it needs to be made again.
struct Call<S, B> {
    /// Until its answer's body has it.
    begun: Option<Begun>,
    service: S,
    tries: Tries,
    extra: Option<Extra>,
    paid: Option<Cost>,
    /// For another try.
    head: Option<Parts>,
    body: Replay<B>,
    deadline: Option<Deadline>,
    after_timeout: bool,
}

type Result_<S, B, RB> =
    Result<Response<PeekedBody<RB>>, <S as Service<Request<ReplayBody<B>>>>::Error>;

impl<S, B, RB> Call<S, B>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    fn plan(&self) -> &Plan {
        &self.begun.as_ref().expect("a body has it at the end").plan
    }

    fn may_continue(&self) -> bool {
        self.tries.may_continue(&self.plan().config)
    }

    /// Tries once more. The service has been polled ready.
    fn send(&mut self) -> S::Future {
        let mut head = match &self.head {
            Some(head) if self.may_continue() => head.clone(),
            _ => self.head.take().expect("only the last try takes the head"),
        };
        let number = AttemptNumber(self.tries.made());
        let config = &self.plan().config;
        config.announce(number, self.after_timeout, &mut head);
        if let Some(deadline) = self.deadline {
            deadline::inject(&mut head.headers, deadline.left(Instant::now().into_std()));
        }
        let body = self.body.view().expect("checked before each retry");
        self.service.call(Request::from_parts(head, body))
    }

    /// Whether the verdict may be in the trailers, and waiting for them can hurt nobody: a caller
    /// that still sends may wait for the head before it sends more.
    fn should_peek(&self, response: &Response<RB>) -> bool {
        self.may_continue()
            && !self.plan().config.grpc_trailers.0.is_zero()
            && classify::awaits_grpc_trailers(response.status(), response.headers())
            && !response.body().is_end_stream()
            && self.body.is_complete()
    }

    fn judge_error(&self, error: &S::Error) -> Judgement {
        if error.is_callers_fault() {
            return Judgement::last(Outcome::Cancelled);
        }
        let config = &self.plan().config;
        match error.rejected() {
            // One try took too long: a timeout further in.
            Some(rejected) if rejected.policy == Policy::Deadline => {
                config.judge_error(FailureClass::Timeout, false)
            }
            Some(_) => Judgement::last(Outcome::Cancelled),
            None => config.judge_error(error.class(), error.is_unprocessed()),
        }
    }

    /// How long to wait for the next try, which is paid for; `None`: this result is the last.
    fn next(&mut self, judgement: &Judgement, cx: &mut Context<'_>) -> Option<Duration> {
        if !judgement.worth_a_retry {
            return None;
        }
        let Plan { config, core } = &*self.begun.as_ref()?.plan;
        let stats = &core.stats;
        let now = Instant::now().into_std();
        let time = (now, self.deadline.map(|deadline| deadline.0));
        let replayable = self.body.can_replay();
        let next = self
            .tries
            .next(config, judgement, replayable, false, time, &core.rng);
        let wait = match next {
            Ok(wait) => wait,
            Err(why) => {
                match why {
                    Final::Body => add(&stats.body),
                    Final::Deadline => add(&stats.deadline),
                    _ => {}
                }
                return None;
            }
        };
        // Asked of a clone that is dropped again: readiness is not held while we wait.
        if !matches!(self.service.clone().poll_ready(cx), Poll::Ready(Ok(()))) {
            add(&stats.overflow);
            return None;
        }
        // The last retry is over, and its place is this one's.
        self.extra = None;
        let paid = core.budget.try_extra(now).and_then(|extra| {
            let bucket = core.cost.as_ref();
            let cost = bucket.map(|bucket| bucket.try_take(judgement.outcome));
            match cost.transpose() {
                Ok(cost) => Ok((extra, cost)),
                Err(rejected) => {
                    extra.forgive();
                    Err(rejected)
                }
            }
        });
        let Ok((extra, cost)) = paid else {
            add(&stats.refused);
            return None;
        };
        (self.extra, self.paid) = (Some(extra), cost);
        self.after_timeout = judgement.outcome == Outcome::Failure(FailureClass::Timeout);
        self.tries.count();
        add(&stats.retries);
        Some(wait)
    }

    /// Hands the result to the caller, and the call's place in the budget to its body. Where it
    /// stands: a call is large.
    fn finish(
        &mut self,
        result: Result_<S, B, RB>,
        outcome: Outcome,
    ) -> Result<Response<RetryBody<RB>>, Error<S::Error>> {
        match result {
            Ok(response) => {
                let begun = self.begun.take().expect("a call has one answer");
                if self.tries.made() > 1 && outcome == Outcome::Success {
                    add(&begun.plan.core.stats.recovered);
                }
                let guard = CallGuard::new(RetryHeld {
                    begun,
                    _extra: self.extra.take(),
                    paid: self.paid.take(),
                });
                Ok(response.map(|body| GuardedBody::new(body, guard, outcome, None)))
            }
            Err(error) => {
                // Refused by a policy further in: the callee never saw it.
                if error
                    .rejected()
                    .is_some_and(|r| r.policy != Policy::Deadline)
                {
                    self.forgive();
                }
                Err(Error::Service(error))
            }
        }
    }

    fn forgive(&mut self) {
        if let Some(extra) = self.extra.take() {
            extra.forgive();
        }
        let paid = self.paid.take();
        if let (Some(bucket), Some(cost)) = (&self.plan().core.cost, paid) {
            bucket.give_back(cost);
        }
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pin_project! {
    /// The answer of the last try, or its error.
    pub struct RetryFuture<S, B, RB>
    where
        S: Service<Request<ReplayBody<B>>>,
        RB: Body,
    {
        #[pin]
        state: State<S::Future, RB>,
        call: Option<Call<S, B>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, RB: Body> {
        /// A try is under way.
        Sending {
            #[pin]
            future: F,
        },
        /// The head is there; its body's first word is waited for.
        Peeking {
            response: Option<Response<PeekedBody<RB>>>,
            judgement: Judgement,
            #[pin]
            sleep: Sleep,
        },
        /// Between two tries.
        Waiting {
            #[pin]
            sleep: Sleep,
        },
        /// The service is not ready for the next try.
        Readying {
            #[pin]
            until: Option<Sleep>,
        },
        /// The call was not even begun.
        Refused { rejected: Rejected },
    }
}

impl<S, B, RB> Future for RetryFuture<S, B, RB>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    type Output = Result<Response<RetryBody<RB>>, Error<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let call = this.call.as_mut().expect("not polled after it is ready");
            let (result, judgement) = match this.state.as_mut().project() {
                StateProj::Refused { rejected } => {
                    let rejected = *rejected;
                    *this.call = None;
                    return Poll::Ready(Err(rejected.into()));
                }
                StateProj::Waiting { sleep } => {
                    ready!(sleep.poll(cx));
                    let until = call.deadline.map(|deadline| sleep_until(deadline.0));
                    this.state.set(State::Readying { until });
                    continue;
                }
                StateProj::Readying { until } => match call.service.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        let future = call.send();
                        this.state.set(State::Sending { future });
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        let result = call.finish(Err(error), Outcome::Cancelled);
                        *this.call = None;
                        return Poll::Ready(result);
                    }
                    Poll::Pending => {
                        let Some(until) = until.as_pin_mut() else {
                            return Poll::Pending;
                        };
                        ready!(until.poll(cx));
                        call.forgive();
                        *this.call = None;
                        let late = Rejected::new(Policy::Deadline, Reason::Elapsed);
                        return Poll::Ready(Err(late.into()));
                    }
                },
                StateProj::Sending { future } => match ready!(future.poll(cx)) {
                    Ok(response) => {
                        let judgement = call.plan().config.judge_head(
                            response.status(),
                            response.headers(),
                            wall_for(response.headers(), &RETRY_AFTER),
                        );
                        let peek = call.should_peek(&response);
                        let response = response.map(PeekedBody::new);
                        if peek {
                            let sleep = tokio::time::sleep(call.plan().config.grpc_trailers.0);
                            this.state.set(State::Peeking {
                                response: Some(response),
                                judgement,
                                sleep,
                            });
                            continue;
                        }
                        (Ok(response), judgement)
                    }
                    Err(error) => {
                        let judgement = call.judge_error(&error);
                        (Err(error), judgement)
                    }
                },
                StateProj::Peeking {
                    response,
                    judgement,
                    sleep,
                } => {
                    let body = response.as_mut().expect("taken once").body_mut();
                    let judgement = match body.poll_peek(cx) {
                        Poll::Ready(First::Trailers(trailers)) => call
                            .plan()
                            .config
                            .judge_trailers(trailers)
                            .unwrap_or(*judgement),
                        Poll::Ready(First::Broken) => {
                            call.plan().config.judge_error(FailureClass::Reset, false)
                        }
                        Poll::Ready(First::Other) => *judgement,
                        Poll::Pending => {
                            ready!(sleep.poll(cx));
                            *judgement
                        }
                    };
                    (Ok(response.take().expect("there above")), judgement)
                }
            };
            let Some(wait) = call.next(&judgement, cx) else {
                let result = call.finish(result, judgement.outcome);
                *this.call = None;
                return Poll::Ready(result);
            };
            drop(result);
            // Replacing the state drops what the try held further in, before the wait.
            this.state.set(if wait.is_zero() {
                let until = call.deadline.map(|deadline| sleep_until(deadline.0));
                State::Readying { until }
            } else {
                let sleep = tokio::time::sleep(wait);
                State::Waiting { sleep }
            });
        }
    }
}

fn sleep_until(instant: std::time::Instant) -> Sleep {
    tokio::time::sleep_until(Instant::from_std(instant))
}

impl<S, B, RB> fmt::Debug for RetryFuture<S, B, RB>
where
    S: Service<Request<ReplayBody<B>>>,
    RB: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[path = "retry_tests.rs"]
mod tests;
