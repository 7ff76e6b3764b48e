//! What ends at the door, and what is said when nobody can take a request.

use selvedge_proxy::Rules;

use crate::support::{Proxy, Upstream, closed_port, get, status, talk};

#[tokio::test]
async fn requests_with_two_readings_reach_nobody_and_end_their_connection() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let cases = [
        (
            "two hosts",
            "GET / HTTP/1.1\r\nhost: svc\r\nhost: other\r\n\r\n",
            400,
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
        (
            "two codings",
            "POST / HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: svc\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
            400,
        ),
        (
            "space in a name",
            "GET / HTTP/1.1\r\nhost : svc\r\n\r\n",
            400,
        ),
        (
            "folded",
            "GET / HTTP/1.1\r\nhost: svc\r\nx: a\r\n b\r\n\r\n",
            400,
        ),
        ("zero byte", "GET /%00 HTTP/1.1\r\nhost: svc\r\n\r\n", 400),
        ("trace", "TRACE / HTTP/1.1\r\nhost: svc\r\n\r\n", 405),
        (
            "expect",
            "GET / HTTP/1.1\r\nhost: svc\r\nexpect: 200-maybe\r\n\r\n",
            417,
        ),
        ("not HTTP", "hello there\r\n\r\n", 400),
    ];
    for (name, text, want) in cases {
        // A second request behind it must not be served.
        let answer = talk(
            proxy.addr,
            &format!("{text}GET /hidden HTTP/1.1\r\nhost: svc\r\n\r\n"),
        )
        .await;
        assert_eq!(status(&answer), want, "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
    }
    assert_eq!(upstream.connections(), 0);
    let metrics = proxy.metrics.text();
    assert!(
        metrics.contains("selvedge_request_refusals_total{reason=\"host\"} 2"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_head_over_the_limit_is_431() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let many = "x: y\r\n".repeat(120);
    assert_eq!(status(&get(proxy.addr, "/", &many).await), 431);
    let long = format!("x: {}\r\n", "y".repeat(20 << 10));
    assert_eq!(status(&get(proxy.addr, "/", &long).await), 431);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn an_unknown_host_is_404_as_a_problem_and_the_connection_goes_on() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let unknown = "GET / HTTP/1.1\r\nhost: other\r\nx-request-id: id-1\r\n\r\n";
    let known = "GET / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n\r\n";
    let answer = talk(proxy.addr, &format!("{unknown}{known}")).await;
    assert_eq!(status(&answer), 404, "{answer}");
    for part in [
        "content-type: application/problem+json",
        "proxy-status: selvedge-test; error=destination_not_found",
        "\"type\":\"urn:selvedge:problem:no-route\"",
        "\"instance\":\"id-1\"",
        "HTTP/1.1 200 OK",
    ] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
}

#[tokio::test]
async fn without_an_endpoint_it_is_503_and_when_to_come_back() {
    let proxy = Proxy::start("", &[]).await;
    let answer = get(proxy.addr, "/", "").await;
    assert_eq!(status(&answer), 503, "{answer}");
    for part in [
        "retry-after: 1",
        "problem:no-endpoint",
        "\"policy\":\"balancer\"",
    ] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    let proxy = Proxy::start("", &[closed_port().await]).await;
    let answer = get(proxy.addr, "/", "").await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("problem:upstream-unreachable"), "{answer}");
    assert_eq!(proxy.log(1).await[0]["flag"], "UF");
}

#[tokio::test]
async fn an_upstream_that_breaks_the_protocol_is_502() {
    let cases = [
        ("not HTTP", "ICY 200 OK\r\n\r\n"),
        (
            "unasked switch",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        ),
        (
            "differing lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        ),
        ("half a head", "HTTP/1.1 200 OK\r\ncontent-le"),
    ];
    for (name, said) in cases {
        let upstream = Upstream::says(said, true).await;
        let proxy = Proxy::start("", &[upstream.http1()]).await;
        let answer = get(proxy.addr, "/", "").await;
        assert_eq!(status(&answer), 502, "{name}: {answer}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_whether_announced_or_not() {
    let upstream = Upstream::echo().await;
    let rules = Rules {
        body: Some(10),
        ..Rules::default()
    };
    let proxy = Proxy::with_rules("", &[upstream.http1()], rules).await;
    let head = "POST / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n";
    let cases = [
        ("announced", "content-length: 11\r\n\r\nhello world", 413),
        (
            "chunked",
            "transfer-encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
            413,
        ),
        ("within", "content-length: 10\r\n\r\nhello worl", 200),
    ];
    for (name, rest, want) in cases {
        let answer = talk(proxy.addr, &format!("{head}{rest}")).await;
        assert_eq!(status(&answer), want, "{name}: {answer}");
    }
}

#[tokio::test]
async fn a_clients_broken_body_is_its_own_fault() {
    let upstream = Upstream::silent().await;
    let proxy = Proxy::start("breaker = { min_requests = 1 }", &[upstream.http1()]).await;
    let text =
        "POST / HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n";
    let answer = talk(proxy.addr, text).await;
    assert_eq!(status(&answer), 400, "{answer}");
    let status = proxy.destination.stack().status();
    assert_eq!(status.endpoints[0].failed, 0);
    assert_eq!(status.breaker.expect("a breaker").opened, 0);
}

#[tokio::test]
async fn the_deadline_is_504_and_names_itself() {
    let upstream = Upstream::silent().await;
    let proxy = Proxy::start("timeouts = { request = \"50ms\" }", &[upstream.http1()]).await;
    let answer = get(proxy.addr, "/", "").await;
    assert_eq!(status(&answer), 504, "{answer}");
    assert!(answer.contains("\"policy\":\"deadline\""), "{answer}");
}
