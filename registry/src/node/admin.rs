//! The admin port: how a process is, what it does, what it runs with.
//!
//! | path | |
//! |---|---|
//! | `/livez` | 200 while the process works |
//! | `/readyz` | 200 when it should get traffic, else 503 and what it waits for |
//! | `/metrics` | Prometheus text |
//! | `/config_dump` | the configuration in force, secrets as `***` |
//! | what else the process adds | `/clusters`, `/events`, `/hystrix.stream`, `/reload`, … |
//!
//! On loopback by default. Elsewhere it wants a token, or the process does not start. A `GET`
//! changes nothing; everything else needs the token, and is refused where none is configured. A
//! `Host` that is a name is refused too: a web page must not reach this port by rebinding its own
//! name to loopback.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::{config::Secret, metrics::Metrics, readiness::Readiness};
use crate::problem::{CONTENT_TYPE, Problem};

/// Where the admin port is, and who may change things through it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where it listens. Default "127.0.0.1:0": loopback, a free port (which is logged).
    pub bind: SocketAddr,
    /// What a client must present as `Authorization: Bearer …` to change anything; and to read
    /// anything, where `bind` is not loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: None,
        }
    }
}

impl AdminConfig {
    /// Refuses an admin port that anybody could reach.
    ///
    /// # Errors
    /// What is wrong and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        if self.bind.ip().is_loopback() || self.token.is_some() {
            return Ok(());
        }
        Err(format!(
            "{} is not loopback: an admin port there needs a token as well",
            self.bind
        ))
    }
}

/// What the admin port shows of a process.
#[derive(Debug, Clone, Default)]
pub struct Admin {
    /// Whether it should get traffic.
    pub readiness: Readiness,
    /// What it counts.
    pub metrics: Metrics,
}

#[derive(Debug)]
struct Rules {
    token: Option<Secret>,
    loopback: bool,
}

impl Admin {
    /// The routes that every process has, together with `extra` ones, behind the rules above.
    ///
    /// `config_dump` is asked on each request.
    pub fn router(
        &self,
        config: &AdminConfig,
        config_dump: impl Fn() -> serde_json::Value + Send + Sync + 'static,
        extra: Router,
    ) -> Router {
        let rules = Rules {
            token: config.token.clone(),
            loopback: config.bind.ip().is_loopback(),
        };
        let config_dump = Arc::new(config_dump);
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz).with_state(self.readiness.clone()))
            .route("/metrics", get(metrics).with_state(self.metrics.clone()))
            .route(
                "/config_dump",
                get(move || async move { Json(config_dump()) }),
            )
            .merge(extra)
            .fallback(|| async {
                problem(
                    StatusCode::NOT_FOUND,
                    "not-found",
                    "there is no such page on the admin port",
                )
            })
            .layer(middleware::from_fn_with_state(Arc::new(rules), guard))
    }

    /// Serves `router` until `until` resolves.
    ///
    /// # Errors
    /// If the listener cannot be used.
    pub async fn serve(
        listener: std::net::TcpListener,
        router: Router,
        until: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        axum::serve(listener, router)
            .with_graceful_shutdown(until)
            .await
    }
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let waiting = readiness.waiting();
    if waiting.is_empty() {
        return "ok\n".into_response();
    }
    let mut lines = String::new();
    for (part, why) in &waiting {
        for text in [part, ": ", why, "\n"] {
            lines.push_str(text);
        }
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines).into_response()
}

async fn metrics(State(metrics): State<Metrics>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.text()).into_response()
}

/// Answers, or refuses; a change that is refused is in the audit log (tracing target `audit`), as one
/// that is made is.
async fn guard(State(rules): State<Arc<Rules>>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let Err(refusal) = may(&rules, &request, reads) else {
        return next.run(request).await;
    };
    if !reads {
        // A path may be as long as a head; it is ASCII.
        let path = request.uri().path();
        tracing::info!(
            target: "audit",
            client = "unknown",
            action = "refused",
            method = %request.method(),
            subject = path.get(..256).unwrap_or(path),
            outcome = refusal.status().as_u16(),
            "write"
        );
    }
    *refusal
}

fn may(rules: &Rules, request: &Request, reads: bool) -> Result<(), Box<Response>> {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if rules.loopback && !is_address(host) {
        return Err(problem(
            StatusCode::FORBIDDEN,
            "host",
            "the admin port is reached by address or as localhost",
        )
        .into());
    }
    if headers.contains_key(header::ORIGIN) {
        return Err(problem(
            StatusCode::FORBIDDEN,
            "origin",
            "the admin port is not for web pages of other origins",
        )
        .into());
    }
    if reads && rules.loopback {
        return Ok(());
    }
    let Some(token) = &rules.token else {
        return Err(problem(
            StatusCode::FORBIDDEN,
            "no-token",
            "no admin token is configured, so nothing can be changed here",
        )
        .into());
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| same(given, token.expose().as_bytes())) {
        return Ok(());
    }
    let mut refusal = problem(
        StatusCode::UNAUTHORIZED,
        "token",
        "this needs the admin token",
    );
    refusal.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        header::HeaderValue::from_static("Bearer"),
    );
    Err(refusal.into())
}

/// Whether `host` is an address or `localhost`, with or without a port.
fn is_address(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Compares in a time that does not tell how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .fold(0, |difference, (x, y)| difference | (x ^ y))
            == 0
}

fn problem(status: StatusCode, code: &str, title: &str) -> Response {
    let body = Body::from(Problem::new(status, code, title).to_json());
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tower_service::Service;

    async fn ask(config: &AdminConfig, request: http::request::Builder) -> (StatusCode, String) {
        let admin = Admin::default();
        let _part = std::mem::ManuallyDrop::new(admin.readiness.wait_for("registry", "first list"));
        let extra = Router::new().route("/reload", axum::routing::post(|| async { "done" }));
        let mut router = admin.router(config, || serde_json::json!({"a": 1}), extra);
        let request = request.body(Body::empty()).expect("valid");
        let response = router.call(request).await.expect("infallible");
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("body")
            .to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    fn get(path: &str, host: &str) -> http::request::Builder {
        Request::get(path).header("host", host)
    }

    #[tokio::test]
    async fn reading_is_open_on_loopback_but_not_by_name_or_from_a_page() {
        let config = AdminConfig::default();
        for host in ["127.0.0.1:9000", "localhost", "[::1]:9000"] {
            assert_eq!(ask(&config, get("/livez", host)).await.0, 200, "{host}");
        }
        for host in ["evil.example", "", "127.0.0.1.evil.example"] {
            assert_eq!(ask(&config, get("/livez", host)).await.0, 403, "{host}");
        }
        let page = get("/config_dump", "localhost").header("origin", "http://evil.example");
        assert_eq!(ask(&config, page).await.0, 403);
        let (status, why) = ask(&config, get("/readyz", "localhost")).await;
        assert_eq!(
            (status.as_u16(), why.as_str()),
            (503, "registry: first list\n")
        );
        assert_eq!(ask(&config, get("/nope", "localhost")).await.0, 404);
    }

    #[tokio::test]
    async fn changing_needs_the_token() {
        let none = AdminConfig::default();
        let some = AdminConfig {
            token: Some(Secret::new("t0ken")),
            ..AdminConfig::default()
        };
        let post = |token: &str| {
            Request::post("/reload")
                .header("host", "localhost")
                .header("authorization", token)
        };
        assert_eq!(ask(&none, post("Bearer t0ken")).await.0, 403);
        for (token, want) in [
            ("Bearer t0ken", 200),
            ("Bearer t0ke", 401),
            ("Bearer t0kem", 401),
            ("t0ken", 401),
        ] {
            assert_eq!(ask(&some, post(token)).await.0, want, "{token}");
        }
    }

    #[tokio::test]
    async fn elsewhere_than_loopback_nothing_goes_without_the_token() {
        let bind = "10.0.0.1:9000".parse().expect("addr");
        assert!(AdminConfig { bind, token: None }.validate().is_err());
        let config = AdminConfig {
            bind,
            token: Some(Secret::new("t0ken")),
        };
        assert!(config.validate().is_ok());
        assert_eq!(
            ask(&config, get("/config_dump", "10.0.0.1:9000")).await.0,
            401
        );
    }
}
