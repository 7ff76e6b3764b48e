//! The sidecar as its app, its callers and its operator see it: the real process, real sockets.

mod app;
#[path = "../proxy/tests/dashboard.rs"]
mod dashboard;
mod hystrix;
mod mesh;
mod policies;
mod process;
mod shipped;
mod support;
