//! Who takes part, and how they are arranged.
//!
//! A change makes a new [`View`] and swaps it in, so that picks go on meanwhile on the old one; what
//! is known of an endpoint (its cost, its verdict, its calls under way) lives apart from views, and
//! stays. Changes are made one at a time.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use super::{
    BalanceConfig, Balancer, Home, Key, Locality, Member, OutlierConfig, hash,
    hash::stable_hash,
    member::{Endpoint, Zone},
    view::View,
};
use crate::{clock::Tick, config::PolicyError, events::Return, sync::Ordering};

/// What changes a membership or its arrangement, one at a time.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) home: Home,
    pub(super) zones: HashMap<Locality, Arc<Zone>>,
}

impl<K: Key> Balancer<K> {
    /// Replaces the membership. A key given twice counts once, as first given. What is known of the
    /// keys that stay is kept, unless they moved to another locality.
    ///
    /// O(n log n), and what the policy's table costs; picks go on meanwhile.
    pub fn set_members(&self, members: impl IntoIterator<Item = Member<K>>, now: Instant) {
        let (core, now) = (&*self.0, Tick::at(now));
        let mut setup = core.setup.lock();
        let old = core.view.load_full();
        let mut known: HashMap<&K, &Arc<Endpoint<K>>> =
            old.members.iter().map(|e| (&e.key, e)).collect();
        let mut seen = HashSet::new();
        let mut next: Vec<Arc<Endpoint<K>>> = Vec::new();
        for member in members {
            if !seen.insert(member.key.clone()) {
                continue;
            }
            let stays = known
                .get(&member.key)
                .is_some_and(|e| e.zone.locality == member.locality && is_placed(e, &member));
            let endpoint = match known.remove(&member.key) {
                Some(endpoint) if stays => Arc::clone(endpoint),
                gone => {
                    if let Some(gone) = gone {
                        gone.retire(now);
                    }
                    let zone = setup.zone(&member.locality);
                    let weight = member.weight;
                    let new = Endpoint::new(member, zone, Arc::clone(&core.shared), now);
                    new.set_weight(weight);
                    next.push(Arc::new(new));
                    continue;
                }
            };
            endpoint.set_weight(member.weight);
            next.push(endpoint);
        }
        self.arrange(next, &setup.home, Arc::clone(&old.config), now);
        for gone in known.into_values() {
            gone.retire(now);
        }
        setup.forget_zones();
    }

    /// Says where this process is and which of the callers it is.
    pub fn set_home(&self, home: Home, now: Instant) {
        let core = &*self.0;
        let mut setup = core.setup.lock();
        if setup.home != home {
            setup.home = home;
            let old = core.view.load_full();
            let config = Arc::clone(&old.config);
            self.arrange(old.members.clone(), &setup.home, config, Tick::at(now));
        }
    }

    /// Says where this process is, and leaves which of the callers it is.
    pub fn set_locality(&self, locality: Locality, now: Instant) {
        let client = self.0.setup.lock().home.client;
        self.set_home(Home { locality, client }, now);
    }

    /// Takes new configurations; members, costs and verdicts stay.
    ///
    /// # Errors
    /// [`PolicyError`] if one cannot work; nothing changes then.
    pub fn reconfigure(
        &self,
        config: BalanceConfig,
        outlier: OutlierConfig,
        now: Instant,
    ) -> Result<(), PolicyError> {
        config.validate()?;
        outlier.validate()?;
        let (core, now) = (&*self.0, Tick::at(now));
        let setup = core.setup.lock();
        core.shared.reconfigure(outlier);
        let old = core.view.load_full();
        if *old.config == config {
            self.look(now);
            return Ok(());
        }
        core.shared
            .set_pace(config.decay.0, config.slow_start.as_ref());
        for member in &old.members {
            core.shared.warms(member.since());
        }
        self.arrange(old.members.clone(), &setup.home, Arc::new(config), now);
        Ok(())
    }

    /// Makes a new arrangement the one that picks see.
    fn arrange(
        &self,
        members: Vec<Arc<Endpoint<K>>>,
        home: &Home,
        config: Arc<BalanceConfig>,
        now: Tick,
    ) {
        let core = &*self.0;
        let view = View::new(members, home, config);
        let chosen: HashSet<*const Endpoint<K>> =
            view.slots().map(|s| Arc::as_ptr(&s.endpoint)).collect();
        for (n, group) in view.groups.iter().enumerate() {
            // Callers that start together must not go the round together.
            let turn = hash::nth(core.seed, n as u64) >> 1;
            group.turn.store(turn, Ordering::Relaxed);
        }
        core.shared.places.hosts.store(
            u32::try_from(chosen.len()).unwrap_or(u32::MAX),
            Ordering::Relaxed,
        );
        // Who is not called any more holds no place among those that are out.
        for member in &view.members {
            if !chosen.contains(&Arc::as_ptr(member)) {
                member.readmit_now(Return::Left, now);
            }
        }
        core.view.store(Arc::new(view));
        core.shared.due.request();
        self.look(now);
    }
}

impl Setup {
    fn zone(&mut self, locality: &Locality) -> Arc<Zone> {
        if let Some(zone) = self.zones.get(locality) {
            return Arc::clone(zone);
        }
        let zone = Arc::new(Zone {
            locality: locality.clone(),
            ..Zone::default()
        });
        self.zones.insert(locality.clone(), Arc::clone(&zone));
        zone
    }

    /// Drops the zones that no endpoint, nor any call under way, belongs to.
    fn forget_zones(&mut self) {
        self.zones.retain(|_, zone| Arc::strong_count(zone) > 1);
    }
}

/// Whether a member is still at its place on rings and in subsets.
fn is_placed<K: Key>(endpoint: &Endpoint<K>, member: &Member<K>) -> bool {
    let place = member.placed.unwrap_or_else(|| stable_hash(&member.key));
    endpoint.id == place
}
