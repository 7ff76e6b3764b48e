//! The stream that a Hystrix dashboard reads, from the state of a stack.
//!
//! A wall of circuits, each as large as its traffic and as red as its errors, is what operators know
//! of Hystrix; the dashboard outlived it. It reads one JSON object an event, and drops a circuit
//! without a word if a single field that it checks is missing. So every field is there, always, also
//! where this crate has nothing of the kind.
//!
//! | Hystrix | here |
//! |---|---|
//! | command | the calls of one stack, retries and hedges of a call included |
//! | short-circuited | refused by the circuit |
//! | semaphore rejected | refused by bulkhead, adaptive limit, rate limit or throttle |
//! | timeout | the deadline passed |
//! | bad request | an answer that says nothing of the callee's health; the caller's own fault |
//! | fallback success | the policy's fallback answered |
//! | thread pool | the slots of the bulkhead, else of the adaptive limit |
//!
//! ```
//! use std::time::SystemTime;
//! use selvedge_resilience::{TrafficPolicy, layer::Stack};
//!
//! let policy = TrafficPolicy::default();
//! let stack: Stack<&str> = Stack::<&str>::builder(policy).name("orders").build()?;
//! let watch = stack.watch(); // calls are counted from here on, until it is dropped
//! let mut events = String::new();
//! watch.write("shop", SystemTime::now(), &mut events);
//! assert!(events.starts_with(r#"data: {"type":"HystrixCommand","name":"orders""#));
//! assert!(events.ends_with("\n\n"));
//! # Ok::<_, selvedge_resilience::config::PolicyError>(())
//! ```
//!
//! # Guarantees
//! A call pays one relaxed load while nobody watches, and no lock or allocation while somebody does.
//!
//! # What it does not do
//! It opens no socket: send what is written as `text/event-stream`, about twice a second.
//! Percentiles are right to an eighth and look back on the last whole slices of ten seconds; what
//! takes less than 66 µs counts as that. Collapsers and caches are not ours: their counts are 0.
//!
//! # Source
//! `SerialHystrixDashboardData` for the fields, `HealthCounts` of Hystrix 1.5 for what counts as a
//! request and as an error (a short-circuited call is neither), `hystrixCommand.js` and
//! `hystrixThreadPool.js` for what is read.

use std::{
    fmt::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use crate::{
    TrafficPolicy,
    balance::Key,
    breaker::State,
    layer::{
        Stack, StackStatus,
        commands::{Event, PERCENTILES, Percentiles, View, WINDOW},
    },
};

/// Counts the calls of a stack while it is held.
#[derive(Debug)]
#[must_use = "nothing is counted once it is dropped"]
pub struct Watch<K: Key> {
    stack: Stack<K>,
}

impl<K: Key> Watch<K> {
    pub(crate) fn new(stack: Stack<K>) -> Self {
        stack.commands().watch();
        Self { stack }
    }

    /// Appends the stack's events under its own name: its command, and its slots if it has any.
    ///
    /// `group`: what the dashboard shows with it. `at`: the time that the events bear.
    pub fn write(&self, group: &str, at: SystemTime, to: &mut String) {
        self.write_as(self.stack.name(), group, at, to);
    }

    /// The same under another name.
    pub fn write_as(&self, name: &str, group: &str, at: SystemTime, to: &mut String) {
        let Some(view) = self.stack.commands().view(Instant::now()) else {
            return;
        };
        let status = self.stack.status();
        let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let of = Of {
            name,
            group,
            at: millis.as_millis(),
            view: &view,
        };
        self.stack
            .with_policy(|policy| command(&of, &status, policy, to));
        let picks = self.stack.balancer().picks();
        pool(&of, &status, picks, to);
    }
}

impl<K: Key> Drop for Watch<K> {
    fn drop(&mut self) {
        self.stack.commands().unwatch();
    }
}

struct Of<'a> {
    name: &'a str,
    group: &'a str,
    at: u128,
    view: &'a View,
}

/// What Hystrix says of a semaphore that has no end.
const UNLIMITED: u32 = i32::MAX as u32;

fn command<K>(of: &Of<'_>, status: &StackStatus<K>, policy: &TrafficPolicy, to: &mut String) {
    let count = |event| of.view.count(event);
    let (failed, timeout, rejected) = (
        count(Event::Failure),
        count(Event::Timeout),
        count(Event::Rejected),
    );
    let errors = failed + timeout + rejected;
    let requests = errors + count(Event::Success);
    let state = status.breaker.as_ref().map(|breaker| breaker.state);
    let mut json = Json::begin("HystrixCommand", of, to);
    json.text("group", of.group);
    let open = matches!(
        state,
        Some(State::Open | State::HalfOpen | State::ForcedOpen)
    );
    json.flag("isCircuitBreakerOpen", open);
    json.number(
        "errorPercentage",
        (errors * 100).checked_div(requests).unwrap_or(0),
    );
    json.number("errorCount", errors);
    json.number("requestCount", requests);
    let thrown = failed + timeout + rejected + count(Event::ShortCircuited);
    for (what, count) in [
        ("BadRequests", count(Event::BadRequest)),
        ("CollapsedRequests", 0),
        ("Emit", 0),
        (
            "ExceptionsThrown",
            thrown.saturating_sub(count(Event::FallbackSuccess)),
        ),
        ("Failure", failed),
        ("FallbackEmit", 0),
        ("FallbackFailure", 0),
        ("FallbackMissing", 0),
        ("FallbackRejection", 0),
        ("FallbackSuccess", count(Event::FallbackSuccess)),
        ("ResponsesFromCache", 0),
        ("SemaphoreRejected", rejected),
        ("ShortCircuited", count(Event::ShortCircuited)),
        ("Success", count(Event::Success)),
        ("ThreadPoolRejected", 0),
        ("Timeout", timeout),
    ] {
        json.key(&["rollingCount", what]);
        json.write(count);
    }
    json.number("currentConcurrentExecutionCount", of.view.in_flight);
    json.number("rollingMaxConcurrentExecutionCount", of.view.most);
    json.latency("latencyExecute", &of.view.execute);
    json.latency("latencyTotal", &of.view.total);
    properties(&mut json, state, status, policy);
    json.number("reportingHosts", 1u64);
    json.text("threadPool", of.name);
    json.end();
}

fn properties<K>(
    json: &mut Json<'_>,
    state: Option<State>,
    status: &StackStatus<K>,
    policy: &TrafficPolicy,
) {
    let breaker = policy.breaker.clone().unwrap_or_default();
    let slots = slots(status).map_or(UNLIMITED, |slots| slots.limit);
    let timeout = policy.timeouts.total().unwrap_or_default();
    let errors = breaker.failure_rate.fraction() * 100.0;
    let window = millis(WINDOW);
    let property = |json: &mut Json<'_>, name: &str, value: u64| {
        json.key(&["propertyValue_", name]);
        json.write(value);
    };
    property(
        json,
        "circuitBreakerRequestVolumeThreshold",
        breaker.min_calls().into(),
    );
    property(
        json,
        "circuitBreakerSleepWindowInMilliseconds",
        millis(breaker.open_for.0),
    );
    property(
        json,
        "circuitBreakerErrorThresholdPercentage",
        errors.round() as u64,
    );
    for (name, is) in [
        ("circuitBreakerForceOpen", state == Some(State::ForcedOpen)),
        ("circuitBreakerForceClosed", state == Some(State::Disabled)),
        ("circuitBreakerEnabled", state.is_some()),
        ("executionIsolationThreadInterruptOnTimeout", true),
        ("requestCacheEnabled", false),
        ("requestLogEnabled", false),
    ] {
        json.key(&["propertyValue_", name]);
        json.write(is);
    }
    json.text("propertyValue_executionIsolationStrategy", "SEMAPHORE");
    json.key(&["propertyValue_", "executionIsolationThreadPoolKeyOverride"]);
    json.write("null");
    for (name, value) in [
        (
            "executionIsolationThreadTimeoutInMilliseconds",
            millis(timeout),
        ),
        ("executionTimeoutInMilliseconds", millis(timeout)),
        (
            "executionIsolationSemaphoreMaxConcurrentRequests",
            slots.into(),
        ),
        (
            "fallbackIsolationSemaphoreMaxConcurrentRequests",
            UNLIMITED.into(),
        ),
        ("metricsRollingStatisticalWindowInMilliseconds", window),
    ] {
        property(json, name, value);
    }
}

struct Slots {
    in_flight: u32,
    limit: u32,
    waiting: u32,
}

fn slots<K>(status: &StackStatus<K>) -> Option<Slots> {
    let bulkhead = status.bulkhead.as_ref().map(|slots| Slots {
        in_flight: slots.in_flight,
        limit: slots.limit,
        waiting: slots.waiting,
    });
    bulkhead.or_else(|| {
        status.concurrency.as_ref().map(|slots| Slots {
            in_flight: slots.in_flight,
            limit: slots.limit,
            waiting: slots.waiting,
        })
    })
}

fn pool<K>(of: &Of<'_>, status: &StackStatus<K>, picks: u64, to: &mut String) {
    let Some(slots) = slots(status) else {
        return;
    };
    let view = of.view;
    let executed = [
        Event::Success,
        Event::Failure,
        Event::Timeout,
        Event::BadRequest,
    ];
    let executed: u64 = executed.map(|event| view.count(event)).iter().sum();
    let mut json = Json::begin("HystrixThreadPool", of, to);
    for (what, value) in [
        ("ActiveCount", slots.in_flight.into()),
        (
            "CompletedTaskCount",
            picks.saturating_sub(slots.in_flight.into()),
        ),
        ("CorePoolSize", slots.limit.into()),
        ("LargestPoolSize", slots.limit.into()),
        ("MaximumPoolSize", slots.limit.into()),
        ("PoolSize", slots.limit.into()),
        ("QueueSize", slots.waiting.into()),
        ("TaskCount", picks),
    ] {
        json.key(&["current", what]);
        json.write::<u64>(value);
    }
    json.number("rollingCountThreadsExecuted", executed);
    json.number("rollingMaxActiveThreads", view.most);
    json.number("rollingCountCommandRejections", view.count(Event::Rejected));
    json.number("propertyValue_queueSizeRejectionThreshold", slots.limit);
    let window = "propertyValue_metricsRollingStatisticalWindowInMilliseconds";
    json.number(window, millis(WINDOW));
    json.number("reportingHosts", 1u64);
    json.end();
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Writes one object as one event. Keys are our own and need no escapes.
struct Json<'a>(&'a mut String);

impl<'a> Json<'a> {
    fn begin(kind: &str, of: &Of<'_>, to: &'a mut String) -> Self {
        to.push_str("data: {\"type\":\"");
        to.push_str(kind);
        to.push('"');
        let mut json = Self(to);
        json.text("name", of.name);
        json.key(&["currentTime"]);
        json.write(of.at);
        json
    }

    fn key(&mut self, parts: &[&str]) {
        self.0.push_str(",\"");
        for part in parts {
            self.0.push_str(part);
        }
        self.0.push_str("\":");
    }

    fn write<T: std::fmt::Display>(&mut self, value: T) {
        // Writing to a `String` does not fail.
        let _infallible = write!(self.0, "{value}");
    }

    fn number(&mut self, key: &str, value: impl Into<u64>) {
        self.key(&[key]);
        self.write(value.into());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.key(&[key]);
        self.write(value);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(&[key]);
        self.0.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                c if c.is_control() => self.write(format_args!("\\u{:04x}", u32::from(c))),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    fn latency(&mut self, key: &str, (mean, percentiles): &Percentiles) {
        self.key(&[key, "_mean"]);
        self.write(mean);
        self.key(&[key]);
        for (n, ((name, _), value)) in PERCENTILES.iter().zip(percentiles).enumerate() {
            self.0.push_str(if n == 0 { "{\"" } else { ",\"" });
            self.0.push_str(name);
            self.0.push_str("\":");
            self.write(value);
        }
        self.0.push('}');
    }

    fn end(self) {
        self.0.push_str("}\n\n");
    }
}
