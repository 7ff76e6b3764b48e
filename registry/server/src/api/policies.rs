//! Published policies: one document for a service, taken as a whole or not at all.
//!
//! A document comes as JSON or as TOML. What is wrong with it is said with line and column, or
//! with the field's path, and what is allowed; nothing changes then. Versions grow by one with
//! each change; `If-Match` makes a change conditional on the version that its author saw.
//!
//! Two servers that are cut off from each other may each take a change: the higher version wins
//! everywhere, or at the same version the later one; the history is the winner's.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use selvedge_registry::{
    ServiceName,
    api::PolicyList,
    wire::{MAX_BODY, PolicyRecord},
};
use selvedge_resilience::TrafficPolicy;

use super::{
    App,
    query::tagged,
    refusal::{Raw, Refusal, Service, object},
};
use crate::audit::Who;

/// Policies in all. A guess: one for each service of a large mesh is 15,000, but few have one of
/// their own; 5,000 of them are 2 MB.
const MOST: usize = 5_000;

pub(super) async fn list(State(api): App, headers: HeaderMap) -> Result<Response, Refusal> {
    api.serving()?;
    let catalogue = api.shared.catalogue();
    let tag = catalogue.revision().to_string();
    Ok(tagged(&headers, &tag, || {
        let policies = catalogue.policies().cloned().collect();
        Json(PolicyList { policies }).into_response()
    }))
}

pub(super) async fn one(
    State(api): App,
    Service(service): Service,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    api.serving()?;
    let catalogue = api.shared.catalogue();
    let record = catalogue.policy(&service).ok_or_else(|| none(&service))?;
    Ok(tagged(&headers, &record.version.to_string(), || {
        Json(record).into_response()
    }))
}

fn none(service: &ServiceName) -> Refusal {
    let title = "no policy is published for this service";
    Refusal::not_found("no-such-policy", title, service.as_str())
}

pub(super) async fn put(
    State(api): App,
    who: Who,
    Service(service): Service,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Refusal> {
    api.serving()?;
    let policy = parse(&headers, &body)?;
    let is_new = api.shared.catalogue().policy(&service).is_none();
    if is_new && api.shared.catalogue().policies().count() >= MOST {
        return Err(Refusal::full("policies", MOST));
    }
    let by = who.caller.name().to_string();
    let mut status = StatusCode::OK;
    let result = api
        .shared
        .put_policy_if(service.clone(), policy, by, |known| {
            if known.is_none() {
                status = StatusCode::CREATED;
            }
            precondition(&headers, known)
        });
    let outcome = result.as_ref().map_or_else(Refusal::status, |_| status);
    who.wrote("policy", service.as_str(), outcome.as_u16());
    let record = result?;
    Ok((status, tag(&record), Json(record)).into_response())
}

fn tag(record: &PolicyRecord) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("\"{}\"", record.version)) {
        headers.insert(header::ETAG, value);
    }
    headers
}

pub(super) async fn delete(
    State(api): App,
    who: Who,
    Service(service): Service,
    headers: HeaderMap,
) -> Result<StatusCode, Refusal> {
    api.serving()?;
    let by = who.caller.name().to_string();
    let result = api
        .shared
        .delete_policy_if(&service, by, |known| precondition(&headers, Some(known)))
        .and_then(|was_there| {
            let done = was_there.then_some(StatusCode::NO_CONTENT);
            done.ok_or_else(|| none(&service))
        });
    let outcome = result
        .as_ref()
        .map_or_else(Refusal::status, |status| *status);
    who.wrote("policy-delete", service.as_str(), outcome.as_u16());
    result
}

/// What it was, who changed it and when; of one that is withdrawn, too.
pub(super) async fn history(
    State(api): App,
    Service(service): Service,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    api.serving()?;
    let catalogue = api.shared.catalogue();
    let entry = catalogue
        .policy_entry(&service)
        .ok_or_else(|| none(&service))?;
    Ok(tagged(&headers, &entry.version.to_string(), || {
        Json(entry.history()).into_response()
    }))
}

/// `If-Match: "3"` (that version and no other), `If-Match: *` (some version), `If-None-Match: *`
/// (none yet).
fn precondition(headers: &HeaderMap, known: Option<u64>) -> Result<(), Refusal> {
    let there = known.map_or_else(|| "none".to_owned(), |version| format!("\"{version}\""));
    let fail = |detail: String| {
        let title = "the policy is not the one that this change is for";
        let status = StatusCode::PRECONDITION_FAILED;
        Err(Refusal::new(status, "precondition", title).detail(detail))
    };
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().trim().to_owned();
    if let Some(given) = headers.get(header::IF_MATCH).map(text) {
        let fits = match given.as_str() {
            "*" => known.is_some(),
            given => given.split(',').any(|tag| tag.trim() == there),
        };
        if !fits {
            return fail(format!("if-match: {given}, and there is {there}"));
        }
    }
    if let Some(given) = headers.get(header::IF_NONE_MATCH).map(text)
        && (given == "*" && known.is_some() || given.split(',').any(|tag| tag.trim() == there))
    {
        return fail(format!("if-none-match: {given}, and there is {there}"));
    }
    Ok(())
}

fn parse(headers: &HeaderMap, body: &Bytes) -> Result<TrafficPolicy, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let text = std::str::from_utf8(body).map_err(|_| Refusal::bad("the body is not UTF-8"))?;
    let policy: TrafficPolicy = match kind.to_ascii_lowercase().as_str() {
        "application/json" => object(body)?,
        "application/toml" | "text/toml" => {
            let loaded = selvedge_registry::node::config::parse::<TrafficPolicy>(
                std::path::Path::new("policy"),
                text.to_owned(),
            )
            .map_err(|error| Refusal::bad(error.to_string()))?;
            if let Err(error) = loaded.value.validate() {
                return Err(invalid(
                    loaded.error(&error.path, error.to_string()).to_string(),
                ));
            }
            loaded.value
        }
        _ => {
            let title = "a policy is JSON or TOML";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            let detail = "send content-type: application/json or application/toml";
            return Err(Refusal::new(status, "media-type", title).detail(detail));
        }
    };
    debug_assert!(body.len() <= MAX_BODY);
    policy
        .validate()
        .map_err(|error| invalid(error.to_string()))?;
    Ok(policy)
}

fn invalid(detail: String) -> Refusal {
    let title = "the policy cannot work, nothing has changed";
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    Refusal::new(status, "policy-invalid", title).detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                header::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_change_is_for_the_version_that_its_author_saw() {
        for (name, pairs, known, ok) in [
            ("no condition", &[][..], Some(3), true),
            ("that one", &[("if-match", "\"3\"")], Some(3), true),
            ("another", &[("if-match", "\"2\"")], Some(3), false),
            (
                "one of them",
                &[("if-match", "\"2\", \"3\"")],
                Some(3),
                true,
            ),
            ("gone", &[("if-match", "\"3\"")], None, false),
            ("any", &[("if-match", "*")], Some(1), true),
            ("any of none", &[("if-match", "*")], None, false),
            ("not yet", &[("if-none-match", "*")], None, true),
            ("already", &[("if-none-match", "*")], Some(1), false),
        ] {
            let result = precondition(&headers(pairs), known);
            assert_eq!(result.is_ok(), ok, "{name}: {result:?}");
        }
    }

    #[test]
    fn a_bad_document_says_where_and_what_is_allowed() {
        let json = "application/json";
        let toml = "application/toml";
        for (kind, text, status, parts) in [
            (json, r#"{"bulkhead":10}"#, 200, &[][..]),
            (toml, "bulkhead = 10\n", 200, &[]),
            (
                json,
                r#"{"timeouts":{"request":5}}"#,
                400,
                &["timeouts.request", "250ms"],
            ),
            (json, r#"{"bulk":1}"#, 400, &["bulkhead"]),
            (json, "{}x", 400, &["line 1 column 3"]),
            (json, r#"{"bulkhead":0}"#, 422, &["bulkhead", "at least 1"]),
            (
                toml,
                "\nbulkhed = 10\n",
                400,
                &["policy:2:1", "did you mean `bulkhead`"],
            ),
            (toml, "\n\nbulkhead = 0\n", 422, &["policy:3", "at least 1"]),
            ("text/plain", "bulkhead = 1", 415, &["application/toml"]),
        ] {
            let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
            let result = parse(&kind.into_iter().collect(), &Bytes::from(text));
            let got = result
                .as_ref()
                .map_or_else(|r| r.status().as_u16(), |_| 200);
            assert_eq!(got, status, "{text}: {result:?}");
            let shown = format!("{result:?}");
            for part in parts {
                assert!(shown.contains(part), "{text}: {part} in {shown}");
            }
        }
    }
}
