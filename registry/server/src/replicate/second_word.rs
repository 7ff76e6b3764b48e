//! Before a lease ends: who else has heard of the instance?
//!
//! Both sides tell what they know. The one that asks sends its records, so that a server that still
//! takes a lease for its own learns that it has moved; one that keeps a lease by a later record
//! answers with that.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::peer::{BoxError, Refused};
use crate::{
    catalogue::{Key, Record},
    server::{Incoming, Shared, now},
};

/// How long one server is waited for before the question is asked again.
const ANSWER: Duration = Duration::from_secs(1);
/// Pause before that.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Leases in one question: well below what a peer reads.
const BATCH: usize = 500;

/// Leases that are over at the server that asks, by its records.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HeardQuestion {
    pub(crate) over: Vec<Record>,
}

/// Those that the server that answers has heard of.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct HeardAnswer {
    pub(crate) heard: Vec<Heard>,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Heard {
    /// Which, by number.
    pub(crate) n: usize,
    /// What remains of its lease.
    pub(crate) rest_ms: u64,
    /// What is known of it there, if that is later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) later: Option<Record>,
}

/// Asks about whatever is in doubt.
pub(crate) async fn ask_for_ever(shared: Arc<Shared>) {
    loop {
        shared.doubts.raised.notified().await;
        let keys = shared.doubts.take(now());
        for batch in keys.chunks(BATCH) {
            // One server that hangs must not hold up the next question.
            tokio::spawn(ask(Arc::clone(&shared), batch.to_vec()));
        }
    }
}

async fn ask(shared: Arc<Shared>, keys: Vec<Key>) {
    let records: Vec<Record> = {
        let catalogue = shared.catalogue();
        let records = keys
            .iter()
            .filter_map(|key| catalogue.live_record(&key.0, &key.1));
        records.map(|record| Record::clone(record)).collect()
    };
    let question = HeardQuestion { over: records };
    let peers = shared.serving_peers();
    let asked = peers
        .iter()
        .map(|(_, addr)| ask_one(&shared, *addr, &question));
    let mut heard = HashSet::new();
    let mut all_answered = true;
    for answer in join_all(asked).await {
        match answer {
            Ok(answer) => {
                for one in answer.heard {
                    let Some(record) = question.over.get(one.n) else {
                        continue;
                    };
                    heard.insert(record.key());
                    shared.heard_elsewhere(record, one);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a server could not be asked about leases that are over");
                all_answered = false;
            }
        }
    }
    for key in &heard {
        shared.doubts.forget(key);
    }
    let others = keys.iter().filter(|key| !heard.contains(*key));
    if all_answered {
        shared.doubts.clear(others, now());
        shared.evict_cleared();
    } else {
        tokio::time::sleep(ASK_AGAIN).await;
        shared.doubts.ask_again(others);
    }
}

async fn ask_one(
    shared: &Shared,
    addr: SocketAddr,
    question: &HeardQuestion,
) -> Result<HeardAnswer, BoxError> {
    let path = "/v1/replicate/heard";
    match shared.peers.ask_within(ANSWER, addr, path, question).await {
        // One of an earlier version has nothing to say.
        Err(error) if Refused::status_of(&error) == Some(StatusCode::NOT_FOUND) => {
            Ok(HeardAnswer::default())
        }
        answer => answer,
    }
}

impl Shared {
    /// Whether this server has heard of an instance whose lease is over elsewhere.
    pub(crate) fn has_heard(&self, n: usize, over: Record) -> Option<Heard> {
        let key = over.key();
        let at = now();
        let life = over.stamp.incarnation;
        let mine = self.catalogue().live_record(&key.0, &key.1).cloned();
        let mine = mine.filter(|mine| mine.stamp.incarnation == life)?;
        let heard = self.leases.heard(&key, life, at);
        let passed_on = self.passed_on.heard(&key);
        let passed_on =
            passed_on.and_then(|heard| mine.ttl()?.checked_sub(at.duration_since(heard)));
        let rest = heard.max(passed_on)?;
        let later = (mine.stamp > over.stamp).then_some(mine);
        self.accept([Incoming::Instance(Box::new(over))]);
        Some(Heard {
            n,
            rest_ms: rest.as_millis() as u64,
            later: later.map(Arc::unwrap_or_clone),
        })
    }

    /// Another server has heard of an instance whose lease is over here.
    fn heard_elsewhere(&self, over: &Record, heard: Heard) {
        tracing::debug!(service = %over.service, instance = %over.id, rest_ms = heard.rest_ms, "heard by another server, its lease goes on");
        if let Some(later) = heard.later {
            self.accept([Incoming::Instance(Box::new(later))]);
        }
        self.leases
            .prolong(&over.key(), Duration::from_millis(heard.rest_ms), now());
    }
}
