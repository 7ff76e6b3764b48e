//! What a client may take of a listener.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::support::{Gateway, PATIENCE, Upstream, eventually, status};

fn file(to: &Upstream, limits: &str) -> String {
    format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
limits = {{ {limits} }}
[services.web]
endpoints = ["{}"]
[[routes]]
name = "all"
to = "web"
"#,
        to.addr
    )
}

#[test]
fn one_source_gets_so_many_connections_and_its_seats_back() {
    let web = Upstream::start("web");
    let gateway = Gateway::start(&file(&web, "per_source = 2"));
    let open = || {
        let stream = TcpStream::connect(gateway.port("http")).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream
    };
    let ask = |stream: &mut TcpStream| {
        let sent = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut first = [0; 12];
        sent.is_ok() && stream.read_exact(&mut first).is_ok() && &first == b"HTTP/1.1 200"
    };
    let (mut a, mut b) = (open(), open());
    assert!(ask(&mut a) && ask(&mut b));
    assert!(!ask(&mut open()), "a third connection is closed");
    let metrics = gateway.admin("/metrics");
    let counted = "selvedge_request_refusals_total{reason=\"connections-per-source\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    drop((a, b));
    eventually("the seats are free again", || ask(&mut open()));
}

#[test]
fn heads_and_bodies_have_their_limits() {
    let web = Upstream::start("web");
    let gateway = Gateway::start(&file(&web, "headers = \"8KiB\", body = \"10B\""));
    let long = "x".repeat(9_000);
    let answer = gateway.get(&format!("a\r\nx: {long}"), "/");
    assert_eq!(status(&answer), 431, "{answer}");
    let text =
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\nconnection: close\r\n\r\n01234567890";
    let answer = crate::support::talk(gateway.port("http"), text).expect("an answer");
    assert_eq!(status(&answer), 413, "{answer}");
    assert_eq!(web.requests(), 0);
}

fn listener(to: &Upstream, inbound: &str, policy: &str) -> String {
    format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
{inbound}
[services.web]
endpoints = ["{}"]
policy = "tested"
[[routes]]
name = "all"
to = "web"
[policies.tested]
{policy}
[process]
watch = "0s"
"#,
        to.addr
    )
}

#[test]
fn a_listener_takes_on_what_it_says_and_another_rate_is_taken_while_it_runs() {
    let web = Upstream::start("web");
    let rate = |rate: &str| format!("inbound = {{ rate_limit = {{ rate = \"{rate}\" }} }}");
    let gateway = Gateway::start(&listener(&web, &rate("2/h"), ""));
    let answers: Vec<u16> = (0..3).map(|_| status(&gateway.get("a", "/"))).collect();
    assert_eq!(answers, [200, 200, 429]);
    let refused = gateway.get("a", "/");
    for part in [
        "retry-after: ",
        "ratelimit-policy: \"inbound\";q=2;w=3600",
        "\"policy\":\"rate_limit\"",
    ] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    gateway.write(&listener(&web, &rate("1000/s"), ""));
    gateway.signal(rustix::process::Signal::HUP);
    eventually("the new rate is in force", || {
        status(&gateway.get("a", "/")) == 200
    });
    gateway.write(&listener(&web, "inbound = { bulkhead = 0 }", ""));
    gateway.signal(rustix::process::Signal::HUP);
    eventually("a bad one is shown", || {
        gateway
            .admin("/config_dump")
            .contains("bulkhead.max = 0 cannot work")
    });
    assert_eq!(status(&gateway.get("a", "/")), 200, "and changes nothing");
}

#[test]
fn a_fault_is_injected_a_fallback_answers_and_both_are_told_apart() {
    let web = Upstream::start("web");
    let policy = r#"
        fault = { abort = { status = 503, percentage = "100%" }, headers = [{ name = "x-chaos" }] }
        fallback = { answer = { body = "[]" } }
    "#;
    let gateway = Gateway::start(&listener(&web, "", policy));
    let plain = gateway.get("a", "/");
    assert!(
        status(&plain) == 200 && !plain.contains("selvedge-degraded"),
        "{plain}"
    );
    let degraded = gateway.get("a\r\nx-chaos: 1", "/");
    assert_eq!(status(&degraded), 200, "{degraded}");
    assert!(
        degraded.contains("selvedge-degraded: status") && degraded.ends_with("[]"),
        "{degraded}"
    );
    assert_eq!(web.requests(), 1);
    let counted = "selvedge_fallback_answers_total{service=\"web\",cause=\"status\"} 1";
    let metrics = gateway.admin("/metrics");
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn a_strangers_priority_is_not_believed() {
    let web = Upstream::start("web");
    let gateway = Gateway::start(&listener(&web, "inbound = { shed = {} }", ""));
    let answer = gateway.get("a\r\nx-priority: critical", "/");
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(
        !answer.contains("critical"),
        "the upstream shows what it was sent: {answer}"
    );
}

#[test]
fn endpoints_of_its_own_zone_come_first() {
    let (near, far) = (Upstream::start("near"), Upstream::start("far"));
    let gateway = Gateway::start(&format!(
        r#"
locality = {{ region = "eu", zone = "a" }}
[listeners.http]
bind = "127.0.0.1:0"
[services.web]
endpoints = [
    {{ addr = "{}", locality = {{ region = "eu", zone = "a" }} }},
    {{ addr = "{}", locality = {{ region = "eu", zone = "b" }} }},
]
policy = "near"
[[routes]]
name = "all"
to = "web"
[policies.near]
balance = {{ locality = {{}} }}
"#,
        near.addr, far.addr
    ));
    for _ in 0..20 {
        assert_eq!(status(&gateway.get("a", "/")), 200);
    }
    assert_eq!((near.requests(), far.requests()), (20, 0));
}
