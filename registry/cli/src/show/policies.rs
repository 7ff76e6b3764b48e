//! Published policies.

use std::collections::BTreeSet;

use selvedge_registry::{
    api::{PolicyChange, PolicyHistory, PolicyList},
    wire::PolicyRecord,
};
use serde_json::Value;

use super::{Answer, document, moment};

/// A policy as a file that can be edited and put back.
pub(crate) fn as_file(record: &PolicyRecord) -> Result<String, toml::ser::Error> {
    Ok(format!(
        "# {}, version {}, published by {} at {}\n{}",
        record.service,
        record.version,
        record.by,
        moment(record.updated_ms),
        toml::to_string(&record.policy)?
    ))
}

impl Answer for PolicyList {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &["service", "version", "published", "by"]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |p: &PolicyRecord| {
            vec![
                p.service.to_string(),
                p.version.to_string(),
                moment(p.updated_ms),
                p.by.clone(),
            ]
        };
        self.policies.iter().map(row).collect()
    }
}

impl Answer for PolicyHistory {
    fn document(&self) -> Value {
        document(self)
    }
    fn columns(&self) -> &'static [&'static str] {
        &["version", "published", "by", "change"]
    }
    fn rows(&self) -> Vec<Vec<String>> {
        let before = self.changes.iter().skip(1).map(Some).chain([None]);
        let rows = self.changes.iter().zip(before);
        rows.map(|(change, before)| {
            vec![
                change.version.to_string(),
                moment(change.updated_ms),
                change.by.clone(),
                what_changed(change, before),
            ]
        })
        .collect()
    }
}

/// The sections that differ.
fn what_changed(change: &PolicyChange, before: Option<&PolicyChange>) -> String {
    let before = before.and_then(|before| before.policy.as_ref());
    let (now, before) = match (&change.policy, before) {
        (None, _) => return "withdrawn".to_owned(),
        (Some(_), None) => return "published".to_owned(),
        (Some(now), Some(before)) => (now, before),
    };
    let keys = |policy: &Value| -> BTreeSet<String> {
        let fields = policy.as_object().into_iter().flatten();
        fields.map(|(key, _)| key.clone()).collect()
    };
    let all: BTreeSet<String> = &keys(now) | &keys(before);
    let differ: Vec<String> = all
        .into_iter()
        .filter(|key| now.get(key) != before.get(key))
        .collect();
    match differ.len() {
        0 => "the same again".to_owned(),
        _ => differ.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_history_says_what_changed() {
        let change = |version: u64, policy: Value| json!({"version": version, "updated_ms": 0, "by": "ops", "policy": policy});
        let history: PolicyHistory = serde_json::from_value(json!({
            "service": "orders",
            "changes": [
                change(5, json!({"bulkhead": 2, "retry": {"attempts": 1}})),
                change(4, json!({"bulkhead": 2, "retry": {"attempts": 1}})),
                change(3, json!({"bulkhead": 1, "retry": null})),
                change(2, json!(null)),
                change(1, json!({"bulkhead": 1})),
            ],
        }))
        .expect("a history");
        let rows = history.rows();
        let said: Vec<&str> = rows.iter().map(|row| row[3].as_str()).collect();
        let want = [
            "the same again",
            "bulkhead, retry",
            "published",
            "withdrawn",
            "published",
        ];
        assert_eq!(said, want);
    }

    #[test]
    fn a_policy_is_written_as_a_file_that_says_the_same() {
        let policy: selvedge_resilience::TrafficPolicy = toml::from_str(
            "bulkhead = 7\nretry = { attempts = 2, codes = [503] }\ntimeouts = { request = \"2s\" }",
        )
        .expect("a policy");
        let record = PolicyRecord {
            service: "orders".parse().expect("name"),
            version: 3,
            updated_ms: 1_700_000_000_000,
            by: "ops".to_owned(),
            policy,
        };
        let text = as_file(&record).expect("writes");
        let first = "# orders, version 3, published by ops at 2023-11-14T22:13:20Z\n";
        assert!(text.starts_with(first), "{text}");
        let again: selvedge_resilience::TrafficPolicy = toml::from_str(&text).expect(&text);
        assert_eq!(again, record.policy, "{text}");
    }
}
