//! Many who watch the same: told by the same bytes, and nobody waits for the slowest.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use selvedge_registry::{InstanceId, wire::RegisterRequest};
use selvedge_registry_server::{RegistryServer, server::Origin};

use crate::support::{Events, config, eventually, name, serving};

const WATCHERS: usize = 1_000;
/// Streams of one connection; the server allows 256.
const STREAMS: usize = 200;

fn register(server: &RegistryServer, service: &str, id: &str, text: &str) {
    let request = serde_json::json!({
        "addr": "10.0.0.1:80",
        "ttl": "1h",
        "metadata": { "a": text, "b": text, "c": text },
    });
    let request: RegisterRequest = serde_json::from_value(request).expect("a registration");
    let id = InstanceId::new(id).expect("id");
    let done = server
        .shared()
        .register(name(service), id, request, Origin::v1());
    done.expect("registered");
}

/// A connection for many watches: a thousand of their own would need two thousand descriptors.
async fn connection(server: &RegistryServer) -> SendRequest<Empty<bytes::Bytes>> {
    let stream = tokio::net::TcpStream::connect(server.shared().http).await;
    let io = TokioIo::new(stream.expect("connect"));
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .expect("handshake");
    tokio::spawn(connection);
    sender
}

/// Reads until `what` has come.
async fn read_until(body: &mut Incoming, what: &str) -> Result<(), String> {
    let mut text = String::new();
    while !text.contains(what) {
        let frame = tokio::time::timeout(Duration::from_secs(20), body.frame());
        let frame = frame.await.map_err(|_| format!("only {text}"))?;
        let frame = frame.ok_or("ended")?.map_err(|error| error.to_string())?;
        let data = frame.data_ref().map(|data| String::from_utf8_lossy(data));
        text.extend(data);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_watchers_see_a_change_that_was_written_once() {
    let mut config = config("n1", &[]);
    // Eureka's feed listens to everything: here nobody but the watchers does.
    config.eureka.enabled = false;
    let server = serving(&config).await;
    register(&server, "orders", "orders-1", "");
    let mut watches = Vec::new();
    for _ in 0..WATCHERS / STREAMS {
        let sender = connection(&server).await;
        let opened = (0..STREAMS).map(|_| {
            let mut sender = sender.clone();
            async move {
                let url = "http://registry/v1/watch?service=orders";
                let request = http::Request::get(url).body(Empty::new()).expect("valid");
                let mut body = sender
                    .send_request(request)
                    .await
                    .expect("open")
                    .into_body();
                read_until(&mut body, "event: synced").await?;
                Ok::<_, String>(body)
            }
        });
        watches.extend(try_join_all(opened).await.expect("begin"));
    }
    let hub = &server.shared().hub;
    assert_eq!((watches.len(), hub.watchers()), (WATCHERS, WATCHERS));
    let written = hub.written();
    let told = tokio::time::Instant::now();
    register(&server, "orders", "orders-2", "");
    let heard = watches.iter_mut().map(|body| read_until(body, "orders-2"));
    for heard in join_all(heard).await {
        heard.expect("every one hears of it");
    }
    println!("{WATCHERS} watchers told within {:?}", told.elapsed());
    assert_eq!(hub.written() - written, 1, "one event for all of them");
    // What nobody watches is not written at all.
    register(&server, "pricing", "pricing-1", "");
    assert_eq!(hub.written() - written, 1);
    drop(watches);
    eventually("all gone", || async { hub.watchers() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_costs_a_mailbox_and_is_told_what_is_true_then() {
    const CHANGES: usize = 1_200;
    let server = serving(&config("n1", &[])).await;
    register(&server, "orders", "orders-1", "at first");
    let mut slow = Events::open_with_window(&server, "service=orders", 4 << 10).await;
    slow.next_of("synced").await;
    let mut quick = Events::open(&server, "service=orders", None).await;
    quick.next_of("synced").await;
    let long = "x".repeat(4_000);
    for n in 1..=CHANGES {
        // 12 kB each: more in all than what the system and a mailbox hold together.
        register(
            &server,
            "orders",
            "orders-1",
            &format!("{n} {}", &long[8..]),
        );
        // Whoever reads hears of each, however long another one does not.
        let (_, delta) = quick.next_of("delta").await;
        let text = delta["changed"][0]["metadata"]["a"].as_str();
        let text = text.expect("text");
        assert!(text.starts_with(&format!("{n} ")), "{n}: {}", &text[..8]);
    }
    let (mut deltas, mut snapshots) = (0, 0);
    let last = format!("{CHANGES} ");
    loop {
        let (kind, _, data) = slow.next().await.expect("goes on");
        let is_last = |at: &str| {
            let text = data[at][0]["metadata"]["a"].as_str();
            text.is_some_and(|text| text.starts_with(&last))
        };
        match kind.as_str() {
            "delta" => deltas += 1,
            "snapshot" => snapshots += 1,
            _ => {}
        }
        if is_last("changed") || is_last("instances") {
            break;
        }
    }
    assert!(snapshots >= 1, "it was told anew, after {deltas} deltas");
    assert!(
        deltas < CHANGES - 256,
        "{deltas} of {CHANGES} were kept for it"
    );
    // And goes on from there.
    slow.next_of("synced").await;
    register(&server, "orders", "orders-1", "at last");
    let (_, delta) = slow.next_of("delta").await;
    assert_eq!(delta["changed"][0]["metadata"]["a"], "at last");
}
