//! `GET /events`: the question, the list, the stream.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use selvedge_registry::{
    ServiceName,
    problem::{CONTENT_TYPE, Problem},
};
use tokio::{
    sync::watch,
    time::{Duration, Instant, timeout_at},
};

use super::{Chronicle, record::Id, ring::Unread};
use crate::seats::{SEATS, Seat};

/// The list, the stream, or why there is neither.
pub type EventsBody = UnsyncBoxBody<Bytes, Infallible>;

/// A stream says at least this often that it lives. Source: HTML standard, section 9.2.7, "about
/// every fifteen seconds".
const HEARTBEAT: Duration = Duration::from_secs(15);
/// When a client without a seat may ask again.
const COME_BACK: HeaderValue = HeaderValue::from_static("30");
const STREAM: &str = "text/event-stream";
const ALLOWED: &str = "after, service";

/// What is asked for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Query {
    after: Option<Id>,
    service: Option<ServiceName>,
}

impl Query {
    /// Reads `?after=ID&service=NAME`, and `Last-Event-ID`, which knows better than `after`.
    ///
    /// # Errors
    /// What is wrong and what is allowed.
    pub(crate) fn parse(
        pairs: impl IntoIterator<Item = (String, String)>,
        headers: &HeaderMap,
    ) -> Result<Self, String> {
        let mut query = Self::default();
        for (key, value) in pairs {
            let twice = match &*key {
                "after" => query.after.replace(id("after", &value)?).is_some(),
                "service" => {
                    let name = ServiceName::new(&value).map_err(|error| error.to_string())?;
                    query.service.replace(name).is_some()
                }
                other => {
                    let other = short(other, 40);
                    return Err(format!(
                        "there is no parameter {other:?}: allowed are {ALLOWED}"
                    ));
                }
            };
            if twice {
                return Err(format!("{key} is given more than once"));
            }
        }
        if let Some(given) = headers.get("last-event-id") {
            let text = String::from_utf8_lossy(given.as_bytes());
            query.after = Some(id("last-event-id", &text)?);
        }
        Ok(query)
    }
}

fn id(key: &str, value: &str) -> Result<Id, String> {
    value.parse().map_err(|()| {
        let value = short(value, 80);
        format!("{key}={value}: allowed is what an event's `id` said")
    })
}

fn short(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// Where a reader is.
struct Cursor {
    chronicle: Arc<Chronicle>,
    /// The last number that it has read.
    seq: u64,
    /// What it had read was of another life of this process.
    restarted: bool,
    service: Option<ServiceName>,
}

/// One thing to read, with the number up to which everything is read then.
enum Item {
    Restarted,
    Lost(u64),
    Event(serde_json::Value),
}

impl Cursor {
    fn new(chronicle: &Arc<Chronicle>, query: Query) -> Self {
        let inner = chronicle.inner.lock();
        let (seq, restarted) = match query.after {
            // Who has read nothing has lost nothing.
            None => (inner.ring.oldest(), false),
            Some(id) if id.life == chronicle.life => (id.seq.min(inner.ring.last()), false),
            Some(_) => (0, true),
        };
        Self {
            chronicle: Arc::clone(chronicle),
            seq,
            restarted,
            service: query.service,
        }
    }

    /// Everything that it has not read yet.
    fn read(&mut self) -> Vec<(u64, Item)> {
        let unread = self.chronicle.inner.lock().ring.after(self.seq);
        let mut items = Vec::new();
        if std::mem::take(&mut self.restarted) {
            items.push((self.seq, Item::Restarted));
        }
        for one in unread {
            match one {
                Unread::Lost { events, to } => {
                    self.seq = to;
                    items.push((to, Item::Lost(events)));
                }
                Unread::Event(record) => {
                    self.seq = record.seq;
                    let wanted = self.service.as_ref().map(ServiceName::as_str);
                    if wanted.is_none() || wanted == record.service() {
                        let json = record.to_json(self.chronicle.id(record.seq));
                        items.push((record.seq, Item::Event(json)));
                    }
                }
            }
        }
        items
    }

    /// The same as server-sent events; empty if there is nothing.
    fn write(&mut self) -> String {
        let mut text = String::new();
        for (seq, item) in self.read() {
            let id = self.chronicle.id(seq);
            let (event, data) = match item {
                Item::Restarted => ("event: lost\n", serde_json::json!({ "restarted": true })),
                Item::Lost(events) => ("event: lost\n", serde_json::json!({ "events": events })),
                Item::Event(json) => ("", json),
            };
            let (id, data) = (id.to_string(), data.to_string());
            for part in ["id: ", &id, "\n", event, "data: ", &data, "\n\n"] {
                text.push_str(part);
            }
        }
        text
    }

    /// No event, but where it is: who resumes has not missed what was not for him.
    fn position(&self) -> String {
        format!("id: {}\n:\n\n", self.chronicle.id(self.seq))
    }

    fn list(&mut self) -> serde_json::Value {
        let (mut events, mut lost, mut restarted) = (Vec::new(), 0, false);
        for (_, item) in self.read() {
            match item {
                Item::Restarted => restarted = true,
                Item::Lost(n) => lost += n,
                Item::Event(json) => events.push(json),
            }
        }
        serde_json::json!({
            "events": events,
            "lost": lost,
            "restarted": restarted,
            "last": self.chronicle.id(self.seq).to_string(),
        })
    }
}

/// A cursor that waits for what comes.
struct Follower {
    cursor: Cursor,
    news: watch::Receiver<u64>,
    _seat: Seat,
}

impl Follower {
    /// The next events, or that there are none; `None` when there will be none. Cancel-safe.
    async fn next(&mut self) -> Option<Bytes> {
        // Kept over what is news to others only: or who reads of a quiet service in a loud process
        // would hear nothing for hours.
        let heartbeat = Instant::now() + HEARTBEAT;
        loop {
            // First marked, then read: what comes in between is news again.
            self.news.borrow_and_update();
            let text = self.cursor.write();
            if !text.is_empty() {
                return Some(text.into());
            }
            match timeout_at(heartbeat, self.news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(self.cursor.position().into()),
            }
        }
    }
}

/// Answers `GET /events`.
pub(crate) fn answer(
    chronicle: &Arc<Chronicle>,
    query: Result<Query, String>,
    headers: &HeaderMap,
) -> Response<EventsBody> {
    let query = match query {
        Ok(query) => query,
        Err(why) => {
            let title = "the request cannot be understood";
            return refusal(StatusCode::BAD_REQUEST, "bad-request", title, why);
        }
    };
    chronicle.collect();
    let cursor = Cursor::new(chronicle, query);
    let mut response = if wants_stream(headers) {
        follow(cursor)
    } else {
        list(cursor)
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let kinds = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    kinds
        .map(|kind| kind.split(';').next().unwrap_or_default().trim())
        .any(|kind| kind.eq_ignore_ascii_case(STREAM))
}

fn list(mut cursor: Cursor) -> Response<EventsBody> {
    let body = cursor.list().to_string();
    respond(StatusCode::OK, "application/json", body.into())
}

fn follow(cursor: Cursor) -> Response<EventsBody> {
    let Some(seat) = Seat::take(&cursor.chronicle.seats) else {
        let title = "as many read the events as may";
        let why = format!("event streams: at most {SEATS}");
        let mut refusal = refusal(StatusCode::SERVICE_UNAVAILABLE, "limit", title, why);
        refusal.headers_mut().insert(header::RETRY_AFTER, COME_BACK);
        return refusal;
    };
    let follower = Follower {
        news: cursor.chronicle.news.subscribe(),
        cursor,
        _seat: seat,
    };
    let chunks = stream::unfold(follower, |mut follower| async {
        let chunk = follower.next().await?;
        Some((Ok(Frame::data(chunk)), follower))
    });
    let body = StreamBody::new(chunks.boxed()).boxed_unsync();
    let mut response = Response::new(body);
    let fields = [
        (header::CONTENT_TYPE, STREAM),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in fields {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

fn refusal(status: StatusCode, code: &str, title: &str, why: String) -> Response<EventsBody> {
    let problem = Problem::new(status, code, title).detail(why);
    respond(status, CONTENT_TYPE, problem.to_json().into())
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<EventsBody> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
