//! The description of the API, served by the API: OpenAPI 3.1.
//!
//! Written by hand, as its readers are people and generators, not our types; a test compares its
//! paths with the router's, and a fuzzer that goes by it runs against a real server. Only the
//! policy's schema is made from its type, which others change.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    // It is part of this program: a test reads it.
    Bytes::from(serde_json::to_vec(&build()).unwrap_or_default())
});

pub(super) async fn document() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, DOCUMENT.clone()).into_response()
}

fn build() -> Value {
    let mut document: Value =
        serde_json::from_str(include_str!("openapi.json")).unwrap_or_default();
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    let schema = schemars::schema_for!(selvedge_resilience::TrafficPolicy);
    let mut policy = serde_json::to_value(schema).unwrap_or_default();
    let definitions = policy
        .as_object_mut()
        .and_then(|policy| policy.remove("$defs"));
    rename(&mut policy);
    if let Some(policy) = policy.as_object_mut() {
        policy.remove("$schema");
    }
    document["components"]["schemas"]["TrafficPolicy"] = policy;
    if let Some(Value::Object(definitions)) = definitions {
        for (name, mut schema) in definitions {
            rename(&mut schema);
            document["components"]["schemas"][format!("Policy{name}")] = schema;
        }
    }
    document
}

/// `#/$defs/X` of a schema that stood alone is `#/components/schemas/PolicyX` here; and integers
/// end where their types do.
fn rename(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let kinds = fields.get("type");
            let is_integer = kinds.is_some_and(|kind| match kind {
                Value::Array(kinds) => kinds.iter().any(|kind| kind == "integer"),
                kind => kind == "integer",
            });
            if is_integer && !fields.contains_key("maximum") {
                let most: u64 = match fields.get("format").and_then(Value::as_str) {
                    Some("uint8") => u8::MAX.into(),
                    Some("uint16") => u16::MAX.into(),
                    // What every JSON reader takes exactly (RFC 8259 §6).
                    Some("uint64" | "uint") => (1 << 53) - 1,
                    _ => u32::MAX.into(),
                };
                fields.insert("maximum".to_owned(), json!(most));
            }
            if let Some(Value::String(to)) = fields.get_mut("$ref")
                && let Some(name) = to.strip_prefix("#/$defs/")
            {
                *to = format!("#/components/schemas/Policy{name}");
            }
            fields.values_mut().for_each(rename);
        }
        Value::Array(items) => items.iter_mut().for_each(rename),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every reference in `value`.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    found.push(to);
                }
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = build();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for to in found {
            let at = to.strip_prefix('#').expect("local");
            assert!(document.pointer(at).is_some(), "{to}");
        }
    }

    #[test]
    fn it_describes_the_paths_that_there_are_and_no_other() {
        let source = include_str!("mod.rs");
        let source = source.replace(
            "&format!(\"{instance}",
            "\"/v1/services/{service}/instances/{id}",
        );
        let mut routed: BTreeSet<&str> = source
            .split('"')
            .filter(|text| text.starts_with("/v1/") && !text.contains(' '))
            .collect();
        routed.insert("/v1/services/{service}/instances/{id}");
        let document = build();
        let paths = document["paths"].as_object().expect("paths");
        let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
        assert_eq!(routed, described);
    }
}
