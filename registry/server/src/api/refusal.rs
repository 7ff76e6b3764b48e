//! Refusals on their way out: a problem document, and when to come back.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use selvedge_registry::{
    InstanceId, ServiceName,
    problem::{CONTENT_TYPE, Problem},
    wire::INCARNATION_HEADER,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::patience::{BODY, is_too_slow};
use crate::server::Refused;

/// A refusal on its way out.
#[derive(Debug)]
pub struct Refusal {
    // Boxed: most results carry none.
    problem: Box<Problem>,
    retry_after: Option<u64>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// Of the kind `code`.
    pub fn new(status: StatusCode, code: &str, title: &str) -> Self {
        Self {
            problem: Box::new(Problem::new(status, code, title)),
            retry_after: None,
            header: None,
        }
    }

    /// With a sentence about this very one.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.problem.detail = Some(detail.into());
        self
    }

    /// To be tried again after so long; whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait.as_millis().div_ceil(1000).max(1) as u64);
        self
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::BAD_REQUEST)
    }

    /// The request cannot be understood.
    pub fn bad(detail: impl Into<String>) -> Self {
        let title = "the request cannot be understood";
        Self::new(StatusCode::BAD_REQUEST, "bad-request", title).detail(detail)
    }

    /// This server is catching up, or leaves.
    pub fn not_ready() -> Self {
        let title = "this server is still fetching the catalogue, or leaves";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", title)
            .detail("ask another server, or again in a second")
            .retry_after(Duration::from_secs(1))
    }

    /// Something is not there.
    pub fn not_found(code: &str, title: &str, what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, title).detail(what)
    }

    /// What the catalogue says of an instance that cannot be had.
    pub fn of(refused: &Refused, service: &ServiceName, id: &InstanceId) -> Self {
        match refused {
            Refused::Unknown => Self::not_found(
                "no-such-instance",
                "the instance is not registered",
                format!("{id} of {service}: register it (again)"),
            ),
            Refused::Later { incarnation } => {
                let title = "a later life of this instance is registered";
                Self::new(StatusCode::CONFLICT, "later-incarnation", title)
                    .detail(format!(
                        "its incarnation is {incarnation}: a new life needs a higher one"
                    ))
                    .header(
                        HeaderName::from_static(INCARNATION_HEADER),
                        (*incarnation).into(),
                    )
            }
            Refused::Limit { what, limit } => Self::full(what, *limit),
            Refused::Invalid(why) => Self::bad(why),
            Refused::NotServing => Self::not_ready(),
        }
    }

    /// There are as many as there may be. A client cannot help it, and need not hurry.
    pub fn full(what: &str, limit: usize) -> Self {
        let title = "the registry holds as many as it may";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "limit", title)
            .detail(format!("{what}: at most {limit}"))
            .retry_after(Duration::from_secs(30))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, CONTENT_TYPE)];
        let mut response = (self.status(), kind, self.problem.to_json()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        response
    }
}

/// A JSON object as a body, whose errors are problems that name the field.
#[derive(Debug)]
pub struct Document<T>(pub T);

impl<T: DeserializeOwned + Serialize, S: Send + Sync> FromRequest<S> for Document<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let json = ["application/json", "application/merge-patch+json"];
        if !json.iter().any(|json| kind.eq_ignore_ascii_case(json)) {
            let title = "the body must be JSON";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Refusal::new(status, "media-type", title)
                .detail("send content-type: application/json"));
        }
        let Raw(body) = Raw::from_request(request, state).await?;
        object(&body).map(Self)
    }
}

/// A body as it comes, whose errors are problems.
#[derive(Debug)]
pub struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let body = Bytes::from_request(request, state).await;
        body.map(Self).map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ if is_too_slow(&error) => too_slow(),
            _ => Refusal::bad(error.body_text()),
        })
    }
}

/// Reads a JSON object. Serde would take an array for a struct as well, field by field.
pub(super) fn object<T: DeserializeOwned + Serialize>(body: &[u8]) -> Result<T, Refusal> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::bad("expected a JSON object"));
    }
    let mut text = serde_json::Deserializer::from_slice(body);
    let document = match serde_path_to_error::deserialize(&mut text) {
        Ok(document) => document,
        Err(error) => {
            if let Some(document) = with_whole_numbers(body) {
                return without_lists_for_objects(body, document);
            }
            let path = error.path().to_string();
            let at = match path.as_str() {
                // What is no JSON at all has no place in it.
                "." | "?" => String::new(),
                path => format!("{path}: "),
            };
            return Err(Refusal::bad(format!("{at}{}", error.inner())));
        }
    };
    text.end()
        .map_err(|error| Refusal::bad(error.to_string()))?;
    without_lists_for_objects(body, document)
}

/// Refuses what [`object`] says, further inside.
fn without_lists_for_objects<T: Serialize>(body: &[u8], document: T) -> Result<T, Refusal> {
    // Most documents hold no list at all.
    if body.contains(&b'[')
        && let Ok(given) = serde_json::from_slice(body)
        && let Ok(taken) = serde_json::to_value(&document)
        && let Some(path) = list_for_object(&given, &taken)
    {
        return Err(Refusal::bad(format!("{path}: expected an object")));
    }
    Ok(document)
}

/// Where a list was taken for an object.
fn list_for_object(given: &Value, taken: &Value) -> Option<String> {
    match (given, taken) {
        (Value::Array(_), Value::Object(_)) => Some(String::new()),
        (Value::Array(given), Value::Array(taken)) => {
            let mut items = given.iter().zip(taken).enumerate();
            items.find_map(|(n, (given, taken))| {
                Some(format!("[{n}]{}", list_for_object(given, taken)?))
            })
        }
        (Value::Object(given), Value::Object(taken)) => given.iter().find_map(|(key, given)| {
            let path = list_for_object(given, taken.get(key)?)?;
            let dot = if path.is_empty() || path.starts_with('[') {
                ""
            } else {
                "."
            };
            Some(format!("{key}{dot}{path}"))
        }),
        _ => None,
    }
}

/// JSON has one kind of number: `5.0` is the integer 5 for JSON Schema and for clients in languages
/// that know no integers, and not for serde.
fn with_whole_numbers<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    make_whole(&mut document);
    serde_json::from_value(document).ok()
}

fn make_whole(value: &mut Value) {
    /// Beyond, a float is no exact integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let float = number.as_f64().filter(|_| number.is_f64());
            let whole = float.filter(|n| n.fract() == 0.0 && (0.0..=EXACT).contains(n));
            if let Some(whole) = whole {
                *number = (whole as u64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        _ => {}
    }
}

fn too_slow() -> Refusal {
    let title = "the body did not come in time";
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "too-slow", title)
        .detail(format!("at most {} s from head to end", BODY.as_secs()))
}

pub(super) fn too_large() -> Refusal {
    let title = "the body is too large";
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title).detail(format!(
        "at most {} bytes, in a batch of leases {}",
        selvedge_registry::wire::MAX_BODY,
        super::MAX_BATCH_BODY
    ))
}

/// For every path that is nobody's.
pub(super) async fn no_such_path(method: Method, uri: Uri) -> Refusal {
    let title = "there is no such path in the v1 API";
    let path = shown(&uri);
    Refusal::not_found(
        "no-such-path",
        title,
        format!("{method} {path}: the paths that there are stand in /v1/openapi.json"),
    )
}

/// Makes a problem of the answer to a method that the path does not take: the router says which it
/// takes in a header, after every layer.
pub(super) fn name_methods((method, uri): (Method, Uri), response: Response) -> Response {
    if response.status() != StatusCode::METHOD_NOT_ALLOWED {
        return response;
    }
    let Some(allow) = response.headers().get(header::ALLOW).cloned() else {
        return response;
    };
    let allowed = allow.to_str().unwrap_or_default().replace(',', ", ");
    let title = "this path does not take this method";
    let path = shown(&uri);
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", title)
        .detail(format!("{method} {path}: allowed are {allowed}"))
        .header(header::ALLOW, allow)
        .into_response()
}

/// What somebody asked for, short enough for an answer.
fn shown(uri: &Uri) -> String {
    uri.path().chars().take(200).collect()
}

/// The service in a path, checked.
#[derive(Debug)]
pub struct Service(pub ServiceName);

impl<S: Send + Sync> FromRequestParts<S> for Service {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Refusal::bad(error.body_text()))?;
        service(&name).map(Self)
    }
}

/// The service and the instance in a path, checked.
#[derive(Debug)]
pub struct Names(pub ServiceName, pub InstanceId);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path((name, id)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|error| Refusal::bad(error.body_text()))?;
        let id = InstanceId::new(id).map_err(|error| Refusal::bad(error.to_string()))?;
        Ok(Self(service(&name)?, id))
    }
}

pub(super) fn service(name: &str) -> Result<ServiceName, Refusal> {
    ServiceName::new(name).map_err(|error| Refusal::bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use selvedge_registry::wire::RegisterRequest;

    use super::*;

    #[test]
    fn a_whole_number_is_an_integer_and_a_list_is_no_object() {
        let read = |weight: &str| {
            let body = format!(r#"{{"addr":"10.0.0.1:80","weight":{weight}}}"#);
            object::<RegisterRequest>(body.as_bytes()).map(|request| request.weight)
        };
        for (weight, want) in [("7", 7), ("7.0", 7), ("7e1", 70), ("-0.0", 0)] {
            assert_eq!(read(weight).ok(), Some(want), "{weight}");
        }
        for weight in ["7.5", "-7.0", "1e300", "\"7\"", "4294967296.0", "7.0}"] {
            let refused = read(weight).expect_err(weight);
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{weight}");
        }
        for (part, path) in [
            (r#""locality":["eu","a"]"#, "locality"),
            (r#""weight":7.0,"ownership":[null]"#, "ownership"),
        ] {
            let body = format!(r#"{{"addr":"10.0.0.1:80",{part}}}"#);
            let refused = object::<RegisterRequest>(body.as_bytes()).expect_err(part);
            let shown = format!("{refused:?}");
            assert!(
                shown.contains(&format!("{path}: expected an object")),
                "{shown}"
            );
        }
        let lists = br#"{"addr":"10.0.0.1:80","tags":["a","b"]}"#;
        assert!(object::<RegisterRequest>(lists).is_ok());
        // What is said of the mistake is said of the document as it was sent.
        let refused = object::<RegisterRequest>(br#"{"addr":"10.0.0.1:80","weight":7.0,"x":1}"#);
        let shown = format!("{refused:?}");
        assert!(
            shown.contains("unknown field") || shown.contains("7.0"),
            "{shown}"
        );
    }
}
