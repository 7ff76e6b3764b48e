//! One event as it is kept, and as it is read.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use selvedge_resilience::events::{Event, EventKind};
use serde_json::{Map, Value};

use super::Origin;
use crate::access_log::rfc3339;

/// Which event of which life of this process, as `0badcafe-17`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id {
    pub(super) life: u32,
    pub(super) seq: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.life, self.seq)
    }
}

impl FromStr for Id {
    type Err = ();

    /// Exactly what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (life, seq) = text.split_once('-').ok_or(())?;
        let id = Self {
            life: u32::from_str_radix(life, 16).map_err(drop)?,
            seq: seq.parse().map_err(drop)?,
        };
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(())
        }
    }
}

/// An event that was collected.
#[derive(Debug, PartialEq)]
pub(super) struct Record {
    pub(super) seq: u64,
    pub(super) at: SystemTime,
    pub(super) origin: Origin,
    pub(super) event: Event,
}

impl Record {
    /// The service that it is about, if it is about one.
    pub(super) fn service(&self) -> Option<&str> {
        self.origin.service(&self.event.name)
    }

    /// As readers get it. Whose it is goes by the names that metrics have for it.
    pub(super) fn to_json(&self, id: Id) -> Value {
        let event = &self.event;
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| {
            fields.insert(name.to_owned(), value);
        };
        put("id", id.to_string().into());
        put("at", time(self.at).into());
        put("side", self.origin.side().into());
        let owner = match self.origin {
            Origin::Listener => "listener",
            _ => "service",
        };
        put(owner, (*event.name).into());
        put("policy", event.policy.as_str().into());
        if let Some(endpoint) = &event.endpoint {
            put("endpoint", (**endpoint).into());
        }
        put("kind", event.kind.as_str().into());
        put("text", event.kind.to_string().into());
        details(&event.kind, &mut put);
        Value::Object(fields)
    }
}

fn details(kind: &EventKind, put: &mut impl FnMut(&str, Value)) {
    match kind {
        EventKind::Transition {
            from,
            to,
            cause,
            open_for,
        } => {
            put("from", from.as_str().into());
            put("to", to.as_str().into());
            put("cause", cause.as_str().into());
            if let Some(time) = open_for {
                put("open_for_ms", millis(*time).into());
            }
        }
        EventKind::Exceeded { cause } => put("cause", cause.as_str().into()),
        EventKind::Rejected { reason } | EventKind::RefusalsBegan { reason } => {
            put("reason", reason.as_str().into());
        }
        EventKind::Reconfigured { generation } => put("generation", (*generation).into()),
        EventKind::Ejected { cause, lasts } => {
            put("cause", cause.as_str().into());
            put("lasts_ms", millis(*lasts).into());
        }
        EventKind::Returned { why } => put("cause", why.as_str().into()),
        EventKind::Checked { passed } => put("passed", (*passed).into()),
        EventKind::Panic {
            begun,
            healthy,
            all,
        } => {
            put("begun", (*begun).into());
            put("healthy", (*healthy).into());
            put("all", (*all).into());
        }
        EventKind::RefusalsEnded { refused } => put("refused", (*refused).into()),
        EventKind::LimitFell { from, to } | EventKind::LimitSettled { from, to } => {
            put("from", (*from).into());
            put("to", (*to).into());
        }
        // Newer than this code: its name and its words are there.
        _ => {}
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (second, ms) = (rfc3339(since.as_secs()), since.subsec_millis());
    format!("{second}.{ms:03}Z")
}
