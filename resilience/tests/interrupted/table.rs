//! Every layer, and what it must not hold when no call is under way.

use std::{borrow::Cow, fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use selvedge_resilience::{
    Rng, TrafficPolicy,
    adaptive::{AdaptiveConfig, AdaptiveLimit},
    balance::Member,
    breaker::{BreakerConfig, CircuitBreaker, State},
    bulkhead::{Bulkhead, BulkheadConfig, QueueConfig},
    coalesce::CoalesceConfig,
    expired::{ExpiredConfig, ExpiredFilter},
    fallback::FallbackConfig,
    fault::{FaultConfig, Faults},
    hedge::{Hedge, HedgeConfig},
    keyed::{Keyed, KeyedConfig},
    layer::{
        AdaptiveLayer, BoxError, BreakerLayer, BulkheadLayer, ByEndpoint, CoalesceLayer,
        ContextLayer, DeadlineLayer, FallbackLayer, FaultLayer, HedgeLayer, Inbound, InboundLayer,
        KeyedLayer, KeyedRateLimitLayer, PolicyLayer, QueueLayer, RateLimitLayer, RetryLayer,
        Stack, StackStatus, ThrottleLayer, TimeoutLayer, ToService, shed,
    },
    rate_limit::{KeyedRateLimit, KeyedRateLimitConfig, RateLimit},
    retry::{RetryConfig, budget::Budget},
    shed::{ShedConfig, Shedder},
    throttle::{Throttle, ThrottleConfig},
};
use serde::de::DeserializeOwned;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

use super::{call::Subject, callee::Callee};

/// Accounts, each of which is zero when no call is under way.
pub(super) type Books = Box<dyn Fn() -> Vec<(&'static str, i128)>>;

/// A layer around the callee.
pub(super) struct Under {
    pub(super) service: Subject,
    pub(super) books: Books,
}

pub(super) struct Row {
    pub(super) name: &'static str,
    /// The exports that it stands for.
    pub(super) layers: &'static [&'static str],
    pub(super) make: fn(Callee) -> Under,
    /// Whether a call beside another may be refused.
    pub(super) one_at_a_time: bool,
    /// Whether a failure may close it to the next call.
    pub(super) remembers_failures: bool,
}

impl Row {
    const fn new(
        name: &'static str,
        layers: &'static [&'static str],
        make: fn(Callee) -> Under,
    ) -> Self {
        Self {
            name,
            layers,
            make,
            one_at_a_time: false,
            remembers_failures: false,
        }
    }

    const fn one_at_a_time(mut self) -> Self {
        self.one_at_a_time = true;
        self
    }

    const fn remembers_failures(mut self) -> Self {
        self.remembers_failures = true;
        self
    }
}

/// `service` as every other one, and its books.
fn under<S, RB>(service: S, books: impl Fn() -> Vec<(&'static str, i128)> + 'static) -> Under
where
    S: Service<Request<Full<Bytes>>, Response = Response<RB>, Future: Send>,
    S: Clone + Send + 'static,
    S::Error: Display + 'static,
    RB: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let boxed = |answer: Response<RB>| {
        answer.map(|body| UnsyncBoxBody::new(body.map_err(Into::<BoxError>::into)))
    };
    Under {
        service: service
            .map_response(boxed)
            .map_err(|error: S::Error| error.to_string())
            .boxed_clone(),
        books: Box::new(books),
    }
}

fn read<T: DeserializeOwned>(text: &str) -> T {
    toml::from_str(text).expect(text)
}

fn circuit(breaker: &CircuitBreaker) -> Vec<(&'static str, i128)> {
    let calls = breaker.calls();
    let ended = i128::from(calls.completed() + calls.cancelled);
    vec![
        ("permits", calls.in_flight.into()),
        ("admitted, not ended", i128::from(calls.admitted()) - ended),
    ]
}

fn breaker(config: BreakerConfig) -> CircuitBreaker {
    CircuitBreaker::new(config).expect("valid")
}

/// With one probe, which the first call takes.
fn half_open() -> CircuitBreaker {
    let breaker = breaker(read("probes = 1\nclose_rate = \"100%\""));
    let now = tokio::time::Instant::now().into_std();
    breaker
        .transition_to(State::Open, now)
        .and_then(|()| breaker.transition_to(State::HalfOpen, now))
        .expect("legal");
    breaker
}

fn slots(bulkhead: &Bulkhead) -> Vec<(&'static str, i128)> {
    let status = bulkhead.status();
    vec![
        ("slots", status.in_flight.into()),
        ("waiting", status.waiting.into()),
    ]
}

fn adaptive(config: &str) -> AdaptiveLimit {
    AdaptiveLimit::new(read::<AdaptiveConfig>(config), Rng::new(1)).expect("valid")
}

fn limit(limit: &AdaptiveLimit) -> Vec<(&'static str, i128)> {
    let status = limit.status();
    vec![
        ("slots", status.in_flight.into()),
        ("waiting", status.waiting.into()),
    ]
}

fn under_way(budget: &Budget) -> Vec<(&'static str, i128)> {
    let now = budget.in_flight();
    vec![("calls", now.calls.into()), ("retries", now.extra.into())]
}

fn retries() -> RetryConfig {
    read(
        r#"attempts = 2
        backoff = "2ms..4ms"
        budget = "100% min 100/s""#,
    )
}

fn shedder() -> Shedder {
    Shedder::new(ShedConfig::default()).expect("valid")
}

fn some_host(request: &Request<Full<Bytes>>) -> Option<Cow<'_, str>> {
    request.uri().host().map(Cow::from)
}

fn host(request: &Request<Full<Bytes>>) -> Cow<'_, str> {
    some_host(request).unwrap_or_default()
}

fn inbound(text: &str, callee: Callee) -> Under {
    let inbound = Inbound::new(read(text)).expect("valid");
    under(
        InboundLayer::new(inbound.clone()).layer(callee),
        move || {
            let status = inbound.status();
            let slots = status.bulkhead.expect("in the policy").in_flight;
            let limit = status.concurrency.expect("in the policy").in_flight;
            vec![("slots", slots.into()), ("limit", limit.into())]
        },
    )
}

/// Everything but hedges and coalescing, which have rows of their own.
const POLICY: &str = r#"
    timeouts = { request = "100ms", backendRequest = "40ms" }
    retry = { attempts = 2, backoff = "2ms..4ms", budget = "100% min 100/s" }
    breaker = {}
    throttle = {}
    bulkhead = { max = 8, queue = {} }
    concurrency = {}
    rate_limit = "1000/s"
    fault = { delay = { fixed = "1ms", percentage = "100%" } }
"#;

fn left<K>(status: &StackStatus<K>) -> Vec<(&'static str, i128)> {
    let mut books = Vec::new();
    if let Some(circuit) = &status.breaker {
        let calls = circuit.calls;
        let ended = i128::from(calls.completed() + calls.cancelled);
        books.push(("permits", calls.in_flight.into()));
        books.push(("admitted, not ended", i128::from(calls.admitted()) - ended));
    }
    if let Some(bulkhead) = status.bulkhead {
        books.push(("slots", bulkhead.in_flight.into()));
        books.push(("waiting for a slot", bulkhead.waiting.into()));
    }
    if let Some(limit) = status.concurrency {
        books.push(("limit", limit.in_flight.into()));
        books.push(("waiting for the limit", limit.waiting.into()));
    }
    if let Some(budget) = status.budget {
        books.push(("calls", budget.in_flight.calls.into()));
        books.push(("retries", budget.in_flight.extra.into()));
    }
    if let Some(coalesce) = status.coalesce {
        books.push(("flights", coalesce.in_flight.into()));
        books.push(("followers", coalesce.waiting.into()));
    }
    if let Some(hedge) = status.hedge {
        let ended = i128::from(hedge.won + hedge.wasted);
        books.push(("hedges", i128::from(hedge.sent) - ended));
    }
    if let Some(fault) = status.fault {
        books.push(("faults", fault.active.into()));
    }
    let pending = status.endpoints.iter().map(|it| i128::from(it.pending));
    books.push(("pending", pending.sum()));
    books
}

/// As a layer, towards one destination.
fn stack_layer(more: &str, callee: Callee) -> Under {
    let policy: TrafficPolicy = read(&format!("{POLICY}\n{more}"));
    let layer = Stack::layer(policy).expect("valid");
    let stack = layer.stack().clone();
    under(layer.layer(callee), move || left(&stack.status()))
}

/// As a client, towards three endpoints.
fn stack_client(more: &str, callee: Callee) -> Under {
    let policy: TrafficPolicy = read(&format!("{POLICY}\n{more}"));
    let stack = Stack::<u32>::new(policy).expect("valid");
    stack.set_members((0..3).map(Member::new));
    let client = stack.client(ByEndpoint::new(move |_: &u32| callee.clone()));
    under(client, move || left(&stack.status()))
}

/// Sooner than a call that is late.
const HEDGE: &str = r#"{ after = "1ms", max = 2 }"#;

pub(super) const ROWS: &[Row] = &[
    Row::new("breaker", &["BreakerLayer", "PolicyLayer"], |callee| {
        let core = breaker(BreakerConfig::default());
        let service = BreakerLayer::new(core.clone()).layer(callee);
        under(service, move || circuit(&core))
    }),
    Row::new("breaker, half open", &["BreakerLayer"], |callee| {
        let core = half_open();
        let service = BreakerLayer::new(core.clone()).layer(callee);
        under(service, move || circuit(&core))
    })
    .one_at_a_time()
    .remembers_failures(),
    Row::new("bulkhead", &["BulkheadLayer"], |callee| {
        let core = Bulkhead::new(2);
        let service = BulkheadLayer::new(core.clone()).layer(callee);
        under(service, move || slots(&core))
    }),
    Row::new("bulkhead of one", &["BulkheadLayer"], |callee| {
        let core = Bulkhead::new(1);
        let service = BulkheadLayer::new(core.clone()).layer(callee);
        under(service, move || slots(&core))
    })
    .one_at_a_time(),
    Row::new("adaptive limit", &["AdaptiveLayer"], |callee| {
        let core = adaptive("initial = 2\nmin = 2");
        let service = AdaptiveLayer::new(core.clone()).layer(callee);
        under(service, move || limit(&core))
    }),
    Row::new("adaptive partition", &["PolicyLayer"], |callee| {
        let core = adaptive("initial = 4\nmin = 4\npartitions = { live = \"50%\" }");
        let live = core.partition("live").expect("configured");
        let service = PolicyLayer::new(live.clone()).layer(callee);
        under(service, move || {
            vec![
                ("of the partition", live.in_flight().into()),
                ("slots", core.in_flight().into()),
            ]
        })
    }),
    Row::new("throttle", &["ThrottleLayer"], |callee| {
        let core = Throttle::new(ThrottleConfig::default(), Rng::new(1)).expect("valid");
        under(ThrottleLayer::new(core).layer(callee), Vec::new)
    }),
    Row::new("rate limit", &["RateLimitLayer"], |callee| {
        let core = RateLimit::new("1000/s".parse().expect("a rate"));
        under(RateLimitLayer::new(core).layer(callee), Vec::new)
    }),
    Row::new("rate limit by key", &["KeyedRateLimitLayer"], |callee| {
        let config = KeyedRateLimitConfig {
            rate: "1000/s".parse().expect("a rate"),
            keys: KeyedConfig::default(),
        };
        let core = KeyedRateLimit::new(config).expect("valid");
        under(
            KeyedRateLimitLayer::new(core, some_host).layer(callee),
            Vec::new,
        )
    }),
    Row::new("breaker by key", &["KeyedLayer"], |callee| {
        let core = breaker(BreakerConfig::default());
        let own = core.clone();
        let make = move |_: &Arc<str>| own.clone();
        let table = Keyed::new(KeyedConfig::default(), core.clone(), make).expect("valid");
        let service = KeyedLayer::new(Arc::new(table), host).layer(callee);
        under(service, move || circuit(&core))
    }),
    Row::new("queue", &["QueueLayer"], |callee| {
        let config = BulkheadConfig {
            queue: Some(QueueConfig::default()),
            ..BulkheadConfig::new(1)
        };
        let core = Bulkhead::with_config(&config).expect("valid");
        let service = QueueLayer::new(core.clone()).layer(callee);
        under(service, move || slots(&core))
    }),
    Row::new(
        "queue before an adaptive limit",
        &["QueueLayer"],
        |callee| {
            let core = adaptive("initial = 1\nmin = 1\nqueue = {}");
            let service = QueueLayer::new(core.clone()).layer(callee);
            under(service, move || limit(&core))
        },
    ),
    Row::new("coalesce", &["CoalesceLayer"], |callee| {
        let layer = CoalesceLayer::new(&CoalesceConfig::default()).expect("valid");
        let core = layer.clone();
        under(layer.layer(callee), move || {
            let status = core.status();
            vec![
                ("flights", status.in_flight.into()),
                ("followers", status.waiting.into()),
            ]
        })
    }),
    Row::new("coalesce, errors repeated", &["CoalesceLayer"], |callee| {
        let layer = CoalesceLayer::new(&read("errors = \"retry\"")).expect("valid");
        let core = layer.clone();
        under(layer.layer(callee), move || {
            let status = core.status();
            vec![
                ("flights", status.in_flight.into()),
                ("followers", status.waiting.into()),
            ]
        })
    }),
    Row::new("fallback", &["FallbackLayer"], |callee| {
        let layer = FallbackLayer::fixed(FallbackConfig::default()).expect("valid");
        under(layer.layer(callee), Vec::new)
    }),
    Row::new("fallback to a service", &["FallbackLayer"], |callee| {
        let config = FallbackConfig::default();
        let other: FallbackLayer<ToService<_, Full<Bytes>>> =
            FallbackLayer::to_service(config, callee.clone()).expect("valid");
        under(other.layer(callee), Vec::new)
    }),
    Row::new("fault", &["FaultLayer"], |callee| {
        let text = r#"delay = { fixed = "3ms", percentage = "100%" }"#;
        let core = Faults::new(&read::<FaultConfig>(text), Rng::new(1)).expect("valid");
        let service = FaultLayer::new(core.clone()).layer(callee);
        under(service, move || {
            vec![("faults", core.status().active.into())]
        })
    }),
    Row::new("shed", &["ShedLayer", "BegunLayer"], |callee| {
        let core = shedder();
        let (outer, inner) = shed(core.clone());
        let bulkhead = Bulkhead::with_config(&BulkheadConfig {
            queue: Some(QueueConfig::default()),
            ..BulkheadConfig::new(1)
        });
        let service = ServiceBuilder::new()
            .layer(outer)
            .layer(QueueLayer::new(bulkhead.expect("valid")))
            .layer(inner)
            .service(callee);
        under(service, move || {
            vec![("tickets", core.status().waiting.into())]
        })
    }),
    Row::new("retry", &["RetryLayer"], |callee| {
        let layer = RetryLayer::new(retries()).expect("valid");
        let budget = layer.budget().clone();
        under(layer.layer(callee), move || under_way(&budget))
    }),
    Row::new("hedge", &["HedgeLayer"], |callee| {
        let hedge = Hedge::new(read::<HedgeConfig>("after = \"1ms\"\nmax = 2")).expect("valid");
        let budget = retries().new_budget().expect("valid");
        let layer = HedgeLayer::new(hedge.clone(), budget.clone());
        under(layer.layer(callee), move || {
            let stats = hedge.stats();
            let ended = i128::from(stats.won + stats.wasted);
            let mut books = under_way(&budget);
            books.push(("hedges", i128::from(stats.sent) - ended));
            books
        })
    }),
    Row::new("timeout", &["TimeoutLayer"], |callee| {
        let layer = TimeoutLayer::new(Duration::from_millis(40));
        under(layer.layer(callee), Vec::new)
    }),
    Row::new("deadline", &["DeadlineLayer"], |callee| {
        let filter = ExpiredFilter::new(ExpiredConfig::default()).expect("valid");
        under(DeadlineLayer::new(filter).layer(callee), Vec::new)
    }),
    Row::new("context", &["ContextLayer"], |callee| {
        under(ContextLayer::new().layer(callee), Vec::new)
    }),
    Row::new("inbound", &["InboundLayer"], |callee| {
        let text = r#"
            shed = {}
            rate_limit = { rate = "1000/s", by = "all" }
            bulkhead = { max = 1, queue = { max = 9, wait = "1s" } }
            concurrency = { initial = 4, min = 4 }
        "#;
        inbound(text, callee)
    }),
    Row::new("inbound, without a queue", &["InboundLayer"], |callee| {
        inbound(
            "bulkhead = 1\nconcurrency = { initial = 1, min = 1 }",
            callee,
        )
    })
    .one_at_a_time(),
    Row::new("stack", &["StackLayer"], |callee| stack_layer("", callee)),
    Row::new("stack with hedges", &["StackLayer"], |callee| {
        stack_layer(&format!("hedge = {HEDGE}"), callee)
    }),
    Row::new("stack that coalesces", &["StackLayer"], |callee| {
        stack_layer("coalesce = {}", callee)
    }),
    Row::new("stack that falls back", &["StackLayer"], |callee| {
        stack_layer("fallback = {}", callee)
    }),
    Row::new("stack over endpoints", &["StackLayer"], |callee| {
        stack_client("", callee)
    }),
    Row::new("stack over endpoints with all", &["StackLayer"], |callee| {
        stack_client(
            &format!("coalesce = {{}}\nfallback = {{}}\nhedge = {HEDGE}"),
            callee,
        )
    }),
];
