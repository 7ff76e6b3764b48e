//! Regions, as clients and other regions ask about them.

use axum::{
    Json,
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use selvedge_registry::{
    api::{RegionList, RegionOf},
    wire::ServiceRecord,
};
use serde::Serialize;

use super::{App, query::tagged, refusal::Refusal};

/// A service that takes no calls here, and where it does.
#[derive(Debug, Serialize)]
pub(super) struct Elsewhere {
    #[serde(flatten)]
    pub(super) record: ServiceRecord,
    pub(super) fallback: Vec<RegionOf>,
}

pub(super) async fn list(State(api): App) -> Result<Json<RegionList>, Refusal> {
    api.serving()?;
    let catalogue = api.shared.catalogue();
    Ok(Json(api.regions.list(&catalogue)))
}

/// What this server knows of a region: its own summary is what other regions fetch.
pub(super) async fn one(
    State(api): App,
    Path(region): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    api.serving()?;
    let catalogue = api.shared.catalogue();
    let Some((summary, tag)) = api.regions.summary(&region, &catalogue) else {
        let title = "nothing is known of this region";
        let region: String = region.chars().take(80).collect();
        return Err(Refusal::not_found("no-such-region", title, region));
    };
    Ok(tagged(&headers, &tag, || Json(summary).into_response()))
}
