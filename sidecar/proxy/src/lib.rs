//! The HTTP data path of sidecar and gateway: hyper in, Tower's policies in the middle, hyper out.
//!
//! Two proxies with two data paths have two sets of bugs, and an attacker between them lives off
//! the difference. So there is one: what the gateway refuses the sidecar refuses, for the same
//! reason, in the same words. A [`Door`] says where requests go; everything else is here.
//!
//! ```text
//! connection ─ detect h1/h2 ─ hyper ─┬─ admit ─ Door::route ─ headers ─┬─ Stack ─ pool ─ upstream
//!  serve.rs     clock.rs             │  admit.rs   door.rs   headers.rs│ (retry, breaker,
//!                                    │  path.rs                        │  balancer … by try)
//!                                    └────────── service.rs ───────────┴─ upstream.rs, pool.rs
//! answer ─ body.rs gives back permits and connection at its exact end ─ exchange.rs logs, counts
//! ```
//!
//! # Guarantees
//! - No byte of a received head is forwarded: what goes out is written anew from what was
//!   understood. What has two readings is refused and its connection closed.
//! - Bodies stream both ways; what is kept for a retry is bounded by the policy's `replay`.
//! - A truncated answer never looks complete: where an upstream dies in mid-body, the client's
//!   message is cut.
//! - A client that goes away cancels what was done for it.
//! - A client's fault is a 4xx; it charges no upstream's breaker.
//!
//! # What it does not do
//! TLS, and limits on connections: both are the listener's business. A WebSocket's permits are
//! given back when it begins, so a bulkhead does not count it.

mod access_log;
mod admit;
mod body;
mod clock;
mod destination;
mod door;
mod error;
mod events;
mod exchange;
pub mod hash;
mod headers;
mod hystrix;
mod metrics;
mod observed;
pub mod path;
mod pool;
mod seats;
mod serve;
mod service;
mod tunnel;
mod upstream;

pub use self::{
    access_log::AccessLog,
    admit::{Admitted, Limits, admit},
    destination::Destination,
    door::{Door, Refusal, Route, Routed, Rules},
    events::EventsBody,
    hystrix::{HystrixBody, HystrixStream},
    metrics::{Active, ProxyMetrics, RouteMetrics},
    observed::Listed,
    pool::UpstreamKey,
    serve::serve_connection,
    service::{Client, Worker},
};
