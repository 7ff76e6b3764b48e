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

#[cfg(test)]
mod tests {
    use selvedge_registry::InstanceStatus::{Down, OutOfService, Starting, Unknown, Up};

    use super::*;

    /// An instance that says `reported` of itself, stamped 100.
    fn said(reported: InstanceStatus, overridden: Option<InstanceStatus>) -> InstanceRecord {
        let mut record: InstanceRecord = serde_json::from_value(serde_json::json!({
            "id": "i1", "addr": "10.0.0.1:80", "status": "UP", "weight": 1, "protocol": "http1",
            "ttl": "10s", "incarnation": 1,
        }))
        .expect("a record");
        let mut extra = Extra::default();
        (extra.dirty, extra.from_peer) = (100, true);
        record.dialects.insert(DIALECT.to_owned(), extra.to_text());
        (record.reported, record.overridden) = (reported, overridden);
        record
    }

    #[test]
    fn a_word_changes_what_it_is_about_and_no_more() {
        let put = |status, dirty| StatusWord::Put { status, dirty };
        let delete = |after, dirty| StatusWord::Delete { after, dirty };
        for (name, before, word, overridden, reported, dirty) in [
            (
                "who is up says so still",
                said(Up, None),
                put(OutOfService, None),
                Some(OutOfService),
                Up,
                100,
            ),
            (
                "who is out as well",
                said(OutOfService, None),
                put(Down, None),
                Some(Down),
                OutOfService,
                100,
            ),
            (
                "who starts is what is said",
                said(Starting, None),
                put(Up, None),
                Some(Up),
                Up,
                100,
            ),
            (
                "who is down, too",
                said(Down, Some(Up)),
                put(OutOfService, None),
                Some(OutOfService),
                OutOfService,
                100,
            ),
            (
                "a later stamp is kept",
                said(Up, None),
                put(Down, Some(200)),
                Some(Down),
                Up,
                200,
            ),
            (
                "an earlier one is not",
                said(Up, None),
                put(Down, Some(50)),
                Some(Down),
                Up,
                100,
            ),
            (
                "no word any more",
                said(Up, Some(Down)),
                delete(Unknown, None),
                None,
                Unknown,
                100,
            ),
            (
                "and what shows then",
                said(Down, Some(Down)),
                delete(Up, Some(200)),
                None,
                Up,
                200,
            ),
            (
                "earlier than known",
                said(Up, Some(Down)),
                delete(Up, Some(50)),
                None,
                Up,
                100,
            ),
        ] {
            let mut record = before;
            word.apply(&mut record);
            assert_eq!(
                (record.overridden, record.reported),
                (overridden, reported),
                "{name}"
            );
            let extra = Extra::of(&record).expect("kept");
            assert_eq!((extra.dirty, extra.from_peer), (dirty, true), "{name}");
        }
    }

    #[test]
    fn of_a_v1_instance_nothing_is_kept_beside_it() {
        let mut record = said(Up, None);
        record.dialects.clear();
        let (status, dirty) = (Down, Some(200));
        StatusWord::Put { status, dirty }.apply(&mut record);
        turned(&mut record);
        assert_eq!((record.overridden, record.dialects.len()), (Some(Down), 0));
    }

    #[test]
    fn who_has_turned_to_us_is_ours() {
        let mut record = said(Up, None);
        turned(&mut record);
        let extra = Extra::of(&record).expect("kept");
        assert_eq!((extra.dirty, extra.from_peer), (100, false));
    }
}
