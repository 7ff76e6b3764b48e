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
    bulkhead::Bulkhead,
    layer::{BulkheadLayer, Error, TimeoutLayer},
};
use tower::ServiceBuilder;

/// How long an answer may take, where the caller did not say less (`grpc-timeout`,
/// `x-envoy-expected-rq-timeout-ms` and the like are read).
const LIMIT: Duration = Duration::from_secs(5);
/// Requests at once: beyond it, waiting would only make every answer late.
const AT_ONCE: u32 = 200;

/// `routes` behind a deadline and a bulkhead.
pub(crate) fn protected(routes: Router) -> Router {
    let refuse = |error: Error<Infallible>| async move { refused(&error) };
    let layers = ServiceBuilder::new()
        // axum wants answers, not errors: a refusal becomes one.
        .layer(HandleErrorLayer::new(refuse))
        // Each layer's error wraps the inner one's; this makes one of two.
        .map_err(|error: Error<Error<Infallible>>| Error::flat(error))
        .layer(TimeoutLayer::new(LIMIT))
        .layer(BulkheadLayer::new(Bulkhead::new(AT_ONCE)));
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
