//! Being found: register, renew, and register again whenever the lease was lost.
//!
//! A process that hosts a hundred instances must not send a hundred heartbeats from a hundred
//! tasks. One task keeps every registration of a client; renewals that are nearly due go together,
//! in one request.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    http::{Http, Reply, with_causes},
    servers::Servers,
};
use crate::{
    api::{Lease, LeaseReason, MAX_BATCH, RenewBatch, Renewals},
    instance::{Instance, InstanceStatus},
    name::{InstanceId, ServiceName},
    wire::{INCARNATION_HEADER, RegisterRequest},
};

/// How long saying good-bye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// An instance that is registered until this ends.
///
/// End it with [`deregister`](Self::deregister), which tells the registry and waits. Dropping it
/// stops the renewals and tries to tell the registry in passing; where that fails the lease ends.
#[derive(Debug)]
pub struct Registration {
    entry: Arc<Entry>,
    standing: watch::Receiver<Standing>,
    registrar: Arc<Registrar>,
}

/// What is wanted of one instance, and how it stands.
#[derive(Debug)]
struct Entry {
    instance: Instance,
    wanted: Mutex<Wanted>,
    standing: watch::Sender<Standing>,
    gone: watch::Sender<bool>,
}

/// How an instance stands with the registry, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// No server has said anything about it, or its lease was lost.
    Open,
    Registered,
    /// A server does not take it as it is.
    Refused(Arc<str>),
}

/// A server does not take a registration: trying again does not help until somebody changes
/// something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("register {id} of {service}: {problem}")]
pub struct RegistrationRefused {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub id: InstanceId,
    /// What the server said.
    pub problem: String,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    status: InstanceStatus,
    /// Grows with each change, so that the task sees one that happens while it is talking.
    edition: u64,
    leaves: bool,
}

impl Registration {
    /// Changes what the registry says of this instance, as soon as a server answers.
    pub fn set_status(&self, status: InstanceStatus) {
        {
            let mut wanted = self.entry.wanted.lock();
            if wanted.status == status {
                return;
            }
            wanted.status = status;
            wanted.edition += 1;
        }
        self.registrar.wake.notify_one();
    }

    /// Resolves once a server has accepted the instance. Cancel-safe.
    pub async fn registered(&mut self) {
        let done = |standing: &Standing| *standing == Standing::Registered;
        let _ended = self.standing.wait_for(done).await;
    }

    /// Resolves once a server has said something: as [`registered`](Self::registered) does, or with
    /// its refusal. It is tried again all the same: rights and limits change. Cancel-safe.
    ///
    /// # Errors
    /// [`RegistrationRefused`] if what is wrong is the registration, or who makes it, rather than
    /// the server.
    pub async fn answered(&mut self) -> Result<(), RegistrationRefused> {
        let answered = |standing: &Standing| *standing != Standing::Open;
        let refused = match self.standing.wait_for(answered).await.as_deref() {
            Ok(Standing::Refused(problem)) => Some(problem.to_string()),
            _ => None,
        };
        match refused {
            None => Ok(()),
            Some(problem) => Err(RegistrationRefused {
                service: self.entry.instance.service.clone(),
                id: self.entry.instance.id.clone(),
                problem,
            }),
        }
    }

    /// Whether a server has it, as far as we know.
    pub fn is_registered(&self) -> bool {
        *self.standing.borrow() == Standing::Registered
    }

    /// Takes the instance out of the registry; resolves when a server has confirmed it, or after
    /// two seconds, when the lease must do.
    pub async fn deregister(self) {
        let mut gone = self.entry.gone.subscribe();
        drop(self);
        let _at_the_latest = tokio::time::timeout(GOODBYE, gone.wait_for(|gone| *gone)).await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.entry.wanted.lock().leaves = true;
        self.registrar.wake.notify_one();
    }
}

/// Keeps a client's registrations. Its task lives as long as there is one.
#[derive(Debug)]
pub(super) struct Registrar {
    servers: Arc<Servers>,
    list: Mutex<List>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct List {
    /// Registrations that the task has not seen yet.
    new: Vec<Arc<Entry>>,
    running: bool,
}

impl Registrar {
    pub(super) fn new(servers: Arc<Servers>) -> Arc<Self> {
        Arc::new(Self {
            servers,
            list: Mutex::default(),
            wake: Notify::new(),
        })
    }

    pub(super) fn register(self: &Arc<Self>, instance: Instance) -> Registration {
        let (standing, receiver) = watch::channel(Standing::Open);
        let entry = Arc::new(Entry {
            wanted: Mutex::new(Wanted {
                status: instance.status,
                edition: 0,
                leaves: false,
            }),
            instance,
            standing,
            gone: watch::channel(false).0,
        });
        let mut list = self.list.lock();
        list.new.push(Arc::clone(&entry));
        if !std::mem::replace(&mut list.running, true) {
            tokio::spawn(Task::new(Arc::clone(self)).run());
        }
        drop(list);
        self.wake.notify_one();
        Registration {
            entry,
            standing: receiver,
            registrar: Arc::clone(self),
        }
    }
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// What the task knows of an entry.
#[derive(Debug)]
struct Work {
    entry: Arc<Entry>,
    /// Grows with each start as long as clocks do not go back; where one does, the registry says
    /// what it has to be above.
    incarnation: u64,
    /// The edition of `wanted` that a server has.
    told: Option<u64>,
    due: Instant,
    failures: u32,
}

impl Work {
    fn ttl(&self) -> Duration {
        self.entry.instance.ttl.0
    }

    fn lost(&mut self, now: Instant) {
        self.told = None;
        self.due = now;
        self.entry.standing.send_replace(Standing::Open);
    }

    /// A third of the lease, so that two renewals may fail; sooner after a failure. Jittered, so
    /// that processes that started together do not renew together.
    fn again(&mut self, ok: bool, servers: usize, now: Instant) {
        self.failures = if ok {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let third = self.ttl() / 3;
        let pause = match self.failures {
            0 => third,
            // The other servers are tried at once, then ever more slowly.
            n if (n as usize) < servers => Duration::ZERO,
            n => third.min(Duration::from_millis(50).saturating_mul(1 << n.min(6))),
        };
        self.due = now + pause.mul_f64(0.9 + fastrand::f64() * 0.1);
    }
}

struct Task {
    registrar: Arc<Registrar>,
    http: Http,
    work: Vec<Work>,
}

impl Task {
    fn new(registrar: Arc<Registrar>) -> Self {
        Self {
            http: Http::new(registrar.servers.connector.clone()),
            registrar,
            work: Vec::new(),
        }
    }

    async fn run(mut self) {
        self.registrar.servers.ranked().await;
        while self.take_new() {
            self.say_goodbye().await;
            self.register_due().await;
            self.renew_due().await;
            let wake = self.work.iter().map(|work| work.due).min();
            let registrar = Arc::clone(&self.registrar);
            let woken = registrar.wake.notified();
            if let Some(at) = wake {
                let _due_or_woken = tokio::time::timeout_at(at, woken).await;
            }
        }
    }

    /// Takes over new registrations; `false` if there is nothing left to keep.
    fn take_new(&mut self) -> bool {
        let mut list = self.registrar.list.lock();
        let now = Instant::now();
        self.work.extend(list.new.drain(..).map(|entry| Work {
            entry,
            incarnation: unix_ms(),
            told: None,
            due: now,
            failures: 0,
        }));
        // Under the lock: whoever registers next starts another task.
        list.running = !self.work.is_empty();
        list.running
    }

    async fn say_goodbye(&mut self) {
        let (leaving, staying) = std::mem::take(&mut self.work)
            .into_iter()
            .partition(|work| work.entry.wanted.lock().leaves);
        self.work = staying;
        for work in leaving {
            let path = path(&work.entry.instance);
            for _ in 0..self.registrar.servers.count {
                if self
                    .call("DELETE", &path, Vec::new(), work.ttl())
                    .await
                    .is_some()
                {
                    break;
                }
            }
            work.entry.gone.send_replace(true);
        }
    }

    /// Registers what no server has yet, or has with another status.
    async fn register_due(&mut self) {
        for n in 0..self.work.len() {
            let work = &self.work[n];
            let wanted = *work.entry.wanted.lock();
            let now = Instant::now();
            if work.told == Some(wanted.edition) || work.failures > 0 && work.due > now {
                continue;
            }
            let instance = Instance {
                status: wanted.status,
                ..work.entry.instance.clone()
            };
            let body = RegisterRequest::of(&instance, work.incarnation);
            let body = serde_json::to_vec(&body).unwrap_or_default();
            let (path, ttl) = (path(&instance), work.ttl());
            let reply = self.call("PUT", &path, body, ttl).await;
            let status = reply.as_ref().map(|reply| reply.status.as_u16());
            let later = reply.as_ref().and_then(later_life);
            let work = &mut self.work[n];
            let registered = matches!(status, Some(200 | 201));
            if registered {
                if work.told.is_none() {
                    tracing::info!(service = %instance.service, instance = %instance.id, "registered");
                }
                work.told = Some(wanted.edition);
            } else {
                work.told = None;
            }
            if status == Some(409) {
                // A later life of this instance is known: ours has to be later still, also where this
                // clock was set back since.
                let known = later.unwrap_or_default().max(work.incarnation);
                work.incarnation = unix_ms().max(known.saturating_add(1));
            }
            work.entry.standing.send_replace(match reply {
                _ if registered => Standing::Registered,
                Some(reply) if is_final(reply.status) => Standing::Refused(reply.problem().into()),
                _ => Standing::Open,
            });
            work.again(registered, self.registrar.servers.count, Instant::now());
        }
    }

    /// Renews what is due, and in the same request what will be soon.
    async fn renew_due(&mut self) {
        let now = Instant::now();
        let kept = |work: &Work| work.told.is_some();
        if !self.work.iter().any(|work| kept(work) && work.due <= now) {
            return;
        }
        // Half of what lies between two renewals: whoever falls due soon joins, and stays in step.
        let soon = |work: &Work| kept(work) && work.due <= now + work.ttl() / 6;
        let due: Vec<usize> = (0..self.work.len())
            .filter(|n| soon(&self.work[*n]))
            .collect();
        for chunk in due.chunks(MAX_BATCH) {
            self.renew(chunk).await;
        }
    }

    async fn renew(&mut self, which: &[usize]) {
        let leases = which.iter().map(|n| {
            let work = &self.work[*n];
            Lease {
                service: work.entry.instance.service.clone(),
                id: work.entry.instance.id.clone(),
                incarnation: Some(work.incarnation),
            }
        });
        let batch = RenewBatch {
            leases: leases.collect(),
        };
        let body = serde_json::to_vec(&batch).unwrap_or_default();
        let shortest = which.iter().map(|n| self.work[*n].ttl()).min();
        let reply = self
            .call("POST", "/v1/leases", body, shortest.unwrap_or_default())
            .await;
        let renewals = reply
            .filter(|reply| reply.status.is_success())
            .and_then(|reply| serde_json::from_slice::<Renewals>(&reply.body).ok());
        let now = Instant::now();
        let servers = self.registrar.servers.count;
        for n in which {
            self.work[*n].again(renewals.is_some(), servers, now);
        }
        for refused in renewals.into_iter().flat_map(|renewals| renewals.refused) {
            let work = which.iter().find(|n| {
                let instance = &self.work[**n].entry.instance;
                instance.service == refused.service && instance.id == refused.id
            });
            let Some(n) = work else { continue };
            match refused.reason {
                LeaseReason::Unknown => {
                    tracing::warn!(service = %refused.service, instance = %refused.id, "lease was lost, registering again");
                    self.work[*n].lost(now);
                }
                LeaseReason::Forbidden => {
                    tracing::error!(service = %refused.service, instance = %refused.id, "registry does not let us register this service");
                    self.work[*n].again(false, servers, now);
                }
            }
        }
    }

    /// The current server's answer; `None` and another server if it does not work.
    async fn call(
        &mut self,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
        ttl: Duration,
    ) -> Option<Reply> {
        let servers = Arc::clone(&self.registrar.servers);
        let server = servers.current()?;
        let limit = (ttl / 3).clamp(Duration::from_millis(200), Duration::from_secs(2));
        let reply = match self.http.call(&server, method, path, body, limit).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::warn!(server = %server, error = %with_causes(&error), "registry call failed");
                servers.fail_over(&server);
                return None;
            }
        };
        if reply.status.is_server_error() {
            tracing::warn!(server = %server, problem = %reply.problem(), "registry refused");
            servers.fail_over(&server);
            return None;
        }
        if reply.status.is_client_error() && reply.status != 404 {
            tracing::error!(server = %server, problem = %reply.problem(), "registry refused");
        }
        Some(reply)
    }
}

/// The incarnation of the later life that a registration was refused for.
fn later_life(reply: &Reply) -> Option<u64> {
    let value = reply.headers.get(INCARNATION_HEADER)?;
    value.to_str().ok()?.parse().ok()
}

/// Whether it is the request that is wrong. A conflict is settled by a later incarnation, a limit
/// by waiting.
fn is_final(status: StatusCode) -> bool {
    let passes = [StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS];
    status.is_client_error() && !passes.contains(&status)
}

fn path(instance: &Instance) -> String {
    format!(
        "/v1/services/{}/instances/{}",
        instance.service, instance.id
    )
}
