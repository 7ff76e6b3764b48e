//! All policies towards one destination, in the order that works.
//!
//! ```text
//! total deadline → retry on a budget → each try: breaker → bulkhead → rate limit
//!                                       → balancer + outlier → per-try timeout → transport
//! ```
//!
//! Retry stands outside the breaker, so that every try counts and an open circuit ends the retries
//! at once. The per-try timeout stands inside it, so that a hang is recorded as a failure. The
//! total deadline stands outside retry, so that waiting is bounded too. The balancer is asked anew
//! for each try, and not for the endpoint that has just failed.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    CallGuard, Completes, Error, GuardedBody, ReplayBody, ServiceTransport, Transport,
    TransportError, replay::Replay,
};
use crate::{
    TrafficPolicy,
    balance::{BalanceConfig, Balancer, EndpointStatus, Key, Member, Pick, PickContext},
    breaker::{self, CircuitBreaker},
    bulkhead::{self, Bulkhead},
    classify,
    config::{PolicyError, Rate},
    context::deadline,
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    rate_limit::RateLimit,
    retry::{
        Judgement, RetryConfig, Tries,
        budget::{Budget, Extra, Logical},
    },
    rng::Rng,
};

/// The policies of one destination with their state. Clones share it; threads may too.
#[derive(Debug)]
pub struct Stack<K>(Arc<Shared<K>>);

impl<K> Clone for Stack<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<K> {
    policy: ArcSwap<TrafficPolicy>,
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
    rate: RateLimit,
    budget: Budget,
    balancer: Balancer<K>,
    rng: Rng,
}

/// One try, as a [`Hook`] sees it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a, K> {
    /// 1 for the first.
    pub number: u32,
    /// Where it goes.
    pub key: &'a K,
}

/// Looks on while a call is made: for spans, metrics, the access log. `()` looks away.
pub trait Hook<K> {
    /// A try begins; `head` is what the endpoint will see and may be added to.
    fn started(&mut self, attempt: Attempt<'_, K>, head: &mut Parts) {
        let _ = (attempt, head);
    }
    /// A try has its answer's head, or failed.
    fn ended(&mut self, attempt: Attempt<'_, K>, outcome: Outcome) {
        let _ = (attempt, outcome);
    }
}

impl<K> Hook<K> for () {}

impl<K, H: Hook<K>> Hook<K> for &mut H {
    fn started(&mut self, attempt: Attempt<'_, K>, head: &mut Parts) {
        (**self).started(attempt, head);
    }
    fn ended(&mut self, attempt: Attempt<'_, K>, outcome: Outcome) {
        (**self).ended(attempt, outcome);
    }
}

/// A request's own time for all its tries, instead of its policy's; zero is for ever.
///
/// Put into the request's extensions by whoever knows better than the policy: a route of a gateway,
/// a caller for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTimeout(pub Duration);

/// What a call in flight holds: its permits, its endpoint, its place in the retry budget.
#[derive(Debug)]
pub struct Held<K> {
    breaker: Option<breaker::Permit>,
    bulkhead: Option<bulkhead::Permit>,
    pick: Pick<K>,
    paid: Option<Paid>,
}

impl<K> Completes for Held<K> {
    fn complete(self, outcome: Outcome, now: std::time::Instant, retry_after: Option<Duration>) {
        Completes::complete(self.breaker, outcome, now, retry_after);
        Completes::complete(self.bulkhead, outcome, now, retry_after);
        Completes::complete(self.pick, outcome, now, retry_after);
        Completes::complete(self.paid, outcome, now, retry_after);
    }
}

/// What a call holds of the retry budget: itself under way, and its last retry.
type Paid = (Logical, Option<Extra>);

/// The answer of a stack: its body holds the call's permits.
pub type Answer<K, RB> = Response<GuardedBody<RB, Held<K>>>;

/// A destination's state as an operator sees it.
#[derive(Debug, Clone)]
pub struct StackStatus<K> {
    /// The circuit, if there is one.
    pub breaker: Option<breaker::Snapshot>,
    /// Tries under way and the limit, if there is one.
    pub bulkhead: Option<(u32, u32)>,
    /// Retries that the budget would pay for, if there are any.
    pub retry_balance: Option<u64>,
    /// Retries made, and those that the budget refused.
    pub retries: (u64, u64),
    /// Ejections made, and those that the maximum share did not allow.
    pub ejections: (u64, u64),
    /// Every endpoint.
    pub endpoints: Vec<EndpointStatus<K>>,
}

/// What the bulkhead and rate limit hold when the policy has none; never consulted then.
const NO_LIMIT: u32 = u32::MAX;
const NO_RATE: Rate = Rate {
    count: 1,
    per: Duration::from_secs(1),
    burst: 1,
};

impl<K: Key> Stack<K> {
    /// The policies of a destination that has no endpoints yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the policy cannot work.
    pub fn new(policy: TrafficPolicy) -> Result<Self, PolicyError> {
        Self::with_rng(policy, Rng::from_entropy())
    }

    /// The same with a source of chance that a test can replay.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_rng(policy: TrafficPolicy, rng: Rng) -> Result<Self, PolicyError> {
        policy.validate()?;
        Ok(Self(Arc::new(Shared {
            breaker: CircuitBreaker::new(policy.breaker.clone().unwrap_or_default())?,
            bulkhead: Bulkhead::new(policy.bulkhead.unwrap_or(NO_LIMIT)),
            rate: RateLimit::new(policy.rate_limit.unwrap_or(NO_RATE)),
            budget: policy.retry.clone().unwrap_or_default().new_budget()?,
            balancer: Balancer::new(
                BalanceConfig::default(),
                policy.outlier.clone(),
                Rng::new(rng.next_u64()),
            )?,
            policy: ArcSwap::from_pointee(policy),
            rng,
        })))
    }

    /// Takes a new policy at once. Circuit, budget, limits and verdicts keep their state.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, policy: TrafficPolicy) -> Result<(), PolicyError> {
        policy.validate()?;
        let shared = &self.0;
        shared
            .breaker
            .reconfigure(policy.breaker.clone().unwrap_or_default())?;
        shared
            .bulkhead
            .reconfigure(policy.bulkhead.unwrap_or(NO_LIMIT));
        if let Some(rate) = policy.rate_limit {
            shared.rate.reconfigure(rate, Instant::now().into_std());
        }
        let retry = policy.retry.clone().unwrap_or_default();
        shared.budget.reconfigure(retry.budget, retry.in_flight)?;
        shared.balancer.reconfigure(
            BalanceConfig::default(),
            policy.outlier.clone(),
            Instant::now().into_std(),
        )?;
        shared.policy.store(Arc::new(policy));
        Ok(())
    }

    /// Replaces the endpoints; what is known of those that stay is kept.
    pub fn set_members(&self, members: impl IntoIterator<Item = Member<K>>) {
        self.0
            .balancer
            .set_members(members, Instant::now().into_std());
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<TrafficPolicy> {
        self.0.policy.load_full()
    }

    /// The circuit, for an operator's hand.
    pub fn breaker(&self) -> &CircuitBreaker {
        &self.0.breaker
    }

    /// Who takes the calls.
    pub fn balancer(&self) -> &Balancer<K> {
        &self.0.balancer
    }

    /// State and counters now.
    pub fn status(&self) -> StackStatus<K> {
        let (shared, now) = (&self.0, Instant::now().into_std());
        let policy = shared.policy.load();
        StackStatus {
            breaker: policy
                .breaker
                .is_some()
                .then(|| shared.breaker.snapshot(now)),
            bulkhead: policy
                .bulkhead
                .map(|limit| (shared.bulkhead.in_flight(), limit)),
            retry_balance: policy.retry.is_some().then(|| shared.budget.balance(now)),
            retries: {
                let counts = shared.budget.counts();
                (counts.withdrawn, counts.exhausted + counts.capped)
            },
            ejections: shared.balancer.ejections(),
            endpoints: shared.balancer.status(now),
        }
    }

    /// Makes one call.
    ///
    /// Resolves with the head of the answer: the callee's own, also where it is an error that no
    /// retry could better. The call's permits live in the answer's body.
    ///
    /// Cancel-safe: dropping the future cancels the try under way and gives everything back.
    ///
    /// # Errors
    /// [`Error::Rejected`] if a policy refused the call or its time was up; [`Error::Service`] with
    /// the last try's error otherwise.
    pub async fn call<B, T, H>(
        &self,
        transport: &T,
        request: Request<B>,
        mut hook: H,
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let policy = self.0.policy.load_full();
        let start = Instant::now();
        let deadline = total_deadline(&policy, &request, start)?;
        let (head, body) = request.into_parts();
        let retry = policy.retry.as_ref().filter(|retry| retry.attempts > 0);
        let mut retries = retry.map(|retry| Retries {
            tries: Tries::new(
                retry,
                retry.safety(&head.method, &head.headers, &head.extensions),
            ),
            config: retry,
            logical: self.0.budget.begin(start.into_std()),
            extra: None,
        });
        let mut body = Replay::new(body, retry.map_or(0, |retry| retry.replay.as_usize()));
        let mut head = Some(head);
        let mut avoid: Option<K> = None;
        loop {
            let number = retries.as_ref().map_or(1, |retries| retries.tries.made());
            let last = retries.as_ref().is_none_or(Retries::is_last);
            let mut parts = match &head {
                Some(kept) if !last => copy(kept),
                _ => head.take().expect("only the last try takes the head"),
            };
            let view = body.view().expect("checked before each retry");
            let mut call = match self.admit(&policy, avoid.as_ref()) {
                Ok(call) => call,
                Err(rejected) => {
                    // Nothing was sent: it costs nothing, and asking again at once is no use.
                    if let Some(extra) = retries.and_then(|mut retries| retries.extra.take()) {
                        extra.forgive();
                    }
                    return Err(rejected.into());
                }
            };
            hook.started(
                Attempt {
                    number,
                    key: call.key(),
                },
                &mut parts,
            );
            if let Some(deadline) = deadline {
                deadline::inject(
                    &mut parts.headers,
                    deadline.saturating_duration_since(Instant::now()),
                );
            }
            let result = self
                .attempt(&policy, transport, &call, parts, view, deadline)
                .await;
            let judgement = judge(&result, retry);
            hook.ended(
                Attempt {
                    number,
                    key: call.key(),
                },
                judgement.outcome,
            );
            // Two endpoints: the next try goes to the other one.
            let elsewhere = self.0.balancer.len() > 1;
            let wait = retries.as_mut().and_then(|retries| {
                retries.next(
                    &judgement,
                    body.can_replay(),
                    elsewhere,
                    deadline,
                    &self.0.rng,
                )
            });
            let Some(wait) = wait else {
                let paid = retries.map(|retries| (retries.logical, retries.extra));
                return call.finish(result, judgement, deadline, paid);
            };
            avoid = Some(call.key().clone());
            call.end(judgement);
            drop(result);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Asks every policy that a try must pass.
    fn admit(&self, policy: &TrafficPolicy, avoid: Option<&K>) -> Result<Admitted<K>, Rejected> {
        let (shared, now) = (&self.0, Instant::now().into_std());
        let breaker = match &policy.breaker {
            Some(_) => Some(shared.breaker.try_acquire(now)?),
            None => None,
        };
        // What is acquired so far goes back by itself where a later policy refuses; a cancelled
        // try says nothing about the callee's health.
        let bulkhead = match policy.bulkhead {
            Some(_) => Some(shared.bulkhead.try_acquire()?),
            None => None,
        };
        if policy.rate_limit.is_some() {
            shared.rate.try_acquire(now)?;
        }
        let avoid = avoid.map_or(&[][..], std::slice::from_ref);
        let pick = shared.balancer.pick(&PickContext::at(now).avoid(avoid))?;
        Ok(Admitted {
            key: pick.key().clone(),
            guard: CallGuard::new(Held {
                breaker,
                bulkhead,
                pick,
                paid: None,
            }),
        })
    }

    async fn attempt<B, T>(
        &self,
        policy: &TrafficPolicy,
        transport: &T,
        call: &Admitted<K>,
        parts: Parts,
        body: ReplayBody<B>,
        deadline: Option<Instant>,
    ) -> Result<Response<T::Body>, Error<T::Error>>
    where
        T: Transport<K, B>,
    {
        let sent = transport.send(call.key(), Request::from_parts(parts, body));
        let per_try = policy
            .timeouts
            .backend_request
            .map(|limit| Instant::now() + limit.0);
        let until = match (per_try, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        };
        let result = match until {
            Some(until) => tokio::time::timeout_at(until, sent)
                .await
                .map_err(|_| Rejected::new(Policy::Deadline, Reason::Elapsed))?,
            None => sent.await,
        };
        result.map_err(Error::Service)
    }
}

/// The retries of one call: what they may be, and what they hold of the budget.
struct Retries<'a> {
    config: &'a RetryConfig,
    tries: Tries,
    logical: Logical,
    extra: Option<Extra>,
}

impl Retries<'_> {
    /// Whether the try under way cannot be followed by another one.
    fn is_last(&self) -> bool {
        !self.tries.may_continue(self.config)
    }

    /// How long to wait before the next try, which is paid for; `None`: there is none.
    fn next(
        &mut self,
        judgement: &Judgement,
        replayable: bool,
        elsewhere: bool,
        deadline: Option<Instant>,
        rng: &Rng,
    ) -> Option<Duration> {
        let now = Instant::now().into_std();
        let time = (now, deadline.map(Instant::into_std));
        let next = self
            .tries
            .next(self.config, judgement, replayable, elsewhere, time, rng);
        let wait = next.ok()?;
        // The last retry is over; its place is this one's.
        self.extra = None;
        self.extra = Some(self.logical.try_extra(now).ok()?);
        self.tries.count();
        Some(wait)
    }
}

/// When the call must be over: the request's or the policy's word, or the caller's deadline,
/// whichever is earlier.
fn total_deadline<B>(
    policy: &TrafficPolicy,
    request: &Request<B>,
    now: Instant,
) -> Result<Option<Instant>, Rejected> {
    let total = match request.extensions().get::<RequestTimeout>() {
        Some(own) => (!own.0.is_zero()).then_some(own.0),
        None => policy.timeouts.total(),
    };
    let left = match (total, deadline::extract(request.headers())) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
    match left {
        Some(left) if left.is_zero() => Err(Rejected::new(Policy::Deadline, Reason::Expired)),
        // Further than the clock goes is for ever.
        Some(left) => Ok(now.checked_add(left)),
        None => Ok(None),
    }
}

/// The head for a try that may not be the last. Extensions stay behind: a connection's upgrade can
/// be handed on only once, with the try that keeps the head itself.
fn copy(head: &Parts) -> Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    copy
}

/// A try that every policy has let through.
struct Admitted<K: Key> {
    key: K,
    guard: CallGuard<Held<K>>,
}

impl<K: Key> Admitted<K> {
    fn key(&self) -> &K {
        &self.key
    }

    fn end(&mut self, judgement: Judgement) {
        let failed = judgement.outcome.is_failure();
        let retry_after = judgement.after.filter(|_| failed);
        self.guard.complete(judgement.outcome, retry_after);
    }

    /// Hands the permits to the answer's body, or ends the call with its error.
    fn finish<RB, E>(
        mut self,
        result: Result<Response<RB>, Error<E>>,
        judgement: Judgement,
        deadline: Option<Instant>,
        paid: Option<Paid>,
    ) -> Result<Answer<K, RB>, Error<E>>
    where
        RB: Body<Data = Bytes>,
    {
        match result {
            Ok(response) => {
                if judgement.outcome.is_failure() && judgement.after.is_some() {
                    self.end(judgement);
                }
                if let Some(held) = self.guard.held_mut() {
                    held.paid = paid;
                }
                let outcome = judgement.outcome;
                Ok(response.map(|body| GuardedBody::new(body, self.guard, outcome, deadline)))
            }
            Err(error) => {
                self.end(judgement);
                Err(error)
            }
        }
    }
}

/// What a try's result means.
fn judge<RB, E: TransportError>(
    result: &Result<Response<RB>, Error<E>>,
    retry: Option<&RetryConfig>,
) -> Judgement {
    match (result, retry) {
        (Ok(response), Some(retry)) => {
            retry.judge_head(response.status(), response.headers(), SystemTime::now())
        }
        (Ok(response), None) => Judgement {
            after: classify::retry_after(
                response.status(),
                response.headers(),
                SystemTime::now(),
                RETRY_AFTER_MAX,
            ),
            ..Judgement::last(classify::outcome_of_head(
                response.status(),
                response.headers(),
            ))
        },
        (Err(Error::Service(error)), _) if error.is_callers_fault() => {
            Judgement::last(Outcome::Cancelled)
        }
        (Err(error), retry) => {
            // Only a deadline ends a try that was admitted.
            let (class, unprocessed) = match error {
                Error::Rejected(_) => (FailureClass::Timeout, false),
                Error::Service(error) => (error.class(), error.is_unprocessed()),
            };
            retry.map_or(Judgement::last(Outcome::Failure(class)), |retry| {
                retry.judge_error(class, unprocessed)
            })
        }
    }
}

/// What a breaker believes of a `Retry-After` where no retry policy says so.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

impl Stack<()> {
    /// A Tower layer for a client that reaches its destination by itself.
    ///
    /// # Errors
    /// [`PolicyError`] if the policy cannot work.
    pub fn layer(policy: TrafficPolicy) -> Result<StackLayer, PolicyError> {
        let stack = Self::new(policy)?;
        stack.set_members([Member::new(())]);
        Ok(StackLayer { stack })
    }
}

/// Wraps a client service in a [`Stack`] of its own.
#[derive(Debug, Clone)]
pub struct StackLayer {
    stack: Stack<()>,
}

impl StackLayer {
    /// The policies' state: to read it, to reconfigure it.
    pub fn stack(&self) -> &Stack<()> {
        &self.stack
    }
}

/// Leaves the request as it is: there is one destination.
type NoAim<B> = fn(&(), &mut Request<ReplayBody<B>>);

impl<S> Layer<S> for StackLayer {
    type Service = StackService<S>;
    fn layer(&self, inner: S) -> StackService<S> {
        StackService {
            stack: self.stack.clone(),
            inner,
        }
    }
}

/// See [`StackLayer`].
#[derive(Debug, Clone)]
pub struct StackService<S> {
    stack: Stack<()>,
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for StackService<S>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone + Send + Sync + 'static,
    S::Error: Into<super::BoxError> + Send,
    S::Future: Send,
    RB: Body<Data = Bytes> + Send + 'static,
{
    type Response = Answer<(), RB>;
    type Error = Error<super::BoxError>;
    /// One allocation a call: this is the convenience for clients, where a call costs a round
    /// trip. The proxies call [`Stack::call`] and pay none.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Each try readies a clone of its own: a slot held here would be held by idle clones.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let stack = self.stack.clone();
        let aim: NoAim<B> = |(), _| ();
        let transport = ServiceTransport::new(self.inner.clone(), aim);
        Box::pin(async move { stack.call(&transport, request, ()).await })
    }
}

impl<K: Key> fmt::Debug for Admitted<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").finish_non_exhaustive()
    }
}
