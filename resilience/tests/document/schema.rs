//! The JSON Schema says what the parser says: the same documents are good to both.

use selvedge_resilience::TrafficPolicy;
use serde_json::Value;

/// Whether `value` is as `node` of the schema `root` says; else where not.
///
/// Knows the words that our schema uses, and stumbles over every other.
fn check(root: &Value, node: &Value, value: &Value, at: &str) -> Result<(), String> {
    let Some(node) = node.as_object() else {
        return match node {
            Value::Bool(true) => Ok(()),
            _ => Err(format!("{at}: nothing is allowed")),
        };
    };
    let no = |why: &str| Err(format!("{at}: {value} is not {why}"));
    for (word, says) in node {
        let text = || says.as_str().expect("a text");
        let all = || says.as_array().expect("a list");
        let number = || says.as_f64().expect("a number");
        let fits = |schema: &&Value| check(root, schema, value, at).is_ok();
        match word.as_str() {
            "$ref" => {
                let name = text().strip_prefix("#/$defs/").expect("one of ours");
                check(root, &root["$defs"][name], value, at)?;
            }
            "type" => {
                let one = std::slice::from_ref(says);
                let names = says.as_array().map_or(one, Vec::as_slice);
                if !names.iter().any(|name| is(value, name)) {
                    return no(&says.to_string());
                }
            }
            "enum" if !all().contains(value) => return no(&says.to_string()),
            "const" if says != value => return no(&says.to_string()),
            "anyOf" if !all().iter().any(|s| fits(&s)) => return no("any of them"),
            "oneOf" if all().iter().filter(fits).count() != 1 => return no("one of them"),
            "allOf" if !all().iter().all(|s| fits(&s)) => return no("all of them"),
            "pattern" => {
                let pattern = regex::Regex::new(text()).expect("a pattern");
                if value.as_str().is_some_and(|text| !pattern.is_match(text)) {
                    return no(text());
                }
            }
            "minimum" if value.as_f64().is_some_and(|n| n < number()) => {
                return no(&format!("at least {says}"));
            }
            "maximum" if value.as_f64().is_some_and(|n| n > number()) => {
                return no(&format!("at most {says}"));
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, says, item, &format!("{at}[{n}]"))?;
                }
            }
            "required" => {
                let lacks = |name: &&Value| value.get(name.as_str().expect("a name")).is_none();
                if let (true, Some(name)) = (value.is_object(), all().iter().find(lacks)) {
                    return no(&format!("with {name}"));
                }
            }
            "properties" => {
                for (name, schema) in says.as_object().expect("a table") {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value, &format!("{at}.{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                let known = node.get("properties").and_then(Value::as_object);
                let known = |name: &str| known.is_some_and(|known| known.contains_key(name));
                for (name, value) in value.as_object().into_iter().flatten() {
                    if !known(name) {
                        check(root, says, value, &format!("{at}.{name}"))?;
                    }
                }
            }
            "enum" | "const" | "anyOf" | "oneOf" | "allOf" | "minimum" | "maximum" | "title"
            | "description" | "default" | "format" | "$schema" | "$defs" => {}
            word => panic!("{at}: a word that this does not know: {word}"),
        }
    }
    Ok(())
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str().expect("a type's name") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("no type is called {other}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Good,
    Bad,
    /// Bad by another field, or by the number in a text: the schema lets it pass.
    BadByValue,
}
use Verdict::{Bad, BadByValue, Good};

const CASES: &[(&str, Verdict)] = &[
    ("", Good),
    // Words.
    ("retries = {}", Bad),
    ("retry = {}", Good),
    ("retry = { attempt = 2 }", Bad),
    ("retry = 2", Bad),
    ("outlier = { success_rate = { hosts = 3 } }", Bad),
    ("inbound = { shed = {}, limit = 3 }", Bad),
    // Units.
    (
        "timeouts = { request = \"3s\", backendRequest = \"800ms\", connect = \"1_000us\" }",
        Good,
    ),
    ("timeouts = { request = \"0s\" }", Good),
    ("timeouts = { request = \"0\" }", Good),
    ("timeouts = { request = 3 }", Bad),
    ("timeouts = { request = \"3\" }", Bad),
    ("timeouts = { request = \"3 parsecs\" }", Bad),
    ("timeouts = { request = \"-3s\" }", Bad),
    (
        "timeouts = { request = \"1s\", backendRequest = \"2s\" }",
        BadByValue,
    ),
    ("timeouts = { connect = \"0s\" }", BadByValue),
    ("rate_limit = \"100/s burst 200\"", Good),
    ("rate_limit = \"1000/5m\"", Good),
    ("rate_limit = \"0/s\"", Bad),
    ("rate_limit = 100", Bad),
    ("rate_limit = \"100 a second\"", Bad),
    // Retries and hedges.
    ("retry = { attempts = 0 }", Good),
    ("retry = { attempts = 10 }", Good),
    ("retry = { attempts = 11 }", Bad),
    ("retry = { attempts = -1 }", Bad),
    (
        "retry = { codes = [400, 599], grpc = [\"UNAVAILABLE\"], errors = [\"reset\"] }",
        Good,
    ),
    ("retry = { codes = [200] }", Bad),
    ("retry = { codes = 503 }", Bad),
    ("retry = { grpc = [\"SOMETIMES\"] }", Bad),
    ("retry = { grpc = [\"OK\"] }", BadByValue),
    ("retry = { errors = [\"gremlins\"] }", Bad),
    (
        "retry = { backoff = \"25ms..250ms\", jitter = \"decorrelated\" }",
        Good,
    ),
    ("retry = { backoff = \"25ms\" }", Good),
    ("retry = { backoff = \"25ms-250ms\" }", Bad),
    ("retry = { backoff = \"2s..1s\" }", BadByValue),
    ("retry = { jitter = \"some\" }", Bad),
    (
        "retry = { budget = \"20% min 3/s\", in_flight = \"50% min 10\" }",
        Good,
    ),
    ("retry = { budget = \"a fifth\" }", Bad),
    ("retry = { budget = \"2000%\" }", BadByValue),
    ("retry = { cost = { tokens = 10, retry = 5 } }", Good),
    ("retry = { cost = { retry = 0 } }", Bad),
    ("retry = { replay = \"64KiB\" }", Good),
    ("retry = { replay = 65536 }", Bad),
    ("retry = { replay = \"2MiB\" }", BadByValue),
    ("hedge = { after = \"p95\" }", Good),
    ("hedge = { after = \"p99.9\", max = 4 }", Good),
    ("hedge = { after = \"50ms\" }", Good),
    ("hedge = { after = \"soon\" }", Bad),
    ("hedge = { after = \"p10\" }", BadByValue),
    ("hedge = { max = 0 }", Bad),
    ("hedge = { max = 5 }", Bad),
    // Breaker.
    (
        "breaker = { over = \"100 calls\", failure_rate = 0.5 }",
        Good,
    ),
    (
        "breaker = { over = \"fading 100 calls\", failure_rate = \"50%\" }",
        Good,
    ),
    ("breaker = { over = \"10s\", slow_rate = 1 }", Good),
    ("breaker = { over = \"10 minutes\" }", Bad),
    ("breaker = { over = \"0s\" }", BadByValue),
    ("breaker = { failure_rate = -0.5 }", Bad),
    ("breaker = { failure_rate = \"half\" }", Bad),
    ("breaker = { failure_rate = \"0%\" }", BadByValue),
    ("breaker = { failure_rate = \"101%\" }", BadByValue),
    ("breaker = { probes = 0 }", Bad),
    ("breaker = { probes = 4096 }", Bad),
    ("breaker = { probes = 2.5 }", Bad),
    ("breaker = { buckets = 0 }", Bad),
    ("breaker = { min_requests = 0 }", Bad),
    ("breaker = { open_multiplier = 0.5 }", Bad),
    ("breaker = { open_multiplier = 1.5 }", Good),
    ("breaker = { open_for = \"5\" }", Bad),
    (
        "breaker = { open_for = \"5s\", open_for_max = \"1s\" }",
        BadByValue,
    ),
    ("breaker = { mode = \"forced_open\" }", Good),
    ("breaker = { mode = \"ajar\" }", Bad),
    // Limits.
    ("bulkhead = 7", Good),
    ("bulkhead = 0", Bad),
    ("bulkhead = \"7\"", Bad),
    (
        "bulkhead = { max = 7, queue = { max = 3, wait = \"1s\", order = \"fifo\" } }",
        Good,
    ),
    ("bulkhead = { queue = {} }", Bad),
    ("bulkhead = { max = 7, queue = { max = 0 } }", Bad),
    (
        "bulkhead = { max = 7, queue = { order = \"shortest\" } }",
        Bad,
    ),
    ("concurrency = { algorithm = \"vegas\" }", Good),
    (
        "concurrency = { algorithm = { aimd = { backoff = \"90%\" } } }",
        Good,
    ),
    ("concurrency = { algorithm = \"guess\" }", Bad),
    ("concurrency = { algorithm = { guess = {} } }", Bad),
    (
        "concurrency = { algorithm = { aimd = {}, vegas = {} } }",
        Bad,
    ),
    (
        "concurrency = { algorithm = { gradient2 = { long_window = 9 } } }",
        Bad,
    ),
    ("concurrency = { min = 0 }", Bad),
    ("concurrency = { min = 300, max = 250 }", BadByValue),
    (
        "concurrency = { partitions = { live = \"90%\", batch = \"10%\" }, partition_by = { header = \"x-class\" } }",
        Good,
    ),
    (
        "concurrency = { partitions = { live = \"90%\", batch = \"20%\" } }",
        BadByValue,
    ),
    ("throttle = { form = { kind = \"accepts\", k = 2 } }", Good),
    (
        "throttle = { form = { kind = \"success\", threshold = \"95%\" } }",
        Good,
    ),
    (
        "throttle = { form = { kind = \"accepts\", threshold = \"95%\" } }",
        Bad,
    ),
    ("throttle = { form = { kind = \"accepts\", k = 0.5 } }", Bad),
    ("throttle = { form = { k = 2 } }", Bad),
    ("throttle = { window = \"0s\" }", BadByValue),
    // Endpoints.
    (
        "balance = { policy = \"least_request\", virtual_nodes = 4096 }",
        Good,
    ),
    ("balance = { policy = \"luck\" }", Bad),
    ("balance = { virtual_nodes = 0 }", Bad),
    ("balance = { virtual_nodes = 4097 }", Bad),
    ("balance = { hash_on = \"path\" }", Good),
    ("balance = { hash_on = { header = \"x-user\" } }", Good),
    (
        "balance = { hash_on = { header = \"x-user\", cookie = \"c\" } }",
        Bad,
    ),
    ("balance = { hash_on = { header = \"a b\" } }", BadByValue),
    (
        "balance = { slow_start = { window = \"10s\", aggression = 2 } }",
        Good,
    ),
    (
        "balance = { locality = { overprovisioning = \"50%\" } }",
        BadByValue,
    ),
    (
        "outlier = { consecutive_5xx = 0, max_ejected = \"30%\" }",
        Good,
    ),
    ("outlier = { consecutive_5xx = 65536 }", Bad),
    ("outlier = { max_ejected = \"150%\" }", BadByValue),
    (
        "outlier = { success_rate = { enforce = true, min_hosts = 1 } }",
        Bad,
    ),
    ("outlier = { latency = { min_hosts = 2 } }", Bad),
    // Coalescing.
    ("coalesce = {}", Good),
    (
        "coalesce = { headers = [\"x-tenant\"], cookies = true, errors = \"retry\" }",
        Good,
    ),
    ("coalesce = { errors = \"ignore\" }", Bad),
    ("coalesce = { keys = 0 }", Bad),
    ("coalesce = { keyz = 1 }", Bad),
    ("coalesce = { headers = [\"a b\"] }", BadByValue),
    ("coalesce = { headers = [\"cookie\"] }", BadByValue),
    ("coalesce = { body = \"17MiB\" }", BadByValue),
    // Faults and fallbacks.
    (
        "fault = { delay = { fixed = \"1s\", percentage = \"1%\" } }",
        Good,
    ),
    ("fault = { delay = { percentage = \"1%\" } }", BadByValue),
    (
        "fault = { abort = { status = 503, percentage = 0.01 } }",
        Good,
    ),
    ("fault = { abort = { status = 99 } }", Bad),
    ("fault = { abort = { grpc_status = 17 } }", Bad),
    (
        "fault = { abort = { status = 503, reset = true } }",
        BadByValue,
    ),
    (
        "fault = { headers = [{ name = \"x-chaos\", exact = \"1\" }] }",
        Good,
    ),
    ("fault = { headers = [{ exact = \"1\" }] }", Bad),
    ("fault = { max_active = 0 }", Bad),
    (
        "fallback = { statuses = [500], answer = { status = 200, body = \"[]\" } }",
        Good,
    ),
    ("fallback = { statuses = [404] }", Bad),
    ("fallback = { answer = { status = 100 } }", Bad),
    (
        "fallback = { statuses = [], rejected = false, failed = false }",
        BadByValue,
    ),
    // Being called.
    (
        "inbound = { shed = { target = \"20ms\", samples = 10 } }",
        Good,
    ),
    ("inbound = { shed = { samples = 0 } }", Bad),
    ("inbound = { shed = { decrease = \"100%\" } }", BadByValue),
    (
        "inbound = { rate_limit = { rate = \"100/s\", by = { header = \"x-api-key\" } } }",
        Good,
    ),
    ("inbound = { rate_limit = { by = \"source\" } }", Bad),
    (
        "inbound = { rate_limit = { rate = \"100/s\", by = \"mood\" } }",
        Bad,
    ),
    (
        "inbound = { rate_limit = { rate = \"100/s\", keys = { capacity = 0 } } }",
        Bad,
    ),
    ("inbound = { bulkhead = 0 }", Bad),
];

fn parse(text: &str) -> Result<(), String> {
    let policy: TrafficPolicy = toml::from_str(text).map_err(|error| error.to_string())?;
    policy.validate().map_err(|error| error.to_string())
}

#[test]
fn what_is_good_to_the_parser_is_good_to_the_schema() {
    let schema: Value = serde_json::from_str(&TrafficPolicy::json_schema_text()).expect("JSON");
    let mut wrong = Vec::new();
    for (text, verdict) in CASES {
        let document: toml::Value = toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let document = serde_json::to_value(document).expect("JSON");
        let parsed = parse(text);
        let checked = check(&schema, &schema, &document, "policy");
        let found = match (&parsed, &checked) {
            (Ok(()), Ok(())) => Some(Good),
            (Err(_), Err(_)) => Some(Bad),
            (Err(_), Ok(())) => Some(BadByValue),
            (Ok(()), Err(_)) => None,
        };
        if found != Some(*verdict) {
            wrong.push(format!(
                "{text}: {verdict:?}, but parser {parsed:?}, schema {checked:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A section that is new must show here what is right in it, and what is wrong.
#[test]
fn every_section_of_the_policy_has_good_and_bad_cases() {
    let schema: Value = serde_json::from_str(&TrafficPolicy::json_schema_text()).expect("JSON");
    for section in schema["properties"].as_object().expect("sections").keys() {
        let has = |good: bool| {
            CASES.iter().any(|(text, verdict)| {
                text.starts_with(section.as_str()) && (*verdict == Good) == good
            })
        };
        assert!(has(true) && has(false), "{section}");
    }
}
