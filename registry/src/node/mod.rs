//! What every mesh process is, whatever else it does: configured, observed, drained, asked how it
//! is. ("Node" as in xDS and in gossip: one process that takes part.)
//!
//! Registry server, sidecar, gateway and services written in Rust share these, so that an operator
//! learns them once.

pub mod admin;
pub mod cidr;
pub mod config;
pub mod descriptors;
pub mod drain;
mod export;
pub mod listen;
pub mod metrics;
pub mod policies;
pub mod readiness;
#[cfg(feature = "client")]
pub mod registry;
pub mod shutdown;
pub mod telemetry;
