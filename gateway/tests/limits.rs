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
