//! The shipped `deploy/config/policy.toml`: every key of the policy is in it, and what it calls a
//! default is one.

mod extremes;
#[cfg(feature = "schema")]
mod schema;

use selvedge_resilience::{
    TrafficPolicy, adaptive::AdaptiveConfig, breaker::BreakerConfig, bulkhead::BulkheadConfig,
    coalesce::CoalesceConfig, fallback::FallbackConfig, fault::FaultConfig, hedge::HedgeConfig,
    retry::RetryConfig, throttle::ThrottleConfig,
};

const SHIPPED: &str = include_str!("../../../deploy/config/policy.toml");

fn parse(text: &str) -> TrafficPolicy {
    let policy: TrafficPolicy = toml::from_str(text).unwrap_or_else(|e| panic!("{text}\n{e}"));
    policy.validate().unwrap_or_else(|e| panic!("{text}\n{e}"));
    policy
}

/// `#key = value` without its mark.
fn commented(line: &str) -> Option<&str> {
    let key = line.strip_prefix('#')?;
    key.starts_with(|c: char| c.is_ascii_lowercase())
        .then_some(key)
}

#[test]
fn what_is_written_are_the_defaults() {
    let written = parse(SHIPPED);
    let queue: BulkheadConfig = parse("bulkhead = { max = 200, queue = {} }")
        .bulkhead
        .expect("written");
    let expected = TrafficPolicy {
        retry: Some(RetryConfig::default()),
        hedge: Some(HedgeConfig::default()),
        throttle: Some(ThrottleConfig::default()),
        breaker: Some(BreakerConfig::default()),
        bulkhead: Some(queue),
        concurrency: Some(AdaptiveConfig::default()),
        fault: Some(FaultConfig::default()),
        fallback: Some(FallbackConfig::default()),
        coalesce: Some(CoalesceConfig::default()),
        inbound: parse("inbound = { shed = {}, rate_limit = { rate = \"100/s\" } }").inbound,
        ..TrafficPolicy::default()
    };
    assert_eq!(written, expected);
}

/// The document with line `n` in force instead of its section's own line of the same key.
fn with(n: usize) -> String {
    let lines: Vec<&str> = SHIPPED.lines().collect();
    let start = lines[..n].iter().rposition(|line| line.starts_with('['));
    let line = commented(lines[n]).expect("a line that is commented out");
    let (key, _) = line.split_once(" =").expect("key = value");
    let own = |at: usize| {
        let rest = &lines[start.unwrap_or(0) + 1..];
        let end = rest.iter().position(|line| line.starts_with('['));
        let section =
            start.unwrap_or(0)..end.map_or(lines.len(), |end| start.unwrap_or(0) + 1 + end);
        section.contains(&at) && lines[at].starts_with(&format!("{key} ="))
    };
    let kept = |(at, old): (usize, &&str)| match at {
        _ if at == n => line.to_owned(),
        _ if own(at) => String::new(),
        _ => (*old).to_owned(),
    };
    lines
        .iter()
        .enumerate()
        .map(kept)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn what_is_commented_out_works_in_its_place() {
    let shipped = parse(SHIPPED);
    let mut found = 0;
    for (n, line) in SHIPPED.lines().enumerate() {
        if commented(line).is_some() {
            found += 1;
            assert_ne!(parse(&with(n)), shipped, "{line} changes nothing");
        }
    }
    assert!(found > 15, "{found} lines are commented out");
}

/// Keys that are explained once and mean the same elsewhere.
#[cfg(feature = "schema")]
const AS_ABOVE: [&str; 3] = [
    "concurrency.queue.",
    "inbound.bulkhead.",
    "inbound.concurrency.",
];

#[cfg(feature = "schema")]
#[test]
fn every_key_of_the_schema_is_in_it() {
    let mut text = String::new();
    for line in SHIPPED.lines() {
        text.push_str(commented(line).unwrap_or(line));
        text.push('\n');
    }
    let schema = schemars::schema_for!(TrafficPolicy);
    let mut missing = Vec::new();
    let mut found = 0;
    for path in paths(schema.as_value()) {
        let key = path.rsplit('.').next().unwrap_or(&path);
        let written = |line: &str| {
            let code = line.split_once("# ").map_or(line, |(code, _)| code);
            code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .any(|word| word == key)
        };
        let table = path.split('.').next().unwrap_or(&path);
        let in_section = text.lines().scan(false, |inside, line| {
            if let Some(header) = line.strip_prefix('[') {
                *inside = header.trim_end_matches(']').split('.').next() == Some(table);
            }
            Some((*inside || line.starts_with(table)) && written(line))
        });
        match in_section.into_iter().any(|written| written) {
            true => found += 1,
            false if AS_ABOVE.iter().any(|prefix| path.starts_with(prefix)) => {}
            false => missing.push(path),
        }
    }
    assert!(missing.is_empty(), "not in policy.toml: {missing:#?}");
    assert!(
        found > 150,
        "the walk over the schema finds {found} keys only"
    );
}

/// Every property of a schema, as "breaker.open_for".
#[cfg(feature = "schema")]
fn paths(schema: &serde_json::Value) -> std::collections::BTreeSet<String> {
    let mut all = std::collections::BTreeSet::new();
    walk(schema, schema, "", &mut all);
    all
}

#[cfg(feature = "schema")]
fn walk(
    root: &serde_json::Value,
    node: &serde_json::Value,
    path: &str,
    all: &mut std::collections::BTreeSet<String>,
) {
    if let Some(name) = node["$ref"]
        .as_str()
        .and_then(|r| r.strip_prefix("#/$defs/"))
    {
        walk(root, &root["$defs"][name], path, all);
    }
    for ways in ["anyOf", "oneOf", "allOf"] {
        for way in node[ways].as_array().into_iter().flatten() {
            walk(root, way, path, all);
        }
    }
    for (key, child) in node["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}{}{key}", if path.is_empty() { "" } else { "." });
        walk(root, child, &path, all);
        all.insert(path);
    }
    if node["items"].is_object() {
        walk(root, &node["items"], path, all);
    }
}
