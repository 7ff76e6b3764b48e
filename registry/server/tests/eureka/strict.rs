//! What stands in for the `ObjectMapper` of Spring's clients, which fails a whole fetch on one key
//! that it does not know (`FAIL_ON_UNKNOWN_PROPERTIES`), on one nested value, or on one object
//! where a list should be.
//!
//! Source: the fields and annotations of Netflix's `Applications`, `Application`, `InstanceInfo`,
//! `LeaseInfo`, `DataCenterInfo`, `AmazonInfo`.

use serde_json::{Map, Value};

const INSTANCE: &[&str] = &[
    "instanceId",
    "app",
    "appGroupName",
    "ipAddr",
    "sid",
    "port",
    "securePort",
    "homePageUrl",
    "statusPageUrl",
    "healthCheckUrl",
    "secureHealthCheckUrl",
    "vipAddress",
    "secureVipAddress",
    "countryId",
    "dataCenterInfo",
    "hostName",
    "status",
    "overriddenStatus",
    "leaseInfo",
    "isCoordinatingDiscoveryServer",
    "metadata",
    "lastUpdatedTimestamp",
    "lastDirtyTimestamp",
    "actionType",
    "asgName",
];
const LEASE: &[&str] = &[
    "renewalIntervalInSecs",
    "durationInSecs",
    "registrationTimestamp",
    "lastRenewalTimestamp",
    "evictionTimestamp",
    "serviceUpTimestamp",
];
const STATUSES: &[&str] = &["UP", "DOWN", "STARTING", "OUT_OF_SERVICE", "UNKNOWN"];

fn object<'a>(
    value: &'a Value,
    what: &str,
    keys: &[&str],
) -> Result<&'a Map<String, Value>, String> {
    let object = value
        .as_object()
        .ok_or(format!("{what} is no object: {value}"))?;
    match object.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(format!("{what}: unrecognized field {key:?}")),
        None => Ok(object),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    let value = object.get(key).ok_or(format!("{key} is missing"))?;
    value.as_str().ok_or(format!("{key} is no string: {value}"))
}

fn one_of(object: &Map<String, Value>, key: &str, allowed: &[&str]) -> Result<(), String> {
    let value = text(object, key)?;
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(format!("{key}: no enum constant {value:?}"))
}

fn millis(object: &Map<String, Value>, key: &str) -> Result<(), String> {
    let value = text(object, key)?;
    value
        .parse::<i64>()
        .map_err(|e| format!("{key} {value:?}: {e}"))?;
    Ok(())
}

fn strings(value: &Value, what: &str) -> Result<(), String> {
    let object = value
        .as_object()
        .ok_or(format!("{what} is no map: {value}"))?;
    match object.iter().find(|(_, value)| !value.is_string()) {
        Some((key, value)) => Err(format!("{what}.{key} is no string: {value}")),
        None => Ok(()),
    }
}

fn port(value: &Value, what: &str) -> Result<(), String> {
    let object = object(value, what, &["$", "@enabled"])?;
    if !object.get("$").is_some_and(Value::is_u64) {
        return Err(format!("{what}.$ is no number"));
    }
    one_of(object, "@enabled", &["true", "false"])
}

fn data_center(value: &Value) -> Result<(), String> {
    let info = object(value, "dataCenterInfo", &["@class", "name", "metadata"])?;
    let default = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo";
    let class = text(info, "@class")?;
    match class {
        "com.netflix.appinfo.AmazonInfo" => {
            one_of(info, "name", &["Amazon"])?;
            strings(
                info.get("metadata").ok_or("AmazonInfo without metadata")?,
                "metadata",
            )
        }
        class if class == default => {
            object(value, "dataCenterInfo", &["@class", "name"])?;
            one_of(info, "name", &["MyOwn", "Netflix"])
        }
        other => Err(format!("could not resolve type id {other:?}")),
    }
}

pub(crate) fn instance(value: &Value) -> Result<(), String> {
    let fields = object(value, "InstanceInfo", INSTANCE)?;
    for key in ["instanceId", "app", "ipAddr", "hostName"] {
        text(fields, key)?;
    }
    one_of(fields, "status", STATUSES)?;
    one_of(fields, "actionType", &["ADDED", "MODIFIED", "DELETED"])?;
    for key in ["port", "securePort"] {
        port(fields.get(key).ok_or(format!("{key} is missing"))?, key)?;
    }
    data_center(
        fields
            .get("dataCenterInfo")
            .ok_or("dataCenterInfo is missing")?,
    )?;
    millis(fields, "lastUpdatedTimestamp")?;
    // Not in the compact form.
    if let Some(lease) = fields.get("leaseInfo") {
        let lease = object(lease, "leaseInfo", LEASE)?;
        if let Some((key, value)) = lease.iter().find(|(_, value)| !value.is_i64()) {
            return Err(format!("leaseInfo.{key} is no number: {value}"));
        }
        strings(
            fields.get("metadata").ok_or("metadata is missing")?,
            "metadata",
        )?;
        one_of(fields, "overriddenStatus", STATUSES)?;
        one_of(fields, "isCoordinatingDiscoveryServer", &["true", "false"])?;
        millis(fields, "lastDirtyTimestamp")?;
        if !fields.get("countryId").is_some_and(Value::is_i64) {
            return Err("countryId is no number".to_owned());
        }
    }
    match fields
        .iter()
        .find(|(_, value)| value.is_null() || value.is_array())
    {
        Some((key, value)) => Err(format!("{key} is {value}")),
        None => Ok(()),
    }
}

pub(crate) fn application(value: &Value) -> Result<(), String> {
    let fields = object(value, "Application", &["name", "instance"])?;
    let name = text(fields, "name")?;
    let list = fields.get("instance").and_then(Value::as_array);
    let list = list.ok_or(format!("instance of {name} is no list"))?;
    list.iter().try_for_each(|one| {
        instance(one).map_err(|why| format!("{name}: {why}"))?;
        if one["app"].as_str() == Some(name) {
            return Ok(());
        }
        Err(format!("{name} holds an instance of {}", one["app"]))
    })
}

/// `{"applications":{…}}`, and the hash of what is in it.
pub(crate) fn applications(document: &Value) -> Result<String, String> {
    let outer = object(document, "document", &["applications"])?;
    let keys = &["versions__delta", "apps__hashcode", "application"];
    let fields = object(&outer["applications"], "Applications", keys)?;
    millis(fields, "versions__delta")?;
    text(fields, "apps__hashcode")?;
    let list = fields.get("application").and_then(Value::as_array);
    list.ok_or("application is no list")?
        .iter()
        .try_for_each(application)?;
    let mut counts = std::collections::BTreeMap::<&str, u32>::new();
    for app in list.into_iter().flatten() {
        for one in app["instance"].as_array().into_iter().flatten() {
            *counts
                .entry(one["status"].as_str().unwrap_or(""))
                .or_default() += 1;
        }
    }
    let parts: Vec<String> = counts
        .iter()
        .map(|(status, n)| format!("{status}_{n}_"))
        .collect();
    Ok(parts.concat())
}

#[test]
fn the_stand_in_is_strict() {
    let good = || {
        serde_json::json!({
            "instanceId": "i", "app": "A", "ipAddr": "10.0.0.1", "hostName": "h", "status": "UP",
            "actionType": "ADDED", "port": {"$": 1, "@enabled": "true"},
            "securePort": {"$": 2, "@enabled": "false"}, "lastUpdatedTimestamp": "1",
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn",
            },
        })
    };
    instance(&good()).expect("compact");
    for (pointer, value) in [
        ("/extra", serde_json::json!(1)),
        ("/status", serde_json::json!("up")),
        ("/port", serde_json::json!(1)),
        ("/port/$", serde_json::json!("1")),
        ("/port/@enabled", serde_json::json!(true)),
        ("/lastUpdatedTimestamp", serde_json::json!(1)),
        (
            "/dataCenterInfo/@class",
            serde_json::json!("java.lang.Runtime"),
        ),
        ("/homePageUrl", Value::Null),
        ("/leaseInfo", serde_json::json!({"renewalTimestamp": 1})),
    ] {
        let mut bad = good();
        match bad.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => bad[&pointer[1..]] = value,
        }
        assert!(instance(&bad).is_err(), "{pointer}");
    }
}
