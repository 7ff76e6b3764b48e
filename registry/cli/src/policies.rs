//! Published policies.

use std::path::{Path, PathBuf};

use http::header;
use selvedge_registry::{
    ServiceName,
    api::{PolicyHistory, PolicyList},
    client::Call,
    node::config,
    wire::PolicyRecord,
};
use selvedge_resilience::TrafficPolicy;
use serde_json::json;

use crate::{
    args::{At, Only, Output, Policy},
    ask::{self, Registry},
    failure::Failure,
    print::Printer,
    show::{self, Done},
};

pub(crate) async fn run(at: &At, printer: Printer, order: &Policy) -> Result<(), Failure> {
    let registry = || Registry::new(at);
    match order {
        // These two ask no registry.
        Policy::Validate { files } => validate(printer, files).await,
        Policy::Schema => schema(),
        Policy::List => {
            let list = registry()?.get("list the policies", "/v1/policies").await;
            printer.show::<PolicyList>(&list?)
        }
        Policy::Get { service } => get(&registry()?, printer, service).await,
        Policy::Put {
            service,
            file,
            only,
        } => put(&registry()?, printer, service, file, only).await,
        Policy::Delete {
            service,
            if_version,
        } => delete(&registry()?, printer, service, *if_version).await,
        Policy::History { service } => printer.show(&history(&registry()?, service).await?),
        Policy::Rollback { service, version } => {
            rollback(&registry()?, printer, service, *version).await
        }
    }
}

async fn delete(
    registry: &Registry,
    printer: Printer,
    service: &ServiceName,
    if_version: Option<u64>,
) -> Result<(), Failure> {
    let what = format!("withdraw the policy of {service}");
    let path = format!("/v1/policies/{service}");
    let call = Call {
        path: &path,
        headers: if_match(if_version),
        ..Call::default()
    };
    registry.call(&what, "DELETE", &call).await?;
    let sentence = format!("{service} has no policy of its own any more");
    let document = json!({ "service": service, "withdrawn": true });
    printer.show(&Done { sentence, document })
}

async fn get(registry: &Registry, printer: Printer, service: &ServiceName) -> Result<(), Failure> {
    let what = format!("get the policy of {service}");
    let path = format!("/v1/policies/{service}");
    let record: PolicyRecord = registry.get(&what, &path).await?;
    if printer.0 == Output::Json {
        return Printer::text(&format!("{}\n", json!(record)));
    }
    let text = show::as_file(&record);
    let text = text.map_err(|error| Failure::No(format!("{what}: {error}")))?;
    Printer::text(&text)
}

async fn history(registry: &Registry, service: &ServiceName) -> Result<PolicyHistory, Failure> {
    let what = format!("list the changes of the policy of {service}");
    let path = format!("/v1/policies/{service}/history");
    registry.get(&what, &path).await
}

fn if_match(version: Option<u64>) -> Vec<(header::HeaderName, String)> {
    let tag = version.map(|version| (header::IF_MATCH, format!("\"{version}\"")));
    tag.into_iter().collect()
}

/// Whether `text` from `file` is JSON rather than TOML.
fn is_json(file: &Path, text: &str) -> bool {
    match file.extension() {
        Some(extension) => extension.eq_ignore_ascii_case("json"),
        None => text.trim_start().starts_with('{'),
    }
}

async fn put(
    registry: &Registry,
    printer: Printer,
    service: &ServiceName,
    file: &Path,
    only: &Only,
) -> Result<(), Failure> {
    let text = ask::text(file).await?;
    // Wrong here is wrong there, and here the file can be named.
    check(file, &text)?;
    let kind = if is_json(file, &text) {
        "application/json"
    } else {
        "application/toml"
    };
    let mut headers = if_match(only.if_version);
    headers.push((header::CONTENT_TYPE, kind.to_owned()));
    if only.new {
        headers.push((header::IF_NONE_MATCH, "*".to_owned()));
    }
    publish(registry, printer, service, headers, text.into_bytes()).await
}

async fn publish(
    registry: &Registry,
    printer: Printer,
    service: &ServiceName,
    headers: Vec<(header::HeaderName, String)>,
    body: Vec<u8>,
) -> Result<(), Failure> {
    let what = format!("publish the policy of {service}");
    let path = format!("/v1/policies/{service}");
    let call = Call {
        path: &path,
        body,
        headers,
        ..Call::default()
    };
    let reply = registry.call(&what, "PUT", &call).await?;
    let record: PolicyRecord = ask::read(&what, &reply)?;
    let sentence = format!("{service} has policy version {}", record.version);
    let document = json!(record);
    printer.show(&Done { sentence, document })
}

async fn rollback(
    registry: &Registry,
    printer: Printer,
    service: &ServiceName,
    version: u64,
) -> Result<(), Failure> {
    let what = format!("go back to version {version} of the policy of {service}");
    let changes = history(registry, service).await?.changes;
    let known: Vec<String> = changes.iter().map(|c| c.version.to_string()).collect();
    let now = changes.first().filter(|change| change.policy.is_some());
    let condition = now.map(|now| now.version);
    let Some(change) = changes.into_iter().find(|c| c.version == version) else {
        let known = known.join(", ");
        return Err(Failure::No(format!("{what}: remembered are {known}")));
    };
    let Some(policy) = change.policy else {
        return Err(Failure::No(format!(
            "{what}: that was a withdrawal (`selvedge policy delete {service}` does the same)"
        )));
    };
    let mut headers = if_match(condition);
    headers.push((header::CONTENT_TYPE, "application/json".to_owned()));
    if condition.is_none() {
        headers.push((header::IF_NONE_MATCH, "*".to_owned()));
    }
    let body = serde_json::to_vec(&policy).unwrap_or_default();
    publish(registry, printer, service, headers, body).await
}

/// Says of each file whether it is a policy that can work; the first that is not ends it.
fn schema() -> Result<(), Failure> {
    let schema = schemars::schema_for!(TrafficPolicy);
    Printer::text(&format!("{:#}\n", schema.as_value()))
}

async fn validate(printer: Printer, files: &[PathBuf]) -> Result<(), Failure> {
    for file in files {
        let text = ask::text(file).await?;
        check(file, &text)?;
        let sentence = format!("{} is a policy", file.display());
        let document = json!({ "file": file, "valid": true });
        printer.show(&Done { sentence, document })?;
    }
    Ok(())
}

/// As the registry would check it.
fn check(file: &Path, text: &str) -> Result<(), Failure> {
    let usage = |why: String| Failure::Usage(why);
    let at = |why: &dyn std::fmt::Display| usage(format!("{}: {why}", file.display()));
    if !is_json(file, text) {
        let loaded = config::parse::<TrafficPolicy>(file, text.to_owned())
            .map_err(|error| usage(error.to_string()))?;
        return loaded
            .value
            .validate()
            .map_err(|error| usage(loaded.error(&error.path, error.to_string()).to_string()));
    }
    let policy: TrafficPolicy = serde_json::from_str(text).map_err(|error| at(&error))?;
    policy.validate().map_err(|error| at(&error))
}
