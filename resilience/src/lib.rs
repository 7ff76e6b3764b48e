//! Policies that keep a service answering while the ones it calls do not.
//!
//! Every call over a network fails in one of a few ways, and each way has its answer. Calling others:
//!
//! | what goes wrong | what helps | here |
//! |---|---|---|
//! | one try fails, the next would not | retry with backoff, on a budget | [`retry`] |
//! | many ask the same at the same time | one call for all of them | [`coalesce`] |
//! | one try of many is far slower than the rest | a second one beside it, on the same budget | [`hedge`] |
//! | the callee is down and calls pile up | circuit breaker | [`breaker`] |
//! | the callee is slow and calls pile up | deadline, bulkhead | [`TimeoutLayer`], [`bulkhead`] |
//! | one method, tenant or key of many is bad | a core for each key | [`keyed`] |
//! | one endpoint of many is bad | balancing by cost, outlier ejection | [`balance`] |
//! | the callee refuses most of what it is asked | asking less | [`throttle`] |
//! | a worse answer would do | fallback | [`fallback`] |
//! | nobody knows whether any of this works | faults on purpose | [`fault`] |
//!
//! Being called:
//!
//! | what goes wrong | what helps | here |
//! |---|---|---|
//! | one caller asks for more than its share | a rate for each caller | [`rate_limit`] |
//! | more is asked than can be done | shedding what matters least | [`shed`] |
//! | too much is under way at once | bulkhead with a short queue | [`bulkhead`] |
//! | nobody knows how much is too much | a limit that finds itself | [`adaptive`] |
//! | nobody waits for the answer any more | a deadline that travels, refusal on arrival | [`context::deadline`], [`expired`] |
//! | all of these | one document, one layer | [`inbound`], [`InboundLayer`] |
//!
//! Both: nobody knows where the time went → a trace that travels, [`context::trace`].
//!
//! # Calling others
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
//! # Being called
//!
//! ```
//! use axum::{Router, routing::get};
//! use selvedge_resilience::{TrafficPolicy, layer::{Inbound, InboundLayer}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy: TrafficPolicy = toml::from_str(r#"
//!     [inbound]
//!     shed       = { target = "20ms" }                       # batch first, critical last
//!     rate_limit = { rate = "100/s", by = { header = "x-api-key" } }
//!     bulkhead   = { max = 200, queue = { max = 50, wait = "100ms" } }
//! "#)?;
//! let inbound = Inbound::new(policy.inbound)?;               // keep it to reconfigure it later
//! let app: Router = Router::new()
//!     .route("/orders", get(async || "[]"))
//!     .layer(InboundLayer::new(inbound));
//! # Ok(())
//! # }
//! ```
//!
//! Whoever is refused gets 429 or 503 with a problem document, `Retry-After` and `RateLimit` fields.
//! Single policies are layers too: see [`layer`].
//!
//! # The order
//!
//! ```text
//! calling:    fallback → coalesce → total deadline → retry and hedge on one budget
//!               → each try: throttle → breaker → bulkhead, adaptive limit → rate limit
//!                           → balancer + outlier → per-try timeout → fault → transport
//! being called: shed → reject expired → rate limit → bulkhead → adaptive limit → handler
//! ```
//!
//! - Retry *outside* the breaker: every try counts, and an open circuit ends the retries at once.
//!   The other way round, a breaker sees three failures as one and opens three times too late.
//! - The per-try timeout *inside* the breaker: otherwise a hang is a cancellation, and the circuit
//!   never learns of it.
//! - The total deadline *outside* retry: otherwise waiting between tries is bounded by nothing.
//! - The balancer *inside* retry: the next try goes elsewhere. The breaker is for the service, the
//!   outlier ejection for one endpoint of it; neither can do the other's work.
//! - Faults innermost, fallback outermost: a fault must pass everything that is to be tested with it,
//!   and a fallback must see everything that can fail.
//! - Coalescing outside the deadline and retry: who waits for another's call makes no try and pays
//!   for none; it waits no longer than its own deadline.
//! - Shedding first: it is cheapest, and looks at the wait of all that follows.
//!
//! # The traps
//!
//! - **Retries multiply.** Three tries over three tiers are twenty-seven calls. An attempt count
//!   bounds one call; only a budget bounds the sum. Retry at one tier, the lowest that can still
//!   choose another endpoint, and let the others pass the failure on.
//! - **A retry may act twice.** Only what is idempotent is tried again unless it was never sent. The
//!   same holds for hedges, which *always* send twice.
//! - **A client that gives up early makes work, not time.** If the caller's timeout is shorter than the
//!   callee's, the callee works for nobody. Let deadlines travel; refuse what has expired on arrival.
//! - **Timeouts above the 99th percentile, not at the mean.** A timeout that one call in ten meets is a
//!   retry storm with a fuse.
//! - **A breaker before a fan-out** opens for all shards because one is down: give each its own
//!   ([`keyed`]), and let outlier ejection deal with endpoints.
//! - **A bulkhead's size is Little's law**: calls a second × seconds a call. Twice that is comfort; ten
//!   times that is no bulkhead. Its queue costs latency for everybody in it: make it short and bounded
//!   in time. Where the numbers drift, let an adaptive limit find them.
//! - **A rate limit per process is no limit of a service**: two instances let twice as much through. It
//!   protects the process; quotas of customers need a count that all share.
//! - **A call ends with its body.** A permit given back at the headers limits nothing for a service
//!   that streams. All layers here hold theirs to the last byte.
//! - **Coalesced callers must be alike.** One answer for two people is a leak. The key holds host, path,
//!   `Authorization` and the headers that answers vary by, and cookies are left alone; if your service
//!   looks at anything else (`x-tenant`, a client certificate), say so in `headers` or do not coalesce.
//! - **A fallback that nobody sees is an outage that nobody sees.** Answers are marked, and counted.
//! - **Failing fast is not free**: callers that get an error in a millisecond ask again in a
//!   millisecond. Refusals carry `Retry-After`, and [`throttle`] makes a client obey what it feels.
//!
//! # Cores and layers
//!
//! Each policy is a *core*: it takes `now`, decides, and hands out a permit; it never sleeps,
//! spawns, logs or reads a clock. Dropping a permit means that the call was cancelled. The module
//! [`layer`] carries the decisions out as Tower layers, and [`layer::Stack`] puts all of them in
//! front of one destination in the order that works. The Selvedge gateway and sidecar run this very
//! code, from the same [`TrafficPolicy`] document. `deploy/config/policy.toml` in the repository has
//! every key of it.
//!
//! # Features
//! - `tower` (default): the module [`layer`].
//! - `schema`: JSON Schema of [`TrafficPolicy`], as `TrafficPolicy::json_schema_text()` prints it.
//!
//! # What it costs
//! Nanoseconds a call, beside peers, with the aims that are missed: the page `numbers`. What peers
//! get wrong, and the test that keeps each of it from happening here: the page `peers`.
//!
//! # What is not promised
//! State is per process: two gateways have two circuits. Nothing here speaks to a network.
//!
//! Documents grow: a minor version may add a key to any section. Who writes a configuration in Rust
//! ends it with `..Default::default()`; what is only read (statuses, counters, events) and every
//! enumeration that may grow is `#[non_exhaustive]`.
//!
//! [`InboundLayer`]: layer::InboundLayer
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
pub mod coalesce;
pub mod config;
pub mod context;
mod due;
pub mod events;
pub mod expired;
pub mod fallback;
pub mod fault;
pub mod hedge;
#[cfg(feature = "tower")]
pub mod hystrix;
pub mod inbound;
pub mod keyed;
mod lanes;
#[cfg(feature = "tower")]
pub mod layer;
pub mod metrics;
#[cfg(doc)]
#[doc = include_str!("numbers.md")]
pub mod numbers {}
pub mod outcome;
#[cfg(doc)]
#[doc = include_str!("peers.md")]
pub mod peers {}
mod policy;
pub mod rate_limit;
pub mod retry;
mod rng;
mod shared;
pub mod shed;
mod slices;
mod sliding;
mod sync;
pub mod throttle;

pub use outcome::{FailureClass, Outcome, Policy, Reason, Rejected};
pub use policy::{Timeouts, TrafficPolicy};
pub use rng::Rng;
