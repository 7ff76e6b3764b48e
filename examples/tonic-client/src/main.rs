//! A tonic client whose channels go through all policies, and the servers that it calls.
//!
//! gRPC answers 200 to everything and puts its verdict elsewhere, so a policy that looks at HTTP
//! statuses sees a service that never fails. The stack reads `grpc-status` (for the breaker, the
//! balancer, the retries), obeys `grpc-retry-pushback-ms`, and tells the callee in `grpc-timeout`
//! what is left of the deadline, which tonic's servers enforce. What it takes is [`client`].
//!
//! ```sh
//! cargo run -p selvedge-example-tonic
//! ```
//!
//! starts three servers, calls them, kills one of them every few seconds and starts it again, and
//! prints what came of the calls every second: none fails. Ctrl-C ends it.
//!
//! The traps that it shows the way around:
//!
//! - a tonic channel is one connection to one server: balancing takes a channel for each
//!   ([`ByEndpoint`]), and a balancer that knows how each of them fares;
//! - gRPC's calls are POSTs: they are tried again only where that is known to be harmless (never
//!   sent, or pushed back), unless the policy says `non_idempotent`, as it does here, because to
//!   quote a price twice does no harm;
//! - a refusal is an error of the client, which tonic would call `UNKNOWN`: [`status`] gives it the
//!   code that callers understand;
//! - a server refuses too, with a gRPC status and before it has begun anything: [`server`].
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example to look at")]

mod prices;
mod server;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use selvedge_resilience::{
    TrafficPolicy,
    balance::Member,
    layer::{BoxError, ByEndpoint, Error, Inbound, ReplayBody, Stack},
};
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
    transport::{Channel, Endpoint},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

use crate::{
    prices::{PricesClient, Sku},
    server::Server,
};

/// One policy document, as a gateway or a sidecar would read it.
const POLICY: &str = r#"
timeouts = { request = "2s", backendRequest = "500ms" }
breaker  = { failure_rate = "50%", over = "5s", min_requests = 20, open_for = "2s" }
outlier  = { consecutive_5xx = 5, eject = "3s", max_ejected = "50%" }

[retry]
attempts       = 2
grpc           = ["UNAVAILABLE"]
non_idempotent = true
backoff        = "5ms..50ms"
budget         = "50% min 10/s"

[inbound]
bulkhead   = { max = 100, queue = { max = 50, wait = "100ms" } }
rate_limit = { rate = "1000/s", by = "source" }
"#;

/// What tonic's generated clients are given.
type Callee = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// tonic's channels to `endpoints` behind the policies of `policy`; and the policies' state.
fn client(policy: &str, endpoints: &[SocketAddr]) -> anyhow::Result<(Callee, Stack<SocketAddr>)> {
    let stack = Stack::new(toml::from_str(policy)?)?;
    stack.set_members(endpoints.iter().copied().map(Member::new));
    let connect = stack.policy().timeouts.connect.0;
    let channel = |addr: &SocketAddr| {
        let endpoint = Endpoint::new(format!("http://{addr}"))?.connect_timeout(connect);
        Ok((*addr, endpoint.connect_lazy()))
    };
    let channels: Result<HashMap<SocketAddr, Channel>, tonic::transport::Error> =
        endpoints.iter().map(channel).collect();
    let channels = channels?;
    let transport = ByEndpoint::new(move |addr: &SocketAddr| {
        let channel = channels[addr].clone();
        channel.map_request(|request: Request<ReplayBody<Body>>| request.map(Body::new))
    });
    let client = stack.client(transport).map_err(status);
    // Only for its type to have a name: tonic takes any body.
    let client = client.map_response(|answer| answer.map(Body::new));
    Ok((BoxCloneSyncService::new(client), stack))
}

/// What a server of `policy` takes on.
fn inbound(policy: &str) -> anyhow::Result<Inbound> {
    let policy: TrafficPolicy = toml::from_str(policy)?;
    Ok(Inbound::new(policy.inbound)?)
}

/// The status that a call without an answer has.
fn status(error: Error<BoxError>) -> Status {
    match error {
        Error::Rejected(refused) => {
            Status::new(refused.grpc_code().number().into(), refused.to_string())
        }
        Error::Service(error) => Status::from_error(error),
        other => Status::unknown(other.to_string()),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::start(
            (Ipv4Addr::LOCALHOST, 0).into(),
            inbound(POLICY)?,
        )?);
    }
    let endpoints: Vec<SocketAddr> = servers.iter().map(Server::addr).collect();
    let (callee, stack) = client(POLICY, &endpoints)?;
    let prices = PricesClient::new(callee);
    println!("three servers at {endpoints:?}; Ctrl-C ends it");
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for passed in 0_usize.. {
        tokio::select! {
            _ = second.tick() => {}
            ended = tokio::signal::ctrl_c() => return Ok(ended?),
        }
        let which = passed / 6 % servers.len();
        match passed % 6 {
            2 => {
                println!("kills {}", endpoints[which]);
                servers[which].kill();
            }
            5 => {
                servers[which] = Server::start(endpoints[which], inbound(POLICY)?)?;
                println!("starts {} again", endpoints[which]);
            }
            _ => {}
        }
        let (mut good, mut last) = (0, None);
        for number in 0..50 {
            match prices.clone().quote(Sku { number }).await {
                Ok(_) => good += 1,
                Err(status) => last = Some(status),
            }
        }
        let retries = stack.status().budget.map_or(0, |budget| budget.made);
        let out = stack.balancer().ejected();
        println!("50 calls, {good} good; {out} servers left out, {retries} retries so far");
        if let Some(status) = last {
            println!("  last error: {status}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
