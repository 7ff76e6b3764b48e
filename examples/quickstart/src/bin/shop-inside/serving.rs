//! What stands between the network and a handler.

use std::{convert::Infallible, io::Write as _, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    error_handling::HandleErrorLayer,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use selvedge_registry::{
    node::telemetry::{continue_trace, tracing_enabled},
    problem::{CONTENT_TYPE, Problem},
};
use selvedge_resilience::{
    Policy,
    bulkhead::Bulkhead,
    context::trace::TraceContext,
    layer::{BulkheadLayer, Error, TimeoutLayer},
};
use tower::ServiceBuilder;
use tracing::Instrument as _;

/// What the caller's deadline is, where it did not say.
const LIMIT: Duration = Duration::from_secs(5);
/// Requests at once: beyond it, waiting would only make every answer late.
const AT_ONCE: u32 = 500;

/// `routes` behind deadline and bulkhead, each request with its span and its log line.
pub(crate) fn protected(routes: Router, me: &str) -> Router {
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(refused))
        .map_err(|error: Error<Error<Infallible>>| Error::flat(error))
        .layer(TimeoutLayer::new(LIMIT))
        .layer(BulkheadLayer::new(Bulkhead::new(AT_ONCE)));
    let me: Arc<str> = me.into();
    routes
        .layer(layers)
        .layer(middleware::from_fn_with_state(me, observed))
}

/// A layer refused: say who, and when to come back.
async fn refused(error: Error<Infallible>) -> Response {
    let Some(rejected) = error.rejected() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let status = match rejected.policy {
        Policy::Deadline => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut problem = Problem::new(status, "refused", rejected.to_string());
    problem.policy = Some(rejected.policy.as_str().to_owned());
    let mut response = (status, Body::from(problem.to_json())).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    if let Some(after) = rejected.retry_after {
        let seconds = after.as_millis().div_ceil(1_000) as u64;
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// One span and one line for each request.
async fn observed(State(me): State<Arc<str>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let parent = TraceContext::extract(request.headers());
    let span = if tracing_enabled() {
        let span = tracing::info_span!(
            target: "selvedge_span",
            "request",
            otel.kind = "server",
            otel.name = %format_args!("{} {path}", request.method()),
        );
        if let Some(parent) = parent {
            continue_trace(&span, parent);
        }
        span
    } else {
        tracing::Span::none()
    };
    let response = next.run(request).instrument(span).await;
    let trace_id = parent.map(|context| String::from_utf8_lossy(&context.trace_hex()).into_owned());
    let line = serde_json::json!({
        "service": &*me,
        "path": path,
        "status": response.status().as_u16(),
        "trace_id": trace_id,
    });
    // A log that cannot be written must not fail the request.
    writeln!(std::io::stdout().lock(), "{line}").ok();
    response
}
