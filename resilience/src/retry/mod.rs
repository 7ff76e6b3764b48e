//! Retries: which calls may be tried again, when, and how many in all.
//!
//! A retry turns a callee's hiccup into a slower answer instead of an error. The same retry, made
//! by every caller at the moment the callee is least able to bear it, turns a hiccup into an
//! outage. So three questions are kept apart: *may* this call be tried again ([`Tries`]: its
//! method, its result, whether its body can be replayed), *when* ([`backoff`] with jitter, or what
//! the callee asks), and *how many* tries all calls together may add (the [`budget`], which hedges
//! share; for clients with little traffic a [`cost`] bucket).

pub mod backoff;
pub mod budget;
mod config;
pub mod cost;
mod tries;
pub(crate) mod window;
pub use self::{
    config::{ErrorClass, RetryConfig},
    tries::{Final, Idempotent, Judgement, RetryContext, Safety, Tries, is_idempotent},
};
