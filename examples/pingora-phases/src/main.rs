//! A proxy of Pingora's own kind, `ProxyHttp`, with the policy cores in its phases.
//!
//! For those who run such a proxy already and want what the mesh would give it. No Tower layer fits
//! there: Pingora owns the request, and calls out at fixed points. The cores fit, because they only
//! decide: they take the time, and hand out permits that live in the request's `CTX`.
//!
//! | phase | what the cores do there |
//! |---|---|
//! | `early_request_filter` | when it arrived; what the caller sent along: deadline, priority, trace |
//! | `request_filter` | shed, refuse the expired, rate limit for each caller, bulkhead with its queue |
//! | `upstream_peer` | once a try: the wait before it, breaker, balancer; its timeouts from the time left |
//! | `upstream_request_filter` | deadline, trace and number of the try, for the callee |
//! | `fail_to_connect` | nothing was sent: tried again whatever the method, if the budget pays |
//! | `upstream_response_filter` | judges the head; a 503 is tried again *before* the caller sees it |
//! | `upstream_response_body_filter` | the call ends with its body; nothing is passed on past the deadline |
//! | `error_while_proxy` | tried again only if that is harmless and the body can be had again |
//! | `fail_to_proxy` | says who refused, and when to come back |
//! | `logging` | gives everything back; dropping `CTX` does so too, where Pingora drops the request |
//!
//! The order is that of the crate's page. [`phases`] is the file to read, [`call`] holds what a
//! request carries from phase to phase.
//!
//! ```sh
//! python3 -m http.server --bind 127.0.0.1 9001 &
//! RUST_LOG=info cargo run -p selvedge-example-pingora -- --upstream /=127.0.0.1:9001,127.0.0.1:9002
//! curl -i http://127.0.0.1:9080/            # 9002 is not there: tried again, on 9001
//! ```
//!
//! # What it does not do
//! - *A deadline for a head that trickles.* Pingora has timeouts for each read, none for a try, and
//!   none for the whole. Deadlines are looked at wherever it calls out, and bound each read; a
//!   callee that sends its head a byte at a time is not stopped.
//! - *Retries of long bodies.* Pingora keeps 64 KiB of a request's body; past that, a failure is
//!   final. `replay`, `grpc_trailers` and `cost` of [`RetryConfig`] have no effect here.
//! - *Pooled connections after a retried answer.* To retry an answer, its connection is broken.
//!
//! The Selvedge gateway has none of these limits, which is one reason why it serves with hyper.
//!
//! [`RetryConfig`]: selvedge_resilience::retry::RetryConfig
#![forbid(unsafe_code)]

mod call;
mod phases;
mod policies;
mod refusal;
mod server;

use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use clap::Parser;

use crate::{
    phases::Proxy,
    policies::{Policies, Route},
    server::Signals,
};

/// Passes requests on to the upstream of the longest prefix that fits.
#[derive(Debug, Parser)]
struct Args {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:9080")]
    listen: SocketAddr,
    /// What it passes on, and to whom: `/prefix=address,address`. May be given several times.
    #[arg(long = "upstream", required = true)]
    routes: Vec<Route>,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let args = Args::parse();
    let proxy = Proxy::new(Policies::default(), args.routes)?;
    let listener =
        TcpListener::bind(args.listen).with_context(|| format!("listen on {}", args.listen))?;
    tracing::info!(address = %args.listen, "listening");
    // Pingora starts its own runtimes, so this must not run inside one.
    server::run(&proxy, listener, Box::new(Signals)).context("serve")
}

#[cfg(test)]
mod tests;
