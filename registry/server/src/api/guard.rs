//! What stands before every request: who asks, whether they may, and how often.
//!
//! One pure function says what a path needs, so that a route that is added and forgotten here needs
//! the highest right instead of none.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http_body::Body as _;
use selvedge_registry::ServiceName;

use super::{Api, Peer, refusal::Refusal};
use crate::{audit::Who, eureka, limits::address};

/// What it takes to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Open,
    /// The right to ask.
    Read,
    /// The right to register this service.
    Register(ServiceName),
    /// The right to register something; the handler looks closer.
    RegisterSome,
    /// The right to operate.
    Operate,
    /// To be another server.
    Peer,
}

/// What `method` on `path` needs, and whether it is a renewal (those are not limited: a refused
/// heartbeat costs an instance its place).
pub(super) fn need(method: &Method, path: &str) -> (Need, bool) {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // What is encoded is not looked into: whoever writes it that way needs the highest right.
    let of = |name: &str| ServiceName::new(name).map_or(Need::Operate, Need::Register);
    match parts.as_slice() {
        ["v1", "openapi.json"] if reads => (Need::Open, false),
        ["v1", "replicate" | "peer", ..] => (Need::Peer, true),
        ["v1", "leases"] => (Need::RegisterSome, true),
        ["v1", "services", _, "instances", _, "override"] if !reads => (Need::Operate, false),
        ["v1", "services", service, "instances", _, "lease"] if !reads => (of(service), true),
        ["v1", "services", service, "instances", ..] if !reads => (of(service), false),
        ["v1", ..] if reads => (Need::Read, false),
        ["v1", ..] => (Need::Operate, false),
        // Eureka's dialect, under any of its prefixes.
        _ if reads => (Need::Read, false),
        _ => need_of_eureka(method, path),
    }
}

/// The same of a write in Eureka's dialect. Its router reads paths and names by the same functions,
/// so the service that is looked at here is the one that is changed there, however it is written.
fn need_of_eureka(method: &Method, path: &str) -> (Need, bool) {
    let parts = eureka::segments(path).unwrap_or_default();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        // An override is an operator's word in that dialect as well.
        ["apps", _, _, "status"] => (Need::Operate, false),
        ["apps", app, _] => (Need::Register(eureka::service(app)), *method == Method::PUT),
        ["apps", app, ..] => (Need::Register(eureka::service(app)), false),
        _ => (Need::Operate, false),
    }
}

/// Asks who it is, whether they may and whether it is too often; then lets the request pass, and
/// says in the answer how far it can be believed.
pub(super) async fn guard(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let Some(peer) = peer else {
        // Without an address there is nobody to hold to account.
        return Refusal::new(
            StatusCode::FORBIDDEN,
            "no-address",
            "the client has no address",
        )
        .into_response();
    };
    let authorization = request.headers().get(header::AUTHORIZATION);
    let caller = api
        .auth
        .who(authorization.map(HeaderValue::as_bytes), &peer.names);
    let (need, renewal) = need(request.method(), request.uri().path());
    let asked = Asked::of(&request, &need);
    let Ok(caller) = caller else {
        asked.refused(&Who::new(api.auth.unknown(), peer.addr), 401);
        return unauthorized("the token is nobody's");
    };
    let may = match &need {
        Need::Open => true,
        Need::Read => caller.may_read(),
        Need::Register(service) => caller.may_register(service),
        Need::RegisterSome => caller.may_register_some(),
        Need::Operate => caller.may_operate(),
        Need::Peer => caller.is_peer(),
    };
    let who = Who::new(caller, peer.addr);
    if !may {
        let outcome = if who.caller.is_anonymous() { 401 } else { 403 };
        asked.refused(&who, outcome);
        return forbidden(&who, &need);
    }
    if !renewal {
        let client = client(&who);
        let now = tokio::time::Instant::now().into_std();
        if let Err(wait) = api.per_client.request(&client, now) {
            asked.refused(&who, 429);
            let title = "this client asks more often than it may";
            return Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate-limit", title)
                .retry_after(wait)
                .into_response();
        }
    }
    request.extensions_mut().insert(who.clone());
    let mut response = if need == Need::Read {
        // A question may wait for its answer as long as its client wants.
        tokio::select! {
            response = next.run(request) => while_known(&who, response),
            () = who.caller.revoked() => return unauthorized("the token is nobody's by now"),
        }
    } else {
        next.run(request).await
    };
    let status = response.status();
    let fails = status.is_client_error() || status.is_server_error();
    if fails && !renewal && !who.has_written() {
        asked.refused(&who, status.as_u16());
    }
    api.say_how_far_to_believe(response.headers_mut());
    response
}

/// An answer without an end has one when its client is no longer known.
fn while_known(who: &Who, response: Response) -> Response {
    response.map(|body| {
        if body.size_hint().exact().is_some() {
            return body;
        }
        let revoked = who.caller.revoked();
        Body::from_stream(body.into_data_stream().take_until(revoked))
    })
}

/// What a write that is refused is called in the audit log.
struct Asked(Option<(Method, String)>);

impl Asked {
    fn of(request: &Request, need: &Need) -> Self {
        let writes = !matches!(need, Need::Open | Need::Read);
        Self(writes.then(|| {
            let path = request.uri().path();
            // Short enough for a log; a path is ASCII.
            let path = path.get(..256).unwrap_or(path);
            (request.method().clone(), path.to_owned())
        }))
    }

    fn refused(&self, who: &Who, outcome: u16) {
        if let Some((method, path)) = &self.0 {
            who.was_refused(method.as_str(), path, outcome);
        }
    }
}

/// Whose rate and whose watches are counted: a name, or else an address.
pub(super) fn client(who: &Who) -> Arc<str> {
    if who.caller.is_anonymous() {
        return address(who.from.ip()).into();
    }
    Arc::clone(who.caller.name())
}

fn unauthorized(detail: &str) -> Response {
    Refusal::new(StatusCode::UNAUTHORIZED, "token", "this needs a token")
        .detail(detail)
        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
        .into_response()
}

fn forbidden(who: &Who, need: &Need) -> Response {
    let right = match need {
        Need::Open | Need::Read => "to read".to_owned(),
        Need::Register(service) => format!("to register {service}"),
        Need::RegisterSome => "to register".to_owned(),
        Need::Operate => "to operate".to_owned(),
        Need::Peer => "to be another server of this cluster".to_owned(),
    };
    if who.caller.is_anonymous() {
        return unauthorized(&format!("without one there is no right {right}"));
    }
    Refusal::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        "this client may not do this",
    )
    .detail(format!("{} has no right {right}", who.caller.name()))
    .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_needs_what_the_table_says() {
        let orders = Need::Register(ServiceName::new("orders").expect("name"));
        let cart = Need::Register(ServiceName::new("shop-cart").expect("name"));
        let instance = "/v1/services/orders/instances/i1";
        for (method, path, want, renewal) in [
            ("GET", "/v1/openapi.json", Need::Open, false),
            ("GET", "/v1/services", Need::Read, false),
            ("GET", instance, Need::Read, false),
            ("PUT", instance, orders.clone(), false),
            ("DELETE", instance, orders.clone(), false),
            (
                "PUT",
                "/v1/services/orders/instances/i1/lease",
                orders.clone(),
                true,
            ),
            (
                "PUT",
                "/v1//services/orders/instances/i1/status",
                orders.clone(),
                false,
            ),
            (
                "PATCH",
                "/v1/services/orders/instances/i1/metadata",
                orders.clone(),
                false,
            ),
            (
                "PUT",
                "/v1/services/orders/instances/i1/override",
                Need::Operate,
                false,
            ),
            (
                "PUT",
                "/v1/services/%6frders/instances/i1",
                Need::Operate,
                false,
            ),
            ("POST", "/v1/leases", Need::RegisterSome, true),
            ("PUT", "/v1/policies/orders", Need::Operate, false),
            ("GET", "/v1/policies/orders", Need::Read, false),
            ("GET", "/v1/replicate", Need::Peer, true),
            ("POST", "/v1/peer/renew", Need::Peer, true),
            ("POST", "/v1/something-new", Need::Operate, false),
            ("GET", "/eureka/v2/apps/", Need::Read, false),
            ("POST", "/eureka/apps/ORDERS", orders.clone(), false),
            ("PUT", "/eureka/apps/ORDERS/i1", orders.clone(), true),
            ("PUT", "/v2/apps/orders/i1/status", Need::Operate, false),
            ("PUT", "/v2/apps/orders/i1/metadata", orders.clone(), false),
            // Names that are no service's as they stand, and what Python encodes.
            ("POST", "/eureka/apps/SHOP_CART", cart.clone(), false),
            (
                "PUT",
                "//eureka//apps/Shop.Cart/h%3A80/",
                cart.clone(),
                true,
            ),
            ("DELETE", "/eureka/v2/apps/shop%5Fcart/h:80", cart, false),
            ("POST", "/EUREKA/apps/%4frders", orders, false),
            ("POST", "/eureka/apps/%ff", Need::Operate, false),
            ("POST", "/eureka/apps", Need::Operate, false),
            ("PUT", "/apps/ORDERS/i1", Need::Operate, false),
            (
                "POST",
                "/eureka/peerreplication/batch/",
                Need::Operate,
                false,
            ),
        ] {
            let method: Method = method.parse().expect("method");
            assert_eq!(need(&method, path), (want, renewal), "{method} {path}");
        }
    }
}
