//! Carts, in memory: what a database would keep is not what this shop is about.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::HeaderMap,
    routing::get,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One line of a cart.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Item {
    product: u32,
    count: u32,
}

#[derive(Default)]
struct Carts {
    me: String,
    carts: Mutex<HashMap<String, Vec<Item>>>,
    /// Keys of additions that were made: the same one again changes nothing.
    done: Mutex<HashSet<String>>,
}

/// Items kept in a cart: the shop runs for long.
const ITEMS: usize = 20;
/// Keys kept; beyond it all are forgotten at once.
const KEYS: usize = 100_000;

/// `GET` and `POST /carts/{customer}`.
pub(crate) fn routes(me: &str) -> Router {
    let carts = Carts {
        me: me.to_owned(),
        ..Carts::default()
    };
    Router::new()
        .route("/carts/{customer}", get(see).post(add))
        .with_state(Arc::new(carts))
}

async fn see(State(carts): State<Arc<Carts>>, Path(customer): Path<String>) -> Json<Value> {
    let items = carts.carts.lock().get(&customer).cloned();
    Json(json!({ "items": items.unwrap_or_default(), "kept_by": carts.me }))
}

async fn add(
    State(carts): State<Arc<Carts>>,
    Path(customer): Path<String>,
    headers: HeaderMap,
    Json(item): Json<Item>,
) -> Json<Value> {
    let key = headers
        .get("idempotency-key")
        .map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    let mut done = carts.done.lock();
    if done.len() >= KEYS {
        done.clear();
    }
    let is_new = key.is_none_or(|key| done.insert(key));
    drop(done);
    let mut all = carts.carts.lock();
    let cart = all.entry(customer).or_default();
    if is_new {
        cart.push(item);
        let over = cart.len().saturating_sub(ITEMS);
        cart.drain(..over);
    }
    Json(json!({ "items": cart, "kept_by": carts.me }))
}
