//! What a pick looks at: an immutable arrangement of the endpoints, swapped as a whole.

use std::sync::Arc;

use super::{
    BalanceConfig, BalancePolicy, Client, Locality, SlowStartConfig,
    hash::{Draws, mix, unit},
    locality::{TIERS, Tier, panics, shares},
    maglev::Maglev,
    member::{Endpoint, Zone},
    ring::Ring,
    subset,
    weighted::{Alias, Turns},
};
use crate::{
    clock::Tick,
    config::Ratio,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// What a policy has prepared for a group.
#[derive(Debug)]
pub(super) enum Index {
    Choices,
    Chance,
    Turns(Turns),
    Ring(Ring),
    Maglev(Maglev),
}

/// An endpoint in its group.
#[derive(Debug)]
pub(super) struct Slot<K> {
    pub(super) endpoint: Arc<Endpoint<K>>,
    pub(super) weight: u64,
    /// Its weight ÷ the mean weight of its group.
    pub(super) share: f64,
}

/// The endpoints of one zone, or all if zones do not matter, sorted by their place on the ring.
#[derive(Debug)]
pub(super) struct Group<K> {
    pub(super) slots: Box<[Slot<K>]>,
    pub(super) zones: Box<[Arc<Zone>]>,
    locality: Locality,
    /// How far from home.
    distance: usize,
    pub(super) total: u64,
    healthy: AtomicU64,
    healthy_hosts: AtomicU32,
    pub(super) turn: AtomicU64,
    pub(super) alias: Option<Alias>,
    pub(super) index: Index,
}

/// The endpoints as picks see them.
#[derive(Debug)]
pub(super) struct View<K> {
    /// All, as discovery gave them.
    pub(super) members: Vec<Arc<Endpoint<K>>>,
    /// Those that this process calls, by zone.
    pub(super) groups: Box<[Group<K>]>,
    pub(super) config: Arc<BalanceConfig>,
    /// When the first of them joined or came back, as the view was made.
    oldest: Tick,
}

/// One pick's question.
#[derive(Debug)]
pub(super) struct Ask<'a, K> {
    pub(super) now: Tick,
    pub(super) avoid: &'a [K],
    pub(super) hash: Option<u64>,
    pub(super) locality: Option<&'a Locality>,
    pub(super) picks: u64,
    pub(super) draws: Draws,
    pub(super) decay: f64,
    /// Ejections are not believed.
    pub(super) panic: bool,
    pub(super) ramp: Option<Ramp<'a>>,
}

/// How endpoints that warm up are held back, compared with the warmest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ramp<'a> {
    config: &'a SlowStartConfig,
    best: f64,
}

impl<K: Eq> Ask<'_, K> {
    pub(super) fn may_use(&self, endpoint: &Endpoint<K>) -> bool {
        (self.panic || endpoint.health.is_available(self.now))
            && !self.avoid.contains(&endpoint.key)
    }

    /// The part of its weight that an endpoint has while it warms up.
    pub(super) fn warmth(&self, endpoint: &Endpoint<K>) -> f64 {
        self.ramp.map_or(1.0, |ramp| {
            (ramp.config.factor(endpoint.age(self.now)) / ramp.best).min(1.0)
        })
    }

    /// Whether an endpoint that was drawn by its whole weight keeps the draw.
    pub(super) fn is_warm(&mut self, endpoint: &Endpoint<K>) -> bool {
        self.ramp.is_none() || self.draws.unit() < self.warmth(endpoint)
    }
}

impl<K> Group<K> {
    fn new(
        members: &[&Arc<Endpoint<K>>],
        locality: Locality,
        home: &Home,
        config: &BalanceConfig,
    ) -> Self {
        let mut members = members.to_vec();
        members.sort_by_key(|e| e.id);
        let known: Vec<_> = members.iter().map(|e| (e.id, e.weight())).collect();
        let chosen = subset::choose(&known, config.subset as usize, home.client);
        let total: u64 = chosen.iter().map(|c| c.1).sum();
        let mean = total as f64 / chosen.len().max(1) as f64;
        let slots: Box<[Slot<K>]> = chosen
            .into_iter()
            .map(|(n, weight)| Slot {
                endpoint: Arc::clone(members[n]),
                weight,
                share: weight as f64 / mean,
            })
            .collect();
        let weights: Vec<u64> = slots.iter().map(|s| s.weight).collect();
        let placed: Vec<_> = slots.iter().map(|s| (s.endpoint.id, s.weight)).collect();
        let index = match config.policy {
            BalancePolicy::PeakEwma | BalancePolicy::LeastRequest => Index::Choices,
            BalancePolicy::Random => Index::Chance,
            BalancePolicy::RoundRobin => Index::Turns(Turns::new(&weights)),
            BalancePolicy::RingHash => Index::Ring(Ring::new(&placed, config.virtual_nodes)),
            BalancePolicy::Maglev => Index::Maglev(Maglev::new(&placed)),
        };
        let mut zones: Vec<Arc<Zone>> = Vec::new();
        for slot in &slots {
            if !zones.iter().any(|z| Arc::ptr_eq(z, &slot.endpoint.zone)) {
                zones.push(Arc::clone(&slot.endpoint.zone));
            }
        }
        Self {
            zones: zones.into(),
            distance: home.locality.distance(&locality),
            locality,
            total,
            healthy: AtomicU64::new(total),
            healthy_hosts: AtomicU32::new(slots.len() as u32),
            turn: AtomicU64::new(0),
            alias: Alias::new(&weights),
            index,
            slots,
        }
    }

    pub(super) fn healthy(&self) -> u64 {
        self.healthy.load(Ordering::Relaxed)
    }

    fn hosts(&self) -> (u32, u32) {
        let healthy = self.healthy_hosts.load(Ordering::Relaxed);
        (healthy, self.slots.len() as u32)
    }

    fn tier(&self) -> Tier {
        Tier {
            healthy: self.healthy() as f64,
            total: self.total as f64,
            hosts: self.hosts(),
        }
    }

    /// Counts anew who is in.
    fn count(&self, now: Tick) {
        let (mut healthy, mut hosts) = (0, 0);
        for slot in &self.slots {
            if slot.endpoint.health.is_available(now) {
                healthy += slot.weight;
                hosts += 1;
            }
        }
        self.healthy.store(healthy, Ordering::Relaxed);
        self.healthy_hosts.store(hosts, Ordering::Relaxed);
    }
}

impl<K> View<K> {
    pub(super) fn new(
        members: Vec<Arc<Endpoint<K>>>,
        home: &Home,
        config: Arc<BalanceConfig>,
    ) -> Self {
        let mut zones: Vec<(Locality, Vec<&Arc<Endpoint<K>>>)> = Vec::new();
        let by_zone = config.locality.is_some();
        for member in &members {
            let locality = if by_zone {
                member.zone.locality.clone()
            } else {
                Locality::default()
            };
            match zones.iter_mut().find(|(known, _)| *known == locality) {
                Some((_, zone)) => zone.push(member),
                None => zones.push((locality, vec![member])),
            }
        }
        let groups: Box<[Group<K>]> = zones
            .into_iter()
            .map(|(locality, members)| Group::new(&members, locality, home, &config))
            .collect();
        let oldest = members.iter().map(|e| e.since()).min().unwrap_or(Tick(0));
        Self {
            members,
            groups,
            config,
            oldest,
        }
    }

    /// The endpoints that this process calls.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot<K>> {
        self.groups.iter().flat_map(|g| &g.slots)
    }

    /// Counts anew who is in.
    pub(super) fn count(&self, now: Tick) {
        self.groups.iter().for_each(|group| group.count(now));
    }

    /// Whether the ejections of anybody who takes calls from home are not believed; and how many
    /// endpoints are in, of how many.
    pub(super) fn panics(&self) -> (bool, (u32, u32)) {
        let threshold = self.config.panic_threshold.fraction();
        let mut all = Tier::default();
        let mut tiers = [Tier::default(); TIERS];
        for group in &self.groups {
            all.add(group.tier());
            tiers[group.distance].add(group.tier());
        }
        let panics = match &*self.groups {
            [] => false,
            [only] => panics(only.hosts(), threshold),
            _ => {
                let (load, panic) = self.shares(&tiers, threshold);
                load.iter()
                    .zip(panic)
                    .any(|(load, panic)| *load > 0.0 && panic)
            }
        };
        (panics, all.hosts)
    }

    /// The load of each tier, and whether its ejections are not believed.
    fn shares(&self, tiers: &[Tier; TIERS], threshold: f64) -> ([f64; TIERS], [bool; TIERS]) {
        let locality = self.config.locality.as_ref();
        let factor = locality.map_or(1.0, |l| l.overprovisioning.fraction());
        let callers = locality.and_then(|l| l.callers).map(Ratio::fraction);
        shares(tiers, factor, callers, threshold)
    }

    /// How endpoints that are warming up are held back at `now`.
    pub(super) fn ramp(&self, now: Tick) -> Option<Ramp<'_>> {
        let config = self.config.slow_start.as_ref()?;
        let best = config.factor(now.since(self.oldest));
        Some(Ramp { config, best })
    }

    /// The zone that takes a call, and whether its ejections are to be believed.
    pub(super) fn route(&self, ask: &mut Ask<'_, K>) -> Option<(&Group<K>, bool)> {
        let threshold = self.config.panic_threshold.fraction();
        match &*self.groups {
            [] => None,
            [only] => Some((only, panics(only.hosts(), threshold))),
            many => {
                // A key goes to the same zone as long as the shares are the same.
                let at = match (&self.config.policy, ask.hash) {
                    (BalancePolicy::RingHash | BalancePolicy::Maglev, Some(hash)) => {
                        1.0 - unit(mix(hash ^ 0x5A17_0C1A_11E5_0001))
                    }
                    _ => ask.draws.unit(),
                };
                Some(self.route_among(many, at, ask.locality, threshold))
            }
        }
    }

    /// The zone at `at` in `[0, 1)` of the shares of all.
    fn route_among<'a>(
        &self,
        groups: &'a [Group<K>],
        at: f64,
        from: Option<&Locality>,
        threshold: f64,
    ) -> (&'a Group<K>, bool) {
        let distance = |g: &Group<K>| match from {
            None => g.distance,
            Some(from) => from.distance(&g.locality),
        };
        let mut tiers = [Tier::default(); TIERS];
        for group in groups {
            tiers[distance(group)].add(group.tier());
        }
        let (load, panic) = self.shares(&tiers, threshold);
        let mut left = at;
        let mut last = (&groups[0], panic[distance(&groups[0])]);
        for group in groups {
            let tier = distance(group);
            let (part, all) = if panic[tier] || tiers[tier].healthy <= 0.0 {
                (group.total as f64, tiers[tier].total)
            } else {
                (group.healthy() as f64, tiers[tier].healthy)
            };
            let share = load[tier] * part / all;
            if share > 0.0 {
                last = (group, panic[tier]);
                if left < share {
                    return last;
                }
                left -= share;
            }
        }
        // Rounding: the last that has a share.
        last
    }
}

/// Where a process is, and who it is: what no policy document can say, for it is the same
/// everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Where this caller runs.
    pub locality: Locality,
    /// Which of the callers it is.
    pub client: Client,
}
