//! The data path over real sockets: raw clients, raw and hyper upstreams.

mod bodies;
mod connections;
mod metrics;
mod refusals;
mod retries;
mod support;
