//! What Eureka servers tell each other, in batches.

use std::collections::HashSet;

use futures_util::future::join_all;
use http::StatusCode;
use selvedge_registry::InstanceStatus;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Eureka,
    asked::Asker,
    json,
    model::{self, Fields, Instance, status_of},
    ops::{Done, Named, Via},
    word::StatusWord,
};
use crate::{audit::Who, catalogue::Key};

/// Items that one batch may have. Source: Eureka sends 250.
const MAX_ITEMS: usize = 2000;

/// Items that are done at once, as some of them ask another server. Source: what Eureka sends.
const AT_ONCE: usize = 250;

/// What a peer says has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Heartbeat,
    Register,
    Cancel,
    StatusUpdate,
    DeleteStatusOverride,
}

impl Action {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "Heartbeat",
            Self::Register => "Register",
            Self::Cancel => "Cancel",
            Self::StatusUpdate => "StatusUpdate",
            Self::DeleteStatusOverride => "DeleteStatusOverride",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [
            Self::Heartbeat,
            Self::Register,
            Self::Cancel,
            Self::StatusUpdate,
            Self::DeleteStatusOverride,
        ]
        .into_iter()
        .find(|action| action.name().eq_ignore_ascii_case(name))
    }
}

/// Applies a batch; the answer has one item for each, in order. What is said of one instance is done
/// in its order.
///
/// # Errors
/// What is wrong with the whole of it.
pub(super) async fn apply(eureka: &Eureka, who: &Who, document: &Value) -> Result<Vec<u8>, String> {
    let single;
    let items = match document.get("replicationList") {
        Some(Value::Array(items)) => items,
        Some(item @ Value::Object(_)) => {
            single = vec![item.clone()];
            &single
        }
        _ => return Err("expected {\"replicationList\":[…]}".to_owned()),
    };
    if items.len() > MAX_ITEMS {
        let n = items.len();
        return Err(format!("{n} items in a batch: at most {MAX_ITEMS}"));
    }
    let mut answers = Vec::with_capacity(items.len());
    let mut rest = items.as_slice();
    while !rest.is_empty() {
        let mut names = HashSet::new();
        let is_new = |item: &&Value| key_of(item).is_none_or(|key| names.insert(key));
        let some = rest.iter().take(AT_ONCE).take_while(is_new).count();
        let (now, later) = rest.split_at(some);
        let done = join_all(now.iter().map(|item| one(eureka, who, item))).await;
        answers.extend(done.iter().map(answer));
        rest = later;
    }
    let mut document = Map::new();
    document.insert("responseList".to_owned(), answers.into());
    Ok(Value::Object(document).to_string().into_bytes())
}

/// Whom an item is about.
fn key_of(item: &Value) -> Option<Key> {
    let fields = Fields(item.as_object()?);
    let named = Named::new(&fields.text("appName")?, &fields.text("id")?);
    named.map(|named| named.key())
}

/// What an item says, as far as it can be understood.
fn what(item: &Value) -> Option<(&Map<String, Value>, Action, String, Named)> {
    let object = item.as_object()?;
    let fields = Fields(object);
    let action = Action::of(&fields.text("action")?)?;
    let app = fields.text("appName")?;
    let named = Named::new(&app, &fields.text("id")?)?;
    Some((object, action, app, named))
}

async fn one(eureka: &Eureka, who: &Who, item: &Value) -> Done {
    let Some((object, action, app, named)) = what(item) else {
        who.wrote("replication", "-", Done::BadWord.status().as_u16());
        return Done::BadWord;
    };
    let fields = Fields(object);
    let dirty = fields.number("lastDirtyTimestamp");
    let word = |name: &str| fields.text(name).and_then(|word| status_of(&word));
    let asker = Asker {
        who,
        via: Via::Peer,
    };
    match action {
        Action::Register => match object.get("instanceInfo").map(model::read) {
            Some(Ok(instance)) => asker.register(eureka, &app, &instance),
            Some(Err(why)) => asker.audited("register", &named, Done::Bad(why)),
            None => asker.audited("register", &named, Done::BadWord),
        },
        Action::Heartbeat => eureka.heartbeat(&named, dirty, Via::Peer).await,
        Action::Cancel => {
            let done = eureka.told_by(Via::Peer, named.key(), || eureka.cancel(&named));
            asker.audited("deregister", &named, done)
        }
        Action::StatusUpdate => {
            let done = match word("status") {
                Some(status) => {
                    let word = StatusWord::Put { status, dirty };
                    eureka.status_word(&named, word, Via::Peer).await
                }
                None => Done::BadWord,
            };
            asker.audited("override", &named, done)
        }
        Action::DeleteStatusOverride => {
            let after = word("status").unwrap_or(InstanceStatus::Unknown);
            let word = StatusWord::Delete { after, dirty };
            let done = eureka.status_word(&named, word, Via::Peer).await;
            asker.audited("override-drop", &named, done)
        }
    }
}

fn answer(done: &Done) -> Value {
    let entity = match done {
        Done::Conflict(held) => serde_json::to_value(json::bare(held)).unwrap_or_default(),
        _ => Value::Null,
    };
    serde_json::json!({"statusCode": done.status().as_u16(), "responseEntity": entity})
}

/// One item of a batch that we send.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) action: Action,
    pub(crate) instance: Box<Instance>,
}

/// A batch as it goes to a peer.
pub(crate) fn write(items: &[Item]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Out<'a, I> {
        app_name: &'a str,
        id: &'a str,
        last_dirty_timestamp: i64,
        overridden_status: &'static str,
        status: &'static str,
        instance_info: Option<I>,
        action: &'static str,
    }
    let out = |item: &Item| {
        let one = &*item.instance;
        let whole = matches!(item.action, Action::Register | Action::Heartbeat);
        let out = Out {
            app_name: &one.app,
            id: &one.id,
            last_dirty_timestamp: one.dirty_ms.unwrap_or_default(),
            overridden_status: model::status_name(one.overridden),
            status: model::status_name(one.status),
            instance_info: whole.then(|| json::bare(one)),
            action: item.action.name(),
        };
        serde_json::to_value(out).unwrap_or_default()
    };
    let list: Vec<Value> = items.iter().map(out).collect();
    serde_json::json!({ "replicationList": list })
        .to_string()
        .into_bytes()
}

/// What a peer has answered to each item.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// What the peer holds, where that is newer.
    pub(crate) held: Option<Instance>,
}

/// Reads a peer's answer to a batch.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_answers(body: &[u8]) -> Result<Vec<Answer>, String> {
    let document: Value = serde_json::from_slice(body).map_err(|e| format!("not JSON: {e}"))?;
    let list = document.get("responseList").and_then(Value::as_array);
    let list = list.ok_or("no responseList in the answer")?;
    let answer = |item: &Value| {
        let code = item.get("statusCode").and_then(Value::as_u64);
        let status = code.and_then(|code| StatusCode::from_u16(code as u16).ok());
        Ok(Answer {
            status: status.ok_or("an item without a statusCode")?,
            held: item
                .get("responseEntity")
                .filter(|entity| entity.is_object())
                .and_then(|entity| model::read(entity).ok()),
        })
    };
    list.iter().map(answer).collect()
}
