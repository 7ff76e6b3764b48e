//! Two services of the shop with Selvedge inside: no sidecar, the policies are Tower layers.
//!
//! What a Rust service writes to be a full member of the mesh:
//!
//! - it registers itself when it can take calls and signs off before it goes (`main.rs`),
//! - it calls others by name, with retries, breaker, balancing and deadlines (`callee.rs`),
//! - it refuses what it cannot do in time, and hands the caller's trace on (`serving.rs`).
#![forbid(unsafe_code)]

mod callee;
mod cart;
mod serving;
mod storefront;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use axum::{Json, Router, routing::get};
use selvedge_registry::{
    Instance, InstanceId, InstanceStatus, ServiceName,
    client::{Registration, RegistryClient},
    node::{
        admin::{Admin, AdminConfig},
        listen,
        shutdown::Signals,
        telemetry::{self, TelemetryConfig},
    },
};

/// The policies of both services' calls; their POSTs carry an idempotency key, so all may be tried
/// again.
const POLICY: &str = r#"
timeouts = { request = "3s", backendRequest = "1s" }
retry    = { attempts = 3, backoff = "10ms..100ms", budget = "20% min 10/s", non_idempotent = true }
breaker  = { failure_rate = "60%", min_requests = 50, open_for = "1s" }
"#;

/// How long it goes on taking calls after the registry was told that it leaves.
const LAME_DUCK: Duration = Duration::from_millis(300);

fn env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(service), Some(listen), Some(admin)) = (args.next(), args.next(), args.next()) else {
        bail!("usage: shop-inside storefront|cart ADDRESS ADMIN-ADDRESS");
    };
    let listen: SocketAddr = listen
        .parse()
        .with_context(|| format!("listen on {listen}"))?;
    let admin_bind: SocketAddr = admin.parse().with_context(|| format!("admin on {admin}"))?;
    let me = env("INSTANCE").unwrap_or_else(|| service.clone());
    let telemetry = TelemetryConfig {
        otlp: env("OTLP"),
        ..TelemetryConfig::default()
    };
    let _flush = telemetry::init(&service, &telemetry)?;
    let servers = env("REGISTRY").context("REGISTRY is not set: which registry servers?")?;
    let registry = RegistryClient::builder(servers.split(',')).spawn();

    let (routes, callees) = match service.as_str() {
        "storefront" => storefront::routes(&me, &registry)?,
        "cart" => (cart::routes(&me), Vec::new()),
        other => bail!("no service {other} in this shop: storefront, cart"),
    };
    let routes = serving::protected(routes, &me);
    let status = move || async move {
        let all: Vec<_> = callees.iter().map(callee::Callee::status).collect();
        Json(all)
    };
    let config = AdminConfig {
        bind: admin_bind,
        token: None,
    };
    let admin = Admin::default();
    let extra = Router::new().route("/clusters", get(status));
    let router = admin.router(&config, || serde_json::json!({}), extra);
    let admin_port = listen::bind("admin port", admin_bind)?;
    tokio::spawn(Admin::serve(admin_port, router, std::future::pending()));

    let mut signals = Signals::new().context("listen to signals")?;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    // Only now can it take calls.
    let instance = Instance::new(ServiceName::new(&service)?, InstanceId::new(&me)?, listen);
    let registration = registry.register(instance);
    let leave = async move {
        let signal = signals.next().await;
        tracing::info!(signal, "leaving");
        sign_off(registration).await;
    };
    axum::serve(listener, routes)
        .with_graceful_shutdown(leave)
        .await
        .context("serve")
}

/// Nobody is sent here any more before it stops to listen.
async fn sign_off(registration: Registration) {
    registration.set_status(InstanceStatus::OutOfService);
    tokio::time::sleep(LAME_DUCK).await;
    registration.deregister().await;
}
