//! The sidecar as its app, its callers and its operator see it: the real process, real sockets.

mod app;
#[path = "../proxy/tests/dashboard.rs"]
mod dashboard;
mod events;
mod hystrix;
mod mesh;
mod policies;
mod process;
#[path = "../proxy/tests/reader.rs"]
mod reader;
mod shipped;
mod support;
