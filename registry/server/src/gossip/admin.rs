//! The keyring on the admin port.
//!
//! | request | body | |
//! |---|---|---|
//! | `GET /gossip/keys` | | the keys' ids, and what is verified |
//! | `POST /gossip/keys` | `{"key": "…"}` | installs: opens with it from now on |
//! | `PUT /gossip/keys/{id}/primary` | | uses: seals with it from now on |
//! | `DELETE /gossip/keys/{id}` | | removes: no longer opens with it |
//! | `PUT /gossip/verify` | `{"incoming": true, "outgoing": true}` | insists on sealed datagrams |
//!
//! All but the first need the admin token ([`node::admin`](selvedge_registry::node::admin)).

use std::{fmt::Display, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use selvedge_registry::problem::{CONTENT_TYPE, Problem};
use serde::{Deserialize, Serialize};

use super::keyring::{Key, KeyId, KeyInfo, Keyring, KeyringError};
use crate::audit::operator_wrote;

/// What the admin port shows of the keyring.
#[derive(Debug, Serialize)]
struct KeyList {
    keys: Vec<KeyInfo>,
    verify_incoming: bool,
    verify_outgoing: bool,
}

/// No `Debug`: it holds a key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Install {
    key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verify {
    incoming: bool,
    outgoing: bool,
}

/// The routes, for [`Admin::router`](selvedge_registry::node::admin::Admin::router).
pub fn routes(keys: Arc<Keyring>) -> Router {
    Router::new()
        .route("/gossip/keys", get(list).post(install))
        .route("/gossip/keys/{id}/primary", put(use_key))
        .route("/gossip/keys/{id}", axum::routing::delete(remove))
        .route("/gossip/verify", put(verify))
        .with_state(keys)
}

async fn list(State(keys): State<Arc<Keyring>>) -> Json<KeyList> {
    Json(KeyList {
        keys: keys.list(),
        verify_incoming: keys.verifies_incoming(),
        verify_outgoing: keys.verifies_outgoing(),
    })
}

async fn install(
    State(keys): State<Arc<Keyring>>,
    body: Result<Json<Install>, JsonRejection>,
) -> Response {
    // The rejection's text may quote the body: not shown.
    let key = body.map(|Json(Install { key })| key);
    let key = key.map_err(|_| KeyringError::Malformed);
    let installed = key
        .and_then(|key| Key::parse(&key))
        .and_then(|key| keys.install(key));
    match installed {
        Ok(id) => {
            let id = id.to_string();
            operator_wrote("gossip-key-install", &id, 201);
            (StatusCode::CREATED, Json(serde_json::json!({ "id": id }))).into_response()
        }
        Err(error) => {
            let refusal = refuse(&error);
            operator_wrote("gossip-key-install", &"-", refusal.status().as_u16());
            refusal
        }
    }
}

async fn use_key(State(keys): State<Arc<Keyring>>, Path(id): Path<String>) -> Response {
    let done = id.parse().and_then(|id| keys.use_key(id));
    answer(done, "gossip-key-use", &shown(&id))
}

async fn remove(State(keys): State<Arc<Keyring>>, Path(id): Path<String>) -> Response {
    let done = id.parse().and_then(|id| keys.remove(id));
    answer(done, "gossip-key-remove", &shown(&id))
}

async fn verify(
    State(keys): State<Arc<Keyring>>,
    body: Result<Json<Verify>, JsonRejection>,
) -> Response {
    let Verify { incoming, outgoing } = match body {
        Ok(Json(verify)) => verify,
        Err(error) => {
            let status = StatusCode::BAD_REQUEST;
            operator_wrote("gossip-verify", &"-", status.as_u16());
            return problem(status, "gossip-verify", &error.body_text());
        }
    };
    let subject = format!("incoming={incoming},outgoing={outgoing}");
    answer(keys.verify(incoming, outgoing), "gossip-verify", &subject)
}

fn answer(done: Result<(), KeyringError>, action: &'static str, subject: &dyn Display) -> Response {
    let response = match done {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refuse(&error),
    };
    operator_wrote(action, subject, response.status().as_u16());
    response
}

/// An id as it was asked for, which may be a key that somebody has pasted there.
fn shown(id: &str) -> &str {
    id.parse::<KeyId>().map_or("-", |_| id)
}

fn refuse(error: &KeyringError) -> Response {
    let status = match error {
        KeyringError::Malformed => StatusCode::BAD_REQUEST,
        KeyringError::Unknown { .. } => StatusCode::NOT_FOUND,
        KeyringError::Primary { .. }
        | KeyringError::Full
        | KeyringError::Collision { .. }
        | KeyringError::Empty => StatusCode::CONFLICT,
    };
    problem(status, "gossip-key", &error.to_string())
}

fn problem(status: StatusCode, code: &str, title: &str) -> Response {
    let body = Problem::new(status, code, title).to_json();
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use selvedge_registry::node::{
        admin::{Admin, AdminConfig},
        config::Secret,
    };
    use tower::ServiceExt;

    use super::*;
    use crate::gossip::keyring::generate;

    /// Log lines of this thread.
    #[derive(Clone, Default)]
    struct Log(Arc<parking_lot::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    async fn ask(keys: &Arc<Keyring>, ask: (&str, &str, &str), token: &str) -> (u16, String) {
        let config = AdminConfig {
            token: Some(Secret::new("t0ken")),
            ..AdminConfig::default()
        };
        let dump = || serde_json::json!({});
        let router = Admin::default().router(&config, dump, routes(Arc::clone(keys)));
        let (method, path, body) = ask;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::from(body.to_owned()))
            .expect("valid");
        let response = router.oneshot(request).await.expect("infallible");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("body");
        (
            status,
            String::from_utf8_lossy(&bytes.to_bytes()).into_owned(),
        )
    }

    #[tokio::test]
    async fn a_key_is_rotated_by_an_operator_with_a_token_and_never_shown() {
        let (old, new) = (generate().expect("random"), generate().expect("random"));
        let id = |text: &str| Key::parse(text).expect("a key").id().to_string();
        let (old_id, new_id) = (id(&old), id(&new));
        let ring = Keyring::new([Key::parse(&old).expect("a key")], true, true);
        let ring = Arc::new(ring.expect("a ring"));
        let install = format!(r#"{{"key":"{new}"}}"#);
        let (use_new, remove_old) = (
            format!("/gossip/keys/{new_id}/primary"),
            format!("/gossip/keys/{old_id}"),
        );
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .without_time()
            .with_ansi(false)
            .finish();
        let _for_this_thread = tracing::subscriber::set_default(subscriber);
        for (method, path, body, token, want) in [
            ("POST", "/gossip/keys", install.as_str(), "guess", 401),
            ("PUT", &use_new, "", "t0ken", 404),
            ("POST", "/gossip/keys", r#"{"key":"secret"}"#, "t0ken", 400),
            ("POST", "/gossip/keys", r#"{"kee":"secret"}"#, "t0ken", 400),
            ("POST", "/gossip/keys", &install, "t0ken", 201),
            ("POST", "/gossip/keys", &install, "t0ken", 201),
            ("DELETE", &remove_old, "", "t0ken", 409),
            ("PUT", &use_new, "", "guess", 401),
            ("PUT", &use_new, "", "t0ken", 204),
            ("DELETE", &remove_old, "", "t0ken", 204),
            ("DELETE", &remove_old, "", "t0ken", 404),
            ("DELETE", "/gossip/keys/zz", "", "t0ken", 404),
            ("PUT", "/gossip/verify", r#"{"incoming":1}"#, "t0ken", 400),
            (
                "PUT",
                "/gossip/verify",
                r#"{"incoming":false,"outgoing":true}"#,
                "t0ken",
                204,
            ),
        ] {
            let (status, body) = ask(&ring, (method, path, body), token).await;
            assert_eq!(status, want, "{method} {path}: {body}");
            assert!(!body.contains("secret") && !body.contains(&new), "{body}");
        }
        let said = String::from_utf8(log.0.lock().clone()).expect("UTF-8");
        assert!(!said.contains("secret") && !said.contains(&new), "{said}");
        let written: Vec<&str> = said
            .lines()
            .filter_map(|line| {
                let said = line.split_once("audit: write client=")?.1;
                said.strip_prefix("\"admin\" action=").or(Some(said))
            })
            .collect();
        let of = |action: &str, subject: &str, outcome: u16| {
            format!("\"{action}\" subject={subject} outcome={outcome}")
        };
        let refused = |method: &str, path: &str| {
            let who = "\"unknown\" action=\"refused\"";
            format!("{who} method={method} subject=\"{path}\" outcome=401")
        };
        let want = [
            refused("POST", "/gossip/keys"),
            of("gossip-key-use", &new_id, 404),
            of("gossip-key-install", "-", 400),
            of("gossip-key-install", "-", 400),
            of("gossip-key-install", &new_id, 201),
            of("gossip-key-install", &new_id, 201),
            of("gossip-key-remove", &old_id, 409),
            refused("PUT", &use_new),
            of("gossip-key-use", &new_id, 204),
            of("gossip-key-remove", &old_id, 204),
            of("gossip-key-remove", &old_id, 404),
            of("gossip-key-remove", "-", 404),
            of("gossip-verify", "-", 400),
            of("gossip-verify", "incoming=false,outgoing=true", 204),
        ];
        assert_eq!(written, want, "{said}");
        let (_, list) = ask(&ring, ("GET", "/gossip/keys", ""), "").await;
        let want = format!(
            r#"{{"keys":[{{"id":"{new_id}","primary":true}}],"verify_incoming":false,"verify_outgoing":true}}"#
        );
        assert_eq!(list, want);
    }
}
