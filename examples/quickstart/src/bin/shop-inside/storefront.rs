//! What customers see: products from catalog, carts from cart.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, Method, Request, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http_body_util::Full;
use selvedge_registry::client::RegistryClient;
use selvedge_resilience::TrafficPolicy;

use crate::callee::Callee;

struct Storefront {
    me: String,
    catalog: Callee,
    cart: Callee,
}

/// The routes, and whom they call.
pub(crate) fn routes(me: &str, registry: &RegistryClient) -> anyhow::Result<(Router, Vec<Callee>)> {
    let policy: TrafficPolicy = toml::from_str(crate::POLICY)?;
    let catalog = Callee::new("catalog", policy.clone(), registry)?;
    let cart = Callee::new("cart", policy, registry)?;
    let callees = vec![catalog.clone(), cart.clone()];
    let storefront = Storefront {
        me: me.to_owned(),
        catalog,
        cart,
    };
    let routes = Router::new()
        .route("/products/{id}", get(product))
        .route("/cart/{customer}", get(see_cart).post(add_to_cart))
        .with_state(Arc::new(storefront));
    Ok((routes, callees))
}

async fn product(
    State(shop): State<Arc<Storefront>>,
    Path(id): Path<u32>,
    headers: HeaderMap,
) -> Response {
    let request = Request::get(format!("/products/{id}"));
    shop.ask(&shop.catalog, request, Bytes::new(), &headers)
        .await
}

async fn see_cart(
    State(shop): State<Arc<Storefront>>,
    Path(customer): Path<String>,
    headers: HeaderMap,
) -> Response {
    let request = Request::get(format!("/carts/{customer}"));
    shop.ask(&shop.cart, request, Bytes::new(), &headers).await
}

async fn add_to_cart(
    State(shop): State<Arc<Storefront>>,
    Path(customer): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("/carts/{customer}"))
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = headers.get("idempotency-key") {
        request = request.header("idempotency-key", key);
    }
    shop.ask(&shop.cart, request, body, &headers).await
}

impl Storefront {
    /// Calls `callee` for the request that `incoming` came with, and passes its answer on.
    async fn ask(
        &self,
        callee: &Callee,
        request: axum::http::request::Builder,
        body: Bytes,
        incoming: &HeaderMap,
    ) -> Response {
        let Ok(request) = request.body(Full::new(body)) else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        match callee.call(request, incoming).await {
            Ok(answer) => {
                let (head, body) = answer.into_parts();
                let mut response = (head.status, Body::from(body)).into_response();
                if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
                    let headers = response.headers_mut();
                    headers.insert(header::CONTENT_TYPE, kind.clone());
                    if let Ok(me) = self.me.parse() {
                        headers.insert("x-served-by", me);
                    }
                }
                response
            }
            Err(error) => {
                tracing::warn!(%error, "a call failed");
                (StatusCode::BAD_GATEWAY, format!("{error}\n")).into_response()
            }
        }
    }
}
