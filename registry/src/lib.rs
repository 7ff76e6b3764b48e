//! What the parts of a mesh call each other, how they find each other, and what they have in common.
//!
//! ```text
//!            names and records            client                 node
//!            ServiceName Instance   →   watch · register   →   config · telemetry · metrics
//!            Endpoint Revision          last known good        readiness · drain · admin
//! ```
//!
//! - [`name`], [`instance`], [`wire`], [`api`]: the one place where things are named, and the documents of
//!   the registry's v1 API, used by its server and its clients alike.
//! - [`client`] (feature `client`, default): services by name, kept up to date by one task however
//!   many there are; registration that is renewed until it is dropped.
//! - [`node`] (feature `node`): what every mesh process is, whatever else it does.
//! - [`ring`]: which instance of a service owns a key, and a layer that takes requests there.
//! - [`problem`]: the errors that any of them shows to an HTTP client (RFC 9457).
//!
//! ```no_run
//! use selvedge_registry::{client::{Discovery, RegistryClient}, name::ServiceName};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = RegistryClient::builder(["10.0.0.5:7900", "10.0.0.6:7900"]).spawn();
//! let mut orders = registry.watch(&ServiceName::new("orders")?);
//! orders.changed().await;
//! for endpoint in orders.current().endpoints.iter() {
//!     println!("{} at {}", endpoint.id, endpoint.addr);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is not promised
//! Discovery is available rather than consistent: two clients may see different lists for as long
//! as a change takes to travel. A list is never replaced by an error.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests pick an instant to start from"
    )
)]

pub mod api;
#[cfg(feature = "client")]
pub mod client;
pub mod instance;
pub mod name;
#[cfg(feature = "node")]
pub mod node;
pub mod problem;
pub mod ring;
pub mod wire;

pub use instance::{
    AppProtocol, Endpoint, Instance, InstanceStatus, Locality, Ownership, Revision,
};
pub use name::{InstanceId, NameError, ServiceName};
