//! What stands between the network and the handlers.

use std::{convert::Infallible, fmt::Display, time::Duration};

use axum::{
    Router,
    body::Body,
    error_handling::HandleErrorLayer,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use selvedge_registry::problem::{CONTENT_TYPE, Problem};
use selvedge_resilience::{
    Policy,
    layer::{ContextLayer, Error, Inbound, InboundLayer, TimeoutLayer},
};
use tower::ServiceBuilder;

/// How long an answer may take, where the caller did not say less (`grpc-timeout`,
/// `x-envoy-expected-rq-timeout-ms` and the like are read).
const LIMIT: Duration = Duration::from_secs(5);
/// What it takes on: the half of a policy that protects a service from its callers.
const INBOUND: &str = r#"
shed       = {}
rate_limit = { rate = "1000/s", by = "all" }
bulkhead   = 200
"#;

/// `routes` behind a deadline, and behind limits that refuse what matters least first.
pub(crate) fn protected(routes: Router) -> anyhow::Result<Router> {
    Ok(by(Inbound::new(toml::from_str(INBOUND)?)?, routes))
}

/// The same with other limits.
pub(crate) fn by(inbound: Inbound, routes: Router) -> Router {
    let refuse = |error: Error<Infallible>| async move { refused(&error) };
    let layers = ServiceBuilder::new()
        // Reads trace, deadline and priority; a handler passes them on with `propagate`.
        .layer(ContextLayer::new())
        // axum wants answers, not errors: a deadline that passes becomes one.
        .layer(HandleErrorLayer::new(refuse))
        .layer(TimeoutLayer::new(LIMIT))
        // What this one refuses it answers itself, with `Retry-After`.
        .layer(InboundLayer::new(inbound));
    routes.layer(layers)
}

/// A policy refused, or a callee failed: says who, and when to come back.
pub(crate) fn refused<E: Display>(error: &Error<E>) -> Response {
    let Some(rejected) = error.rejected() else {
        return broken(error);
    };
    let status = match rejected.policy {
        Policy::Deadline => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut problem = Problem::new(status, "refused", rejected.to_string());
    problem.policy = Some(rejected.policy.as_str().to_owned());
    let mut response = answer(status, &problem);
    // At least a second: a header in whole seconds cannot say less.
    let after = rejected.retry_after.unwrap_or_default();
    let seconds = (after.as_millis().div_ceil(1_000) as u64).max(1);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Whatever else went wrong behind us.
pub(crate) fn broken(why: &impl Display) -> Response {
    tracing::warn!(error = %why, "a call failed");
    let status = StatusCode::BAD_GATEWAY;
    let title = "a service that this one needs did not answer";
    answer(status, &Problem::new(status, "callee", title))
}

fn answer(status: StatusCode, problem: &Problem) -> Response {
    let kind = [(header::CONTENT_TYPE, CONTENT_TYPE)];
    (status, kind, Body::from(problem.to_json())).into_response()
}
