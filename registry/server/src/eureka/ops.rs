//! What Eureka's clients and peers ask for, by Eureka's rules.

use std::collections::BTreeMap;

use http::StatusCode;
use selvedge_registry::{
    InstanceId, InstanceStatus, ServiceName,
    wire::{InstanceRecord, RegisterRequest},
};

use super::{
    DIALECT, Eureka, REPLICA,
    model::{Action, Instance},
    names,
    record::{self, Extra, dirty_of, shown},
    word::StatusWord,
};
use crate::{
    catalogue::{Body, Key, Record},
    server::{Edit, Origin, Refused},
};

/// What an operation ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// 200, or 204 for a registration; nothing in the body.
    Ok,
    /// 404, nothing in the body: register again.
    Unknown,
    /// 409: what we hold is newer.
    Conflict(Box<Instance>),
    /// 400, with a sentence.
    Bad(String),
    /// 500: a word that is none of Eureka's.
    BadWord,
    /// 503: ask another server.
    Elsewhere(String),
}

impl Done {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Ok => StatusCode::OK,
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::BadWord => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Elsewhere(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<Refused> for Done {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown => Self::Unknown,
            // Decided by lastDirtyTimestamp before; another server's write came between.
            Refused::Later { .. } => Self::Ok,
            Refused::Limit { what, limit } => Self::Elsewhere(format!("at most {limit} {what}")),
            Refused::Invalid(why) => Self::Bad(why),
            Refused::NotServing => Self::Elsewhere("this server cannot know yet".to_owned()),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// A client: our peers must hear of it.
    Client,
    /// A peer, which has told the others itself.
    Peer,
}

/// What a heartbeat of an instance that is known says.
enum Beat {
    /// That it lives.
    Heard,
    /// And that its client has turned from a Eureka beside us to us.
    Turned,
}

/// An instance's name in a path or batch.
pub(crate) struct Named {
    pub(crate) service: ServiceName,
    pub(crate) id: InstanceId,
    app: String,
    raw_id: String,
}

impl Named {
    pub(crate) fn new(app: &str, id: &str) -> Option<Self> {
        let fits = |text: &str| (1..=names::MAX_NAME).contains(&text.len());
        (fits(app) && fits(id)).then(|| Self {
            service: names::service(app),
            id: names::instance(id),
            app: app.to_ascii_uppercase(),
            raw_id: id.to_owned(),
        })
    }

    pub(crate) fn key(&self) -> Key {
        (self.service.clone(), self.id.clone())
    }
}

impl Eureka {
    /// A live instance, if it is the one that is meant and not one whose name became the same.
    pub(crate) fn find(&self, named: &Named) -> Option<(InstanceRecord, Option<Extra>)> {
        let found = self.shared.catalogue().live(&named.service, &named.id)?;
        let instance = record::instance(&named.service, &found, Action::Added);
        let meant = instance.app == named.app && instance.id == named.raw_id;
        let extra = Extra::of(&found);
        meant.then_some((found, extra))
    }

    /// What a client asks for is done; of what a peer asks for it is remembered that it did.
    pub(crate) fn told_by<T>(&self, via: Via, key: Key, apply: impl FnOnce() -> T) -> T {
        match via {
            Via::Client => apply(),
            Via::Peer => self.shared.heard_beside(key, apply),
        }
    }

    /// Changes an instance where its lease is kept, whoever says so.
    async fn edit(&self, named: &Named, edit: Edit, via: Via) -> Done {
        let (service, id) = (&named.service, &named.id);
        let edited = match via {
            Via::Client => self.shared.edit(service, id, edit).await,
            Via::Peer => self.shared.edit_by_eureka(service, id, edit).await,
        };
        edited.map_or_else(Done::from, |_| Done::Ok)
    }

    /// POST `/apps/{app}`.
    pub(crate) fn register(&self, app: &str, instance: &Instance, from: Via) -> Done {
        let key = (names::service(&instance.app), names::instance(&instance.id));
        self.told_by(from, key, || self.take(app, instance, from))
    }

    fn take(&self, app: &str, instance: &Instance, from: Via) -> Done {
        if !app.eq_ignore_ascii_case(&instance.app) {
            let said = &instance.app;
            return Done::Bad(format!(
                "Mismatched appName, expecting {app} but was {said}"
            ));
        }
        let now = self.now_ms();
        let registration = match record::registration(instance, now) {
            Ok(registration) => registration,
            Err(why) => return Done::Bad(why),
        };
        let (service, id) = (&registration.service, &registration.id);
        let catalogue = self.shared.catalogue();
        let known = catalogue.get(service, id);
        let before = known.and_then(|record| record.instance());
        let (mut request, mut extra) = (registration.request, registration.extra);
        if from == Via::Peer && known.is_some_and(|record| buried_later(record, extra.dirty)) {
            return Done::Ok;
        }
        let known_extra = before.as_ref().and_then(Extra::of);
        if let Some(before) = &before {
            if dirty_of(before, known_extra.as_ref()) > extra.dirty {
                // What is held is newer than what came: it stays, with a new lease.
                request = request_of(before);
                extra = known_extra.clone().unwrap_or(extra);
            } else if from == Via::Client && before.overridden.is_none() {
                request.status = kept_status(shown(before), request.status);
            }
        }
        let first_up = known_extra.map_or(0, |known| known.up);
        let is_up = request.status == InstanceStatus::Up;
        extra.up = if first_up == 0 && is_up {
            now
        } else {
            first_up
        };
        extra.from_peer = from == Via::Peer;
        let life = known.map_or(0, |record| record.stamp.incarnation);
        request.incarnation = Some(life.max(u64::try_from(extra.dirty).unwrap_or(0)));
        let origin = Origin {
            dialects: BTreeMap::from([(DIALECT.to_owned(), extra.to_text())]),
        };
        let registered = self
            .shared
            .register(service.clone(), id.clone(), request, origin);
        match registered {
            Err(refused) => refused.into(),
            Ok(record) => {
                let word = instance.overridden;
                if word != InstanceStatus::Unknown && record.overridden.is_none() {
                    let word = Edit::Override(Some(word));
                    return match self.shared.edit_here(service, id, word) {
                        Ok(_) => Done::Ok,
                        Err(refused) => refused.into(),
                    };
                }
                Done::Ok
            }
        }
    }

    /// PUT `/apps/{app}/{id}`.
    pub(crate) async fn heartbeat(&self, named: &Named, dirty: Option<i64>, from: Via) -> Done {
        let beat = self.told_by(from, named.key(), || self.beat(named, dirty, from));
        match beat {
            Ok(Beat::Heard) => Done::Ok,
            // From now on we speak for it.
            Ok(Beat::Turned) => self.edit(named, Edit::Turned, from).await,
            Err(done) => done,
        }
    }

    fn beat(&self, named: &Named, dirty: Option<i64>, from: Via) -> Result<Beat, Done> {
        let Some((record, extra)) = self.find(named) else {
            return Err(self.unknown());
        };
        if shown(&record) == InstanceStatus::Unknown {
            return Err(Done::Unknown);
        }
        self.shared.renew(&named.service, &named.id, None)?;
        let known = dirty_of(&record, extra.as_ref());
        match dirty {
            Some(dirty) if dirty > known => return Err(Done::Unknown),
            Some(dirty) if dirty < known && from == Via::Peer => {
                let held = record::instance(&named.service, &record, Action::Added);
                return Err(Done::Conflict(Box::new(held)));
            }
            _ => {}
        }
        let turned = from == Via::Client && extra.is_some_and(|extra| extra.from_peer);
        Ok(if turned { Beat::Turned } else { Beat::Heard })
    }

    /// DELETE `/apps/{app}/{id}`.
    pub(crate) fn cancel(&self, named: &Named) -> Done {
        if self.find(named).is_none() {
            return self.unknown();
        }
        match self.shared.deregister(&named.service, &named.id) {
            Ok(()) => Done::Ok,
            Err(refused) => refused.into(),
        }
    }

    /// PUT and DELETE `/apps/{app}/{id}/status`. After a DELETE without a word for what comes next,
    /// nobody knows, and the instance registers again.
    pub(crate) async fn status_word(&self, named: &Named, word: StatusWord, via: Via) -> Done {
        if let Some(done) = self.is_said(named, &word) {
            return done;
        }
        self.edit(named, Edit::Eureka(word), via).await
    }

    /// The answer to a word that changes nothing.
    fn is_said(&self, named: &Named, word: &StatusWord) -> Option<Done> {
        let Some((record, _)) = self.find(named) else {
            return Some(self.unknown());
        };
        let said = match word {
            StatusWord::Put { status, .. } => shown(&record) == *status,
            StatusWord::Delete { .. } => record.overridden.is_none(),
        };
        said.then_some(Done::Ok)
    }

    /// PUT `/apps/{app}/{id}/metadata`.
    pub(crate) async fn merge_metadata(
        &self,
        named: &Named,
        pairs: Vec<(String, String)>,
        from: Via,
    ) -> Done {
        if self.find(named).is_none() {
            return self.unknown();
        }
        let changes = pairs.into_iter().map(|(k, v)| (k, Some(v))).collect();
        self.edit(named, Edit::Metadata(changes), from).await
    }

    fn unknown(&self) -> Done {
        if self.shared.is_serving() {
            Done::Unknown
        } else {
            Refused::NotServing.into()
        }
    }

    /// Whether a request says that a peer has told the others.
    pub(crate) fn origin(headers: &http::HeaderMap) -> Via {
        match headers.get(REPLICA) {
            Some(value) if value.as_bytes().eq_ignore_ascii_case(b"true") => Via::Peer,
            _ => Via::Client,
        }
    }
}

/// A peer's late copy of what its client has taken out here since must not bring it back.
fn buried_later(record: &Record, dirty: i64) -> bool {
    let life = i64::try_from(record.stamp.incarnation).unwrap_or(i64::MAX);
    matches!(record.body, Body::Cancelled) && dirty <= life
}

/// A client that says UP after it was taken out, or the other way round, does not change that by
/// registering again. Source: `LeaseExistsRule`.
fn kept_status(before: InstanceStatus, says: InstanceStatus) -> InstanceStatus {
    let stays = |s| matches!(s, InstanceStatus::Up | InstanceStatus::OutOfService);
    if stays(before) && stays(says) {
        before
    } else {
        says
    }
}

/// What a record said when it registered.
fn request_of(record: &InstanceRecord) -> RegisterRequest {
    RegisterRequest {
        addr: record.addr,
        ttl: record.ttl,
        weight: record.weight,
        status: record.reported,
        protocol: record.protocol,
        locality: record.locality.clone(),
        incarnation: None,
        version: record.version.clone(),
        tags: record.tags.clone(),
        ownership: record.ownership.clone(),
        metadata: record.metadata.clone(),
    }
}
