//! Instances come, renew, change and go.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use selvedge_registry::{
    InstanceId, ServiceName,
    api::{
        LeaseReason, LeaseRefused, MAX_BATCH, MetadataPatch, RenewBatch, Renewals, StatusRequest,
    },
    wire::{InstanceRecord, RegisterRequest, RenewRequest},
};

use super::{
    Api, App,
    refusal::{Document, Names, Raw, Refusal, object},
};
use crate::{
    audit::Who,
    limits::has_quota,
    server::{Edit, Origin, Refused},
};

/// Writes down what became of a write.
fn audited<T>(
    who: &Who,
    action: &'static str,
    (service, id): (&ServiceName, &InstanceId),
    result: Result<T, Refusal>,
) -> Result<T, Refusal> {
    let outcome = result
        .as_ref()
        .map_or_else(|r| r.status().as_u16(), |_| 200);
    who.wrote(action, &format!("{service}/{id}"), outcome);
    result
}

pub(super) async fn register(
    State(api): App,
    who: Who,
    Names(service, id): Names,
    Document(request): Document<RegisterRequest>,
) -> Result<Json<InstanceRecord>, Refusal> {
    request.validate().map_err(Refusal::bad)?;
    let catalogue = api.shared.catalogue();
    let result = has_quota(&who.caller, &catalogue, (&service, &id))
        .and_then(|()| {
            api.shared
                .register(service.clone(), id.clone(), request, Origin::v1())
        })
        .map_err(|refused| Refusal::of(&refused, &service, &id));
    audited(&who, "register", (&service, &id), result).map(Json)
}

pub(super) async fn renew(
    State(api): App,
    Names(service, id): Names,
    Raw(body): Raw,
) -> Result<StatusCode, Refusal> {
    let request: RenewRequest = match body.len() {
        0 => RenewRequest::default(),
        _ => object(&body)?,
    };
    api.shared
        .renew(&service, &id, request.incarnation)
        .map(|_| StatusCode::NO_CONTENT)
        .map_err(|refused| Refusal::of(&refused, &service, &id))
}

pub(super) async fn renew_batch(
    State(api): App,
    who: Who,
    Document(batch): Document<RenewBatch>,
) -> Result<Json<Renewals>, Refusal> {
    if batch.leases.len() > MAX_BATCH {
        return Err(Refusal::bad(format!(
            "{} leases: at most {MAX_BATCH} in one request",
            batch.leases.len()
        )));
    }
    let mut renewals = Renewals::default();
    let mut allowed = Vec::with_capacity(batch.leases.len());
    for lease in batch.leases {
        if who.caller.may_register(&lease.service) {
            allowed.push((lease.service, lease.id, lease.incarnation));
        } else {
            renewals.refused.push(LeaseRefused {
                service: lease.service,
                id: lease.id,
                reason: LeaseReason::Forbidden,
            });
        }
    }
    let results = api.shared.renew_batch(&allowed);
    for ((service, id, _), result) in allowed.into_iter().zip(results) {
        match result {
            Ok(_) => renewals.renewed += 1,
            // It may well be registered: this server cannot know. Another one can.
            Err(Refused::NotServing) => return Err(Refusal::not_ready()),
            Err(_) => renewals.refused.push(LeaseRefused {
                service,
                id,
                reason: LeaseReason::Unknown,
            }),
        }
    }
    Ok(Json(renewals))
}

pub(super) async fn deregister(
    State(api): App,
    who: Who,
    Names(service, id): Names,
) -> Result<StatusCode, Refusal> {
    let result = api
        .shared
        .deregister(&service, &id)
        .map(|()| StatusCode::NO_CONTENT)
        .map_err(|refused| Refusal::of(&refused, &service, &id));
    audited(&who, "deregister", (&service, &id), result)
}

/// A change by somebody, and what the instance is with it.
async fn edit(
    api: &Api,
    who: &Who,
    action: &'static str,
    (service, id): (ServiceName, InstanceId),
    edit: Edit,
) -> Result<InstanceRecord, Refusal> {
    let result = api.shared.edit(&service, &id, edit).await;
    let result = result.map_err(|refused| Refusal::of(&refused, &service, &id));
    audited(who, action, (&service, &id), result)
}

pub(super) async fn set_status(
    State(api): App,
    who: Who,
    Names(service, id): Names,
    Document(request): Document<StatusRequest>,
) -> Result<StatusCode, Refusal> {
    let change = Edit::Status(request.status);
    edit(&api, &who, "status", (service, id), change).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn set_override(
    State(api): App,
    who: Who,
    Names(service, id): Names,
    Document(request): Document<StatusRequest>,
) -> Result<StatusCode, Refusal> {
    let change = Edit::Override(Some(request.status));
    edit(&api, &who, "override", (service, id), change).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn drop_override(
    State(api): App,
    who: Who,
    Names(service, id): Names,
) -> Result<StatusCode, Refusal> {
    let change = Edit::Override(None);
    edit(&api, &who, "override-drop", (service, id), change).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn metadata(
    State(api): App,
    who: Who,
    Names(service, id): Names,
    Document(patch): Document<MetadataPatch>,
) -> Result<Json<InstanceRecord>, Refusal> {
    let change = Edit::Metadata(patch);
    edit(&api, &who, "metadata", (service, id), change)
        .await
        .map(Json)
}

pub(super) async fn one(State(api): App, Names(service, id): Names) -> Result<Response, Refusal> {
    api.serving()?;
    let found = api.shared.catalogue().live(&service, &id);
    found
        .map(|instance| Json(instance).into_response())
        .ok_or_else(|| Refusal::of(&Refused::Unknown, &service, &id))
}
