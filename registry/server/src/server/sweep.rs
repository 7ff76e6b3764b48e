//! Ten times a second: whose lease is over, and may it end? And who looks after those whose server
//! is gone?

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use selvedge_registry::wire::MemberState;
use tokio::sync::watch;

use super::{
    shared::{Shared, now},
    writes::grant,
};
use crate::{
    catalogue::{Body, Key, NodeId},
    gossip::Members,
    lease::{
        guardian,
        preserve::{Outside, SelfPreservation, judge, quota},
    },
};

/// How often leases are looked at: what a removal is late by at most.
pub(crate) const SWEEP: Duration = Duration::from_millis(100);
/// How long tombstones are kept. Source: twice the longest partition that should heal by itself.
pub(crate) const TOMBSTONES: Duration = Duration::from_secs(3600);

/// What self-preservation is judged by, beside the leases.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// Servers that were there at the last look.
    servers: BTreeSet<NodeId>,
    /// When which servers vanished.
    vanished: VecDeque<(Instant, NodeId)>,
    /// Nothing is judged until then, and why.
    settling: Option<(&'static str, Instant)>,
    stood_still: u64,
    last_sweep: Option<Instant>,
    isolated: bool,
    unheard: Option<Instant>,
    /// Evictions in this pass, by zone.
    ended: HashMap<Arc<str>, usize>,
    pass_began: Option<Instant>,
    /// Since when evictions are stopped, in Unix milliseconds.
    since: Option<u64>,
}

impl Judgement {
    /// Since when nobody has been heard of.
    pub(crate) fn unheard_since(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.unheard?))
    }

    /// Notes who is there; servers that left in order are not missed.
    fn look_at(&mut self, members: &Members, me: &NodeId, now: Instant, within: Duration) {
        let there: BTreeSet<NodeId> = members
            .iter()
            .filter(|(_, m)| m.is_present() && m.state != MemberState::Joining)
            .map(|(node, _)| Arc::clone(node))
            .collect();
        for gone in self.servers.difference(&there) {
            if gone != me && !members.contains_key(gone) {
                self.vanished.push_back((now, Arc::clone(gone)));
            }
        }
        self.vanished
            .retain(|(at, node)| now.duration_since(*at) < within && !there.contains(node));
        self.servers = there;
    }

    fn outside(&self, now: Instant) -> Outside {
        let lost = self.vanished.len();
        let of = self.servers.len() + lost;
        let settling = self.settling.filter(|(_, until)| *until > now);
        Outside {
            isolated: self.isolated,
            lost: (lost * 3 > of).then_some((lost, of)),
            settling: settling.map(|(why, until)| (why, until - now)),
        }
    }

    fn settle(&mut self, why: &'static str, until: Instant) {
        if self.settling.is_none_or(|(_, known)| known < until) {
            self.settling = Some((why, until));
        }
    }
}

pub(crate) async fn sweep_for_ever(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // A server that is catching up judges nobody.
        if shared.is_serving() {
            shared.sweep();
        } else {
            shared.keep_time(now());
        }
    }
}

/// Follows whether this server is cut off.
pub(crate) async fn note_isolation(shared: Arc<Shared>, mut isolated: watch::Receiver<bool>) {
    loop {
        let now = *isolated.borrow_and_update();
        shared.set_isolated(now);
        if isolated.changed().await.is_err() {
            return;
        }
    }
}

impl Shared {
    /// One look. Not while this server is catching up: it knows too little to judge.
    pub(crate) fn sweep(&self) {
        let at = now();
        self.keep_time(at);
        self.adopt_orphans(at);
        // First what is late now, then what that means: after a pause both come at once.
        self.leases.advance(at);
        let preservation = self.judge(at);
        self.evict(&preservation, at);
        let horizon = TOMBSTONES.as_millis() as u64;
        if let Some(before) = self.uptime_ms().checked_sub(horizon) {
            self.state.write().store.forget_before(before);
        }
        let changed = {
            let known = self.preservation.load();
            known.active != preservation.active || known.reason != preservation.reason
        };
        let turned = self.preservation.load().active != preservation.active;
        if turned && preservation.active {
            tracing::warn!(reason = %preservation.reason, "self-preservation: evictions stopped");
        } else if turned {
            tracing::info!("self-preservation ended: evictions go on");
        }
        if changed || self.preservation.load().zones != preservation.zones {
            self.preservation.store(Arc::new(preservation));
        }
    }

    /// Notes how late this sweep is.
    fn keep_time(&self, at: Instant) {
        let clock = self.leases.clock();
        clock.now(at);
        let mut judgement = self.judgement.lock();
        let settle = at + self.config.settle.0;
        if let Some(last) = judgement.last_sweep.replace(at) {
            clock.ticked(at.saturating_duration_since(last), SWEEP);
        }
        let stood_still = clock.stood_still();
        if judgement.stood_still != stood_still {
            tracing::warn!(
                ms = stood_still - judgement.stood_still,
                "this process stood still, leases with it"
            );
            judgement.stood_still = stood_still;
            judgement.settle("stood still for a while", settle);
        }
    }

    fn judge(&self, at: Instant) -> SelfPreservation {
        let mut judgement = self.judgement.lock();
        let within = self.config.server_loss_within.0;
        judgement.look_at(&self.members.borrow(), &self.node, at, within);
        let mut judged = judge(self.leases.zones(), &judgement.outside(at), &self.config);
        if judged.active {
            judgement.since = judgement.since.or_else(|| Some(self.wall_ms()));
        } else {
            judgement.since = None;
        }
        judged.since = judgement.since;
        judged
    }

    /// Tells whether this server hears enough of its peers.
    pub fn set_isolated(&self, isolated: bool) {
        let at = now();
        let mut judgement = self.judgement.lock();
        if judgement.isolated && !isolated {
            judgement.settle("was isolated", at + self.config.settle.0);
        }
        judgement.isolated = isolated;
        judgement.unheard = isolated.then(|| judgement.unheard.unwrap_or(at));
    }

    /// This server has just learned who there is from others: claims made meanwhile are under way.
    pub(crate) fn settle_in(&self) {
        let until = now() + self.config.settle.0;
        self.judgement.lock().settle("has just caught up", until);
    }

    /// Ends what the other servers have just said that they know nothing of.
    pub(crate) fn evict_cleared(&self) {
        self.evict(&self.self_preservation(), now());
    }

    fn evict(&self, preservation: &SelfPreservation, at: Instant) {
        let alone = self.serving_peers().is_empty();
        let zones: HashMap<&str, _> = preservation
            .zones
            .iter()
            .map(|zone| (&*zone.zone, zone))
            .collect();
        let mut judgement = self.judgement.lock();
        let pass_over = judgement
            .pass_began
            .is_none_or(|began| at.saturating_duration_since(began) >= self.config.pass.0);
        if pass_over {
            judgement.pass_began = Some(at);
            judgement.ended.clear();
        }
        let ended = &mut judgement.ended;
        let everywhere = preservation.active && preservation.zones.is_empty();
        let over = self.leases.overdue(|lease| {
            let zone = zones.get(&*lease.zone);
            let frozen = everywhere || zone.is_some_and(|zone| zone.active);
            let leases = zone.map_or(0, |zone| zone.leases);
            let so_far = ended.entry(Arc::clone(&lease.zone)).or_default();
            let may = (!frozen || lease.written_off)
                && *so_far < quota(leases, &self.config)
                && (alone || self.doubts.may_end(lease, at));
            *so_far += usize::from(may);
            may
        });
        drop(judgement);
        for lease in over {
            let frozen = zones.get(&*lease.zone).is_some_and(|zone| zone.active);
            self.evict_one(&lease.key, frozen);
        }
    }

    fn evict_one(&self, key: &Key, frozen: bool) {
        let mut state = self.state.write();
        let catalogue = state.store.catalogue();
        let Some(record) = catalogue.live_record(&key.0, &key.1).cloned() else {
            self.leases.release(key);
            return;
        };
        if frozen && catalogue.count(&key.0).0 <= self.config.min_keep {
            return;
        }
        // A renewal may have come since it was looked at.
        if !self.leases.end(key) {
            return;
        }
        tracing::info!(service = %key.0, instance = %key.1, owner = %record.stamp.owner, "lease ran out");
        self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        let overridden = record.overridden();
        self.write(&mut state, &record, Body::Evicted { overridden });
    }

    /// Who is there has changed: those whose server is gone are looked at, and those whose server
    /// is back are its own again.
    pub(crate) fn membership_changed(&self) {
        let state = self.state.read();
        for (owner, owned) in state.store.owners() {
            if *owner == self.node {
                continue;
            }
            if self.is_alive(owner) {
                for key in &owned.keys {
                    self.leases.release_guarded(key);
                }
            } else {
                self.orphans.lock().extend(owned.keys.iter().cloned());
            }
        }
    }

    /// An instance whose server is gone has one full lease to renew elsewhere; one server, the same
    /// in everybody's eyes, counts it.
    fn adopt_orphans(&self, at: Instant) {
        let orphans = std::mem::take(&mut *self.orphans.lock());
        if orphans.is_empty() {
            return;
        }
        let candidates: Vec<NodeId> = {
            let members = self.members.borrow();
            let serving = members
                .iter()
                .filter(|(_, member)| member.state == MemberState::Serving);
            serving.map(|(node, _)| Arc::clone(node)).collect()
        };
        let catalogue = self.catalogue();
        for key in orphans {
            let Some(record) = catalogue.live_record(&key.0, &key.1) else {
                continue;
            };
            let Some(instance) = record.instance() else {
                continue;
            };
            let owner = &record.stamp.owner;
            let remaining = instance.ttl.0.max(self.restart_grace());
            if *owner == self.node {
                if !self.leases.holds(&key) {
                    let grant = grant(&instance);
                    self.leases.grant_rest(key, &grant, remaining, at);
                }
            } else if !self.is_alive(owner) {
                let nodes = candidates.iter().map(|node| &**node);
                if guardian(&key, nodes) == Some(&*self.node) {
                    self.leases.guard(key, &grant(&instance), remaining, at);
                } else {
                    self.leases.release_guarded(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
