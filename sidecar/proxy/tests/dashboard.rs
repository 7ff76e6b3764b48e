//! The part of a Hystrix dashboard that reads: what it takes from a stream, and of which type.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

/// Source: `validateData` and `displayCircuit` of hystrixCommand.js, and its templates.
const COMMAND: &[(&str, &[&str])] = &[
    ("string", &["type", "name", "group"]),
    ("string", &["propertyValue_executionIsolationStrategy"]),
    (
        "boolean",
        &[
            "isCircuitBreakerOpen",
            "propertyValue_circuitBreakerForceOpen",
            "propertyValue_circuitBreakerForceClosed",
            "propertyValue_circuitBreakerEnabled",
            "propertyValue_executionIsolationThreadInterruptOnTimeout",
            "propertyValue_requestCacheEnabled",
            "propertyValue_requestLogEnabled",
        ],
    ),
    (
        "number",
        &[
            "reportingHosts",
            "currentTime",
            "errorPercentage",
            "errorCount",
            "requestCount",
            "rollingCountBadRequests",
            "rollingCountCollapsedRequests",
            "rollingCountEmit",
            "rollingCountExceptionsThrown",
            "rollingCountFailure",
            "rollingCountFallbackEmit",
            "rollingCountFallbackFailure",
            "rollingCountFallbackMissing",
            "rollingCountFallbackRejection",
            "rollingCountFallbackSuccess",
            "rollingCountResponsesFromCache",
            "rollingCountSemaphoreRejected",
            "rollingCountShortCircuited",
            "rollingCountSuccess",
            "rollingCountThreadPoolRejected",
            "rollingCountTimeout",
            "currentConcurrentExecutionCount",
            "rollingMaxConcurrentExecutionCount",
            "latencyExecute_mean",
            "latencyTotal_mean",
            "propertyValue_circuitBreakerRequestVolumeThreshold",
            "propertyValue_circuitBreakerSleepWindowInMilliseconds",
            "propertyValue_circuitBreakerErrorThresholdPercentage",
            "propertyValue_executionIsolationThreadTimeoutInMilliseconds",
            "propertyValue_executionTimeoutInMilliseconds",
            "propertyValue_executionIsolationSemaphoreMaxConcurrentRequests",
            "propertyValue_fallbackIsolationSemaphoreMaxConcurrentRequests",
            "propertyValue_metricsRollingStatisticalWindowInMilliseconds",
        ],
    ),
    ("object", &["latencyExecute", "latencyTotal"]),
];

/// Source: `validateData` of hystrixThreadPool.js, and its templates.
const POOL: &[(&str, &[&str])] = &[
    ("string", &["type", "name"]),
    (
        "number",
        &[
            "currentTime",
            "currentActiveCount",
            "currentCompletedTaskCount",
            "currentCorePoolSize",
            "currentLargestPoolSize",
            "currentMaximumPoolSize",
            "currentPoolSize",
            "currentQueueSize",
            "currentTaskCount",
            "rollingCountThreadsExecuted",
            "rollingMaxActiveThreads",
            "rollingCountCommandRejections",
            "reportingHosts",
            "propertyValue_queueSizeRejectionThreshold",
            "propertyValue_metricsRollingStatisticalWindowInMilliseconds",
        ],
    ),
];

const PERCENTILES: [&str; 9] = ["0", "25", "50", "75", "90", "95", "99", "99.5", "100"];

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::Object(_) => "object",
        _ => "nothing that it reads",
    }
}

pub(crate) fn check(event: &Value) {
    let fields = match event["type"].as_str() {
        Some("HystrixCommand") => COMMAND,
        Some("HystrixThreadPool") => POOL,
        _ => panic!("neither a command nor a pool: {event}"),
    };
    for (want, names) in fields {
        for name in *names {
            assert_eq!(kind(&event[*name]), *want, "{name} of {event}");
        }
    }
    if fields.len() == COMMAND.len() {
        for latency in ["latencyExecute", "latencyTotal"] {
            for percentile in PERCENTILES {
                let value = &event[latency][percentile];
                assert_eq!(kind(value), "number", "{latency} {percentile} of {event}");
            }
        }
    }
}

/// A subscriber.
pub(crate) struct Dashboard {
    lines: BufReader<TcpStream>,
    pub(crate) head: String,
}

impl Dashboard {
    pub(crate) fn open(admin: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(admin).expect("connect");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("set");
        let ask = "GET /hystrix.stream HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(ask.as_bytes()).expect("write");
        let (mut lines, mut head) = (BufReader::new(stream), String::new());
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(lines.read_line(&mut head).expect("a head"), 0, "{head}");
        }
        Self { lines, head }
    }

    pub(crate) fn is_served(&self) -> bool {
        self.head.starts_with("HTTP/1.1 200")
    }

    /// The next event of this type and name, checked.
    pub(crate) fn next(&mut self, of: &str, name: &str) -> Value {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("an event in time");
            assert_ne!(read, 0, "the stream ended");
            if let Some(json) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(json).expect("an object");
                check(&event);
                if event["type"] == of && event["name"] == name {
                    return event;
                }
            }
        }
    }

    /// Reads until an event says so.
    pub(crate) fn until(&mut self, name: &str, so: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..20 {
            let event = self.next("HystrixCommand", name);
            if so(&event) {
                return event;
            }
        }
        panic!("not within twenty events of {name}");
    }
}

/// The policy of the service under test: everything goes wrong in its own way.
pub(crate) const POLICY: &str = r#"
timeouts = { request = "300ms" }
bulkhead = 1
breaker = { consecutive = 2, open_for = "1m" }
fault = { headers = [{ name = "x-fail", exact = "1" }], abort = { status = 500, percentage = "100%" } }
"#;

/// What a dashboard sees of `name` while `ask(fields)` gets statuses from a service that takes a
/// second, under [`POLICY`].
pub(crate) fn sees_what_goes_wrong(
    admin: SocketAddr,
    name: &str,
    ask: impl Fn(&str) -> u16 + Sync,
) {
    let mut dashboard = Dashboard::open(admin);
    let head = dashboard.head.to_ascii_lowercase();
    assert!(
        head.contains("content-type: text/event-stream;charset=utf-8"),
        "{head}"
    );
    assert!(head.contains("cache-control: no-cache"), "{head}");
    let idle = dashboard.next("HystrixCommand", name);
    assert_eq!(
        (&idle["requestCount"], &idle["isCircuitBreakerOpen"]),
        (&0.into(), &false.into())
    );
    assert_eq!(ask("x-fail: 1\r\n"), 500);
    let mut both = std::thread::scope(|scope| {
        let asks = [scope.spawn(|| ask("")), scope.spawn(|| ask(""))];
        asks.map(|ask| ask.join().expect("asked"))
    });
    both.sort_unstable();
    assert_eq!(both, [503, 504], "one is refused, one is late");
    assert_eq!(ask(""), 503, "the circuit is open");
    let counted = dashboard.until(name, |event| event["rollingCountShortCircuited"] == 1);
    for (field, want) in [
        ("rollingCountFailure", 1),
        ("rollingCountTimeout", 1),
        ("rollingCountSemaphoreRejected", 1),
        ("rollingCountSuccess", 0),
        ("errorCount", 3),
        ("requestCount", 3),
        ("errorPercentage", 100),
        ("rollingMaxConcurrentExecutionCount", 2),
        ("currentConcurrentExecutionCount", 0),
        (
            "propertyValue_circuitBreakerSleepWindowInMilliseconds",
            60_000,
        ),
        ("propertyValue_executionTimeoutInMilliseconds", 300),
        (
            "propertyValue_executionIsolationSemaphoreMaxConcurrentRequests",
            1,
        ),
    ] {
        assert_eq!(counted[field], want, "{field} of {counted}");
    }
    assert_eq!(counted["isCircuitBreakerOpen"], true);
    let late = counted["latencyTotal"]["100"].as_u64().expect("a number");
    assert!((290..2_000).contains(&late), "{counted}");
    let pool = dashboard.next("HystrixThreadPool", name);
    assert_eq!(pool["rollingCountCommandRejections"], 1, "{pool}");
    assert_eq!(pool["currentMaximumPoolSize"], 1, "{pool}");
}

/// Subscribers are so many and no more, and leave no trace.
pub(crate) fn has_five_seats(admin: SocketAddr) {
    let seats: Vec<_> = (0..5).map(|_| Dashboard::open(admin)).collect();
    assert!(seats.iter().all(Dashboard::is_served));
    let refused = Dashboard::open(admin);
    assert!(refused.head.starts_with("HTTP/1.1 503"), "{}", refused.head);
    drop(seats);
    for _ in 0..500 {
        if Dashboard::open(admin).is_served() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("who has left still has a seat");
}
