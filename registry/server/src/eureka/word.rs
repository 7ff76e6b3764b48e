//! An operator's word by Eureka's rules, made where the lease is kept.
//!
//! It changes three things in one step: the override, in some cases what the instance is taken to
//! have said itself, and the stamp that Eureka's peers compare. So it travels as a whole.

use selvedge_registry::{InstanceStatus, wire::InstanceRecord};
use serde::{Deserialize, Serialize};

use super::{DIALECT, record::Extra};

/// What `/apps/{app}/{id}/status` changes; `dirty`: its `lastDirtyTimestamp`, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusWord {
    /// PUT: the word.
    Put {
        /// What is to show.
        status: InstanceStatus,
        /// The caller's stamp, if it sent one.
        dirty: Option<i64>,
    },
    /// DELETE: there is none any more.
    Delete {
        /// What shows until the instance says something.
        after: InstanceStatus,
        /// The caller's stamp, if it sent one.
        dirty: Option<i64>,
    },
}

impl StatusWord {
    pub(crate) fn apply(&self, record: &mut InstanceRecord) {
        let dirty = match *self {
            Self::Put { status, dirty } => {
                record.overridden = Some(status);
                if !matches!(
                    record.reported,
                    InstanceStatus::Up | InstanceStatus::OutOfService
                ) {
                    // The operator's word shows until the instance says something else.
                    record.reported = status;
                }
                dirty
            }
            Self::Delete { after, dirty } => {
                record.overridden = None;
                record.reported = after;
                dirty
            }
        };
        // Of a v1 instance there is nothing to keep: its words are made when they are asked for.
        if let Some(mut extra) = Extra::of(record) {
            extra.dirty = dirty.map_or(extra.dirty, |dirty| dirty.max(extra.dirty));
            record.dialects.insert(DIALECT.to_owned(), extra.to_text());
        }
    }
}

/// An instance of a Eureka beside us has turned to us: from now on we speak for it.
pub(crate) fn turned(record: &mut InstanceRecord) {
    if let Some(mut extra) = Extra::of(record) {
        extra.from_peer = false;
        record.dialects.insert(DIALECT.to_owned(), extra.to_text());
    }
}
