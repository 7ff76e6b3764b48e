//! The policies as Tower layers: cores decide, these carry it out.
//!
//! | | for |
//! |---|---|
//! | [`BreakerLayer`], [`BulkheadLayer`], [`RateLimitLayer`] | one policy around any HTTP service |
//! | [`KeyedLayer`], [`KeyedRateLimitLayer`] | one of them for each key of a request |
//! | [`QueueLayer`] | a limit before which a bounded number of calls may wait |
//! | [`CoalesceLayer`] | one call for all who ask the same at the same time |
//! | [`FallbackLayer`] | a worse answer where there would be none |
//! | [`FaultLayer`] | delays and failures on purpose |
//! | [`shed()`] | refusing what matters least, by the wait that it causes |
//! | [`RetryLayer`] | tries on a budget around any HTTP service |
//! | [`HedgeLayer`] | a second try beside one that is late, on the same budget |
//! | [`ThrottleLayer`] | asking less where most is refused |
//! | [`ContextLayer`], [`propagate`] | what a request carries, read once and passed on |
//! | [`DeadlineLayer`] | refusing what nobody waits for any more |
//! | [`TimeoutLayer`] | a total deadline, read from and written to the wire |
//! | [`InboundLayer`] | what a service takes on: shedding, rates, limits, deadlines |
//! | [`Stack`] | all of them towards one destination, in the order that works |
//! | [`ServiceTransport`], [`ByEndpoint`] | any client as what a stack sends by |
//!
//! # By hand: orders that are wrong
//! A [`Stack`] has its order, and so has an [`InboundLayer`]: neither can be put together wrongly.
//! Whoever puts single layers on each other with tower's `ServiceBuilder` (the first is the
//! outermost) can, and no type says so:
//!
//! | outside | inside | what comes of it |
//! |---|---|---|
//! | breaker | retry | of three failures it sees one: it opens three times too late, and no open circuit ends the tries |
//! | per-try timeout | breaker | a hang is a cancellation: the circuit never hears of it |
//! | retry | total deadline | each try has a deadline, and the call, with the waits between its tries, has none |
//! | bulkhead, limit | retry | who waits for the next try holds a slot and does nothing with it |
//! | rate limit | queue, bulkhead | what is refused further in has been charged for |
//! | retry | fallback | the worse answer comes at once, where another try might have had the good one |
//! | retry | coalescing | those who wait for another's call pay for tries that nobody makes |
//! | faults | what they are to test | it never sees them |
//! | whatever queues | expired-deadline check | what expires in the queue is begun; check behind it, too |
//! | anything costly | shedding | the work is done by then, and it was the point to save it |
//!
//! # What all of them hold to
//! - Permits are taken in `call`, never in `poll_ready`: an idle clone that was polled ready must
//!   not hold a slot that a busy one waits for (tower's `ConcurrencyLimit` under `Balance`).
//! - The readied service is used, by `mem::replace`; its clone waits for the next call.
//! - A call is over when its *body* is: [`GuardedBody`] completes the permits at the end, at the
//!   trailers, on an error or when dropped, whichever is first.
//! - Errors are flat: every layer's error is [`Error`], however many are stacked.

mod bodies;
mod body;
mod coalesce;
pub(crate) mod commands;
mod context;
mod deadline;
mod fallback;
mod fault;
mod gate;
mod guard;
mod hedge;
mod inbound;
mod keep;
mod keyed;
mod lookout;
mod oneshot;
mod peek;
mod policy_layer;
mod queue;
mod rate_limit;
mod replay;
mod retry;
mod shed;
mod slot;
mod stack;
mod throttle;
mod timeout;
mod transport;

use std::{fmt, time::SystemTime};

use http::{HeaderMap, HeaderName};

use self::slot::Patience;
pub use self::{
    bodies::{EitherBody, FixedBody},
    body::{BodyError, GuardedBody},
    coalesce::{
        ByRules, CoalesceFuture, CoalesceKey, CoalesceLayer, CoalesceService, CoalescedBody,
    },
    context::{ContextLayer, ContextService, propagate, propagate_as},
    deadline::{DeadlineFuture, DeadlineLayer, DeadlineService},
    fallback::{
        Backup, FallbackFuture, FallbackLayer, FallbackService, Fixed, FromFn, OneshotFuture,
        Refusal, ToService,
    },
    fault::{FaultFuture, FaultLayer, FaultService, Injected},
    guard::{CallGuard, Completes, Moment},
    hedge::{HedgeBody, HedgeFuture, HedgeHeld, HedgeLayer, HedgeService},
    inbound::{
        Caller, Inbound, InboundFuture, InboundHeld, InboundLayer, InboundService, InboundStatus,
        RateStatus, Refused,
    },
    keyed::{KeyedLayer, KeyedService},
    peek::PeekedBody,
    policy_layer::{
        AdaptiveLayer, Admission, AnyFailure, BreakerLayer, BulkheadLayer, ByClass,
        CompletionPoint, Judge, PolicyFuture, PolicyLayer, PolicyService,
    },
    queue::{QueueFuture, QueueLayer, QueueService},
    rate_limit::{
        Cost, KeyedRateLimitLayer, KeyedRateLimitService, OneEach, RateLimitFuture, RateLimitLayer,
        RateLimitService,
    },
    replay::ReplayBody,
    retry::{RetryBody, RetryFuture, RetryHeld, RetryLayer, RetryService, RetryStats},
    shed::{ArrivedAt, BegunLayer, BegunService, ShedFuture, ShedLayer, ShedService, shed},
    stack::{
        Answer, Attempt, BudgetStatus, HashKey, Held, Hook, RequestTimeout, Stack, StackBuilder,
        StackClient, StackFuture, StackLayer, StackService, StackStatus,
    },
    throttle::ThrottleLayer,
    timeout::{TimeoutFuture, TimeoutLayer, TimeoutService},
    transport::{ByEndpoint, ServiceTransport, Transport, TransportError, over_http},
};
use crate::outcome::Rejected;

/// The wall clock, if `headers` have the one that may hold a date; any time otherwise. It costs as
/// much as a policy does, and hardly an answer asks for it.
fn wall_for(headers: &HeaderMap, name: &HeaderName) -> SystemTime {
    wall_if(headers.contains_key(name))
}

/// The same, where it is known whether they have it.
fn wall_if(asked: bool) -> SystemTime {
    if asked {
        SystemTime::now()
    } else {
        SystemTime::UNIX_EPOCH
    }
}

/// Any error that crosses threads.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a call through the layers has no answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error<E> {
    /// A policy refused it, or its time was up.
    Rejected(Rejected),
    /// It was made, and failed.
    Service(E),
}

impl<E> Error<E> {
    /// The refusal, if a policy refused.
    pub fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Service(_) => None,
        }
    }

    /// Takes two levels to one: for stacking layers of this module on each other.
    pub fn flat(nested: Error<Error<E>>) -> Self {
        match nested {
            Error::Rejected(rejected) | Error::Service(Error::Rejected(rejected)) => {
                Self::Rejected(rejected)
            }
            Error::Service(Error::Service(error)) => Self::Service(error),
        }
    }
}

impl<E> From<Rejected> for Error<E> {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Service(error) => error.fmt(f),
        }
    }
}

// No bound on `E: Error`, which `BoxError` would not meet: what `E` says is said here already.
impl<E: fmt::Debug + fmt::Display> std::error::Error for Error<E> {}

#[cfg(all(test, not(loom)))]
mod tests;
