//! What a scrape shows of policies: everything that is written, and nothing of who has gone.

use std::collections::BTreeSet;

use selvedge_proxy::{Destination, ProxyMetrics};
use selvedge_registry::{
    Locality, ServiceName,
    client::{Discovery, StaticDiscovery},
    node::{metrics::Metrics, policies::POLICY_METRICS},
};
use selvedge_resilience::{TrafficPolicy, layer::Inbound};

use crate::support::{Proxy, Upstream, get, status};

const EVERYTHING: &str = r#"
    retry       = { attempts = 1, codes = [503], cost = {} }
    hedge       = { after = "1s" }
    throttle    = {}
    coalesce    = {}
    breaker     = { consecutive = 2, open_for = "1m" }
    bulkhead    = { max = 7, queue = { max = 1, wait = "1s" } }
    concurrency = {}
    rate_limit  = "1000/s"
    fault       = { abort = { status = 503, percentage = "0%" } }
    [inbound]
    shed        = {}
    rate_limit  = { rate = "10/s", by = "all" }
    bulkhead    = { max = 3 }
    concurrency = {}
"#;

fn destination(name: &str, metrics: &ProxyMetrics) -> std::sync::Arc<Destination> {
    let policy: TrafficPolicy = toml::from_str(EVERYTHING).expect("a policy");
    let name = ServiceName::new(name).expect("a name");
    let watch = StaticDiscovery::default().watch(&name);
    Destination::new(name, policy, watch, &Locality::default(), metrics).expect("valid")
}

/// Series, each once; and the metrics that they are of.
fn series(text: &str) -> (Vec<&str>, BTreeSet<&str>) {
    let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
    let ids: BTreeSet<_> = lines.iter().filter_map(|l| l.rsplit_once(' ')).collect();
    let ids: BTreeSet<_> = ids.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), lines.len(), "a series occurs twice: {text}");
    let names = text.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    let names = names.filter_map(|l| l.split(' ').next()).collect();
    (lines, names)
}

#[tokio::test]
async fn every_metric_of_every_policy_is_shown_under_its_name() {
    let registry = Metrics::default();
    let metrics = ProxyMetrics::new(&registry);
    let _called = destination("orders", &metrics);
    let _app = destination("orders", &metrics.for_app());
    let edge: TrafficPolicy = toml::from_str(EVERYTHING).expect("a policy");
    let edge = Inbound::named("http", edge.inbound).expect("valid");
    let _listed = metrics.listener("http", &edge);
    let text = registry.text();
    let (lines, names) = series(&text);
    for (metric, help) in POLICY_METRICS {
        // Absent below the minimum of calls, and before the first.
        if metric.contains(".ratio") || metric == "selvedge.breaker.transitions" {
            continue;
        }
        let name = metric.replace('.', "_");
        let name = match metric {
            "selvedge.breaker.open.remaining" => format!("{name}_seconds"),
            _ => name,
        };
        assert!(names.contains(&*name), "{metric}: {text}");
        assert!(text.contains(&format!("# HELP {name} {help}")), "{metric}");
    }
    let tables: BTreeSet<_> = POLICY_METRICS.iter().map(|(name, _)| name).collect();
    assert_eq!(tables.len(), POLICY_METRICS.len(), "each once");
    assert!(
        !text.contains("Of a policy"),
        "one is not in the table: {text}"
    );
    for line in [
        r#"selvedge_breaker_state{service="orders",side="client",policy="breaker",state="closed"} 1.0"#,
        r#"selvedge_breaker_state{service="orders",side="app",policy="breaker",state="open"} 0.0"#,
        r#"selvedge_limit_limit{service="orders",side="client",policy="bulkhead"} 7.0"#,
        r#"selvedge_limit_limit{service="orders",side="server",policy="bulkhead"} 3.0"#,
        r#"selvedge_limit_limit{listener="http",side="server",policy="bulkhead"} 3.0"#,
        r#"selvedge_shed_refused_total{listener="http",side="server",policy="shed",reason="overloaded"} 0"#,
    ] {
        assert!(lines.contains(&line), "{line} in {text}");
    }
}

#[tokio::test]
async fn series_leave_with_the_last_destination_of_their_name() {
    let registry = Metrics::default();
    let metrics = ProxyMetrics::new(&registry);
    let of = |text: &str, what: &str| text.lines().filter(|l| l.contains(what)).count();
    let first = destination("orders", &metrics);
    let text = registry.text();
    let (shown, tries) = (
        of(&text, "side=\"client\""),
        "selvedge_retry_attempts_total{",
    );
    assert!(shown > 30, "{text}");
    // Another one of the name takes its place, and what it leaves behind takes nothing away.
    let second = destination("orders", &metrics);
    let text = registry.text();
    assert_eq!((of(&text, "side=\"client\""), of(&text, tries)), (shown, 1));
    drop(first);
    let text = registry.text();
    assert_eq!((of(&text, "side=\"client\""), of(&text, tries)), (shown, 1));
    drop(second);
    let text = registry.text();
    assert_eq!(of(&text, "orders"), 0, "{text}");
    let _third = destination("orders", &metrics);
    assert_eq!(of(&registry.text(), tries), 1);
}

#[tokio::test]
async fn what_a_circuit_refuses_is_counted_by_reason_where_a_scrape_sees_it() {
    let broken = Upstream::says("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", false).await;
    let policy = "breaker = { consecutive = 2, open_for = \"1m\" }";
    let proxy = Proxy::start(policy, &[broken.http1()]).await;
    for want in [500, 500, 503, 503, 503] {
        assert_eq!(status(&get(proxy.addr, "/", "").await), want);
    }
    let text = proxy.metrics.text();
    for line in [
        r#"selvedge_breaker_state{service="svc",side="client",policy="breaker",state="open"} 1.0"#,
        r#"selvedge_breaker_state{service="svc",side="client",policy="breaker",state="closed"} 0.0"#,
        r#"selvedge_breaker_transitions_total{service="svc",side="client",policy="breaker",from="closed",to="open",cause="consecutive"} 1"#,
        r#"selvedge_breaker_calls_total{service="svc",side="client",policy="breaker",outcome="server_error"} 2"#,
        r#"selvedge_breaker_rejected_total{service="svc",side="client",policy="breaker",reason="open"} 3"#,
        r#"selvedge_policy_rejections_total{service="svc",policy="breaker",reason="open"} 3"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}
