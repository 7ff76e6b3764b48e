//! A Rust service that is a full member of the mesh without a sidecar.
//!
//! `greeter` answers `/greet/{name}`, and asks the service `pricing` for `/quote/{sku}`. Around
//! that, three things that every service of a mesh needs:
//!
//! - being found (here): it registers when it can take calls and signs off before it goes;
//! - being protected ([`inbound`]): a deadline, a limit on what is under way, refusals that say so;
//! - calling others ([`outbound`]): by name, with retries, a breaker and balancing, from the same
//!   policy document that a gateway or a sidecar would enforce.
//!
//! ```sh
//! selvedge-registry &
//! cargo run -p selvedge-example-axum -- --listen 127.0.0.1:9100
//! curl -i http://127.0.0.1:9100/greet/you
//! curl -i http://127.0.0.1:9100/quote/7     # 503, Retry-After: nobody is `pricing` yet
//! ```
#![forbid(unsafe_code)]

mod inbound;
mod outbound;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Extension, Router,
    extract::{Path, State},
    http::Request,
    response::Response,
    routing::get,
};
use bytes::Bytes;
use clap::Parser;
use http_body_util::Full;
use selvedge_registry::{
    Instance, InstanceId, InstanceStatus, ServiceName,
    client::RegistryClient,
    node::{
        shutdown::Signals,
        telemetry::{self, TelemetryConfig},
    },
};
use selvedge_resilience::context::CallContext;

use crate::outbound::Callee;

/// How `pricing` is called: a price that is late is no price.
const PRICING: &str = r#"
timeouts = { request = "1s", backendRequest = "300ms" }
retry    = { attempts = 2, backoff = "10ms..100ms", budget = "20% min 3/s" }
breaker  = { failure_rate = "50%", min_requests = 20, open_for = "2s" }
"#;

/// How long callers that have not heard yet may still come after the registry was told.
const LAME_DUCK: Duration = Duration::from_secs(1);

/// Greets, and quotes prices that it asks another service for.
#[derive(Debug, Parser)]
struct Args {
    /// Where it listens; told to the registry.
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// Registry servers, separated by commas.
    #[arg(long, default_value = "127.0.0.1:7900", value_delimiter = ',')]
    registry: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let _flush = telemetry::init("greeter", &TelemetryConfig::default())?;
    let mut signals = Signals::new().context("listen to signals")?;
    let registry = RegistryClient::builder(args.registry).spawn();
    let app = app(&registry)?;
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    let addr = listener.local_addr()?;

    // Only now can it take calls, so only now is it registered. The lease is renewed until the
    // registration ends.
    let id = InstanceId::new(format!("greeter-{}", addr.port()))?;
    let registration = registry.register(Instance::new(ServiceName::new("greeter")?, id, addr));
    tracing::info!(address = %addr, "greeter listens");

    // Not found any more, then not called any more, then gone.
    let leave = async move {
        let signal = signals.next().await;
        tracing::info!(signal, "greeter leaves");
        registration.set_status(InstanceStatus::OutOfService);
        tokio::time::sleep(LAME_DUCK).await;
        registration.deregister().await;
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(leave)
        .await
        .context("serve")
}

/// The service's routes behind their protection.
fn app(registry: &RegistryClient) -> anyhow::Result<Router> {
    let pricing = Callee::new("pricing", toml::from_str(PRICING)?, registry)?;
    let routes = Router::new()
        .route("/greet/{name}", get(greet))
        .route("/quote/{sku}", get(quote))
        .with_state(Arc::new(pricing));
    inbound::protected(routes)
}

async fn greet(Path(name): Path<String>) -> String {
    format!("Hello, {name}!\n")
}

async fn quote(
    State(pricing): State<Arc<Callee>>,
    Path(sku): Path<u32>,
    Extension(context): Extension<CallContext>,
) -> Result<String, Response> {
    let request = Request::get(format!("/prices/{sku}")).body(Full::<Bytes>::default());
    let request = request.map_err(|error| inbound::broken(&error))?;
    let answer = pricing.call(request, &context).await;
    let answer = answer.map_err(|error| inbound::refused(&error))?;
    let price = String::from_utf8_lossy(answer.body()).into_owned();
    if answer.status().is_success() {
        Ok(format!("{sku} costs {price}\n"))
    } else {
        Err(inbound::broken(&format!(
            "pricing says {}",
            answer.status()
        )))
    }
}

#[cfg(test)]
mod tests;
