//! What goes through: heads written anew, bodies to their exact end, trailers.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{Request, Response, body::Frame, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use selvedge_registry::AppProtocol;
use tokio::net::TcpStream;

use crate::support::{Proxy, Upstream, get, status, talk};

#[tokio::test]
async fn the_upstream_sees_a_head_written_anew() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let fields = "x-mine: 1\r\nx-forwarded-for: 6.6.6.6\r\nkeep-alive: 5\r\nte: gzip\r\n\
                  x_forwarded_for: 6.6.6.6\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let answer = get(proxy.addr, "/a/../%62?q=%2e", fields).await;
    let (_, seen) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(seen.starts_with("GET /b?q=%2e HTTP/1.1\r\n"), "{seen}");
    for part in [
        "host: svc\r\n",
        "x-mine: 1\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "via: 1.1 selvedge-test\r\n",
        "x-request-id: ",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
    ] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    for part in ["6.6.6.6", "keep-alive", "te:", "connection"] {
        assert!(!seen.contains(part), "{part} in {seen}");
    }
    let log = proxy.log(1).await;
    assert_eq!(log[0]["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(log[0]["route"], "all");
    assert_eq!(log[0]["status"], 200);
    let answer = get(proxy.addr, "/cut/x?y", "").await;
    assert!(answer.contains("GET /x?y HTTP/1.1\r\n"), "{answer}");
}

#[tokio::test]
async fn absolute_targets_win_over_host() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let text = "GET http://svc:81/x HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n";
    let answer = talk(proxy.addr, text).await;
    assert!(answer.contains("GET /x HTTP/1.1\r\n"), "{answer}");
    assert!(answer.contains("host: svc:81\r\n"), "{answer}");
    assert!(!answer.contains("host: other"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_complete() {
    let cases = [
        (
            "length",
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello",
        ),
        (
            "chunked",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ),
    ];
    for (name, said) in cases {
        let upstream = Upstream::says(said, true).await;
        let proxy = Proxy::start("", &[upstream.http1()]).await;
        let answer = get(proxy.addr, "/", "").await;
        assert_eq!(status(&answer), 200, "{name}: {answer}");
        assert!(!answer.ends_with("0\r\n\r\n"), "{name}: {answer}");
        let announced = answer.contains("content-length: 100") || answer.contains("chunked");
        assert!(announced && answer.len() < 300, "{name}: {answer}");
        assert_eq!(proxy.log(1).await[0]["flag"], "DC", "{name}");
    }
}

#[tokio::test]
async fn a_length_beside_chunks_cuts_nothing_off() {
    let said = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let upstream = Upstream::says(said, false).await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    for n in 1..=2 {
        let answer = get(proxy.addr, "/", "").await;
        assert!(answer.contains("5\r\nhello\r\n0\r\n\r\n"), "{answer}");
        assert!(!answer.contains("content-length"), "{answer}");
        // Such a connection is not used again.
        assert_eq!(upstream.connections(), n);
    }
}

#[tokio::test]
async fn chunked_uploads_stream_through() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let text = "POST / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let answer = talk(proxy.addr, text).await;
    assert!(
        answer.contains("transfer-encoding: chunked\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
        "{answer}"
    );
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// An HTTP/2 upstream that answers a body and trailers, as gRPC servers do.
async fn grpc() -> Upstream {
    Upstream::start(|stream, _| async move {
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            let authority = request.uri().authority().map(ToString::to_string);
            let te = request.headers().get("te").cloned();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a value"));
            trailers.insert(
                "x-te",
                te.unwrap_or_else(|| "none".parse().expect("a value")),
            );
            let sent = request
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            let text = format!("{}|{}", authority.unwrap_or_default(), sent.len());
            let frames = [
                Ok(Frame::data(Bytes::from(text))),
                Ok(Frame::trailers(trailers)),
            ];
            let body: Body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)));
            Ok::<_, std::convert::Infallible>(Response::new(body))
        });
        let _served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

#[tokio::test]
async fn grpc_goes_through_with_its_trailers_over_one_connection() {
    let upstream = grpc().await;
    let proxy = Proxy::start("", &[(upstream.addr, AppProtocol::H2c)]).await;
    let stream = TcpStream::connect(proxy.addr).await.expect("connect");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let calls = (0..50).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::post("http://svc/pkg.Svc/Do")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(Bytes::from(vec![7; 70_000])))
                .expect("a request");
            let answer = sender.send_request(request).await.expect("an answer");
            let whole = answer.into_body().collect().await.expect("a body");
            let trailers = whole.trailers().cloned().expect("trailers");
            (trailers, whole.to_bytes())
        }
    });
    for (trailers, body) in futures_util::future::join_all(calls).await {
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["x-te"], "trailers");
        assert_eq!(body, "svc|70000");
    }
    assert_eq!(upstream.connections(), 1);
    // Refusals are told in gRPC's own way.
    let request = Request::post("http://other/pkg.Svc/Do")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::new()))
        .expect("a request");
    let refused = sender
        .clone()
        .send_request(request)
        .await
        .expect("an answer");
    assert_eq!(refused.status(), 200);
    assert_eq!(refused.headers()["grpc-status"], "12");
}

#[tokio::test]
async fn http2_clients_reach_http1_upstreams() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    let stream = TcpStream::connect(proxy.addr).await.expect("connect");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("http://svc/x?y")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::new(Bytes::new()))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let seen = String::from_utf8_lossy(&body);
    assert!(seen.starts_with("GET /x?y HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("host: svc\r\n"), "{seen}");
    assert!(seen.contains("cookie: a=1; b=2\r\n"), "{seen}");
}
