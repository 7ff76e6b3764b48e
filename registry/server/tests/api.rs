//! The v1 API by hand: what is refused, and how.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use selvedge_registry::{client::Discovery, problem::Problem};
use selvedge_registry_server::RegistryServer;

use crate::support::{client, eventually, name, start, with_metrics};

async fn ask(server: &RegistryServer, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
    let stream = tokio::net::TcpStream::connect(server.shared().http)
        .await
        .expect("connect");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("handshake");
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "registry")
        .header("content-type", "application/json")
        .body(Full::<bytes::Bytes>::from(body.to_owned()))
        .expect("valid");
    let response = sender.send_request(request).await.expect("answer");
    let status = response.status().as_u16();
    (
        status,
        response
            .into_body()
            .collect()
            .await
            .expect("body")
            .to_bytes()
            .to_vec(),
    )
}

async fn serving() -> RegistryServer {
    let server = start("n1", &[]).await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    server
}

#[tokio::test]
async fn an_instance_registers_renews_and_leaves_with_curl_alone() {
    let server = serving().await;
    let path = "/v1/services/orders/instances/i1";
    let body = r#"{"addr":"127.0.0.1:4001","ttl":"30s","metadata":{"team":"shop"}}"#;
    assert_eq!(ask(&server, "PUT", path, body).await.0, 200);
    assert_eq!(
        ask(&server, "PUT", &format!("{path}/lease"), "").await.0,
        204
    );
    let (status, found) = ask(&server, "GET", "/v1/services/orders", "").await;
    assert_eq!(status, 200);
    let found: serde_json::Value = serde_json::from_slice(&found).expect("json");
    assert_eq!(found["instances"][0]["metadata"]["team"], "shop");
    assert_eq!(
        ask(
            &server,
            "PUT",
            &format!("{path}/status"),
            r#"{"status":"OUT_OF_SERVICE"}"#
        )
        .await
        .0,
        204
    );
    let (_, list) = ask(&server, "GET", "/v1/services", "").await;
    let list: serde_json::Value = serde_json::from_slice(&list).expect("json");
    assert_eq!(
        (
            &list["services"][0]["instances"],
            &list["services"][0]["up"]
        ),
        (&1.into(), &0.into())
    );
    assert_eq!(ask(&server, "DELETE", path, "").await.0, 204);
    assert_eq!(ask(&server, "DELETE", path, "").await.0, 404);
    assert_eq!(
        ask(&server, "PUT", &format!("{path}/lease"), "").await.0,
        404
    );
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_a_problem_that_says_what_is_allowed() {
    let server = serving().await;
    let path = "/v1/services/orders/instances/i1";
    let large = format!(
        r#"{{"addr":"127.0.0.1:1","metadata":{{"k":"{}"}}}}"#,
        "x".repeat(5000)
    );
    let huge = "x".repeat(70_000);
    let cases = [
        ("PUT", path, "{}", 400, "addr"),
        ("PUT", path, "not json", 400, "JSON"),
        (
            "PUT",
            path,
            r#"{"addr":"127.0.0.1:1","ttl":"1ms"}"#,
            400,
            "1h",
        ),
        (
            "PUT",
            path,
            r#"{"addr":"127.0.0.1:1","colour":"red"}"#,
            400,
            "colour",
        ),
        ("PUT", path, &large, 400, "4096"),
        ("PUT", path, &huge, 413, "65536"),
        (
            "PUT",
            "/v1/services/Orders/instances/i1",
            r#"{"addr":"127.0.0.1:1"}"#,
            400,
            "a-z",
        ),
        ("GET", "/v1/services/nobody", "", 404, "nobody"),
        ("GET", "/v1/watch", "", 400, "1 to 1000"),
        (
            "GET",
            "/v1/watch?service=a&resume=x",
            "",
            400,
            "resume token",
        ),
        (
            "GET",
            "/v9/services",
            "",
            404,
            "GET /v9/services: the paths",
        ),
        (
            "POST",
            "/v1/services",
            "",
            405,
            "POST /v1/services: allowed are GET, HEAD",
        ),
        (
            "PATCH",
            path,
            "",
            405,
            "PATCH /v1/services/orders/instances/i1: allowed are PUT, DELETE, GET, HEAD",
        ),
        ("PATCH", "/eureka/apps", "", 405, "allowed are GET, HEAD"),
    ];
    for (method, path, body, want, hint) in cases {
        let (status, answer) = ask(&server, method, path, body).await;
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(status, want, "{method} {path}: {text}");
        let problem: Problem = serde_json::from_slice(&answer).expect("a problem document");
        assert_eq!(problem.status, want);
        assert!(
            problem.detail.unwrap_or_default().contains(hint),
            "{method} {path}: {text}"
        );
    }
}

#[tokio::test]
async fn an_earlier_life_cannot_take_a_later_ones_place() {
    let server = serving().await;
    let path = "/v1/services/orders/instances/i1";
    let life = |n: u64| format!(r#"{{"addr":"127.0.0.1:4001","incarnation":{n}}}"#);
    assert_eq!(ask(&server, "PUT", path, &life(7)).await.0, 200);
    assert_eq!(ask(&server, "PUT", path, &life(6)).await.0, 409);
    assert_eq!(
        ask(
            &server,
            "PUT",
            &format!("{path}/lease"),
            r#"{"incarnation":6}"#
        )
        .await
        .0,
        404
    );
    assert_eq!(ask(&server, "PUT", path, &life(8)).await.0, 200);
}

#[tokio::test]
async fn a_server_that_is_catching_up_says_so_instead_of_answering() {
    // A seed that is not there: until the join timeout nothing is known.
    let nobody = "127.0.0.1:9".parse().expect("addr");
    let server = start("n1", &[nobody]).await;
    let (status, _) = ask(&server, "GET", "/v1/services", "").await;
    assert_eq!(status, 503);
    let body = r#"{"addr":"127.0.0.1:4001"}"#;
    assert_eq!(
        ask(&server, "PUT", "/v1/services/orders/instances/i1", body)
            .await
            .0,
        200,
        "but it listens"
    );
    eventually("alone", || async { server.shared().is_serving() }).await;
}

#[tokio::test]
async fn what_an_operator_watches_is_counted() {
    let (server, metrics) = with_metrics("n1").await;
    eventually("serves", || async { server.shared().is_serving() }).await;
    let path = "/v1/services/orders/instances/i1";
    let body = r#"{"addr":"127.0.0.1:4001","ttl":"1s"}"#;
    assert_eq!(ask(&server, "PUT", path, body).await.0, 200);
    let lease = format!("{path}/lease");
    assert_eq!(ask(&server, "PUT", &lease, "").await.0, 204);
    let shows = |line: &str| metrics.text().lines().any(|l| l == line);
    for line in [
        "selvedge_registry_members{state=\"serving\"} 1",
        "selvedge_registry_members{state=\"draining\"} 0",
        "selvedge_registry_instances{status=\"up\"} 1",
        "selvedge_registry_renewals_total 1",
        "selvedge_registry_watchers 0",
    ] {
        eventually(line, || async { shows(line) }).await;
    }
    let watch = client(&[&server]).watch(&name("orders"));
    for line in [
        "selvedge_registry_watchers 1",
        "selvedge_registry_evictions_total 1",
        "selvedge_registry_instances{status=\"up\"} 0",
    ] {
        eventually(line, || async { shows(line) }).await;
    }
    drop(watch);
}
