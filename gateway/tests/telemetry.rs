//! Spans reach a collector where one is configured.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use crate::support::{Gateway, Upstream, eventually, status, talk};

/// Keeps all that is posted to it.
fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/v1/traces", listener.local_addr().expect("bound"));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let keep = Arc::clone(&keep);
            std::thread::spawn(move || {
                let mut chunk = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut chunk) {
                    let mut kept = keep.lock().expect("not poisoned");
                    kept.extend_from_slice(&chunk[..n]);
                    // A batch is one request here; answering early hurts nobody.
                    if n < chunk.len() {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                            .ok();
                    }
                }
            });
        }
    });
    (url, kept)
}

#[test]
fn a_requests_spans_join_the_callers_trace_and_are_exported() {
    let web = Upstream::start("web");
    let (url, kept) = collector();
    let gateway = Gateway::start(&format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[services.web]
endpoints = ["{}"]
[[routes]]
name = "all"
to = "web"
[telemetry]
otlp = "{url}"
"#,
        web.addr
    ));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let text = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\n\r\n"
    );
    let answer = talk(gateway.port("http"), &text).expect("an answer");
    assert_eq!(status(&answer), 200, "{answer}");
    // The upstream sees the same trace under a span of ours.
    assert!(
        answer.contains(&format!("traceparent: 00-{trace}-")),
        "{answer}"
    );
    assert!(!answer.contains("b7ad6b7169203331"), "{answer}");
    let id: Vec<u8> = (0..16)
        .map(|n| u8::from_str_radix(&trace[2 * n..2 * n + 2], 16).expect("hex"))
        .collect();
    let has = |bytes: &[u8]| {
        let kept = kept.lock().expect("not poisoned");
        kept.windows(bytes.len()).any(|window| window == bytes)
    };
    eventually("the collector has the trace", || has(&id));
    for part in ["POST /v1/traces", "selvedge-gateway", "GET all", "GET web"] {
        assert!(has(part.as_bytes()), "{part}");
    }
}
