//! In the making.
pub mod balance;
pub mod breaker;
pub mod bulkhead;
mod clock;
pub mod config;
pub mod outcome;
pub mod rate_limit;
pub mod retry;
mod rng;
mod sync;

pub use outcome::{FailureClass, Outcome, Policy, Reason, Rejected};
pub use rng::Rng;
