//! Two services of the shop that know nothing of Selvedge.
//!
//! Most services that join a mesh were written before it and in other languages. These two stand
//! for them: plain axum, no Selvedge crate, the addresses from the environment. All that they do
//! for the mesh is what every HTTP service ought to do anyway: answer a health check, and hand the
//! `traceparent` of the request that they serve on to the requests that they make. The sidecar
//! beside each of them does the rest.
#![forbid(unsafe_code)]

mod catalog;
mod pricing;

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use tokio::signal::unix::{SignalKind, signal};

/// The name under which this process logs, for example `catalog-2`.
#[derive(Debug, Clone)]
struct Me(std::sync::Arc<str>);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(service), Some(listen)) = (args.next(), args.next()) else {
        bail!("usage: shop-plain catalog|pricing ADDRESS");
    };
    let listen: SocketAddr = listen
        .parse()
        .with_context(|| format!("listen on {listen}"))?;
    let name = std::env::var_os("INSTANCE").map_or_else(
        || service.clone(),
        |name| name.to_string_lossy().into_owned(),
    );
    let me = Me(name.into());
    let routes = match service.as_str() {
        "catalog" => catalog::routes(&me)?,
        "pricing" => pricing::routes(&me),
        other => bail!("no service {other} in this shop: catalog, pricing"),
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .merge(routes)
        .layer(middleware::from_fn_with_state(me, log_line));
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await
        .context("serve")
}

/// One line for each request, with the trace id that came in: what such services log today.
async fn log_line(State(me): State<Me>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let trace_id = request
        .headers()
        .get("traceparent")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split('-').nth(1))
        .unwrap_or("-")
        .to_owned();
    let response = next.run(request).await;
    if path != "/healthz" {
        let line = serde_json::json!({
            "service": &*me.0,
            "path": path,
            "status": response.status().as_u16(),
            "trace_id": trace_id,
        });
        // A log that cannot be written must not fail the request.
        writeln!(std::io::stdout().lock(), "{line}").ok();
    }
    response
}
