//! Changes of an instance by others than itself: its status, an operator's word, its metadata.
//!
//! A record has one writer, and the later of two records wins as a whole. So two changes that two
//! servers make at the same time, each of its own copy, would come to one of them. They are made
//! where the lease is kept instead, one after the other, and the answer is the record with all of
//! them in it; the server that was asked takes it in before it answers, so that whoever reads there
//! finds what was written there.
//!
//! # Guarantees
//! Changes at different servers are all in the record, as long as the server that keeps the lease
//! can be reached and is the same for all of them.
//!
//! # What it does not do
//! Wait for a server that is cut off: after [`ANSWER`] the change is made here, and of two that are
//! made on both sides of a cut the later wins.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use selvedge_registry::{
    InstanceId, InstanceStatus, ServiceName,
    wire::{InstanceRecord, check_metadata},
};
use serde::{Deserialize, Serialize};

use super::{Incoming, Refused, Shared, shared::now};
use crate::{
    catalogue::Record,
    eureka::{StatusWord, turned},
    replicate::peer::BoxError,
};

/// How long the server that keeps the lease is waited for. A guess: long for one that works.
const ANSWER: Duration = Duration::from_secs(1);
/// Servers that are followed one after the other, each of which says that the next one keeps it.
const MOVES: usize = 3;

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// What the instance says of itself.
    Status(InstanceStatus),
    /// An operator's word, or that there is none any more.
    Override(Option<InstanceStatus>),
    /// Metadata to merge: `None` takes a key away.
    Metadata(BTreeMap<String, Option<String>>),
    /// An operator's word by Eureka's rules.
    Eureka(StatusWord),
    /// Its client has turned to us from a Eureka beside us.
    Turned,
}

impl Edit {
    /// Whether it renews the lease. Eureka's do: `AbstractInstanceRegistry.statusUpdate`.
    fn renews(&self) -> bool {
        matches!(self, Self::Eureka(_))
    }

    fn apply(self, instance: &mut InstanceRecord) -> Result<(), Refused> {
        match self {
            Self::Status(status) => instance.reported = status,
            Self::Override(status) => instance.overridden = status,
            Self::Metadata(changes) => {
                for (key, value) in changes {
                    match value {
                        Some(value) => instance.metadata.insert(key, value),
                        None => instance.metadata.remove(&key),
                    };
                }
                check_metadata(&instance.metadata).map_err(Refused::Invalid)?;
            }
            Self::Eureka(word) => word.apply(instance),
            Self::Turned => turned(instance),
        }
        Ok(())
    }
}

/// A change on its way to the server that keeps the lease.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EditQuestion {
    service: ServiceName,
    id: InstanceId,
    edit: Edit,
    /// A Eureka beside us has said it, and need not be told.
    #[serde(default)]
    by_eureka: bool,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EditAnswer {
    /// The record with it.
    Done(Record),
    /// Another one keeps the lease, by this record.
    Moved(Record),
    /// There is no such instance.
    Unknown,
    /// It would be more than there may be.
    Invalid(String),
}

impl Shared {
    /// Changes an instance where its lease is kept, or here if that server cannot be reached.
    /// Dropped before it is done, the change may or may not have been made.
    ///
    /// # Errors
    /// [`Refused::Unknown`] if it is not registered, [`Refused::Invalid`] if it would have more
    /// metadata than it may; [`Refused::NotServing`] if this server cannot know.
    pub async fn edit(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        edit: Edit,
    ) -> Result<InstanceRecord, Refused> {
        self.edit_where_kept(service, id, edit, false).await
    }

    /// The same of what a Eureka beside us has said: nobody tells it so again.
    pub(crate) async fn edit_by_eureka(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        edit: Edit,
    ) -> Result<InstanceRecord, Refused> {
        self.edit_where_kept(service, id, edit, true).await
    }

    async fn edit_where_kept(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        edit: Edit,
        by_eureka: bool,
    ) -> Result<InstanceRecord, Refused> {
        for _ in 0..MOVES {
            let Some(addr) = self.kept_at(service, id) else {
                break;
            };
            let question = EditQuestion {
                service: service.clone(),
                id: id.clone(),
                edit: edit.clone(),
                by_eureka,
            };
            let record = match self.edit_at(addr, &question).await {
                Ok(EditAnswer::Done(record)) => record,
                Ok(EditAnswer::Moved(record)) => {
                    self.accept([Incoming::Instance(Box::new(record))]);
                    continue;
                }
                Ok(EditAnswer::Unknown) => return Err(Refused::Unknown),
                Ok(EditAnswer::Invalid(why)) => return Err(Refused::Invalid(why)),
                Err(error) => {
                    tracing::warn!(%service, instance = %id, peer = %addr, %error, "the server that keeps the lease cannot be asked, taking it over");
                    break;
                }
            };
            let instance = record.instance().ok_or(Refused::Unknown)?;
            self.accept([Incoming::Instance(Box::new(record))]);
            return Ok(instance);
        }
        self.said_by(by_eureka, (service, id), || {
            self.edit_here(service, id, edit)
        })
    }

    fn said_by<T>(
        &self,
        by_eureka: bool,
        (service, id): (&ServiceName, &InstanceId),
        edit: impl FnOnce() -> T,
    ) -> T {
        if by_eureka {
            self.heard_beside((service.clone(), id.clone()), edit)
        } else {
            edit()
        }
    }

    /// Changes an instance here. Another server's becomes ours.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub fn edit_here(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        edit: Edit,
    ) -> Result<InstanceRecord, Refused> {
        let renews = edit.renews();
        let changed = self.try_change(service, id, |instance| edit.apply(instance))?;
        if renews {
            self.renew_here(service, id);
        }
        Ok(changed)
    }

    /// A sign of life where the lease is kept. Where it is not, it would count as a visit of the
    /// instance itself, which takes its lease along when it comes twice.
    fn renew_here(&self, service: &ServiceName, id: &InstanceId) {
        let key = (service.clone(), id.clone());
        let _kept_elsewhere_by_now = self.leases.renew(&key, None, None, now());
    }

    /// The server that keeps the lease, if that is another one and lives.
    fn kept_at(&self, service: &ServiceName, id: &InstanceId) -> Option<SocketAddr> {
        let catalogue = self.catalogue();
        let owner = &catalogue.live_record(service, id)?.stamp.owner;
        if *owner == self.node || !self.is_alive(owner) {
            return None;
        }
        let members = self.members.borrow();
        members.get(owner).map(|member| member.http)
    }

    async fn edit_at(
        &self,
        addr: SocketAddr,
        question: &EditQuestion,
    ) -> Result<EditAnswer, BoxError> {
        let path = "/v1/replicate/edit";
        self.peers.ask_within(ANSWER, addr, path, question).await
    }

    /// A change that came to another server.
    pub(crate) fn edit_for(&self, question: EditQuestion) -> EditAnswer {
        let EditQuestion {
            service,
            id,
            edit,
            by_eureka,
        } = question;
        if self.kept_at(&service, &id).is_some()
            && let Some(record) = self.catalogue().live_record(&service, &id)
        {
            return EditAnswer::Moved(Record::clone(record));
        }
        let renews = edit.renews();
        let edit = |instance: &mut InstanceRecord| edit.apply(instance);
        let edited = self.said_by(by_eureka, (&service, &id), || {
            self.try_change_record(&service, &id, edit)
        });
        match edited {
            Ok(record) => {
                if renews {
                    self.renew_here(&service, &id);
                }
                EditAnswer::Done(Record::clone(&record))
            }
            Err(Refused::Invalid(why)) => EditAnswer::Invalid(why),
            Err(_) => EditAnswer::Unknown,
        }
    }
}
