//! Clients that take their time, over a pipe and a clock that is turned by hand.

use std::convert::Infallible;

use axum::{
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioExecutor;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{api::refusal::Document, eureka::document};

/// What the tests ask for: a document in either dialect, more than any pipe holds, and a stream
/// that says something each second.
fn router() -> Router {
    let eureka = |headers: HeaderMap, body: Body| async move {
        match document(&headers, body, 1000).await {
            Ok(_) => StatusCode::NO_CONTENT.into_response(),
            Err(refusal) => refusal,
        }
    };
    let beats = || async {
        let beats = stream::unfold((), |()| async {
            sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b":\n\n")), ()))
        });
        Body::from_stream(beats)
    };
    let flood = || async {
        let flood = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 40_000])));
        Body::from_stream(flood)
    };
    Router::new()
        .route("/flood", get(flood))
        .route(
            "/v1",
            post(|_: Document<serde_json::Value>| async { StatusCode::NO_CONTENT }),
        )
        .route("/eureka", post(eureka))
        .route("/large", get(|| async { "x".repeat(1 << 20) }))
        .route("/watch", get(beats))
}

/// A connection, its client's end, and what ends when the server leaves it.
fn connected(pipe: usize) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (client, server) = tokio::io::duplex(pipe);
    let (stop, stopped) = watch::channel(false);
    let connection = Connection {
        addr: ([127, 0, 0, 1], 1).into(),
        router: router(),
        stop: stopped,
    };
    let task = tokio::spawn(async move {
        connection.http(server, Vec::new()).await;
        drop(stop);
    });
    (client, task)
}

/// Sends `begin`, and a byte of `drip` every five seconds; tells after how many seconds the server
/// has ended the connection, and what it has said.
async fn drip(begin: &str, drip: &str) -> (u64, String) {
    let (client, task) = connected(64 << 10);
    let (mut read, mut write) = tokio::io::split(client);
    let begun = Instant::now();
    write.write_all(begin.as_bytes()).await.expect("open");
    let dripping = async {
        let drops = drip.bytes().cycle();
        for byte in drops {
            sleep(Duration::from_secs(5)).await;
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut said = Vec::new();
    let ends = async {
        read.read_to_end(&mut said).await.expect("a pipe");
        task.await.expect("ends well");
    };
    let hour = Duration::from_secs(3600);
    let ended = timeout(hour, async {
        tokio::select! {
            () = ends => (),
            () = dripping => (),
        }
    });
    ended.await.expect("ends within the hour");
    let seconds = begun.elapsed().as_secs();
    (seconds, String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(start_paused = true)]
async fn who_takes_too_long_to_ask_loses_the_place() {
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: 1000\r\n\r\n{{"
        )
    };
    for (name, begin, more, want, said) in [
        ("nothing", String::new(), "", 75, ""),
        ("a word", "P".to_owned(), "", 75, ""),
        (
            "half of HTTP/2's first words",
            "PRI * HTT".to_owned(),
            "",
            75,
            "",
        ),
        (
            "a head that never ends",
            "GET / HTTP/1.1\r\nx: ".to_owned(),
            "a",
            75,
            "",
        ),
        ("a body by the byte", head("/v1"), " ", 30, "HTTP/1.1 408 "),
        (
            "the same in Eureka's dialect",
            head("/eureka"),
            " ",
            30,
            "HTTP/1.1 408 ",
        ),
        ("half a body", head("/v1"), "", 30, "at most 30 s"),
    ] {
        let (seconds, answer) = drip(&begin, more).await;
        assert!(
            (want..=want + 6).contains(&seconds),
            "{name}: after {seconds} s, {answer:?}"
        );
        assert!(answer.contains(said), "{name}: {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_reads_nothing_loses_the_place_and_a_quiet_reader_keeps_it() {
    for (path, want) in [("/large", 60), ("/watch", 60)] {
        let (mut client, task) = connected(256);
        let begun = Instant::now();
        let ask = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        client.write_all(ask.as_bytes()).await.expect("open");
        let hour = Duration::from_secs(3600);
        timeout(hour, task).await.expect("ends").expect("well");
        let seconds = begun.elapsed().as_secs();
        // A watch fills the pipe first.
        assert!((want..want + 60).contains(&seconds), "{path}: {seconds} s");
    }
    let (mut client, task) = connected(256);
    let ask = b"GET /watch HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(ask).await.expect("open");
    let read = async {
        let mut buffer = [0; 64];
        let mut all = 0;
        for _ in 0..1000 {
            all += client.read(&mut buffer).await.expect("goes on");
        }
        all
    };
    assert!(read.await > 3000);
    assert!(!task.is_finished(), "it reads, and asks for nothing else");
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http_2_without_requests_is_ended_and_one_with_a_stream_is_not() {
    for (path, keeps) in [("/watch", true), ("/none", false)] {
        let (client, task) = connected(64 << 10);
        let client = TokioIo::new(client);
        let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), client).await;
        let (mut sender, connection) = made.expect("HTTP/2");
        tokio::spawn(connection);
        let request = Request::get(format!("http://x{path}")).body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.expect("valid")).await;
        let mut body = answer.expect("an answer").into_body();
        let reading = tokio::spawn(async move {
            while http_body_util::BodyExt::frame(&mut body).await.is_some() {}
        });
        sleep(IDLE + Duration::from_secs(10)).await;
        assert_eq!(!task.is_finished(), keeps, "{path}");
        assert_eq!(!reading.is_finished(), keeps, "{path}");
    }
}

/// A client of HTTP/2 whose streams have a window of so many bytes, on a connection that has room
/// for all of them.
async fn with_windows(
    bytes: u32,
) -> (
    hyper::client::conn::http2::SendRequest<Empty<Bytes>>,
    tokio::task::JoinHandle<()>,
) {
    let (client, task) = connected(64 << 10);
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(bytes)
        .initial_connection_window_size(16 << 20);
    let made = builder.handshake(TokioIo::new(client)).await;
    let (sender, connection) = made.expect("HTTP/2");
    tokio::spawn(connection);
    (sender, task)
}

async fn asked(
    sender: &mut hyper::client::conn::http2::SendRequest<Empty<Bytes>>,
    path: &str,
) -> hyper::body::Incoming {
    let request = Request::get(format!("http://x{path}")).body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.expect("valid")).await;
    answer.expect("an answer").into_body()
}

/// What comes of a body until it ends or breaks, a frame each `pause`; whether it broke.
async fn read(mut body: hyper::body::Incoming, pause: Duration) -> (usize, bool) {
    let mut bytes = 0;
    loop {
        match http_body_util::BodyExt::frame(&mut body).await {
            Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) => return (bytes, true),
            None => return (bytes, false),
        }
        sleep(pause).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_http_2_whose_client_opens_no_window_is_ended_and_no_other() {
    // A window that is full at once, and one that is full after many beats of a watch.
    for (path, window, after) in [
        ("/flood", 20_000, 62),
        ("/large", 20_000, 62),
        ("/watch", 300, 170),
    ] {
        let (mut sender, task) = with_windows(window).await;
        let other = tokio::spawn(read(asked(&mut sender, "/watch").await, Duration::ZERO));
        let body = asked(&mut sender, path).await;
        // It reads nothing, and finds then that it has lost its place.
        sleep(Duration::from_secs(after)).await;
        let (bytes, is_broken) = read(body, Duration::ZERO).await;
        assert!(is_broken, "{path}: {bytes} bytes");
        assert!(bytes <= window as usize, "{path}: {bytes} bytes");
        assert!(
            !other.is_finished() && !task.is_finished(),
            "{path}: the others go on"
        );
        let (whole, is_broken) = read(asked(&mut sender, "/large").await, Duration::ZERO).await;
        assert_eq!((whole, is_broken), (1 << 20, false), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_http_2_that_is_read_slowly_or_has_nothing_to_say_is_not_ended() {
    let (mut sender, task) = with_windows(16 << 10).await;
    // A piece every fifty seconds, to its end.
    let slow = asked(&mut sender, "/large").await;
    let slow = tokio::spawn(read(slow, Duration::from_secs(50)));
    // A beat each second, within its window as it is read, for as long.
    let watch = tokio::spawn(read(asked(&mut sender, "/watch").await, Duration::ZERO));
    let (bytes, is_broken) = slow.await.expect("ends");
    assert_eq!((bytes, is_broken), (1 << 20, false));
    assert!(!watch.is_finished() && !task.is_finished());
}
