//! What Eureka servers tell each other, in batches.

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
use crate::audit::Who;

/// Items that one batch may have. Source: Eureka sends 250.
const MAX_ITEMS: usize = 2000;

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

/// Applies a batch; the answer has one item for each, in order.
///
/// # Errors
/// What is wrong with the whole of it.
pub(super) fn apply(eureka: &Eureka, who: &Who, document: &Value) -> Result<Vec<u8>, String> {
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
    let answers = items.iter().map(|item| answer(&one(eureka, who, item)));
    let mut document = Map::new();
    document.insert("responseList".to_owned(), answers.collect());
    Ok(Value::Object(document).to_string().into_bytes())
}

fn one(eureka: &Eureka, who: &Who, item: &Value) -> Done {
    let Value::Object(object) = item else {
        return Done::BadWord;
    };
    let fields = Fields(object);
    let action = fields.text("action").and_then(|name| Action::of(&name));
    let (app, id) = (fields.text("appName"), fields.text("id"));
    let (Some(action), Some(app), Some(id)) = (action, app, id) else {
        return Done::BadWord;
    };
    let Some(named) = Named::new(&app, &id) else {
        return Done::BadWord;
    };
    let dirty = fields.number("lastDirtyTimestamp");
    let word = |name: &str| fields.text(name).and_then(|word| status_of(&word));
    let key = (named.service.clone(), named.id.clone());
    let asker = Asker {
        who,
        via: Via::Peer,
    };
    if action == Action::Register {
        return match object.get("instanceInfo").map(model::read) {
            Some(Ok(instance)) => asker.register(eureka, &app, &instance),
            Some(Err(why)) => Done::Bad(why),
            None => Done::BadWord,
        };
    }
    let done = eureka.told_by(Via::Peer, key, || match action {
        Action::Heartbeat => eureka.heartbeat(&named, dirty, Via::Peer),
        Action::Cancel => eureka.cancel(&named),
        Action::StatusUpdate => match word("status") {
            Some(status) => eureka.status_word_here(&named, StatusWord::Put { status, dirty }),
            None => Done::BadWord,
        },
        Action::DeleteStatusOverride => {
            let after = word("status").unwrap_or(InstanceStatus::Unknown);
            eureka.status_word_here(&named, StatusWord::Delete { after, dirty })
        }
        Action::Register => Done::BadWord,
    });
    match action {
        Action::Heartbeat | Action::Register => done,
        Action::Cancel => asker.audited("deregister", &named, done),
        Action::StatusUpdate => asker.audited("override", &named, done),
        Action::DeleteStatusOverride => asker.audited("override-drop", &named, done),
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
