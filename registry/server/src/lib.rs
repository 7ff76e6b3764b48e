//! The registry's server: who is where, kept by a few nodes that gossip, without a store.
//!
//! ```text
//!   v1 API ──► catalogue ──► watch hub ──► clients (server-sent events)
//!                 ▲  │
//!    leases ──────┘  └──► own log ──► replicate ──► the other servers (HTTP/2)
//!                             membership: gossip (chitchat)
//! ```
//!
//! Gossip carries who the servers are, and nothing else: its state is cloned on every change and
//! its datagrams have a ceiling, so instances stay out of it. Each server appends what it accepts
//! to a log of its own; the others follow that log over one HTTP/2 stream each. Every record has
//! one owner, the server that took its last renewal; renewals touch that server's memory only.
//!
//! The catalogue is available rather than consistent: both sides of a partition answer with what
//! they know, and what they know converges by [order](catalogue::Stamp) when it heals.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests pick an instant to start from"
    )
)]

pub mod api;
pub mod audit;
pub mod auth;
pub mod catalogue;
pub mod config;
pub mod dns;
pub mod eureka;
pub mod gossip;
pub mod hub;
pub mod lease;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod persist;
pub mod regions;
pub mod replicate;
pub mod server;
pub mod start;
pub mod tls;

pub use config::RegistryConfig;
pub use start::{RegistryServer, StartError};
