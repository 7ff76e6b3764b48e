//! What a request carries through the mesh: its trace and its deadline.
//!
//! A deadline that stops at the first hop lets the second one work for nobody; a trace that stops
//! there tells half the story. Even a service that uses no other part of this crate must pass both
//! on, so they live here, as plain functions over [`http::HeaderMap`].

pub mod deadline;
pub mod trace;
