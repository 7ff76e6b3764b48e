//! Tries: how many, where to, with which body.

use tokio::io::AsyncWriteExt;

use crate::support::{Proxy, Upstream, closed_port, get, read_request, status, talk};

const RETRY: &str = r#"retry = { attempts = 2, codes = [503], backoff = "1ms..2ms" }"#;

#[tokio::test]
async fn an_endpoint_that_refuses_is_left_out_at_once() {
    let upstream = Upstream::echo().await;
    let proxy = Proxy::start(RETRY, &[closed_port().await, upstream.http1()]).await;
    for _ in 0..20 {
        assert_eq!(status(&get(proxy.addr, "/", "").await), 200);
    }
    let log = proxy.log(20).await;
    let retried = log.iter().filter(|line| line["attempts"] != 1).count();
    // Found out once; ejected from then on.
    assert!(retried <= 1, "{retried} of 20 met the dead endpoint");
    let metrics = proxy.metrics.text();
    let counted = format!("selvedge_retry_attempts_total{{service=\"svc\"}} {retried}");
    assert!(metrics.contains(&counted), "{counted} in {metrics}");
}

#[tokio::test]
async fn a_retry_sends_the_same_body_again() {
    let upstream = Upstream::start(|mut stream, n| async move {
        if let Some((_, body)) = read_request(&mut stream).await {
            let status = if n == 0 { "503 Busy" } else { "200 OK" };
            let answer = format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.expect("write");
        }
    })
    .await;
    let proxy = Proxy::start(RETRY, &[upstream.http1()]).await;
    let body = "0123456789".repeat(1_000);
    let text = format!(
        "PUT / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = talk(proxy.addr, &text).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.ends_with(&body));
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_twice() {
    // Reads the request and hangs up.
    let upstream = Upstream::start(|mut stream, _| async move {
        let _read = read_request(&mut stream).await;
    })
    .await;
    let proxy = Proxy::start(RETRY, &[upstream.http1()]).await;
    let post = "POST / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    let answer = talk(proxy.addr, post).await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert_eq!(upstream.connections(), 1);
    let proxy = Proxy::start(RETRY, &[upstream.http1()]).await;
    assert_eq!(status(&get(proxy.addr, "/", "").await), 502);
    assert_eq!(
        upstream.connections(),
        1 + 3,
        "a GET may be tried again, twice"
    );
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_nothing() {
    // One answer a connection, then closed without a word.
    let upstream = Upstream::says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true).await;
    let proxy = Proxy::start("", &[upstream.http1()]).await;
    for n in 0..10 {
        let answer = get(proxy.addr, "/", "").await;
        assert_eq!(status(&answer), 200, "request {n}: {answer}");
        // The upstream's FIN is on its way: let it arrive, as it does between requests.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
