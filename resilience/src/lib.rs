//! Policies that keep a service answering while the ones it calls do not.
//!
//! Every call over a network fails in one of a few ways, and each way has its answer:
//!
//! | what goes wrong | what helps | here |
//! |---|---|---|
//! | one try fails, the next would not | retry with backoff, on a budget | [`retry`] |
//! | one try of many is far slower than the rest | a second one beside it, on the same budget | [`hedge`] |
//! | the callee is down and calls pile up | circuit breaker | [`breaker`] |
//! | the callee is slow and calls pile up | deadline, bulkhead | [`TimeoutLayer`], [`bulkhead`] |
//! | one method, tenant or key of many is bad | a core for each key | [`keyed`] |
//! | one endpoint of many is bad | balancing by cost, outlier ejection | [`balance`] |
//! | the callee refuses most of what it is asked | asking less | [`throttle`] |
//! | more is asked than can be done | rate limit; shedding what matters least | [`rate_limit`], [`shed`] |
//! | nobody knows how much can be done | a limit that finds itself | [`adaptive`] |
//! | nobody waits for the answer any more | a deadline that travels, refusal on arrival | [`context::deadline`], [`expired`] |
//! | nobody knows where the time went | a trace that travels | [`context::trace`] |
//!
//! # Cores and layers
//!
//! Each policy is a *core*: it takes `now`, decides, and hands out a permit; it never sleeps,
//! spawns, logs or reads a clock. Dropping a permit means that the call was cancelled. The module
//! [`layer`] carries the decisions out as Tower layers, and [`layer::Stack`] puts all of them in
//! front of one destination in the order that works. The Selvedge gateway and sidecar run this very
//! code, from the same [`TrafficPolicy`] document.
//!
//! ```
//! # use std::{convert::Infallible, time::Duration};
//! # use http::{Request, Response};
//! # use http_body_util::{Empty, Full};
//! # use selvedge_resilience::layer::{BoxError, ReplayBody};
//! use selvedge_resilience::{TrafficPolicy, layer::Stack};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let policy: TrafficPolicy = toml::from_str(r#"
//!     timeouts = { request = "2s", backendRequest = "500ms" }
//!     retry    = { attempts = 2, codes = [502, 503, 504], budget = "20% min 3/s" }
//!     breaker  = { failure_rate = "50%", min_requests = 20, open_for = "5s" }
//!     bulkhead = 200
//! "#)?;
//! # let client = service_fn(|_: Request<ReplayBody<Empty<bytes::Bytes>>>| async {
//! #     Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from("hello")))
//! # });
//! // Any client that is a `tower::Service` over HTTP: hyper's, reqwest's, tonic's channel.
//! let client = Stack::layer(policy)?.layer(client);
//! let answer = client.oneshot(Request::get("http://orders/1").body(Empty::new())?).await?;
//! assert_eq!(answer.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! # The order, and the traps
//!
//! total deadline → retry → *each try:* breaker → bulkhead → rate limit → balancer → per-try
//! timeout → transport.
//!
//! - Retry *outside* the breaker: every try counts, and an open circuit ends the retries at once.
//!   The other way round, a breaker sees three failures as one and opens three times too late.
//! - The per-try timeout *inside* the breaker: otherwise a hang is a cancellation, and the circuit
//!   never learns of it.
//! - The total deadline *outside* retry: otherwise waiting between tries is bounded by nothing.
//! - A budget, not only an attempt count: three tries over three tiers are twenty-seven calls.
//! - A call ends with its *body*: a permit given back at the headers limits nothing for a service
//!   that streams.
//!
//! # Features
//! - `tower` (default): the module [`layer`].
//! - `schema`: JSON Schema of [`TrafficPolicy`].
//!
//! # What is not promised
//! State is per process: two gateways have two circuits. Nothing here speaks to a network.
//!
//! [`TimeoutLayer`]: layer::TimeoutLayer
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests pick an instant to start from"
    )
)]

// The table types of `cases/table.rs` name the crate as drivers outside it do.
#[cfg(test)]
extern crate self as selvedge_resilience;

pub mod adaptive;
pub mod balance;
pub mod breaker;
pub mod bulkhead;
pub mod classify;
mod clock;
pub mod config;
pub mod context;
pub mod events;
pub mod expired;
pub mod fallback;
pub mod fault;
pub mod hedge;
pub mod inbound;
pub mod keyed;
#[cfg(feature = "tower")]
pub mod layer;
pub mod metrics;
pub mod outcome;
mod policy;
pub mod rate_limit;
pub mod retry;
mod rng;
pub mod shed;
mod slices;
mod sync;
pub mod throttle;

pub use outcome::{FailureClass, Outcome, Policy, Reason, Rejected};
pub use policy::{Timeouts, TrafficPolicy};
pub use rng::Rng;
