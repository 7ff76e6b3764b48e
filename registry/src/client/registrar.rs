//! Being found: register, renew, and register again whenever the lease was lost.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    Servers,
    http::{Http, with_causes},
};
use crate::{
    instance::{Instance, InstanceStatus},
    wire::{RegisterRequest, RenewRequest},
};

/// An instance that is registered until this ends.
///
/// End it with [`deregister`](Self::deregister), which tells the registry and waits. Dropping it
/// stops the renewals and tries to tell the registry in passing; where that fails the lease ends.
#[derive(Debug)]
pub struct Registration {
    status: watch::Sender<InstanceStatus>,
    registered: watch::Receiver<bool>,
    end: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

/// How long saying good-bye may take.
const GOODBYE: Duration = Duration::from_secs(2);

impl Registration {
    pub(super) fn spawn(servers: Arc<Servers>, instance: Instance) -> Self {
        let status = watch::channel(instance.status);
        let registered = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let task = Task {
            servers,
            // Grows with each start as long as clocks do not go back by more than an outage lasts;
            // the registry settles what remains.
            incarnation: unix_ms(),
            instance,
            http: Http::default(),
            registered: registered.0,
            failures: 0,
        };
        tokio::spawn(task.run(status.1, ended));
        Self {
            status: status.0,
            registered: registered.1,
            end: Some(end),
        }
    }

    /// Changes what the registry says of this instance, as soon as a server answers.
    pub fn set_status(&self, status: InstanceStatus) {
        self.status
            .send_if_modified(|now| std::mem::replace(now, status) != status);
    }

    /// Resolves once a server has accepted the instance. Cancel-safe.
    pub async fn registered(&mut self) {
        let _ended = self.registered.wait_for(|registered| *registered).await;
    }

    /// Whether a server has it, as far as we know.
    pub fn is_registered(&self) -> bool {
        *self.registered.borrow()
    }

    /// Takes the instance out of the registry; resolves when a server has confirmed it, or after
    /// two seconds, when the lease must do.
    pub async fn deregister(mut self) {
        let (done, confirmed) = oneshot::channel();
        if let Some(end) = self.end.take()
            && end.send(done).is_ok()
        {
            let _at_the_latest = tokio::time::timeout(GOODBYE, confirmed).await;
        }
    }
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

struct Task {
    servers: Arc<Servers>,
    incarnation: u64,
    instance: Instance,
    http: Http,
    registered: watch::Sender<bool>,
    failures: u32,
}

impl Task {
    async fn run(
        mut self,
        mut status: watch::Receiver<InstanceStatus>,
        mut ended: oneshot::Receiver<oneshot::Sender<()>>,
    ) {
        loop {
            self.instance.status = *status.borrow_and_update();
            let ok = if *self.registered.borrow() {
                self.renew().await
            } else {
                self.register().await
            };
            self.failures = if ok {
                0
            } else {
                self.failures.saturating_add(1)
            };
            let wake = Instant::now() + self.pause();
            let done = tokio::select! {
                done = &mut ended => done.ok(),
                changed = status.changed() => match changed {
                    Ok(()) => {
                        self.registered.send_replace(false);
                        continue;
                    }
                    // Dropped without a word.
                    Err(_) => None,
                },
                () = tokio::time::sleep_until(wake) => continue,
            };
            self.deregister().await;
            if let Some(done) = done {
                let _nobody_waits = done.send(());
            }
            return;
        }
    }

    /// A third of the lease, so that two renewals may fail; sooner after a failure. Jittered, so
    /// that instances that started together do not renew together.
    fn pause(&self) -> Duration {
        let third = self.instance.ttl.0 / 3;
        let pause = match self.failures {
            0 => third,
            // The other servers are tried at once, then ever more slowly.
            n if (n as usize) < self.servers.list.len() => Duration::ZERO,
            n => third.min(Duration::from_millis(50).saturating_mul(1 << n.min(6))),
        };
        pause.mul_f64(0.9 + fastrand::f64() * 0.1)
    }

    fn path(&self) -> String {
        format!(
            "/v1/services/{}/instances/{}",
            self.instance.service, self.instance.id
        )
    }

    async fn register(&mut self) -> bool {
        let body = RegisterRequest::of(&self.instance, self.incarnation);
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let registered = match self.call("PUT", &self.path(), body).await {
            Some(200 | 201) => true,
            Some(409) => {
                // A later life of this instance is known: ours has to be later still.
                self.incarnation = unix_ms().max(self.incarnation + 1);
                false
            }
            _ => false,
        };
        if registered {
            tracing::info!(
                service = %self.instance.service,
                instance = %self.instance.id,
                status = ?self.instance.status,
                "registered"
            );
            self.registered.send_replace(true);
        }
        registered
    }

    async fn renew(&mut self) -> bool {
        let body = RenewRequest {
            incarnation: Some(self.incarnation),
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        match self
            .call("PUT", &format!("{}/lease", self.path()), body)
            .await
        {
            Some(200 | 204) => true,
            Some(404) => {
                tracing::warn!(service = %self.instance.service, instance = %self.instance.id, "lease was lost, registering again");
                self.registered.send_replace(false);
                self.register().await
            }
            _ => false,
        }
    }

    async fn deregister(&mut self) {
        for _ in 0..self.servers.list.len() {
            if self
                .call("DELETE", &self.path(), Vec::new())
                .await
                .is_some()
            {
                return;
            }
        }
    }

    /// The status of the current server's answer; `None` and another server if it does not work.
    async fn call(&mut self, method: &'static str, path: &str, body: Vec<u8>) -> Option<u16> {
        let server = self.servers.current()?.to_owned();
        let limit =
            (self.instance.ttl.0 / 3).clamp(Duration::from_millis(200), Duration::from_secs(2));
        let reply = match self.http.call(&server, method, path, body, limit).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::warn!(service = %self.instance.service, server = %server, error = %with_causes(&error), "registry call failed");
                self.servers.fail_over(&server);
                return None;
            }
        };
        if reply.status.is_server_error() {
            tracing::warn!(service = %self.instance.service, server = %server, problem = %reply.problem(), "registry refused");
            self.servers.fail_over(&server);
            return None;
        }
        if reply.status.is_client_error() && reply.status != 404 {
            tracing::error!(service = %self.instance.service, server = %server, problem = %reply.problem(), "registry refused");
        }
        Some(reply.status.as_u16())
    }
}
