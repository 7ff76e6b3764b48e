//! What the shop's customers do.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;

/// The host name under which the gateway serves the shop.
pub(crate) const HOST: &str = "shop.localhost";

/// One of the three things that a customer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Look at a product: gateway → storefront → catalog → pricing.
    Product,
    /// Look into the cart: gateway → storefront → cart.
    Cart,
    /// Put something into the cart, with an idempotency key.
    Add,
}

impl Kind {
    /// Six looks at products and two into the cart for every two additions.
    pub(crate) fn of(index: u64) -> Self {
        match index % 10 {
            0..6 => Self::Product,
            6..8 => Self::Cart,
            _ => Self::Add,
        }
    }

    /// The request number `index`.
    pub(crate) fn request(
        self,
        gateway: SocketAddr,
        index: u64,
    ) -> http::Result<Request<Full<Bytes>>> {
        let customer = index % 500;
        let (method, path, body) = match self {
            Self::Product => (
                Method::GET,
                format!("/products/{}", index % 97),
                String::new(),
            ),
            Self::Cart => (
                Method::GET,
                format!("/cart/customer-{customer}"),
                String::new(),
            ),
            Self::Add => (
                Method::POST,
                format!("/cart/customer-{customer}"),
                format!(r#"{{"product":{},"count":1}}"#, index % 97),
            ),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{gateway}{path}"))
            .header(http::header::HOST, HOST);
        if self == Self::Add {
            request = request
                .header(http::header::CONTENT_TYPE, "application/json")
                .header("idempotency-key", format!("quickstart-{index}"));
        }
        request.body(Full::new(Bytes::from(body)))
    }

    /// Whether this is the answer that the customer wanted.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(self, status: StatusCode, body: &[u8]) -> Result<(), &'static str> {
        if status != StatusCode::OK {
            return Err("status is not 200");
        }
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
            return Err("body is not JSON");
        };
        let good = match self {
            Self::Product => json
                .pointer("/price/cents")
                .is_some_and(serde_json::Value::is_u64),
            Self::Cart | Self::Add => json.get("items").is_some_and(serde_json::Value::is_array),
        };
        if good {
            Ok(())
        } else {
            Err("body lacks what was asked for")
        }
    }
}
