//! The traffic policy: one document that a library, a sidecar and a gateway enforce alike.
//!
//! Every section is optional; one that is not written is not enforced. Unknown keys are refused,
//! and so is a document whose parts contradict each other: nothing is half applied.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    adaptive::AdaptiveConfig,
    balance::{BalanceConfig, OutlierConfig},
    breaker::BreakerConfig,
    bulkhead::BulkheadConfig,
    coalesce::CoalesceConfig,
    config::{AT_MOST, Field, Millis, PolicyError, Rate, ensure, ensure_order},
    fallback::FallbackConfig,
    fault::FaultConfig,
    hedge::HedgeConfig,
    inbound::InboundConfig,
    retry::RetryConfig,
    throttle::ThrottleConfig,
};

/// How calls to one destination are made.
///
/// ```
/// let policy: selvedge_resilience::TrafficPolicy = toml::from_str(r#"
///     timeouts = { request = "3s", backendRequest = "800ms" }
///     retry    = { attempts = 2, codes = [502, 503], backoff = "25ms..250ms", budget = "20% min 3/s" }
///     breaker  = { failure_rate = "50%", over = "10s", min_requests = 20, open_for = "5s" }
///     bulkhead = 200
///     outlier  = { consecutive_5xx = 5, eject = "30s", max_ejected = "30%" }
/// "#)?;
/// policy.validate()?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TrafficPolicy {
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryConfig>,
    /// When a second try is sent beside a first one that is late. Paid for from `retry`'s budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<HedgeConfig>,
    /// When calls are kept back because the callee refuses so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<ThrottleConfig>,
    /// When calls are no longer made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerConfig>,
    /// Tries under way at once, and who may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulkhead: Option<BulkheadConfig>,
    /// The same with a limit that finds itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<AdaptiveConfig>,
    /// Tries that may begin in a span of time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<Rate>,
    /// What happens to tries on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultConfig>,
    /// What is answered where there would be no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FallbackConfig>,
    /// When many who ask the same at the same time get the answer of one call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coalesce: Option<CoalesceConfig>,
    /// Which endpoint takes a try.
    pub balance: BalanceConfig,
    /// What the service takes on; enforced before its handler, not by its callers.
    #[serde(skip_serializing_if = "is_nothing")]
    pub inbound: InboundConfig,
    /// When an endpoint is left out.
    pub outlier: OutlierConfig,
}

fn is_nothing(inbound: &InboundConfig) -> bool {
    *inbound == InboundConfig::default()
}

/// How long a call may take, in the words of Gateway API's `HTTPRoute`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// All tries and waits together, to the end of the answer's body; "0s" is for ever.
    /// Default "15s": Envoy's route timeout.
    pub request: Millis,
    /// One try, to the head of its answer. Not set: as long as `request` leaves.
    #[serde(rename = "backendRequest", skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Millis>,
    /// A new connection. Default "1s": linkerd's outbound connect timeout. The proxies keep to it; a
    /// client that is wrapped in a stack makes its own connections, and is told when it is made.
    pub connect: Millis,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: Millis::new(15_000),
            backend_request: None,
            connect: Millis::new(1_000),
        }
    }
}

impl Timeouts {
    /// The whole call's time; `None` is for ever.
    pub fn total(&self) -> Option<Duration> {
        (!self.request.0.is_zero()).then_some(self.request.0)
    }

    fn validate(&self) -> Result<(), PolicyError> {
        ensure(
            !self.connect.0.is_zero(),
            "connect",
            self.connect,
            "more than \"0s\"",
        )?;
        let Some(per_try) = self.backend_request else {
            return Ok(());
        };
        ensure(
            !per_try.0.is_zero(),
            "backendRequest",
            per_try,
            "more than \"0s\"",
        )?;
        ensure_order(
            self.total().is_none_or(|total| per_try.0 <= total),
            Field {
                name: "backendRequest",
                value: per_try,
                is_default: false,
            },
            Field::new("request", self.request, Self::default().request),
            AT_MOST,
        )
    }
}

impl TrafficPolicy {
    /// The document's JSON Schema (2020-12) as text: for an editor that completes keys, or a check
    /// before the document is shipped.
    ///
    /// It knows every key, unit and fixed range. What depends on another field, or on the number in
    /// a text such as `"150%"`, only [`validate`](Self::validate) knows.
    #[cfg(feature = "schema")]
    pub fn json_schema_text() -> String {
        format!("{:#}\n", schemars::schema_for!(Self).as_value())
    }

    /// Refuses what cannot work, the whole document or nothing.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        self.timeouts.validate().map_err(|e| e.within("timeouts"))?;
        if let Some(retry) = &self.retry {
            retry.validate().map_err(|e| e.within("retry"))?;
        }
        if let Some(breaker) = &self.breaker {
            breaker.validate().map_err(|e| e.within("breaker"))?;
        }
        if let Some(hedge) = &self.hedge {
            hedge.validate().map_err(|e| e.within("hedge"))?;
            hedge.fits(self.timeouts.backend_request)?;
        }
        if let Some(throttle) = &self.throttle {
            throttle.validate().map_err(|e| e.within("throttle"))?;
        }
        if let Some(bulkhead) = &self.bulkhead {
            bulkhead.validate().map_err(|e| e.within("bulkhead"))?;
        }
        if let Some(limit) = &self.concurrency {
            let valid = limit.validate_for_requests();
            valid.map_err(|e| e.within("concurrency"))?;
        }
        if let Some(fault) = &self.fault {
            fault.validate().map_err(|e| e.within("fault"))?;
        }
        if let Some(fallback) = &self.fallback {
            fallback.validate().map_err(|e| e.within("fallback"))?;
        }
        if let Some(coalesce) = &self.coalesce {
            coalesce.validate().map_err(|e| e.within("coalesce"))?;
        }
        self.inbound.validate().map_err(|e| e.within("inbound"))?;
        self.balance.validate().map_err(|e| e.within("balance"))?;
        self.outlier.validate().map_err(|e| e.within("outlier"))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_empty_document_is_the_default() {
        let policy: TrafficPolicy = toml::from_str("").expect("parses");
        assert_eq!(policy, TrafficPolicy::default());
        policy.validate().expect("works");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = r#"
            timeouts = { request = "3s", backendRequest = "800ms" }
            retry = { attempts = 1 }
            breaker = { consecutive = 3 }
            bulkhead = 7
            rate_limit = "50/s burst 100"
        "#;
        let policy: TrafficPolicy = toml::from_str(text).expect("parses");
        let printed = toml::to_string(&policy).expect("prints");
        assert_eq!(
            toml::from_str::<TrafficPolicy>(&printed).expect("parses again"),
            policy
        );
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_path() {
        let cases = [
            (
                r#"timeouts = { request = "1s", backendRequest = "2s" }"#,
                "timeouts.backendRequest",
            ),
            (r#"timeouts = { connect = "0s" }"#, "timeouts.connect"),
            (
                r#"timeouts = { request = "1s", backendRequest = "0s" }"#,
                "timeouts.backendRequest",
            ),
            (
                r#"
                timeouts = { request = "1s", backendRequest = "300ms" }
                hedge = { after = "300ms" }
                "#,
                "hedge.after",
            ),
            (
                r#"
                timeouts = { request = "1s", backendRequest = "300ms" }
                hedge = { after = "p95", min_delay = "300ms" }
                "#,
                "hedge.min_delay",
            ),
            (
                "retry = { cost = { tokens = 4, retry = 5 } }",
                "retry.cost.tokens",
            ),
            ("retry = { cost = { tokens = 9 } }", "retry.cost.tokens"),
            (
                "concurrency = { algorithm = { gradient = { measure_limit = 201 } } }",
                "concurrency.algorithm.gradient.measure_limit",
            ),
            ("retry = { attempts = 11 }", "retry.attempts"),
            ("retry = { codes = [200] }", "retry.codes"),
            (r#"retry = { backoff = "2s..1s" }"#, "retry.backoff"),
            (r#"retry = { budget = "2000%" }"#, "retry.budget"),
            ("breaker = { probes = 0 }", "breaker.probes"),
            (
                r#"breaker = { failure_rate = "0%" }"#,
                "breaker.failure_rate",
            ),
            (r#"breaker = { over = "0s" }"#, "breaker.over"),
            ("bulkhead = 0", "bulkhead.max"),
            ("concurrency = { min = 0 }", "concurrency.min"),
            (r#"throttle = { window = "0s" }"#, "throttle.window"),
            (r#"coalesce = { body = "0B" }"#, "coalesce.body"),
            (r#"coalesce = { body = "17MiB" }"#, "coalesce.body"),
            ("coalesce = { keys = 0 }", "coalesce.keys"),
            (r#"coalesce = { gather = "0s" }"#, "coalesce.gather"),
            (r#"coalesce = { headers = ["a b"] }"#, "coalesce.headers"),
            (r#"coalesce = { headers = ["Cookie"] }"#, "coalesce.headers"),
            ("balance = { virtual_nodes = 0 }", "balance.virtual_nodes"),
            (
                r#"balance = { hash_on = { header = "a b" } }"#,
                "balance.hash_on.header",
            ),
            (
                r#"outlier = { max_ejected = "150%" }"#,
                "outlier.max_ejected",
            ),
        ];
        for (text, path) in cases {
            let policy: TrafficPolicy = toml::from_str(text).expect(text);
            let error = policy.validate().expect_err(text);
            assert_eq!(error.path, path, "{text}");
            assert!(error.to_string().contains(&error.allowed), "{error}");
        }
    }

    #[test]
    fn a_default_that_does_not_fit_is_named_as_one() {
        let cases = [
            (
                r#"breaker = { open_for = "2m" }"#,
                "breaker.open_for = 2m cannot work: at most open_for_max = 1m, the default: \
                 set open_for_max too",
            ),
            (
                r#"breaker = { open_for_max = "1s" }"#,
                "breaker.open_for_max = 1s cannot work: at least open_for = 5s, the default: set \
                 open_for too",
            ),
            (
                r#"breaker = { open_for = "9s", open_for_max = "8s" }"#,
                "breaker.open_for = 9s cannot work: at most open_for_max = 8s",
            ),
            (
                r#"outlier = { eject = "10m" }"#,
                "outlier.eject = 10m cannot work: at most eject_max = 5m, the default: set \
                 eject_max too",
            ),
            (
                r#"outlier = { eject_max = "1s" }"#,
                "outlier.eject_max = 1s cannot work: at least eject = 30s, the default: set eject \
                 too",
            ),
            (
                r#"hedge = { min_delay = "3s" }"#,
                "hedge.min_delay = 3s cannot work: at most max_delay = 2s, the default: set \
                 max_delay too",
            ),
            (
                r#"hedge = { max_delay = "500us" }"#,
                "hedge.max_delay = 500us cannot work: at least min_delay = 1ms, the default: set \
                 min_delay too",
            ),
            (
                r#"
                timeouts = { backendRequest = "1ms" }
                hedge = {}
                "#,
                "timeouts.backendRequest = 1ms cannot work: more than hedge.min_delay = 1ms, the \
                 default: set hedge.min_delay too",
            ),
            (
                r#"timeouts = { backendRequest = "20s" }"#,
                "timeouts.backendRequest = 20s cannot work: at most request = 15s, the default: \
                 set request too",
            ),
            (
                "retry = { cost = { tokens = 9 } }",
                "retry.cost.tokens = 9 cannot work: at least after_timeout = 10, the default: set \
                 after_timeout too",
            ),
            (
                "retry = { cost = { retry = 501 } }",
                "retry.cost.retry = 501 cannot work: at most tokens = 500, the default: set tokens \
                 too",
            ),
            (
                r#"concurrency = { drop_after = "100us" }"#,
                "concurrency.drop_after = 100us cannot work: more than min_rtt = 100us, the default: \
                 set min_rtt too",
            ),
            (
                "concurrency = { max = 2, algorithm = \"gradient\" }",
                "concurrency.max = 2 cannot work: at least algorithm.gradient.measure_limit = 3, the \
                 default: set algorithm.gradient.measure_limit too",
            ),
            (
                "concurrency = { algorithm = { vegas = { alpha = 7 } } }",
                "concurrency.algorithm.vegas.alpha = 7 cannot work: at most vegas.beta = 6, the \
                 default: set vegas.beta too",
            ),
            (
                "inbound = { concurrency = { min = 9, max = 8 } }",
                "inbound.concurrency.min = 9 cannot work: at most max = 8",
            ),
            (
                "concurrency = { min = 9, initial = 8 }",
                "concurrency.min = 9 cannot work: at most initial = 8",
            ),
        ];
        for (text, want) in cases {
            let policy: TrafficPolicy = toml::from_str(text).expect(text);
            let error = policy.validate().expect_err(text);
            assert_eq!(error.to_string(), want, "{text}");
        }
    }

    #[test]
    fn what_is_not_written_of_a_limit_follows_what_is() {
        let cases = [
            ("", (20, 20, 200)),
            ("max = 10", (10, 1, 10)),
            ("max = 11", (11, 2, 11)),
            ("max = 1", (1, 1, 1)),
            ("max = 30", (20, 3, 30)),
            ("max = 201", (20, 20, 201)),
            ("min = 2", (20, 2, 200)),
            ("min = 50", (50, 50, 200)),
            ("min = 500", (500, 500, 500)),
            ("initial = 5", (5, 5, 200)),
            ("initial = 300", (300, 20, 300)),
            ("initial = 5, max = 8", (5, 1, 8)),
            ("initial = 2, max = 80", (2, 2, 80)),
            ("min = 4, max = 8", (8, 4, 8)),
        ];
        for bad in ["min = 1000001", "initial = 0"] {
            let text = format!("concurrency = {{ {bad} }}");
            let policy: TrafficPolicy = toml::from_str(&text).expect(&text);
            let error = policy.validate().expect_err(&text).to_string();
            assert!(
                error.starts_with(&format!("concurrency.{bad} cannot")),
                "{error}"
            );
        }
        for (text, want) in cases {
            let text = format!("concurrency = {{ {text} }}");
            let policy: TrafficPolicy = toml::from_str(&text).expect(&text);
            policy.validate().expect(&text);
            let limit = policy.concurrency.expect("written");
            assert_eq!((limit.initial, limit.min, limit.max), want, "{text}");
        }
    }

    #[test]
    fn unknown_keys_and_riddles_are_refused() {
        for text in [
            "retries = {}",
            "retry = { attempt = 2 }",
            r#"breaker = { open_for = "5" }"#,
        ] {
            assert!(toml::from_str::<TrafficPolicy>(text).is_err(), "{text}");
        }
    }
}
