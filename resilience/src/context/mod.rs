//! What a request carries through the mesh: its trace, its deadline, how much it matters.
//!
//! A deadline that stops at the first hop lets the second one work for nobody; a trace that stops
//! there tells half the story; a priority that stops there lets a batch job push out a payment.
//! Even a service that uses no other part of this crate must pass them on, so they live here, as
//! plain functions over [`http::HeaderMap`].

pub mod deadline;
pub mod priority;
pub mod trace;
