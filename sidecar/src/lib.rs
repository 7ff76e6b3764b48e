//! The proxy beside a service: brings the mesh to an app that knows nothing of it.
//!
//! ```text
//!            mesh port                        app, any language
//! callers ──► inbound.rs ───────────────────────► 127.0.0.1
//!             probe.rs asks how it is ──► registry: up, down, out of service
//! others ◄── outbound.rs ◄──── Host: orders ───── the app's own calls
//! ```
//!
//! Both ways run `selvedge_proxy`'s data path, by the same policies as the gateway's. `port.rs` has
//! the sockets, `run.rs` the process and the order in which it leaves, `config.rs` the file.
//!
//! # What is not promised
//! mTLS between sidecars, transparent capture and authorization are not there yet: the mesh port
//! takes whoever can reach it.

pub mod config;
mod dump;
mod inbound;
mod outbound;
mod port;
mod probe;
mod run;

pub use run::run;
