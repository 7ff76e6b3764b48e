//! What instances and operators ask for: each is stamped, taken, logged for the other servers, and
//! told to the watchers.

use std::{sync::Arc, time::Duration};

use selvedge_registry::{
    InstanceId, ServiceName,
    wire::{InstanceRecord, PolicyRecord, RegisterRequest},
};
use selvedge_resilience::TrafficPolicy;

use super::{
    passed_on::Errand,
    shared::{Origin, Refused, Renewed, Shared, State, now},
};
use crate::{
    catalogue::{Body, Change, Entry, Key, Live, PastPolicy, PolicyEntry, Record, Stamp, Visible},
    lease::{Grant, Renewal, guardian},
};

pub(crate) fn grant(instance: &InstanceRecord) -> Grant<'_> {
    Grant {
        ttl: instance.ttl.0,
        incarnation: instance.incarnation,
        zone: &instance.locality.zone,
    }
}

impl Shared {
    /// Registers an instance, or changes what it said.
    ///
    /// # Errors
    /// [`Refused::Later`] if a later life of it is known, [`Refused::Limit`] if there is no room,
    /// [`Refused::NotServing`] while this server leaves.
    pub fn register(
        &self,
        service: ServiceName,
        id: InstanceId,
        request: RegisterRequest,
        origin: Origin,
    ) -> Result<InstanceRecord, Refused> {
        if self.is_draining() {
            return Err(Refused::NotServing);
        }
        let wall_ms = self.wall_ms();
        let mut state = self.state.write();
        let known = state.store.catalogue().get(&service, &id).cloned();
        let life = known.as_ref().map(|record| record.stamp.incarnation);
        let incarnation = request
            .incarnation
            .unwrap_or_else(|| life.unwrap_or_default().max(wall_ms));
        if let Some(incarnation) = life.filter(|life| *life > incarnation) {
            return Err(Refused::Later { incarnation });
        }
        let before = known.as_ref().and_then(|known| known.instance());
        if before.is_none() {
            self.has_room(&state, &service)?;
        }
        let mut instance = InstanceRecord {
            id: id.clone(),
            addr: request.addr,
            status: request.status,
            reported: request.status,
            overridden: known.as_ref().and_then(|known| known.overridden()),
            weight: request.weight,
            protocol: request.protocol,
            locality: request.locality,
            ttl: request.ttl,
            incarnation,
            owner: self.node.to_string(),
            version: request.version,
            tags: request.tags,
            ownership: request.ownership,
            metadata: request.metadata,
            dialects: origin.dialects,
            registered_ms: wall_ms,
            changed_ms: wall_ms,
        };
        instance.settle();
        if let Some(before) = before {
            keep_times(&mut instance, &before);
        }
        self.put(&mut state, service.clone(), known.as_deref(), &instance);
        // While the state is locked: who evicts takes the same two locks in the same order.
        self.leases.grant((service, id), &grant(&instance), now());
        Ok(instance)
    }

    fn has_room(&self, state: &State, service: &ServiceName) -> Result<(), Refused> {
        let caps = **self.caps.load();
        let catalogue = state.store.catalogue();
        let there = catalogue.count(service).0;
        if there == 0 && catalogue.services_len() >= caps.services {
            return Err(Refused::Limit {
                what: "services",
                limit: caps.services,
            });
        }
        for (what, there, limit) in [
            ("instances of a service", there, caps.per_service),
            ("instances", catalogue.len(), caps.total),
        ] {
            if there >= limit {
                return Err(Refused::Limit { what, limit });
            }
        }
        Ok(())
    }

    /// Renews a lease. That of another server that lives is passed on to it, and taken over once
    /// the instance has come here twice in a row; that of a server that is gone is taken over at
    /// once. Callers see nothing of either.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if the instance is not registered, or not in this life;
    /// [`Refused::NotServing`] if this server cannot know.
    pub fn renew(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        incarnation: Option<u64>,
    ) -> Result<Renewed, Refused> {
        let key = (service.clone(), id.clone());
        match self.leases.renew(&key, incarnation, None, now()) {
            Renewal::Renewed { ttl } | Renewal::Moved { ttl } => {
                Self::count(&self.counters.renewals);
                Ok(Renewed {
                    ttl,
                    passed_on: false,
                })
            }
            Renewal::OtherLife => Err(Refused::Unknown),
            Renewal::Guarded => self.claim(&key, incarnation),
            Renewal::NotHere => self.renew_elsewhere(key, incarnation),
        }
    }

    /// [`renew`](Self::renew), many times; the answers are in the same order.
    pub fn renew_batch(
        &self,
        batch: &[(ServiceName, InstanceId, Option<u64>)],
    ) -> Vec<Result<Renewed, Refused>> {
        batch
            .iter()
            .map(|(service, id, incarnation)| self.renew(service, id, *incarnation))
            .collect()
    }

    fn renew_elsewhere(&self, key: Key, incarnation: Option<u64>) -> Result<Renewed, Refused> {
        let catalogue = self.catalogue();
        let Some(record) = catalogue.live_record(&key.0, &key.1) else {
            return self.find(key, incarnation, None);
        };
        if incarnation.is_some_and(|life| life != record.stamp.incarnation) {
            return Err(Refused::Unknown);
        }
        let Body::Live(live) = &record.body else {
            return Err(Refused::Unknown);
        };
        let ttl = Duration::from_millis(u64::from(live.ttl_ms));
        let owner = &record.stamp.owner;
        if *owner == self.node && self.is_draining() {
            // Handed over a moment ago.
            return self.find(key, incarnation, Some(ttl));
        }
        let elsewhere = *owner != self.node && self.is_alive(owner);
        let renewal = (key.clone(), Some(record.stamp.incarnation));
        if !elsewhere || !self.passed_on.push(owner, Errand::Renew, renewal, now()) {
            return self.claim(&key, incarnation);
        }
        Self::count(&self.counters.renewals);
        Self::count(&self.counters.passed_on);
        Ok(Renewed {
            ttl,
            passed_on: true,
        })
    }

    /// What this server cannot know, as it has just come or is about to go, another one does. An
    /// instance that nobody knows learns that with its next renewal.
    fn find(
        &self,
        key: Key,
        incarnation: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<Renewed, Refused> {
        if self.is_serving() && !self.is_draining() {
            return Err(Refused::Unknown);
        }
        let peers = self.serving_peers();
        let names = peers.iter().map(|(node, _)| &**node);
        let chosen = guardian(&key, names).and_then(|name| peers.iter().find(|p| *p.0 == *name));
        let (peer, _) = chosen.ok_or(Refused::NotServing)?;
        let renewal = (key, incarnation);
        if !self.passed_on.push(peer, Errand::Find, renewal, now()) {
            return Err(Refused::NotServing);
        }
        Self::count(&self.counters.passed_on);
        Ok(Renewed {
            ttl: ttl.unwrap_or_default(),
            passed_on: true,
        })
    }

    /// Takes a lease over, with its whole time: the instance has just been heard of here.
    pub(crate) fn claim(&self, key: &Key, incarnation: Option<u64>) -> Result<Renewed, Refused> {
        let mut state = self.state.write();
        let record = state.store.catalogue().live_record(&key.0, &key.1).cloned();
        let record = record
            .filter(|record| incarnation.is_none_or(|life| life == record.stamp.incarnation))
            .ok_or(Refused::Unknown)?;
        let instance = record.instance().ok_or(Refused::Unknown)?;
        self.leases.grant(key.clone(), &grant(&instance), now());
        if record.stamp.owner != self.node {
            Self::count(&self.counters.claims);
            self.take_as_it_is(&mut state, &record);
        }
        Self::count(&self.counters.renewals);
        Ok(Renewed {
            ttl: instance.ttl.0,
            passed_on: false,
        })
    }

    /// Takes an instance out because it said so.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if it is not registered.
    pub fn deregister(&self, service: &ServiceName, id: &InstanceId) -> Result<(), Refused> {
        let mut state = self.state.write();
        let record = state.store.catalogue().live_record(service, id).cloned();
        let record = record.ok_or_else(|| self.unknown())?;
        self.leases.release(&record.key());
        self.write(&mut state, &record, Body::Cancelled);
        Ok(())
    }

    fn unknown(&self) -> Refused {
        if self.is_serving() {
            Refused::Unknown
        } else {
            Refused::NotServing
        }
    }

    /// Changes a live instance in one step. Another server's becomes ours, with a whole lease: a
    /// record has one writer, and the instance's next renewals find their way.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if it is not registered.
    pub fn change(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        edit: impl FnOnce(&mut InstanceRecord),
    ) -> Result<InstanceRecord, Refused> {
        self.try_change(service, id, |instance| {
            edit(instance);
            Ok(())
        })
    }

    /// [`change`](Self::change), if `edit` agrees.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if it is not registered, or what `edit` says; nothing changes then.
    pub(super) fn try_change(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        edit: impl FnOnce(&mut InstanceRecord) -> Result<(), Refused>,
    ) -> Result<InstanceRecord, Refused> {
        let record = self.try_change_record(service, id, edit)?;
        record.instance().ok_or(Refused::Unknown)
    }

    /// The same; gives the record as this change has made it, whatever comes after.
    pub(super) fn try_change_record(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        edit: impl FnOnce(&mut InstanceRecord) -> Result<(), Refused>,
    ) -> Result<Arc<Record>, Refused> {
        let mut state = self.state.write();
        let record = state.store.catalogue().live_record(service, id).cloned();
        let record = record.ok_or_else(|| self.unknown())?;
        let before = record.instance().ok_or(Refused::Unknown)?;
        let mut instance = before.clone();
        edit(&mut instance)?;
        instance.settle();
        if instance == before {
            return Ok(record);
        }
        instance.changed_ms = self.wall_ms();
        self.node.as_ref().clone_into(&mut instance.owner);
        self.put(&mut state, service.clone(), Some(&record), &instance);
        let key = record.key();
        if !self.leases.holds(&key) {
            self.leases.grant(key, &grant(&instance), now());
        }
        let made = state.store.catalogue().live_record(service, id).cloned();
        made.ok_or(Refused::Unknown)
    }

    /// Publishes a policy, or a change of it; tells its number.
    pub fn put_policy(
        &self,
        service: ServiceName,
        policy: TrafficPolicy,
        by: impl Into<String>,
    ) -> PolicyRecord {
        let unconditionally = |_| Ok::<_, std::convert::Infallible>(());
        match self.put_policy_if(service, policy, by, unconditionally) {
            Ok(record) => record,
            Err(never) => match never {},
        }
    }

    /// [`put_policy`](Self::put_policy), if `may` agrees with the version that is in force. Nobody
    /// changes it in between.
    ///
    /// # Errors
    /// What `may` says; nothing changes then.
    pub fn put_policy_if<E>(
        &self,
        service: ServiceName,
        policy: TrafficPolicy,
        by: impl Into<String>,
        may: impl FnOnce(Option<u64>) -> Result<(), E>,
    ) -> Result<PolicyRecord, E> {
        let mut state = self.state.write();
        may(state.store.catalogue().policy(&service).map(|p| p.version))?;
        let record = PolicyRecord {
            version: next_version(&state, &service),
            service,
            updated_ms: self.wall_ms(),
            by: by.into(),
            policy,
        };
        let past = remembered(&state, &record.service);
        self.write_policy(
            &mut state,
            record.service.clone(),
            record.version,
            Some(record.clone()),
            past,
        );
        Ok(record)
    }

    /// Withdraws a policy, if `may` agrees with the version that is in force; tells whether there
    /// was one.
    ///
    /// # Errors
    /// What `may` says; nothing changes then.
    pub fn delete_policy_if<E>(
        &self,
        service: &ServiceName,
        by: impl Into<String>,
        may: impl FnOnce(u64) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut state = self.state.write();
        let Some(known) = state.store.catalogue().policy(service).map(|p| p.version) else {
            return Ok(false);
        };
        may(known)?;
        let version = next_version(&state, service);
        let mut past = remembered(&state, service);
        past.insert(
            0,
            PastPolicy {
                version,
                updated_ms: self.wall_ms(),
                by: by.into(),
                text: None,
            },
        );
        self.write_policy(&mut state, service.clone(), version, None, past);
        Ok(true)
    }

    fn write_policy(
        &self,
        state: &mut State,
        service: ServiceName,
        version: u64,
        record: Option<PolicyRecord>,
        past: Vec<PastPolicy>,
    ) {
        let known = state.store.catalogue().policy_entry(&service);
        let known = known.map_or(0, |known| known.hlc);
        let entry = PolicyEntry {
            service,
            version,
            hlc: state.clock.tick_after(known, self.wall_ms()),
            owner: Arc::clone(&self.node),
            record,
            past,
        };
        if let Change::Visible(visible) = state.store.merge_policy(entry) {
            self.told(state, visible);
        }
    }

    fn put(
        &self,
        state: &mut State,
        service: ServiceName,
        known: Option<&Record>,
        instance: &InstanceRecord,
    ) {
        let record = Record {
            service,
            id: instance.id.clone(),
            stamp: self.stamp(state, known, instance.incarnation),
            body: Body::Live(Live::of(instance)),
        };
        self.take(state, record);
    }

    /// A later word about `known`.
    pub(crate) fn write(&self, state: &mut State, known: &Record, body: Body) {
        let record = Record {
            service: known.service.clone(),
            id: known.id.clone(),
            stamp: self.stamp(state, Some(known), known.stamp.incarnation),
            body,
        };
        self.take(state, record);
    }

    /// Another server's record becomes this server's, as it is known here. Its stamp is the least
    /// that is later than what it is of: who keeps a lease is less than what is said of the
    /// instance, and what was said elsewhere at the same time, and is not known here yet, counts.
    pub(crate) fn take_as_it_is(&self, state: &mut State, known: &Record) {
        let record = Record {
            stamp: Stamp {
                hlc: known.stamp.hlc.saturating_add(1),
                owner: Arc::clone(&self.node),
                ..known.stamp
            },
            ..known.clone()
        };
        self.take(state, record);
    }

    fn stamp(&self, state: &mut State, known: Option<&Record>, incarnation: u64) -> Stamp {
        let known = known.map_or(0, |known| known.stamp.hlc);
        Stamp {
            incarnation,
            hlc: state.clock.tick_after(known, self.wall_ms()),
            owner: Arc::clone(&self.node),
        }
    }

    fn take(&self, state: &mut State, record: Record) {
        let (service, id) = record.key();
        match state.store.merge(record, self.uptime_ms()) {
            Change::None => {}
            Change::Hidden => {
                if let Some(record) = state.store.catalogue().get(&service, &id) {
                    let entry = Entry::Instance(Arc::clone(record));
                    state.log.append(entry);
                }
            }
            Change::Visible(visible) => self.told(state, visible),
        }
    }

    fn told(&self, state: &mut State, visible: Visible) {
        self.hub.publish(&visible);
        state.log.append(visible.entry);
    }
}

/// What registers again as it was has not changed, and has been there as long.
fn keep_times(instance: &mut InstanceRecord, before: &InstanceRecord) {
    if instance.incarnation != before.incarnation {
        return;
    }
    instance.registered_ms = before.registered_ms;
    let (changed_ms, owner) = (instance.changed_ms, instance.owner.clone());
    instance.changed_ms = before.changed_ms;
    before.owner.clone_into(&mut instance.owner);
    if instance != before {
        instance.changed_ms = changed_ms;
    }
    instance.owner = owner;
}

fn remembered(state: &State, service: &ServiceName) -> Vec<PastPolicy> {
    let known = state.store.catalogue().policy_entry(service);
    known.map(|known| known.remembered()).unwrap_or_default()
}

fn next_version(state: &State, service: &ServiceName) -> u64 {
    let known = state.store.catalogue().policy_entry(service);
    known.map_or(0, |known| known.version) + 1
}
