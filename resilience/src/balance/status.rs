//! What an operator sees of a balancer.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{Balancer, Cause, EndpointState, EndpointStatus, Key, member::Endpoint};
use crate::{clock::Tick, sync::Ordering};

/// Ejections of endpoints, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejections {
    /// Those that were made.
    pub made: u64,
    /// Those that `max_ejected` did not allow.
    pub not_allowed: u64,
}

impl<K: Key> Balancer<K> {
    /// Members at this moment.
    pub fn len(&self) -> usize {
        self.0.view.load().members.len()
    }

    /// Whether there is nobody to pick.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every endpoint as it stands at `now`, in the order in which members were given.
    pub fn status(&self, now: Instant) -> Vec<EndpointStatus<K>> {
        let (now, view) = (Tick::at(now), self.0.view.load());
        let called: HashSet<*const Endpoint<K>> =
            view.slots().map(|s| Arc::as_ptr(&s.endpoint)).collect();
        let slow = view.config.slow_start.as_ref();
        let status = |e: &Arc<Endpoint<K>>| {
            let mut status = e.status(now, slow);
            if !called.contains(&Arc::as_ptr(e)) {
                status.state = EndpointState::OutsideSubset;
                status.weight_now = 0.0;
            }
            status
        };
        view.members.iter().map(status).collect()
    }

    /// Ejections so far.
    pub fn ejections(&self) -> Ejections {
        let shared = &self.0.shared;
        let made = shared
            .ejections
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .sum();
        Ejections {
            made,
            not_allowed: shared.overflow.load(Ordering::Relaxed),
        }
    }

    /// Ejections so far, by what they were for.
    pub fn ejections_by_cause(&self) -> Vec<(Cause, u64)> {
        let count = |cause: Cause| self.0.shared.ejections[cause as usize].load(Ordering::Relaxed);
        let all = Cause::ALL.iter();
        all.map(|&cause| (cause, count(cause))).collect()
    }

    /// Endpoints that are out at this moment by their results.
    pub fn ejected(&self) -> u32 {
        self.0.shared.places.ejected()
    }

    /// Whether, as of the last look at the endpoints, so many are out that ejections are not
    /// believed.
    pub fn is_in_panic(&self) -> bool {
        self.0.view.load().panics().0
    }

    /// Picks for which there was nobody, so far.
    pub fn rejected(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Picks so far.
    pub fn picks(&self) -> u64 {
        self.0.picks.load(Ordering::Relaxed)
    }
}
