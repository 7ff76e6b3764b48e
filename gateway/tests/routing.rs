//! Requests find their services, or are told why not.

use crate::support::{Gateway, Upstream, status};

#[test]
fn requests_go_where_the_file_says() {
    let (orders, web) = (Upstream::start("orders"), Upstream::start("web"));
    let gateway = Gateway::start(&format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[services.orders]
endpoints = ["{}"]
[services.web]
endpoints = ["{}"]
[[routes]]
name = "orders"
hosts = ["api.test"]
path = "/v1/orders"
rewrite = {{ prefix = "/" }}
to = "orders"
[[routes]]
name = "web"
hosts = ["*.web.test", "web.test"]
to = "web"
"#,
        orders.addr, web.addr
    ));
    let cases = [
        ("api.test", "/v1/orders/7?x=1", 200, "orders: GET /7?x=1 "),
        ("API.test:80", "/v1//%6frders", 200, "orders: GET / "),
        ("api.test", "/v1/orders/../users", 404, "problem:no-route"),
        ("www.web.test", "/", 200, "web: GET / "),
        ("nobody.test", "/", 404, "problem:no-route"),
        ("api.test", "/v1/orders/%00", 400, "problem:path"),
    ];
    for (host, path, want, part) in cases {
        let answer = gateway.get(host, path);
        assert_eq!(status(&answer), want, "{host}{path}: {answer}");
        assert!(answer.contains(part), "{host}{path}: {part} in {answer}");
    }
    let metrics = gateway.admin("/metrics");
    assert!(metrics.contains("http_route=\"orders\""), "{metrics}");
    let clusters = gateway.admin("/clusters");
    assert!(clusters.contains(&orders.addr.to_string()), "{clusters}");
}

#[test]
fn a_service_that_nobody_serves_is_503_and_when_to_come_back() {
    let gateway = Gateway::start(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[registry]
servers = ["http://127.0.0.1:1"]
[services.orders]
[services.closed]
endpoints = ["127.0.0.1:1"]
[[routes]]
name = "orders"
path = "/orders"
to = "orders"
[[routes]]
name = "closed"
to = "closed"
"#,
    );
    for (path, part) in [("/orders", "no-endpoint"), ("/", "upstream-unreachable")] {
        let answer = gateway.get("x", path);
        assert_eq!(status(&answer), 503, "{answer}");
        assert!(answer.contains("retry-after: "), "{answer}");
        assert!(answer.contains(part), "{answer}");
    }
    // The registry is away: said where a load balancer looks, while the rest is served.
    let ready = gateway.admin("/readyz");
    assert_eq!(status(&ready), 503, "{ready}");
    assert!(
        ready.contains("registry: no registry server has answered yet"),
        "{ready}"
    );
}

#[test]
fn a_route_has_a_time_of_its_own() {
    let slow = Upstream::slow("slow", std::time::Duration::from_secs(3));
    let gateway = Gateway::start(&format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[services.slow]
endpoints = ["{}"]
[[routes]]
name = "quick"
to = "slow"
timeouts = {{ request = "100ms" }}
"#,
        slow.addr
    ));
    let answer = gateway.get("x", "/");
    assert_eq!(status(&answer), 504, "{answer}");
    assert!(answer.contains("\"policy\":\"deadline\""), "{answer}");
}
