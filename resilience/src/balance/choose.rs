//! How each policy chooses within a group.

use super::{
    BalancePolicy,
    member::{Endpoint, Key},
    view::{Ask, Group, Index, Slot, View},
};
use crate::sync::Ordering;

/// How much dearer an endpoint must be to be passed over. A guess between 1, which starves whoever
/// was slow once of the calls that would show it is fast again (or dead), and 2, at which one call
/// under way would no longer count.
const NOISE: f64 = 1.5;

/// Draws before the endpoints are looked through one by one. A guess: with half of them out, one
/// pick in 256 looks further.
const DRAWS: usize = 8;

/// Steps on a ring or in a table before the endpoints are looked through one by one. A guess; with
/// a load factor of 125 % some 20 are expected where all are busy.
const STEPS: usize = 128;

/// The endpoint that takes the call, and whether its place is claimed already.
pub(super) struct Chosen<'a, K> {
    pub(super) slot: &'a Slot<K>,
    pub(super) claimed: bool,
}

impl<'a, K> Chosen<'a, K> {
    fn unclaimed(slot: &'a Slot<K>) -> Self {
        Self {
            slot,
            claimed: false,
        }
    }
}

impl<K: Key> View<K> {
    /// Who takes the call; `None` if nobody may.
    pub(super) fn choose(&self, ask: &mut Ask<'_, K>) -> Option<Chosen<'_, K>> {
        let (group, panic) = self.route(ask)?;
        ask.panic = panic;
        if let Some(chosen) = group.choose(ask, self) {
            return Some(chosen);
        }
        // Nobody there: anybody who is in, and only then the one to be avoided.
        let anybody = |ask: &mut Ask<'_, K>| {
            let slots = self.slots().filter(|s| ask.may_use(&s.endpoint)).count();
            let nth = ask.draws.below(slots);
            self.slots().filter(|s| ask.may_use(&s.endpoint)).nth(nth)
        };
        ask.panic = false;
        let found = anybody(ask).or_else(|| {
            ask.avoid = &[];
            anybody(ask)
        });
        let found = found.or_else(|| {
            ask.panic = panic;
            anybody(ask)
        });
        found.map(Chosen::unclaimed)
    }
}

impl<K: Key> Group<K> {
    fn choose(&self, ask: &mut Ask<'_, K>, view: &View<K>) -> Option<Chosen<'_, K>> {
        let found = match &self.index {
            Index::Chance => self.draw(ask)?,
            Index::Choices if view.config.policy == BalancePolicy::LeastRequest => {
                self.least_request(ask)?
            }
            Index::Choices => self.peak_ewma(ask)?,
            Index::Turns(turns) => {
                let len = self.slots.len();
                self.search(ask, |_| {
                    // A turn that its owner cannot take is nobody's: handed to the next in line it
                    // would give that one twice its share.
                    turns.at(self.turn.fetch_add(1, Ordering::Relaxed), len)
                })?
            }
            Index::Ring(ring) => {
                let hash = ask.hash.unwrap_or_else(|| ask.draws.next());
                return self.by_hash(ask, ring.walk(hash), view.config.load_factor.fraction());
            }
            Index::Maglev(table) => {
                let hash = ask.hash.unwrap_or_else(|| ask.draws.next());
                return self.by_hash(ask, table.walk(hash), view.config.load_factor.fraction());
            }
        };
        Some(Chosen::unclaimed(&self.slots[found]))
    }

    /// Any, with the odds of its weight.
    fn drawn(&self, ask: &mut Ask<'_, K>) -> usize {
        match &self.alias {
            Some(alias) => alias.draw(&mut ask.draws),
            None => ask.draws.below(self.slots.len()),
        }
    }

    /// One that may be used, with the odds of its weight.
    fn draw(&self, ask: &mut Ask<'_, K>) -> Option<usize> {
        self.search(ask, |ask| self.drawn(ask))
    }

    /// The first of some candidates that may be used and is warm enough; if there is none, anyone
    /// who may be used.
    fn search(
        &self,
        ask: &mut Ask<'_, K>,
        mut candidate: impl FnMut(&mut Ask<'_, K>) -> usize,
    ) -> Option<usize> {
        let mut cold = None;
        for _ in 0..DRAWS {
            let found = candidate(ask);
            let endpoint = &self.slots[found].endpoint;
            if ask.may_use(endpoint) {
                if ask.is_warm(endpoint) {
                    return Some(found);
                }
                cold = Some(found);
            }
        }
        cold.or_else(|| self.scan(ask))
    }

    /// One of those that may be used, from a place drawn by chance on.
    fn scan(&self, ask: &mut Ask<'_, K>) -> Option<usize> {
        let len = self.slots.len();
        let from = ask.draws.below(len);
        (0..len)
            .map(|n| (from + n) % len)
            .find(|&n| ask.may_use(&self.slots[n].endpoint))
    }

    /// Another than `first` that may be used; `None` if there was none among a few.
    fn another(&self, ask: &mut Ask<'_, K>, first: usize) -> Option<usize> {
        let len = self.slots.len();
        if len < 2 {
            return None;
        }
        for _ in 0..DRAWS {
            let mut found = self.drawn(ask);
            if found == first {
                // Any of the others: two that are the same are no choice.
                found = (first + 1 + ask.draws.below(len - 1)) % len;
            }
            let endpoint = &self.slots[found].endpoint;
            if ask.may_use(endpoint) && ask.is_warm(endpoint) {
                return Some(found);
            }
        }
        None
    }

    fn least_request(&self, ask: &mut Ask<'_, K>) -> Option<usize> {
        let a = self.draw(ask)?;
        let Some(b) = self.another(ask, a) else {
            return Some(a);
        };
        // Calls under way per weight; alike, the first draw decides, which weighs by itself.
        let load = |n: usize| {
            let slot = &self.slots[n];
            let pending = slot.endpoint.calls.pending();
            f64::from(pending) / (slot.share * ask.warmth(&slot.endpoint))
        };
        Some(if load(b) < load(a) { b } else { a })
    }

    fn peak_ewma(&self, ask: &mut Ask<'_, K>) -> Option<usize> {
        let a = self.draw(ask)?;
        let Some(b) = self.another(ask, a) else {
            return Some(a);
        };
        let endpoint = |n: usize| -> &Endpoint<K> { &self.slots[n].endpoint };
        let load = |n: usize| {
            let share = self.slots[n].share * ask.warmth(endpoint(n));
            endpoint(n).latency_load(ask.now, share, ask.decay)
        };
        Some(if endpoint(a).is_forgotten(ask.now, ask.picks) {
            a
        } else if endpoint(b).is_forgotten(ask.now, ask.picks) || load(b) * NOISE < load(a) {
            b
        } else {
            a
        })
    }

    /// The first in the order of a hash that has room.
    ///
    /// Room: fewer calls under way than `factor` × its share of all, rounded up. There always is
    /// one, because the shares of all together are more than all calls; where threads race, an
    /// endpoint that has none left may look so, and the emptiest is taken.
    fn by_hash(
        &self,
        ask: &mut Ask<'_, K>,
        walk: impl Iterator<Item = usize>,
        factor: f64,
    ) -> Option<Chosen<'_, K>> {
        let per_weight = if factor > 0.0 {
            let zones = self.zones.iter();
            let calls: u64 = zones.map(|z| z.hashed.load(Ordering::Relaxed)).sum();
            let weight = if ask.panic {
                self.total
            } else {
                self.healthy()
            };
            factor * (calls + 1) as f64 / weight.max(1) as f64
        } else {
            f64::INFINITY
        };
        let take = |slot: &Slot<K>| {
            // 1.12 × 25 × ¾ is 21.000…4: a millionth less, not one call more.
            let room = (per_weight * slot.weight as f64 - 1e-6).ceil().max(1.0);
            // Saturates: no bound is as many as there are.
            slot.endpoint.calls.try_begin(room as u32)
        };
        let claimed = |slot| Chosen {
            slot,
            claimed: true,
        };
        for n in walk.take(STEPS) {
            let slot = &self.slots[n];
            if ask.may_use(&slot.endpoint) && take(slot) {
                return Some(claimed(slot));
            }
        }
        let from = self.scan(ask)?;
        let around = self.slots[from..].iter().chain(&self.slots[..from]);
        let usable = around.filter(|s| ask.may_use(&s.endpoint));
        if let Some(slot) = usable.clone().find(|s| take(s)) {
            return Some(claimed(slot));
        }
        let load = |s: &&Slot<K>| f64::from(s.endpoint.calls.pending()) / s.weight as f64;
        usable
            .min_by(|a, b| load(a).total_cmp(&load(b)))
            .map(Chosen::unclaimed)
    }
}
