//! What the shop sells. Asks pricing what it costs.
//!
//! `PRICING_URL` is where pricing answers. In the quickstart that is the outbound port of the
//! sidecar beside this process, and `PRICING_HOST` is the name that it goes by there: the usual
//! two variables of a service that was told to call its neighbour through a proxy.

use std::sync::Arc;

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::Me;

const NAMES: [&str; 8] = [
    "bobbin",
    "heddle",
    "reed",
    "shuttle",
    "spindle",
    "temple",
    "treadle",
    "warp beam",
];

/// Headers that a service hands on from the request it serves to those it makes (W3C Trace Context).
const HANDED_ON: [HeaderName; 2] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

#[derive(Debug)]
struct Catalog {
    me: Me,
    client: Client<HttpConnector, Empty<Bytes>>,
    pricing_url: String,
    pricing_host: HeaderValue,
}

/// `GET /products` and `GET /products/{id}`.
pub(crate) fn routes(me: &Me) -> anyhow::Result<Router> {
    let pricing_url = std::env::var_os("PRICING_URL")
        .context("PRICING_URL is not set: where does pricing answer?")?
        .into_string()
        .map_err(|url| anyhow::anyhow!("PRICING_URL is not text: {}", url.display()))?;
    let pricing_host = std::env::var_os("PRICING_HOST").unwrap_or_else(|| "pricing".into());
    let catalog = Catalog {
        me: me.clone(),
        client: Client::builder(TokioExecutor::new()).build_http(),
        pricing_url,
        pricing_host: HeaderValue::from_str(&pricing_host.to_string_lossy())
            .context("PRICING_HOST is not a host name")?,
    };
    Ok(Router::new()
        .route("/products", get(list))
        .route("/products/{id}", get(product))
        .with_state(Arc::new(catalog)))
}

async fn list() -> Json<Value> {
    Json(json!({ "products": NAMES }))
}

async fn product(
    State(catalog): State<Arc<Catalog>>,
    Path(id): Path<u32>,
    headers: HeaderMap,
) -> Response {
    let name = NAMES[id as usize % NAMES.len()];
    match catalog.price(id, &headers).await {
        Ok(price) => Json(json!({
            "id": id,
            "name": name,
            "price": price,
            "described_by": &*catalog.me.0,
        }))
        .into_response(),
        Err(error) => (
            StatusCode::BAD_GATEWAY,
            Json(json!({ "title": "no price", "detail": format!("{error:#}") })),
        )
            .into_response(),
    }
}

impl Catalog {
    async fn price(&self, id: u32, incoming: &HeaderMap) -> anyhow::Result<Value> {
        let uri: Uri = format!("{}/price/{id}", self.pricing_url).parse()?;
        let mut request = Request::get(uri).body(Empty::new())?;
        request
            .headers_mut()
            .insert(http::header::HOST, self.pricing_host.clone());
        for name in HANDED_ON {
            if let Some(value) = incoming.get(&name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        let response = self.client.request(request).await.context("ask pricing")?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .context("read the price")?
            .to_bytes();
        anyhow::ensure!(
            status.is_success(),
            "pricing answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        serde_json::from_slice(&body).context("price is not JSON")
    }
}
