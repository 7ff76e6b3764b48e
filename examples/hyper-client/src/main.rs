//! A plain hyper client over fixed endpoints, with all policies in front.
//!
//! No registry, no proxy, no configuration but a policy: for a program that knows where its callee
//! is, and wants what the mesh would give it. What is special is [`client`]: about fifteen lines.
//!
//! ```sh
//! cargo run -p selvedge-example-hyper
//! ```
//!
//! starts three backends of its own and calls them, prints what came of it every second, and says
//! how to break a backend and mend it (with curl); Ctrl-C ends it. What there is to see:
//!
//! - one backend broken: no failed call; it is called less and less, then left out (outlier
//!   ejection), and comes back by itself;
//! - all three broken: calls fail at once and without being made (the breaker is open), each with
//!   the time after which asking again makes sense.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example to look at")]

mod backend;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use selvedge_resilience::{
    balance::Member,
    layer::{BoxError, Error, ReplayBody, ServiceTransport, Stack, StackClient, over_http},
};
use tower::ServiceExt;

use crate::backend::Backend;

/// One policy document, as a gateway or a sidecar would read it.
const POLICY: &str = r#"
timeouts = { request = "2s", backendRequest = "500ms" }
retry    = { attempts = 2, codes = [500, 502, 503, 504], backoff = "5ms..50ms", budget = "50% min 10/s" }
breaker  = { failure_rate = "50%", over = "5s", min_requests = 20, open_for = "2s" }
bulkhead = 100
outlier  = { consecutive_5xx = 5, eject = "3s", max_ejected = "50%" }
"#;

type Http = Client<HttpConnector, ReplayBody<Empty<Bytes>>>;
type Aim = fn(&SocketAddr, &mut Request<ReplayBody<Empty<Bytes>>>);
/// A Tower service: what goes in is a request without an authority.
type Orders = StackClient<SocketAddr, ServiceTransport<Http, Aim>>;

/// hyper's client behind the policies of `policy`.
fn client(policy: &str, endpoints: impl IntoIterator<Item = SocketAddr>) -> anyhow::Result<Orders> {
    let stack = Stack::new(toml::from_str(policy)?)?;
    stack.set_members(endpoints.into_iter().map(Member::new));
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(stack.policy().timeouts.connect.0));
    let http = Client::builder(TokioExecutor::new())
        // The stack decides what is tried again, and where.
        .retry_canceled_requests(false)
        .build(connector);
    Ok(stack.client(ServiceTransport::new(http, over_http as Aim)))
}

/// One call: the answer's text.
async fn order(orders: &Orders, number: u32) -> Result<String, Error<BoxError>> {
    let request = Request::get(format!("/orders/{number}"));
    let request = request.body(Empty::new()).expect("a valid request");
    let answer = orders.clone().oneshot(request).await?;
    let status = answer.status();
    // The call ends with its body: breaker and balancer count it then.
    let body = answer.into_body().collect().await;
    let body = body
        .map_err(|error| Error::Service(error.into()))?
        .to_bytes();
    if status.is_success() {
        Ok(String::from_utf8_lossy(&body).into_owned())
    } else {
        Err(Error::Service(
            format!("the callee answers {status}").into(),
        ))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(Backend::start().await?);
    }
    for backend in &backends {
        let addr = backend.addr();
        println!("break a backend: curl -X POST {addr}/break   mend it: curl -X POST {addr}/mend");
    }
    let orders = client(POLICY, backends.iter().map(Backend::addr))?;
    tokio::select! {
        () = watch(&orders) => {}
        ended = tokio::signal::ctrl_c() => ended?,
    }
    Ok(())
}

/// Calls on and on, and says what came of it.
async fn watch(orders: &Orders) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut number = 0;
    loop {
        second.tick().await;
        let (mut good, mut last) = (0, None);
        for _ in 0..50 {
            number += 1;
            match order(orders, number).await {
                Ok(_) => good += 1,
                Err(error) => last = Some(error),
            }
        }
        let status = orders.stack().status();
        let circuit = status.breaker.map(|circuit| circuit.state);
        let out = orders.stack().balancer().ejected();
        let retries = status.budget.map_or(0, |budget| budget.made);
        println!(
            "50 calls, {good} good; circuit {}, {out} backends left out, {retries} retries so far",
            circuit.map_or("none", |state| state.as_str()),
        );
        if let Some(error) = last {
            let after = error.rejected().and_then(|refused| refused.retry_after);
            println!("  last error: {error}; ask again after {after:?}");
        }
    }
}

#[cfg(test)]
mod tests;
