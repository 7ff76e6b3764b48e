//! What a service takes on, enforced before its handler.
//!
//! ```text
//! arrival → shed by priority → reject expired → rate limit → bulkhead → adaptive limit → handler
//!           └────────────── the wait that shedding looks at ───────────────────────────┘
//! ```
//!
//! Shedding comes first because it is cheapest and looks at the wait of all that follows; what
//! nobody waits for any more is not begun; limits come last, because only they can make a request
//! wait.

use std::{
    fmt,
    future::Future,
    mem,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    ArrivedAt, BoxError, CallGuard, Completes, EitherBody, FixedBody, GuardedBody, Moment,
    Patience,
    keep::keep,
    lookout::{self, Lookout},
    slot::slot,
};
use crate::{
    adaptive::{self, AdaptiveLimit},
    bulkhead::{self, Bulkhead},
    classify::outcome_of_head,
    config::{PolicyError, Rate},
    context::{Deadline, deadline, priority::Priority},
    events::Events,
    inbound::{InboundConfig, InboundRate, RateKey},
    metrics::{Emitter, Sample, Samples, cores},
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    rate_limit::{KeyedRateLimit, headers::PolicyName},
    rng::Rng,
    shed::{Shedder, Ticket},
};

/// The cores that protect one service. Clones share them; so do layers made from it.
#[derive(Debug, Clone)]
pub struct Inbound(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    plan: ArcSwap<Plan>,
    name: Arc<str>,
    events: Option<Events>,
    /// What was told last of what is refused.
    lookout: parking_lot::Mutex<Lookout>,
    rng: Rng,
    /// One change at a time: each plan is made from the one before.
    changing: parking_lot::Mutex<()>,
}

#[derive(Debug)]
struct Plan {
    config: InboundConfig,
    shed: Option<Shedder>,
    rate: Option<Limit>,
    bulkhead: Option<Bulkhead>,
    concurrency: Option<AdaptiveLimit>,
}

/// A rate, and what tells callers apart.
#[derive(Clone)]
struct Limit {
    by: RateKey,
    rate: Rate,
    keys: KeyedRateLimit<Arc<str>>,
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit")
            .field("by", &self.by)
            .field("rate", &self.rate)
            .finish_non_exhaustive()
    }
}

/// Who asks, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller {
    /// Where the connection comes from.
    pub source: Option<IpAddr>,
    /// How much the request matters, if that is not to be believed of its header: an edge must not
    /// take a stranger's word for it.
    pub priority: Option<Priority>,
    /// When the request arrived, if that was earlier than now.
    pub arrived: Option<std::time::Instant>,
}

/// A request that is not taken on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Refused {
    /// Who refused, why, and when to come back.
    pub rejected: Rejected,
    /// The rate that was exceeded, if it was one.
    pub rate: Option<Rate>,
}

impl From<Rejected> for Refused {
    fn from(rejected: Rejected) -> Self {
        Self {
            rejected,
            rate: None,
        }
    }
}

impl Refused {
    /// Writes `RateLimit`, `RateLimit-Policy` and `Retry-After`, as far as they are known.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(rate) = self.rate {
            return rate_name().write_refused(headers, rate, &self.rejected);
        }
        if let Some(after) = self.rejected.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
    }

    /// 429 for a rate, 504 for a deadline, else 503.
    pub fn status(&self) -> StatusCode {
        match self.rejected.policy {
            Policy::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            Policy::Deadline => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn rate_name() -> PolicyName {
    PolicyName::new("inbound").expect("printable")
}

fn whole_seconds(time: Duration) -> u64 {
    (time.as_millis().div_ceil(1_000) as u64).max(1)
}

/// What a request that was taken on holds until its answer has ended.
#[derive(Debug)]
pub struct InboundHeld {
    _bulkhead: Option<bulkhead::Permit>,
    concurrency: Option<adaptive::Permit>,
}

impl Completes for InboundHeld {
    fn complete(self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>) {
        Completes::complete(self.concurrency, outcome, ended, retry_after);
    }
}

/// A request that waits counts as waiting until it begins or is gone.
struct Waits(Option<Ticket>);

impl Waits {
    fn begun(mut self, now: Instant) {
        if let Some(ticket) = self.0.take() {
            ticket.begun(now.into_std());
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.gone(Instant::now().into_std());
        }
    }
}

impl Inbound {
    /// The cores of `config`, with nothing counted yet.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn new(config: InboundConfig) -> Result<Self, PolicyError> {
        Self::named("", config)
    }

    /// The same with what metrics call it.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn named(name: impl Into<Arc<str>>, config: InboundConfig) -> Result<Self, PolicyError> {
        Self::build(name.into(), config, None)
    }

    /// The same with somebody who hears what happens: see [`tick`](Self::tick).
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn with_events(
        name: impl Into<Arc<str>>,
        config: InboundConfig,
        events: Events,
    ) -> Result<Self, PolicyError> {
        Self::build(name.into(), config, Some(events))
    }

    fn build(
        name: Arc<str>,
        config: InboundConfig,
        events: Option<Events>,
    ) -> Result<Self, PolicyError> {
        let rng = Rng::from_entropy();
        let plan = Plan::new(config, None, &rng)?;
        Ok(Self(Arc::new(Shared {
            plan: ArcSwap::from_pointee(plan),
            name,
            events,
            lookout: parking_lot::Mutex::default(),
            rng,
            changing: parking_lot::Mutex::new(()),
        })))
    }

    /// Takes another configuration at once; what stays keeps its state.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: InboundConfig) -> Result<(), PolicyError> {
        let _one_at_a_time = self.0.changing.lock();
        let old = self.0.plan.load();
        if old.config == config {
            return Ok(());
        }
        let plan = Plan::new(config, Some(&old), &self.0.rng)?;
        self.0.plan.store(Arc::new(plan));
        Ok(())
    }

    /// Tells who listens what limits have begun or ceased to refuse since the last time, and whether
    /// the limit that finds itself has fallen; call it from a timer, about once a second. Reads
    /// counters; locks nothing that a request needs.
    pub fn tick(&self) {
        let (shared, now) = (&*self.0, Instant::now().into_std());
        let told = (shared.events.as_ref(), &shared.name);
        lookout::look(&shared.lookout, told, now, |mut look| {
            let plan = shared.plan.load();
            let refused = plan.shed.as_ref().map(|core| core.status().refused);
            look.one(Policy::Shed, Reason::Overloaded, refused);
            let refused = plan.rate.as_ref().map(|limit| limit.keys.rejected());
            look.one(Policy::RateLimit, Reason::Exhausted, refused);
            look.bulkhead(plan.bulkhead.as_ref());
            look.adaptive(plan.concurrency.as_ref());
        });
    }

    /// Whether nothing is written: every request is taken on, unless its deadline has passed.
    pub fn takes_all(&self) -> bool {
        let plan = self.0.plan.load();
        plan.shed.is_none()
            && plan.rate.is_none()
            && plan.bulkhead.is_none()
            && plan.concurrency.is_none()
    }

    /// Requests under way by the limits that are written: (bulkhead, adaptive limit).
    pub fn in_flight(&self) -> (Option<u32>, Option<u32>) {
        let plan = self.0.plan.load();
        (
            plan.bulkhead.as_ref().map(Bulkhead::in_flight),
            plan.concurrency.as_ref().map(AdaptiveLimit::in_flight),
        )
    }

    /// Takes a request on, or refuses it. Waits only where a limit is reached and has a queue, and
    /// not past the request's deadline (its extension, else its headers).
    ///
    /// Cancel-safe: dropping the future leaves every queue and gives back what it held.
    ///
    /// # Errors
    /// [`Refused`] with the policy that refused.
    pub async fn admit(
        &self,
        head: &http::request::Parts,
        caller: Caller,
    ) -> Result<InboundHeld, Refused> {
        let plan = self.0.plan.load_full();
        let mut now = Instant::now();
        let priority = || {
            caller
                .priority
                .or_else(|| head.extensions.get::<Priority>().copied())
                .unwrap_or_else(|| Priority::extract(&head.headers))
        };
        let waits = match &plan.shed {
            Some(shedder) => {
                let at = now.into_std();
                let arrived = caller.arrived.unwrap_or(at);
                Waits(Some(shedder.admit_since(priority(), arrived, at)?))
            }
            None => Waits(None),
        };
        let deadline = deadline_of(head, now);
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Rejected::new(Policy::Deadline, Reason::Expired).into());
        }
        if let Some(limit) = &plan.rate {
            limit.take(&head.headers, caller.source, now)?;
        }
        let patience = Patience::Queue;
        let bulkhead = match &plan.bulkhead {
            Some(core) => Some(slot(core, &mut now, deadline, patience).await?),
            None => None,
        };
        let concurrency = match &plan.concurrency {
            Some(core) => {
                let config = plan.config.concurrency.as_ref();
                let class = config.and_then(|config| config.class_of(priority, &head.headers));
                Some(match class.and_then(|name| core.partition(name)) {
                    Some(class) => class.try_acquire(now.into_std())?,
                    None => slot(core, &mut now, deadline, patience).await?,
                })
            }
            None => None,
        };
        waits.begun(now);
        Ok(InboundHeld {
            _bulkhead: bulkhead,
            concurrency,
        })
    }
}

impl Samples for Inbound {
    fn samples<'a>(&'a self, _: std::time::Instant, take: &mut dyn FnMut(Sample<'a>)) {
        let (plan, emit) = (self.0.plan.load(), &mut Emitter::new(&self.0.name, take));
        if let Some(core) = &plan.shed {
            cores::shed(core, emit);
        }
        if let Some(limit) = &plan.rate {
            cores::keyed_rate(limit.keys.rejected(), limit.keys.keys(), emit);
        }
        if let Some(core) = &plan.bulkhead {
            cores::bulkhead(core, emit);
        }
        if let Some(core) = &plan.concurrency {
            cores::adaptive(core, emit);
        }
    }
}

fn deadline_of(head: &http::request::Parts, now: Instant) -> Option<Instant> {
    if let Some(deadline) = head.extensions.get::<Deadline>() {
        return Some(Instant::from_std(deadline.0));
    }
    now.checked_add(deadline::extract(&head.headers)?)
}

impl Limit {
    fn take(
        &self,
        headers: &HeaderMap,
        source: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Refused> {
        let address;
        let key: &str = match &self.by {
            RateKey::All => "",
            RateKey::Header(name) => headers
                .get(name.as_str())
                .and_then(|value| value.to_str().ok())
                .unwrap_or(""),
            RateKey::Source => match source {
                Some(source) => {
                    address = source.to_canonical().to_string();
                    &address
                }
                None => "",
            },
        };
        match self.keys.try_acquire(key, now.into_std()) {
            Ok(_begun) => Ok(()),
            Err(rejected) => Err(Refused {
                rejected,
                rate: Some(self.rate),
            }),
        }
    }
}

impl Plan {
    fn new(config: InboundConfig, old: Option<&Self>, rng: &Rng) -> Result<Self, PolicyError> {
        config.validate()?;
        let limit = |written: &InboundRate| -> Result<Limit, PolicyError> {
            Ok(Limit {
                by: written.by.clone(),
                rate: written.rate,
                keys: KeyedRateLimit::new(written.keyed())?,
            })
        };
        let mut rate = keep(
            config.rate_limit.as_ref(),
            old.and_then(|old| old.rate.as_ref()),
            limit,
            |core, written| {
                core.keys
                    .reconfigure(written.keyed(), Instant::now().into_std())
            },
        )?;
        if let (Some(limit), Some(written)) = (&mut rate, &config.rate_limit) {
            (limit.by, limit.rate) = (written.by.clone(), written.rate);
        }
        Ok(Self {
            shed: keep(
                config.shed.as_ref(),
                old.and_then(|old| old.shed.as_ref()),
                |config| Shedder::new(config.clone()),
                |core, config| core.reconfigure(config.clone()),
            )?,
            rate,
            bulkhead: keep(
                config.bulkhead.as_ref(),
                old.and_then(|old| old.bulkhead.as_ref()),
                Bulkhead::with_config,
                Bulkhead::reconfigure_with,
            )?,
            concurrency: keep(
                config.concurrency.as_ref(),
                old.and_then(|old| old.concurrency.as_ref()),
                |config| AdaptiveLimit::new(config.clone(), Rng::new(rng.next_u64())),
                |core, config| core.reconfigure(config.clone()),
            )?,
            config,
        })
    }
}

/// Protects a service. What is refused is answered (a problem document that names the policy and
/// says when to come back), so that it fits in front of services that cannot fail, such as axum's.
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// use selvedge_resilience::{inbound::InboundConfig, layer::{Inbound, InboundLayer}};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let config: InboundConfig = toml::from_str(r#"
///     shed       = {}
///     rate_limit = { rate = "1/h", by = { header = "x-api-key" } }
/// "#)?;
/// let layer = InboundLayer::new(Inbound::new(config)?);
/// # let handler = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
/// let service = layer.layer(handler);
/// assert_eq!(service.clone().oneshot(Request::new(())).await?.status(), 200);
/// let refused = service.oneshot(Request::new(())).await?;
/// assert_eq!(refused.status(), 429);
/// assert!(refused.headers().contains_key("retry-after"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct InboundLayer(Inbound);

impl InboundLayer {
    /// Keep a clone of `inbound` to reconfigure it while it runs.
    pub fn new(inbound: Inbound) -> Self {
        Self(inbound)
    }
}

impl<S> Layer<S> for InboundLayer {
    type Service = InboundService<S>;
    fn layer(&self, inner: S) -> InboundService<S> {
        InboundService {
            inbound: self.0.clone(),
            inner,
        }
    }
}

/// See [`InboundLayer`].
#[derive(Debug, Clone)]
pub struct InboundService<S> {
    inbound: Inbound,
    inner: S,
}

impl<S, B, RB> Service<Request<B>> for InboundService<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    B: Send + 'static,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<EitherBody<GuardedBody<RB, InboundHeld>, FixedBody>>;
    type Error = S::Error;
    type Future = InboundFuture<S, B, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let service = mem::replace(&mut self.inner, clone);
        let source = request.extensions().get::<IpAddr>().copied();
        let arrived = request.extensions().get::<ArrivedAt>().map(|at| at.0);
        let caller = Caller {
            source,
            priority: None,
            arrived,
        };
        let inbound = self.inbound.clone();
        let (head, body) = request.into_parts();
        let admitting = Box::pin(async move {
            let admitted = inbound.admit(&head, caller).await;
            (admitted, Request::from_parts(head, body))
        });
        InboundFuture {
            state: State::Admitting {
                admitting,
                service: Some(service),
            },
            guard: None,
        }
    }
}

type Admitting<B> =
    Pin<Box<dyn Future<Output = (Result<InboundHeld, Refused>, Request<B>)> + Send>>;

pin_project! {
    /// The answer, or the refusal's.
    pub struct InboundFuture<S, B, F> {
        #[pin]
        state: State<S, B, F>,
        guard: Option<CallGuard<InboundHeld>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        Admitting { admitting: Admitting<B>, service: Option<S> },
        Readying { service: Option<S>, request: Option<Request<B>> },
        Calling { #[pin] inner: F },
    }
}

const NOT_AGAIN: &str = "a future is not polled after it is ready";

impl<S, B, RB> Future for InboundFuture<S, B, S::Future>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Output = Result<Response<EitherBody<GuardedBody<RB, InboundHeld>, FixedBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Admitting { admitting, service } => {
                    let (admitted, request) = ready!(admitting.as_mut().poll(cx));
                    match admitted {
                        Ok(held) => *this.guard = Some(CallGuard::new(held)),
                        Err(refused) => {
                            return Poll::Ready(Ok(answer(&refused).map(EitherBody::other)));
                        }
                    }
                    State::Readying {
                        service: service.take(),
                        request: Some(request),
                    }
                }
                // It was ready when it was called, and may not be after a wait.
                StateProj::Readying { service, request } => {
                    let readied = service.as_mut().expect(NOT_AGAIN);
                    ready!(readied.poll_ready(cx))?;
                    let request = request.take().expect(NOT_AGAIN);
                    State::Calling {
                        inner: readied.call(request),
                    }
                }
                StateProj::Calling { inner } => {
                    let result = ready!(inner.poll(cx));
                    let mut guard = this.guard.take().expect(NOT_AGAIN);
                    return Poll::Ready(match result {
                        Ok(answer) => {
                            let outcome = outcome_of_head(answer.status(), answer.headers());
                            Ok(answer.map(|body| {
                                EitherBody::own(GuardedBody::new(body, guard, outcome, None))
                            }))
                        }
                        Err(error) => {
                            guard.complete(Outcome::Failure(FailureClass::Other), None);
                            Err(error)
                        }
                    });
                }
            };
            this.state.set(next);
        }
    }
}

/// A problem document (RFC 9457). Its words are ours, so nothing in them needs an escape.
fn answer(refused: &Refused) -> Response<FixedBody> {
    let (status, rejected) = (refused.status(), &refused.rejected);
    let policy = rejected.policy.as_str();
    let text = format!(
        r#"{{"type":"urn:selvedge:problem:{}","title":"{rejected}","status":{},"policy":"{policy}"}}"#,
        policy.replace('_', "-"),
        status.as_u16(),
    );
    let mut answer = Response::new(FixedBody::from(Bytes::from(text)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    let kind = HeaderValue::from_static("application/problem+json");
    headers.insert(CONTENT_TYPE, kind);
    refused.write(headers);
    answer
}

impl<S, B, F> fmt::Debug for InboundFuture<S, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundFuture").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[path = "inbound_tests.rs"]
mod tests;
