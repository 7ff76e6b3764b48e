//! Connections: reused, upgraded, cancelled, ended.

use std::{fmt::Write, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

use crate::support::{Proxy, Upstream, get, read_request, status, talk};

const GET: &str = "GET / HTTP/1.1\r\nhost: svc\r\n\r\n";
const LAST: &str = "GET / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn connections_are_reused_on_both_sides() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let answers = talk(proxy.addr, &format!("{}{LAST}", GET.repeat(9))).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 10, "{answers}");
    assert_eq!(upstream.connections(), 1);
    let endpoint = &proxy.destination.stack().status().endpoints[0];
    assert_eq!((endpoint.succeeded, endpoint.failed), (10, 0));
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_once_the_upstream_agrees() {
    let upstream = Upstream::start(|mut stream, _| async move {
        let Some((head, _)) = read_request(&mut stream).await else {
            return;
        };
        assert!(head.contains("upgrade: websocket\r\n"), "{head}");
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n";
        stream.write_all(agreed.as_bytes()).await.expect("write");
        let (mut read, mut write) = stream.split();
        let _until_closed = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let mut client = TcpStream::connect(proxy.addr).await.expect("connect");
    let ask = "GET /ws HTTP/1.1\r\nhost: svc\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";
    client.write_all(ask.as_bytes()).await.expect("write");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("a head"));
    }
    let head = String::from_utf8_lossy(&head);
    assert_eq!(status(&head), 101, "{head}");
    assert!(head.contains("sec-websocket-accept: x"), "{head}");
    for n in 0..100u8 {
        client.write_all(&[n; 1000]).await.expect("write");
        let mut back = [0; 1000];
        client.read_exact(&mut back).await.expect("read");
        assert_eq!(back, [n; 1000]);
    }
    drop(client);
}

#[tokio::test]
async fn a_refused_websocket_is_an_answer_like_any_other() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let ask = "GET /ws HTTP/1.1\r\nhost: svc\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let answer = talk(proxy.addr, &format!("{ask}{LAST}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_what_was_done_for_it() {
    let (asked, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let told = (Arc::clone(&asked), Arc::clone(&gone));
    let upstream = Upstream::start(move |mut stream, _| {
        let (asked, gone) = (Arc::clone(&told.0), Arc::clone(&told.1));
        async move {
            let _request = read_request(&mut stream).await;
            asked.notify_one();
            // Ends only when the proxy hangs up.
            let mut rest = Vec::new();
            let _until_closed = stream.read_to_end(&mut rest).await;
            gone.notify_one();
        }
    })
    .await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let mut client = TcpStream::connect(proxy.addr).await.expect("connect");
    client.write_all(GET.as_bytes()).await.expect("write");
    asked.notified().await;
    drop(client);
    tokio::time::timeout(Duration::from_secs(10), gone.notified())
        .await
        .expect("the upstream's connection ends soon after the client's");
    let log = proxy.log(1).await;
    assert_eq!(log[0]["status"], 499);
    assert_eq!(log[0]["flag"], "DC");
}

#[tokio::test]
async fn leaving_finishes_what_is_under_way_and_closes() {
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let told = (Arc::clone(&asked), Arc::clone(&answer));
    let upstream = Upstream::start(move |mut stream, _| {
        let (asked, answer) = (Arc::clone(&told.0), Arc::clone(&told.1));
        async move {
            while read_request(&mut stream).await.is_some() {
                asked.notify_one();
                answer.notified().await;
                let said = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(said).await.expect("write");
            }
        }
    })
    .await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let mut idle = TcpStream::connect(proxy.addr).await.expect("connect");
    let busy = tokio::spawn(talk(proxy.addr, GET));
    asked.notified().await;
    proxy.leave.send(true).expect("somebody listens");
    let mut nothing = Vec::new();
    idle.read_to_end(&mut nothing).await.expect("closed");
    assert!(nothing.is_empty());
    answer.notify_one();
    let busy = busy.await.expect("joined");
    assert_eq!(status(&busy), 200, "{busy}");
    assert!(busy.contains("connection: close"), "{busy}");
}

#[tokio::test]
async fn a_thousand_strange_hosts_methods_and_paths_add_no_series() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    get(proxy.addr, "/", "").await;
    let before = proxy.metrics.text().lines().count();
    let mut text = String::new();
    for n in 0..1_000 {
        let host = if n % 2 == 0 {
            "svc".to_owned()
        } else {
            format!("h{n}")
        };
        let _infallible = write!(text, "M{n} /p{n} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    }
    text.push_str(LAST);
    let answers = talk(proxy.addr, &text).await;
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 500);
    let added = proxy.metrics.text().lines().count() - before;
    assert!(added <= 40, "{added} lines more");
    assert_eq!(proxy.log(1_002).await.len(), 1_002, "a line a request");
}
