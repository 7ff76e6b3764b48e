//! The gateway as its operators and clients see it: the real process, real sockets.

#[path = "../../sidecar/proxy/tests/dashboard.rs"]
mod dashboard;
mod events;
mod hystrix;
mod limits;
mod policies;
mod process;
#[path = "../../sidecar/proxy/tests/reader.rs"]
mod reader;
mod reload;
mod routing;
mod shipped;
mod support;
mod telemetry;
