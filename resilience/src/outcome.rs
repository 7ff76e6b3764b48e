//! What a call came to, and what a policy says when it refuses one.
//!
//! A `bool` cannot tell "the callee is broken" from "the callee asked for less", nor either from
//! "nobody waited for the answer". Breakers that cannot tell them apart latch open on cache
//! misses, or close on a caller's impatience. So a result is one of five classes, and a refusal
//! always names the policy that made it, why, and when it is worth coming back.

use std::{fmt, time::Duration};

use crate::classify::GrpcCode;

/// How an admitted call ended, as its caller judges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The callee did its work.
    Success,
    /// The callee, or the way to it, is at fault.
    Failure(FailureClass),
    /// The callee said "less, please" (429, `RESOURCE_EXHAUSTED`): not broken, but not a success.
    RateLimited,
    /// Says nothing about the callee's health (a 404, a validation error).
    Ignored,
    /// Nobody waited for the end.
    Cancelled,
}

impl Outcome {
    /// Whether the callee or the way to it is to blame.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failure(_))
    }

    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure(class) => class.as_str(),
            Self::RateLimited => "rate_limited",
            Self::Ignored => "ignored",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What kind of failure it was: decides which consecutive counter it feeds and whether it is safe
/// to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureClass {
    /// No connection came about, so the callee saw nothing of the request.
    Connect,
    /// No answer in time.
    Timeout,
    /// The connection or stream broke after the request was on its way.
    Reset,
    /// The callee answered that it failed (5xx, or a gRPC status of that kind).
    ServerError,
    /// A proxy on the way answered that it could not reach the callee (502, 503, 504).
    Gateway,
    /// The callee's answer broke the protocol.
    Protocol,
    /// Anything else.
    Other,
}

impl FailureClass {
    /// A stable, lower-case name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::ServerError => "server_error",
            Self::Gateway => "gateway",
            Self::Protocol => "protocol",
            Self::Other => "other",
        }
    }
}

/// Which policy refused a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// Circuit breaker.
    Breaker,
    /// Bulkhead: concurrent calls and their queue.
    Bulkhead,
    /// Rate limit.
    RateLimit,
    /// Deadline of the whole call, or of one try.
    Deadline,
    /// Retry budget.
    RetryBudget,
    /// Balancer: which endpoint takes the call.
    Balancer,
    /// Adaptive concurrency limit.
    AdaptiveLimit,
    /// Load shedding by priority.
    Shed,
    /// Client-side throttle by accept ratio.
    Throttle,
    /// Fault injection.
    Fault,
    /// Coalescing: the call that another caller made for this one.
    Coalesce,
}

impl Policy {
    /// A stable, lower-case name for metrics, problem documents and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::Bulkhead => "bulkhead",
            Self::RateLimit => "rate_limit",
            Self::Deadline => "deadline",
            Self::RetryBudget => "retry_budget",
            Self::Balancer => "balancer",
            Self::AdaptiveLimit => "adaptive_limit",
            Self::Shed => "shed",
            Self::Throttle => "throttle",
            Self::Fault => "fault",
            Self::Coalesce => "coalesce",
        }
    }
}

/// Why it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The circuit is open.
    Open,
    /// An operator forced the circuit open.
    ForcedOpen,
    /// Half-open, and every probe is out.
    ProbesTaken,
    /// As many calls run as may.
    Full,
    /// As many calls wait as may.
    QueueFull,
    /// Waited as long as a call may.
    QueueTimeout,
    /// The rate, quota or budget is used up for now.
    Exhausted,
    /// Asks for more at once than there will ever be.
    InsufficientCapacity,
    /// The deadline had passed before the call began.
    Expired,
    /// The deadline passed while the call ran.
    Elapsed,
    /// Nobody is there to take the call.
    NoEndpoint,
    /// Overloaded, and this call matters less than others.
    Overloaded,
    /// The callee has been refusing, so this call is not even sent.
    Throttled,
    /// A fault was injected on purpose.
    Injected,
    /// The call that was made for this one too has failed.
    LeaderFailed,
}

impl Reason {
    /// A stable, lower-case name for metrics, problem documents and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::ForcedOpen => "forced_open",
            Self::ProbesTaken => "probes_taken",
            Self::Full => "full",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Exhausted => "exhausted",
            Self::InsufficientCapacity => "insufficient_capacity",
            Self::Expired => "expired",
            Self::Elapsed => "elapsed",
            Self::NoEndpoint => "no_endpoint",
            Self::Overloaded => "overloaded",
            Self::Throttled => "throttled",
            Self::Injected => "injected",
            Self::LeaderFailed => "leader_failed",
        }
    }
}

/// A refusal: who, why, and when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejected {
    /// The policy that refused.
    pub policy: Policy,
    /// Why it did.
    pub reason: Reason,
    /// When it may be worth trying again; `None` where the policy cannot know.
    pub retry_after: Option<Duration>,
}

impl Rejected {
    /// A refusal that cannot tell when to come back.
    pub fn new(policy: Policy, reason: Reason) -> Self {
        Self {
            policy,
            reason,
            retry_after: None,
        }
    }

    /// A refusal that can.
    pub fn after(policy: Policy, reason: Reason, retry_after: Duration) -> Self {
        Self {
            policy,
            reason,
            retry_after: Some(retry_after),
        }
    }

    /// The code that a gRPC client is told: `DEADLINE_EXCEEDED` for a deadline, `RESOURCE_EXHAUSTED`
    /// for a rate, else `UNAVAILABLE`.
    ///
    /// ```
    /// use selvedge_resilience::{Policy, Reason, Rejected, classify::GrpcCode};
    ///
    /// let open = Rejected::new(Policy::Breaker, Reason::Open);
    /// assert_eq!(open.grpc_code(), GrpcCode::Unavailable);
    /// // tonic's: `tonic::Code::from(refused.grpc_code().number())`
    /// assert_eq!(open.grpc_code().number(), 14);
    /// ```
    pub fn grpc_code(&self) -> GrpcCode {
        match self.policy {
            Policy::Deadline => GrpcCode::DeadlineExceeded,
            Policy::RateLimit => GrpcCode::ResourceExhausted,
            _ => GrpcCode::Unavailable,
        }
    }

    /// The short flag that an access log carries for it.
    ///
    /// Source: Envoy's response flags.
    pub fn flag(&self) -> &'static str {
        match (self.policy, self.reason) {
            (Policy::Deadline, Reason::Elapsed) => "UT",
            (Policy::Deadline, _) => "DT",
            (Policy::RateLimit, _) => "RL",
            (Policy::RetryBudget, _) => "URX",
            (Policy::Balancer, _) => "UH",
            (Policy::Shed, _) => "OM",
            (Policy::Fault, _) => "FI",
            (Policy::Coalesce, _) => "UC",
            (Policy::Breaker | Policy::Bulkhead | Policy::AdaptiveLimit | Policy::Throttle, _) => {
                "UO"
            }
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "refused by {}: {}",
            self.policy.as_str(),
            self.reason.as_str()
        )?;
        match self.retry_after {
            Some(after) => write!(f, ", try again in {after:?}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Rejected {}
