//! Every field of the document at its ends: a value is refused with its path, itself and what is
//! allowed, or calls are made with it. Nothing panics.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use selvedge_resilience::{
    Rng, TrafficPolicy,
    balance::{Locality, Member},
    config::PolicyError,
    layer::{BoxError, Caller, Inbound, ReplayBody, ServiceTransport, Stack},
    metrics::Samples,
};
use tower::service_fn;

/// Together they have every key; in each, what it is about is not kept from work by the rest.
const WHOLE: &[&str] = &[
    r#"
    timeouts = { request = "15s", backendRequest = "5s", connect = "1s" }
    balance  = { policy = "round_robin" }
    [retry]
    attempts = 2
    codes = [502, 503]
    grpc = ["UNAVAILABLE"]
    errors = ["connect", "reset", "timeout", "other"]
    backoff = "25ms..250ms"
    jitter = "decorrelated"
    budget = "20% min 3/s"
    in_flight = "50% min 10"
    cost = { tokens = 500, retry = 5, after_timeout = 10, success = 1 }
    non_idempotent = false
    replay = "64KiB"
    retry_after_max = "5s"
    grpc_trailers = "1s"
    announce = true
    [hedge]
    after = "5ms"
    max = 1
    min_delay = "1ms"
    max_delay = "2s"
    window = "30s"
    min_samples = 1
    non_idempotent = false
    replay = "64KiB"
    grpc_trailers = "1s"
    announce = true
    "#,
    r#"
    rate_limit = "500/s burst 1000"
    hedge      = { after = "p50", min_samples = 1 }
    bulkhead   = { max = 1, queue = { max = 100, wait = "1ms", order = "adaptive", overload_after = "1ms" } }
    fallback   = { statuses = [502, 503], rejected = true, failed = true, answer = { status = 200, content_type = "text/plain", body = "-" } }
    "#,
    r#"
    retry    = { jitter = "equal" }
    coalesce = { headers = ["accept"], cookies = false, body = "256KiB", gather = "1s", keys = 1024, errors = "share" }
    "#,
    r#"
    [breaker]
    mode = "auto"
    failure_rate = "50%"
    slow_rate = "50%"
    slow_after = "15ms"
    consecutive = 3
    over = "10s"
    buckets = 10
    min_requests = 4
    open_for = "20ms"
    open_multiplier = 2.0
    open_for_max = "60s"
    open_jitter = "50%"
    probes = 1
    close_rate = "50%"
    probe_wait = "60s"
    on_cancel = "judge"
    "#,
    r#"breaker = { over = "100 calls", min_requests = 1, open_jitter = "100%", open_for = "1ms" }"#,
    r#"breaker = { over = "fading 100 calls", min_requests = 1, open_for = "1ms" }"#,
    r#"throttle = { form = { kind = "accepts", k = 1.5 }, window = "2m", max = "90%", min_requests = 1 }"#,
    r#"throttle = { form = { kind = "success", threshold = "95%", aggression = 2.0 }, min_requests = 1 }"#,
    r#"
    [concurrency]
    initial = 20
    min = 20
    max = 200
    window = "10ms"
    min_samples = 1
    min_rtt = "0s"
    drop_after = "5s"
    queue = { max = 100, wait = "100ms", order = "lifo", overload_after = "100ms" }
    partitions = { interactive = "70%" }
    partition_by = { header = "x-class" }
    algorithm = { gradient2 = { queue = 4, smoothing = "20%", tolerance = "150%", long_window = 600 } }
    "#,
    r#"concurrency = { initial = 20, window = "10ms", min_samples = 1, min_rtt = "0s", algorithm = { gradient = { buffer = "25%", jitter = "15%", measure_every = "60s", measure_limit = 3, measure_samples = 5 } } }"#,
    r#"concurrency = { window = "10ms", min_samples = 1, min_rtt = "0s", algorithm = { vegas = { alpha = 3, beta = 6, decrease = "90%", probe_every = 30, smoothing = "50%" } } }"#,
    r#"concurrency = { window = "10ms", min_samples = 1, min_rtt = "0s", algorithm = { aimd = { backoff = "90%" } } }"#,
    r#"concurrency = { window = "10ms", min_samples = 1, min_rtt = "0s", min = 1, algorithm = { cubic = { beta = "70%", scale = 0.4 } } }"#,
    r#"
    [fault]
    delay = { fixed = "3ms", percentage = "50%", by_header = true, max = "10s" }
    abort = { status = 503, percentage = "5%", by_header = true }
    headers = [{ name = "x-chaos", exact = "yes", invert = true }]
    max_active = 100
    "#,
    r#"
    fault   = { abort = { grpc_status = 14, percentage = "50%" }, headers = [{ name = "x-chaos", prefix = "yes", invert = true }] }
    balance = { policy = "ring_hash", load_factor = "125%", virtual_nodes = 160, hash_on = { header = "x-user" } }
    "#,
    r#"
    fault   = { abort = { reset = true, percentage = "50%" } }
    balance = { policy = "maglev", hash_on = { cookie = "session" } }
    "#,
    r#"
    [balance]
    policy = "peak_ewma"
    decay = "10s"
    subset = 0
    panic_threshold = "50%"
    slow_start = { window = "30s", aggression = 1.5, min_weight = "10%" }
    locality = { overprovisioning = "140%", callers = "30%" }
    [outlier]
    consecutive_5xx = 2
    consecutive_gateway = 2
    consecutive_local_origin = 2
    consecutive_connect = 1
    interval = "200ms"
    eject = "30ms"
    eject_max = "300s"
    eject_jitter = "1ms"
    max_ejected = "50%"
    always_eject_one = true
    "#,
    r#"
    balance = { policy = "round_robin" }
    [outlier]
    consecutive_5xx = 0
    consecutive_connect = 0
    interval = "200ms"
    eject = "30ms"
    success_rate = { enforce = true, min_hosts = 2, min_requests = 1, deviations = 1.9, min_gap = "5%" }
    failure_percentage = { enforce = true, threshold = "85%", min_hosts = 2, min_requests = 1 }
    latency = { enforce = true, quantile = "50%", factor = 3.0, min_gap = "0s", min_hosts = 3, min_requests = 1 }
    "#,
    r#"
    [inbound]
    shed = { target = "100us", window = "1s", samples = 2, decrease = "5%", increase = "1%" }
    rate_limit = { rate = "100/s", by = "source", keys = { capacity = 10000, idle = "10m" } }
    bulkhead = { max = 1, queue = { max = 1, wait = "100ms" } }
    concurrency = { min = 10, max = 500 }
    "#,
    r#"inbound = { rate_limit = { rate = "10/s", by = { header = "x-api-key" } } }"#,
];

/// What is too much only together.
const TOGETHER: &[&str] = &[
    r#"
    timeouts = { request = "213000000000000d", backendRequest = "213000000000000d", connect = "213000000000000d" }
    retry    = { backoff = "213000000000000d..213000000000000d", retry_after_max = "213000000000000d", grpc_trailers = "213000000000000d", jitter = "decorrelated" }
    hedge    = { max_delay = "213000000000000d", grpc_trailers = "213000000000000d", min_samples = 1 }
    "#,
    r#"breaker = { open_for = "213000000000000d", open_for_max = "213000000000000d", open_jitter = "100%", open_multiplier = 100.0, probe_wait = "213000000000000d", over = "213000000000000d", slow_after = "213000000000000d", consecutive = 1 }"#,
    r#"outlier = { eject = "213000000000000d", eject_max = "213000000000000d", eject_jitter = "213000000000000d", interval = "1us" }"#,
    r#"bulkhead = { max = 1, queue = { wait = "213000000000000d", overload_after = "213000000000000d" } }"#,
    r#"concurrency = { window = "1us", min_rtt = "0s", min_samples = 1, drop_after = "213000000000000d", min = 1, initial = 1, algorithm = { gradient = { measure_every = "213000000000000d", jitter = "100%", buffer = "99999999999999%", measure_limit = 1 } } }"#,
    r#"fault = { delay = { fixed = "213000000000000d", percentage = "100%", max = "213000000000000d" } }"#,
    r#"balance = { decay = "213000000000000d", slow_start = { window = "213000000000000d", aggression = 1e300 }, locality = { overprovisioning = "99999999999999%" }, load_factor = "99999999999999%" }"#,
    r#"inbound = { shed = { target = "213000000000000d", window = "213000000000000d" }, rate_limit = { rate = "1/213000000000000d burst 4294967295", keys = { idle = "213000000000000d" } } }"#,
];

/// What is seen to happen with the documents as they are.
const HAPPENS: &[&str] = &[
    "selvedge.adaptive.windows",
    "selvedge.breaker.slow",
    "selvedge.breaker.transitions closed open consecutive",
    "selvedge.breaker.transitions closed open failure_rate",
    "selvedge.breaker.transitions half_open open",
    "selvedge.coalesce.followers",
    "selvedge.fault.injected abort",
    "selvedge.fault.injected delay",
    "selvedge.hedge.won",
    "selvedge.keyed.tracked",
    "selvedge.limit.refused",
    "selvedge.outlier.ejections consecutive_connect",
    "selvedge.outlier.ejections failure_percentage",
    "selvedge.outlier.ejections latency",
    "selvedge.outlier.ejections success_rate",
    "selvedge.rate_limit.refused",
    "selvedge.retry.budget.withdrawn",
    "selvedge.shed.overloaded",
    "selvedge.throttle.refused",
];

const WHOLE_NUMBERS: &[i64] = &[
    -1,
    0,
    1,
    2,
    3,
    10,
    11,
    16,
    17,
    199,
    600,
    4_096,
    4_097,
    65_536,
    1_000_001,
    16_777_217,
    4_294_967_295,
    4_294_967_296,
];
const FRACTIONS: &[f64] = &[
    -1.0,
    0.0,
    1e-300,
    0.999,
    1.0,
    1.001,
    100.0,
    100.1,
    1e300,
    f64::NAN,
    f64::INFINITY,
];
/// Each field understands some of them; 213 000 000 000 000 days are just below 2⁶⁴ seconds.
const TEXTS: &[&str] = &[
    "",
    "0s",
    "1us",
    "1ms",
    "999ms",
    "24h",
    "600d",
    "1000000d",
    "213000000000000d",
    "0%",
    "0.00001%",
    "0.1%",
    "50%",
    "99.9999%",
    "100%",
    "100.1%",
    "1000%",
    "1001%",
    "99999999999999%",
    "0B",
    "1B",
    "1MiB",
    "1025KiB",
    "16MiB",
    "17MiB",
    "8000000000GiB",
    "1/s",
    "1/213000000000000d",
    "4294967295/s burst 4294967295",
    "1/s burst 4294967295",
    "0%",
    "0% min 4294967295/s",
    "1000% min 1000000/s",
    "0% min 4294967295",
    "1000% min 1",
    "0s..0s",
    "0s..213000000000000d",
    "213000000000000d..213000000000000d",
    "2s..1s",
    "0 calls",
    "1 calls",
    "1048576 calls",
    "1048577 calls",
    "4294967295 calls",
    "fading 0 calls",
    "fading 1 calls",
    "fading 4294967295 calls",
    "p0",
    "p49",
    "p50",
    "p99.9",
    "p99.99",
    "p100",
    "a b",
    "x\ny",
    "Cookie",
    "UNAVAILABLE",
];

/// Makes calls with `policy`, and as many after it has become `then`. What has happened: names of
/// counters and what they tell apart.
fn calls(policy: &TrafficPolicy, then: &TrafficPolicy) -> Result<BTreeSet<String>, PolicyError> {
    then.validate()?;
    let inbound = Inbound::new(policy.inbound.clone())?;
    let stack = Stack::<u8>::with_rng(policy.clone(), Rng::new(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        stack.set_locality(Locality::new("here", "a"));
        stack.set_members((0..5).map(|n| {
            let far = Locality::new("here", if n < 3 { "a" } else { "b" });
            Member::new(n).locality(far)
        }));
        drive(&stack, &inbound).await;
        inbound.reconfigure(then.inbound.clone())?;
        stack.reconfigure(then.clone())?;
        drive(&stack, &inbound).await;
        Ok(seen(&stack, &inbound))
    })
}

/// Good answers, slow ones, all kinds of bad ones, two questions at a time.
async fn drive(stack: &Stack<u8>, inbound: &Inbound) {
    let asked = AtomicU32::new(0);
    let aim = |key: &u8, request: &mut Request<ReplayBody<Empty<Bytes>>>| {
        request.extensions_mut().insert(*key);
    };
    let callee = service_fn(|request: Request<ReplayBody<Empty<Bytes>>>| {
        let n = asked.fetch_add(1, Relaxed);
        let key = request.extensions().get::<u8>().copied();
        async move {
            let millis = if key == Some(4) { 30 } else { 1 };
            tokio::time::sleep(Duration::from_millis(millis)).await;
            let refused = io::ErrorKind::ConnectionRefused;
            let answer = Response::builder();
            let answer = match n % 7 {
                _ if key == Some(0) => answer.status(500),
                1 => answer.status(503),
                2 => return Err(BoxError::from(io::Error::from(refused))),
                3 => answer.status(429).header("retry-after", u64::MAX),
                _ => answer.status(200),
            };
            Ok(answer.body(Empty::<Bytes>::new()).expect("valid"))
        }
    });
    let transport = ServiceTransport::new(callee, aim);
    for n in 0..50_u32 {
        let call = async || {
            let request = Request::get(format!("/{n}")).header("x-user", n);
            let (head, ()) = request.body(()).expect("valid").into_parts();
            let caller = Caller {
                source: Some(IpAddr::V4(Ipv4Addr::from(n))),
                ..Caller::default()
            };
            let held = inbound.admit(&head, caller).await;
            let request = Request::from_parts(head, Empty::new());
            let answer = stack.call(&transport, request, ()).await;
            if let Ok(answer) = answer {
                drop(answer.into_body().collect().await);
            }
            drop(held);
        };
        // Callers of little patience, also where the policy has all of it.
        let patience = Duration::from_secs(20);
        let both = async { tokio::join!(call(), call()) };
        drop(tokio::time::timeout(patience, both).await);
        tokio::time::advance(Duration::from_millis(3)).await;
    }
    stack.tick();
    inbound.tick();
    assert_eq!(stack.status().endpoints.len(), 5);
}

fn seen(stack: &Stack<u8>, inbound: &Inbound) -> BTreeSet<String> {
    let now = tokio::time::Instant::now().into_std();
    let samples = [stack.to_samples(now), inbound.to_samples(now)].concat();
    let counted = samples.iter().filter(|sample| sample.value > 0.0);
    counted
        .map(|sample| {
            // `policy` and `name` are the same for all.
            let labels = sample.labels.iter().skip(2);
            labels.fold(sample.metric.to_owned(), |all, (_, value)| {
                format!("{all} {value}")
            })
        })
        .collect()
}

/// The fields of a document, as steps to them.
fn leaves(value: &toml::Value, at: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
    let children: Vec<(String, &toml::Value)> = match value {
        toml::Value::Table(table) => table.iter().map(|(k, v)| (k.clone(), v)).collect(),
        toml::Value::Array(list) => {
            let numbered = list.iter().enumerate();
            numbered.map(|(n, v)| (n.to_string(), v)).collect()
        }
        _ => return all.push(at.clone()),
    };
    for (key, child) in children {
        at.push(key);
        leaves(child, at, all);
        at.pop();
    }
}

fn leaf<'a>(root: &'a mut toml::Value, steps: &[String]) -> &'a mut toml::Value {
    steps.iter().fold(root, |value, step| match value {
        toml::Value::Table(table) => table.get_mut(step).expect("a key"),
        toml::Value::Array(list) => &mut list[step.parse::<usize>().expect("a number")],
        other => panic!("no way to {step} in {other}"),
    })
}

/// Steps as an error's path: without numbers.
fn path(steps: &[String]) -> String {
    let named: Vec<&str> = steps
        .iter()
        .map(String::as_str)
        .filter(|step| !step.chars().all(|c| c.is_ascii_digit()))
        .collect();
    named.join(".")
}

fn candidates(of: &toml::Value) -> Vec<toml::Value> {
    match of {
        toml::Value::Integer(_) => WHOLE_NUMBERS.iter().map(|&n| n.into()).collect(),
        toml::Value::Float(_) => FRACTIONS.iter().map(|&n| n.into()).collect(),
        toml::Value::String(_) => TEXTS.iter().map(|&t| t.into()).collect(),
        toml::Value::Boolean(is) => vec![(!is).into()],
        other => panic!("no such field: {other}"),
    }
}

#[test]
fn every_field_at_its_ends_is_refused_by_name_or_works() {
    let mut wrong = Vec::new();
    let (mut refused, mut worked, mut happened) = (0, 0, BTreeSet::new());
    for whole in WHOLE {
        let whole: toml::Value = toml::from_str(whole).expect("TOML");
        let own: TrafficPolicy = whole.clone().try_into().expect("a policy");
        happened.extend(calls(&own, &own).expect("the documents themselves work"));
        let mut fields = Vec::new();
        leaves(&whole, &mut Vec::new(), &mut fields);
        for steps in &fields {
            let written = leaf(&mut whole.clone(), steps).clone();
            for candidate in candidates(&written) {
                let mut changed = whole.clone();
                *leaf(&mut changed, steps) = candidate.clone();
                let name = format!("{} = {candidate}", path(steps));
                let Ok(policy) = changed.try_into::<TrafficPolicy>() else {
                    continue;
                };
                match catch_unwind(AssertUnwindSafe(|| calls(&own, &policy))) {
                    Err(_) => wrong.push(format!("{name} panics")),
                    Ok(Ok(_)) => worked += 1,
                    Ok(Err(error)) => {
                        refused += 1;
                        let named = error.path == path(steps)
                            || RELATED.contains(&(path(steps).as_str(), error.path.as_str()));
                        let says = !error.value.is_empty() && !error.allowed.is_empty();
                        let value = !candidate.is_integer()
                            || error.path != path(steps)
                            || error.value == candidate.to_string();
                        if !(named && says && value) {
                            wrong.push(format!("{name}: {error}"));
                        }
                    }
                }
            }
        }
    }
    for text in TOGETHER {
        let policy: TrafficPolicy = toml::from_str(text).expect(text);
        let made = catch_unwind(AssertUnwindSafe(|| calls(&policy, &policy)));
        if !matches!(made, Ok(Ok(_))) {
            wrong.push(format!("{text}: {made:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    eprintln!("{refused} refused, {worked} work");
    assert!(refused > 200 && worked > 1_000);
    let never: Vec<_> = HAPPENS
        .iter()
        .filter(|what| !happened.iter().any(|seen| seen.starts_with(**what)))
        .collect();
    assert!(never.is_empty(), "{never:?} in {happened:#?}");
}

/// What another field makes impossible is named by that one.
const RELATED: &[(&str, &str)] = &[
    ("timeouts.request", "timeouts.backendRequest"),
    ("breaker.open_for_max", "breaker.open_for"),
    ("outlier.eject_max", "outlier.eject"),
    ("breaker.buckets", "breaker.over"),
    ("timeouts.backendRequest", "hedge.after"),
    ("timeouts.backendRequest", "hedge.min_delay"),
    ("retry.cost.tokens", "retry.cost.retry"),
    ("retry.cost.tokens", "retry.cost.after_timeout"),
    ("hedge.max_delay", "hedge.min_delay"),
    ("concurrency.max", "concurrency.min"),
    ("concurrency.max", "concurrency.initial"),
    ("concurrency.min", "concurrency.initial"),
    ("concurrency.drop_after", "concurrency.min_rtt"),
    (
        "concurrency.algorithm.vegas.alpha",
        "concurrency.algorithm.vegas.beta",
    ),
    ("inbound.concurrency.max", "inbound.concurrency.min"),
    ("inbound.concurrency.max", "inbound.concurrency.initial"),
    ("inbound.concurrency.min", "inbound.concurrency.initial"),
    ("fault.abort.reset", "fault.abort.status"),
];

/// A key that is new belongs into one of the documents.
#[cfg(feature = "schema")]
#[test]
fn the_documents_have_every_key() {
    let schema = schemars::schema_for!(TrafficPolicy);
    let mut known = BTreeSet::new();
    for whole in WHOLE {
        let whole: toml::Value = toml::from_str(whole).expect("TOML");
        let mut fields = Vec::new();
        leaves(&whole, &mut Vec::new(), &mut fields);
        for steps in fields {
            known.extend((1..=steps.len()).map(|n| path(&steps[..n])));
        }
    }
    let all = super::paths(schema.as_value());
    let missing: Vec<&String> = all
        .iter()
        .filter(|key| !super::AS_ABOVE.iter().any(|above| key.starts_with(above)))
        .filter(|key| !known.contains(*key))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
