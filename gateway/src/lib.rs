//! The gateway at the edge: Pingora runs the process, hyper carries the bytes, Tower decides.
//!
//! ```text
//! run.rs      sockets, Pingora's server, a thread a worker, the order of leaving
//! edge.rs     a connection arrives (Pingora's ServerApp) ─► selvedge_proxy::serve_connection
//! door.rs     which route, by the snapshot of the moment
//! snapshot.rs routes and destinations as one value; destinations survive a reload
//! reload.rs   a file is taken as a whole, or not at all and says why
//! control.rs  discovery, reloads, admin port, drain: on a thread that carries no requests
//! config/     gateway.toml: as written, as used
//! routing/    which rule a request belongs to, by Gateway API's precedence
//! ```
//!
//! # What is not promised
//! Listeners, workers, the admin port and telemetry change by restart only; a reload that touches
//! them is refused and says so. TLS is not served yet.

pub mod config;
mod control;
mod door;
mod dump;
mod edge;
mod reload;
pub mod routing;
mod run;
mod seats;
mod snapshot;

pub use run::run;
