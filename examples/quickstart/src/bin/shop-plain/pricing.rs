//! What things cost.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::Me;

/// `GET /price/{id}`.
pub(crate) fn routes(me: &Me) -> Router {
    Router::new()
        .route("/price/{id}", get(price))
        .with_state(me.clone())
}

async fn price(State(me): State<Me>, Path(id): Path<u32>) -> Json<Value> {
    // Any number would do, as long as every instance says the same.
    let cents = 199 + u64::from(id) * 7_919 % 9_000;
    Json(json!({ "cents": cents, "priced_by": &*me.0 }))
}
