//! Eureka's paths, as they are found in the wild, and its answers, as each client can read them.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::any,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use selvedge_registry::{InstanceStatus, wire::MAX_BODY};
use serde_json::Value;

use super::{
    Eureka, SEEDING,
    answer::{Wants, empty, text},
    asked::Asker,
    batch,
    model::{self, Application, Applications, status_name, status_of},
    ops::{Done, Named, Via},
    request::{self, query, segments, value_of},
    view::{self, Asked},
    word::StatusWord,
};
use crate::audit::Who;

/// Bytes of a batch between servers: 250 items of 16 KiB.
const MAX_BATCH: usize = 4 << 20;

/// Eureka's paths under its three prefixes.
pub(crate) fn router(eureka: Arc<Eureka>) -> Router {
    let mut router = Router::new();
    for path in [
        "/eureka",
        "/eureka/{*rest}",
        "/v2",
        "/v2/{*rest}",
        // Clients that join "http://host:port/" and "/eureka/".
        "//{*rest}",
    ] {
        router = router.route(path, any(serve));
    }
    router.with_state(eureka)
}

async fn serve(State(eureka): State<Arc<Eureka>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Some(path) = segments(parts.uri.path()) else {
        return empty(StatusCode::NOT_FOUND);
    };
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let query = query(parts.uri.query());
    // The guard has put it there.
    let Some(who) = parts.extensions.get::<Who>() else {
        return empty(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let wants = Wants::of(&parts.headers);
    let call = Call {
        eureka: &eureka,
        who,
        wants,
        query: &query,
        from: Eureka::origin(&parts.headers),
        headers: &parts.headers,
    };
    match parts.method {
        Method::GET | Method::HEAD => call.read(&path).await,
        Method::POST => call.post(&path, body).await,
        Method::PUT => call.put(&path).await,
        Method::DELETE => call.delete(&path).await,
        _ => {
            let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
            let allow = http::HeaderValue::from_static("GET,HEAD,POST,PUT,DELETE");
            response.headers_mut().insert(http::header::ALLOW, allow);
            response
        }
    }
}

/// A path that is none of Eureka's. (What is not registered has no body: clients rely on it.)
fn no_such_path(method: &str, path: &[&str]) -> Response {
    let path: String = path.join("/").chars().take(200).collect();
    text(
        StatusCode::NOT_FOUND,
        format!(
            "no such path: {method} /{path}; there are GET /apps, /apps/delta, /apps/APP, \
             /apps/APP/ID, /instances/ID, /vips/VIP, /svips/VIP, /status, \
             /serverinfo/statusoverrides; POST /apps/APP, /peerreplication/batch; PUT and DELETE \
             /apps/APP/ID, /apps/APP/ID/status; PUT /apps/APP/ID/metadata"
        ),
    )
}

struct Call<'a> {
    eureka: &'a Arc<Eureka>,
    who: &'a Who,
    wants: Wants,
    query: &'a [(String, String)],
    from: Via,
    headers: &'a HeaderMap,
}

impl Call<'_> {
    async fn read(&self, path: &[&str]) -> Response {
        match path {
            ["status"] => return self.document_of_status(),
            ["serverinfo", "statusoverrides"] => return self.overrides(),
            _ => {}
        }
        let known = matches!(
            path,
            ["apps"] | ["apps" | "instances" | "vips" | "svips", _] | ["apps", _, _]
        );
        if !known {
            return no_such_path("GET", path);
        }
        if !self.eureka.is_ready() {
            return match path {
                ["apps"] if self.headers.contains_key(SEEDING) => self.what_there_is().await,
                _ => empty(StatusCode::FORBIDDEN),
            };
        }
        let mut response = match path {
            ["apps"] => self.everybody(false).await,
            ["apps", "delta"] => self.everybody(true).await,
            ["apps", app] => self.app(app),
            ["apps", app, id] => self.one(Named::new(app, id)),
            ["instances", id] => self.instance(id),
            ["vips", vip] => self.vip(vip, false),
            ["svips", vip] => self.vip(vip, true),
            _ => empty(StatusCode::NOT_FOUND),
        };
        if let Some(stale) = self.eureka.shared.staleness() {
            // As v1 does: since when it has heard from no peer, in milliseconds.
            let ms = u64::try_from(stale.as_millis()).unwrap_or(u64::MAX);
            response
                .headers_mut()
                .insert("x-selvedge-staleness", ms.into());
        }
        response
    }

    /// For another one of us that waits for its peers as we do, and must not do so for ever.
    async fn what_there_is(&self) -> Response {
        if !self.eureka.shared.is_serving() {
            return empty(StatusCode::FORBIDDEN);
        }
        let stuck = self.eureka.stuck.load(Ordering::Relaxed);
        let mut response = self.everybody(false).await;
        let seeding = HeaderValue::from_static(if stuck { "stuck" } else { "waiting" });
        response.headers_mut().insert(SEEDING, seeding);
        response
    }

    /// The two answers that everybody polls.
    async fn everybody(&self, delta: bool) -> Response {
        let asked = Asked {
            delta,
            json: self.wants.json,
            gzip: self.wants.gzip,
            detail: self.wants.detail,
        };
        let wants = self.wants;
        if let Some(kept) = self.eureka.kept(asked) {
            return wants.packed(kept);
        }
        let Ok(_turn) = self.eureka.making.acquire().await else {
            return empty(StatusCode::SERVICE_UNAVAILABLE);
        };
        // Whoever was before may have made it.
        if let Some(kept) = self.eureka.kept(asked) {
            return wants.packed(kept);
        }
        // A large registry takes a while to write out and to compress.
        let eureka = Arc::clone(self.eureka);
        let made = tokio::task::spawn_blocking(move || {
            let begun = super::now();
            let (all, of) = eureka.applications(delta);
            let packed = wants.pack(wants.applications(&all));
            let done = super::now();
            eureka.answers.keep(asked, of, &packed, done - begun, done);
            packed
        });
        match made.await {
            Ok(packed) => wants.packed(packed),
            Err(error) => {
                tracing::error!(%error, "write the registry out failed");
                empty(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    fn app(&self, app: &str) -> Response {
        let name = app.to_ascii_uppercase();
        let service = super::names::service(&name);
        let instances = view::of_app(&self.eureka.shared.catalogue(), &service, &name);
        if instances.is_empty() {
            return empty(StatusCode::NOT_FOUND);
        }
        let application = Application { name, instances };
        self.wants.document(self.wants.application(&application))
    }

    fn one(&self, named: Option<Named>) -> Response {
        let found = named.and_then(|named| {
            let (found, _) = self.eureka.find(&named)?;
            Some(super::record::instance(
                &named.service,
                &found,
                model::Action::Added,
            ))
        });
        match found {
            Some(instance) => self.wants.document(self.wants.instance(&instance)),
            None => empty(StatusCode::NOT_FOUND),
        }
    }

    /// Of any application: the id alone is looked for.
    fn instance(&self, id: &str) -> Response {
        let all = view::everything(&self.eureka.shared.catalogue());
        match all.iter().find(|instance| instance.id == id) {
            Some(instance) => self.wants.document(self.wants.instance(instance)),
            None => empty(StatusCode::NOT_FOUND),
        }
    }

    fn vip(&self, vip: &str, secure: bool) -> Response {
        let catalogue = self.eureka.shared.catalogue();
        let found = view::by_vip(&catalogue, vip, secure);
        let all = Applications {
            version: self.eureka.version(&catalogue),
            hash: view::hash(found.iter().map(|instance| instance.status)),
            applications: view::grouped(found),
        };
        self.wants.document(self.wants.applications(&all))
    }

    async fn post(&self, path: &[&str], body: Body) -> Response {
        match path {
            ["apps", app] => {
                let document = match request::document(self.headers, body, MAX_BODY).await {
                    Ok(document) => document,
                    Err(refusal) => return refusal,
                };
                match model::read(&document) {
                    Ok(instance) => self
                        .asker()
                        .register(self.eureka, app, &instance)
                        .respond(self.wants, StatusCode::NO_CONTENT),
                    Err(why) => text(StatusCode::BAD_REQUEST, why),
                }
            }
            ["peerreplication", "batch"] => {
                let document = match request::document(self.headers, body, MAX_BATCH).await {
                    Ok(document) => document,
                    Err(refusal) => return refusal,
                };
                match batch::apply(self.eureka, self.who, &document).await {
                    Ok(answer) => {
                        let json = Wants {
                            json: true,
                            ..self.wants
                        };
                        json.document(answer)
                    }
                    Err(why) => text(StatusCode::BAD_REQUEST, why),
                }
            }
            _ => no_such_path("POST", path),
        }
    }

    fn asker(&self) -> Asker<'_> {
        Asker {
            who: self.who,
            via: self.from,
        }
    }

    fn write(&self, action: &'static str, named: &Named, apply: impl FnOnce() -> Done) -> Done {
        let done = self.eureka.told_by(self.from, named.key(), apply);
        self.asker().audited(action, named, done)
    }

    async fn status_word(&self, action: &'static str, named: &Named, word: StatusWord) -> Done {
        let done = self.eureka.status_word(named, word, self.from).await;
        self.asker().audited(action, named, done)
    }

    async fn put(&self, path: &[&str]) -> Response {
        let dirty = value_of(self.query, "lastDirtyTimestamp");
        let dirty = dirty.and_then(|text| text.parse().ok());
        let done = match path {
            ["asg", _, "status"] => {
                let why = "autoscaling groups are AWS's: this server does not keep them";
                Done::Bad(why.to_owned())
            }
            ["apps", app, id] => match Named::new(app, id) {
                Some(named) => self.eureka.heartbeat(&named, dirty, self.from).await,
                None => Done::Unknown,
            },
            ["apps", app, id, "status"] => {
                let word = value_of(self.query, "value").and_then(status_of);
                match (Named::new(app, id), word) {
                    (None, _) => Done::Unknown,
                    (Some(named), _) if self.eureka.find(&named).is_none() => Done::Unknown,
                    (_, None) => Done::BadWord,
                    (Some(named), Some(status)) => {
                        let word = StatusWord::Put { status, dirty };
                        self.status_word("override", &named, word).await
                    }
                }
            }
            ["apps", app, id, "metadata"] => match Named::new(app, id) {
                Some(named) => {
                    let pairs = self.query.to_vec();
                    let done = self.eureka.merge_metadata(&named, pairs, self.from).await;
                    self.asker().audited("metadata", &named, done)
                }
                None => Done::Unknown,
            },
            _ => return no_such_path("PUT", path),
        };
        done.respond(self.wants, StatusCode::OK)
    }

    async fn delete(&self, path: &[&str]) -> Response {
        let dirty = value_of(self.query, "lastDirtyTimestamp");
        let dirty = dirty.and_then(|text| text.parse().ok());
        let done = match path {
            ["apps", app, id] => match Named::new(app, id) {
                Some(named) => self.write("deregister", &named, || self.eureka.cancel(&named)),
                None => Done::Unknown,
            },
            ["apps", app, id, "status"] => {
                let word = value_of(self.query, "value").filter(|word| !word.is_empty());
                let after = match word.map(status_of) {
                    None => Some(InstanceStatus::Unknown),
                    Some(word) => word,
                };
                match (Named::new(app, id), after) {
                    (None, _) => Done::Unknown,
                    (_, None) => Done::BadWord,
                    (Some(named), Some(after)) => {
                        let word = StatusWord::Delete { after, dirty };
                        self.status_word("override-drop", &named, word).await
                    }
                }
            }
            _ => return no_such_path("DELETE", path),
        };
        done.respond(self.wants, StatusCode::OK)
    }

    /// `/status`: what operators' scripts read of it.
    fn document_of_status(&self) -> Response {
        let shared = &self.eureka.shared;
        let node = shared.node.as_ref();
        let members = shared.member_list().members;
        let peers: Vec<String> = members
            .iter()
            .filter(|member| !member.me && member.state.is_present())
            .map(|member| format!("http://{}/eureka/", member.http))
            .collect();
        let peers = peers.join(",");
        let instances = shared.read(crate::catalogue::Catalogue::len);
        if self.wants.json {
            let document = serde_json::json!({
                "generalStats": {"environment": "selvedge", "server-node": node},
                "applicationStats": {
                    "registered-replicas": peers,
                    "available-replicas": peers,
                    "unavailable-replicas": "",
                    "registered-instances": instances.to_string(),
                },
            });
            return self.wants.document(document.to_string().into_bytes());
        }
        let mut document = String::new();
        let peers = quick_xml::escape::escape(&*peers);
        write!(
            document,
            "<com.netflix.eureka.util.StatusInfo><generalStats><environment>selvedge</environment>\
             <server-node>{node}</server-node></generalStats><applicationStats>\
             <registered-replicas>{peers}</registered-replicas>\
             <available-replicas>{peers}</available-replicas>\
             <unavailable-replicas></unavailable-replicas>\
             <registered-instances>{instances}</registered-instances>\
             </applicationStats></com.netflix.eureka.util.StatusInfo>"
        )
        .expect("strings take everything");
        self.wants.document(document.into_bytes())
    }

    /// Which instances an operator has spoken about.
    fn overrides(&self) -> Response {
        let all = view::everything(&self.eureka.shared.catalogue());
        let overridden = all
            .into_iter()
            .filter(|instance| instance.overridden != InstanceStatus::Unknown)
            .map(|instance| (instance.id, Value::from(status_name(instance.overridden))));
        let map = Value::Object(overridden.collect());
        let json = Wants {
            json: true,
            ..self.wants
        };
        json.document(map.to_string().into_bytes())
    }
}
