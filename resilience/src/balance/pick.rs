//! A call on its way to one endpoint.

use std::{sync::Arc, time::Instant};

use super::{member::Endpoint, outlier::Cause};
use crate::{clock::Tick, outcome::Outcome, sync::Ordering};

/// A call on its way to one endpoint. Complete it with the call's result; dropping it means
/// cancelled.
#[derive(Debug)]
#[must_use = "a pick that is dropped at once counts as a cancelled call"]
pub struct Pick<K> {
    endpoint: Arc<Endpoint<K>>,
    started: Tick,
    epoch: u32,
    /// Whether it counts among its zone's calls that were placed by a hash.
    hashed: bool,
    done: bool,
}

impl<K> Pick<K> {
    /// The call is counted already: as under way, and if it was placed by a hash (`hashed`), in its
    /// zone.
    pub(super) fn new(endpoint: &Arc<Endpoint<K>>, started: Tick, hashed: bool) -> Self {
        Self {
            epoch: endpoint.health.epoch(),
            endpoint: Arc::clone(endpoint),
            started,
            hashed,
            done: false,
        }
    }

    /// The endpoint's key.
    pub fn key(&self) -> &K {
        &self.endpoint.key
    }

    /// Ends the call: its latency and result count for the endpoint. The cause, if this very
    /// result ejected it.
    pub fn complete(mut self, outcome: Outcome, now: Instant) -> Option<Cause> {
        self.give_back(outcome);
        self.endpoint
            .ended(outcome, self.epoch, self.started, Tick::at(now))
    }

    fn give_back(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        match outcome {
            Outcome::Success | Outcome::Ignored | Outcome::RateLimited => {
                self.endpoint.calls.succeed();
            }
            Outcome::Failure(_) | Outcome::Cancelled => self.endpoint.calls.end(),
        }
        if self.hashed {
            self.endpoint.zone.hashed.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<K> Drop for Pick<K> {
    fn drop(&mut self) {
        self.give_back(Outcome::Cancelled);
    }
}
