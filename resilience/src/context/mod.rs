//! What a request carries through the mesh: its trace, its deadline, how much it matters.
//!
//! A deadline that stops at the first hop lets the second one work for nobody; a trace that stops
//! there tells half the story; a priority that stops there lets a batch job push out a payment.
//! Even a service that uses no other part of this crate must pass them on, so they live here, as
//! plain functions over [`http::HeaderMap`]. [`CallContext`] is all of them at once.
//!
//! | module | headers |
//! |---|---|
//! | [`trace`], [`tracestate`] | `traceparent`, `tracestate` |
//! | [`b3`] | `b3`, `X-B3-*` |
//! | [`baggage`] | `baggage` |
//! | [`deadline`] | `grpc-timeout`, `x-envoy-*-timeout-ms`, Finagle's |
//! | [`priority`] | `x-priority` |
//! | [`attempt`] | `x-envoy-attempt-count`, `grpc-previous-rpc-attempts` |

pub mod attempt;
pub mod b3;
pub mod baggage;
mod call;
pub mod deadline;
mod digits;
pub mod priority;
pub mod trace;
pub mod tracestate;

pub use self::{
    attempt::AttemptNumber,
    b3::TraceFormat,
    call::{CallContext, REQUEST_ID},
    deadline::Deadline,
    priority::Priority,
};
