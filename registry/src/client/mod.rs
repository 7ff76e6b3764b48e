//! Finding services and being found.
//!
//! A caller that asks a registry before each call is as available as the registry. This client
//! asks once, is told of changes, and keeps the last good list through any outage: a list is
//! replaced by another list, never by an error.
//!
//! # Guarantees
//! - One task and one stream however many services are watched.
//! - A silent server is left for another after [`STALL`]; a broken connection at once.
//! - An instance is registered until its [`Registration`] ends: lost leases are taken again,
//!   servers that go away are replaced.
//!
//! # What it does not do
//! Choose an endpoint (the balancer's business) or judge its health (the callers' own).

pub mod connect;
mod discovery;
mod http;
mod registrar;
mod sse;
mod watcher;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use self::{
    discovery::{Discovery, EndpointSnapshot, ServiceWatch, StaticDiscovery},
    http::{ClientError, Reply},
    registrar::Registration,
};
use self::{http::Http, watcher::Watcher};
use crate::{instance::Instance, name::ServiceName, wire::HEARTBEAT};

/// Silence on a watch after which its server counts as gone: three missed heartbeats.
pub const STALL: Duration = Duration::from_secs(HEARTBEAT.as_secs() * 3);

/// How a client is set up. Finish with [`spawn`](Self::spawn).
#[derive(Debug, Clone)]
pub struct Builder {
    servers: Vec<String>,
}

impl Builder {
    /// Starts the client's task. It connects in the background and keeps trying: a registry that
    /// is away when a service starts is no reason for the service not to start.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(self) -> RegistryClient {
        let servers = Arc::new(Servers {
            // Clients spread over the servers from the start.
            next: AtomicUsize::new(fastrand::usize(..self.servers.len().max(1))),
            list: self.servers,
        });
        RegistryClient {
            watcher: Watcher::spawn(Arc::clone(&servers)),
            servers,
        }
    }
}

/// The servers, and which one is in favour.
#[derive(Debug)]
struct Servers {
    list: Vec<String>,
    next: AtomicUsize,
}

impl Servers {
    fn current(&self) -> Option<&str> {
        let at = self.next.load(Ordering::Relaxed);
        self.list
            .get(at % self.list.len().max(1))
            .map(String::as_str)
    }

    /// Turns to another server, unless somebody has done so since `from` was current.
    fn fail_over(&self, from: &str) {
        let at = self.next.load(Ordering::Relaxed);
        if self.current() == Some(from) {
            let _another_may_have = self.next.compare_exchange(
                at,
                at.wrapping_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
}

/// A client of the registry. Clones share its task and its lists.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    servers: Arc<Servers>,
    watcher: Watcher,
}

impl RegistryClient {
    /// A client of these servers (`host:port`); any of them will do, more are safer.
    pub fn builder(servers: impl IntoIterator<Item = impl Into<String>>) -> Builder {
        Builder {
            servers: servers.into_iter().map(Into::into).collect(),
        }
    }

    /// Registers `instance` and keeps it registered until the [`Registration`] ends.
    ///
    /// Returns at once; see [`Registration::registered`].
    pub fn register(&self, instance: Instance) -> Registration {
        Registration::spawn(Arc::clone(&self.servers), instance)
    }

    /// Whether every watched service has been heard of at least once.
    pub fn is_synced(&self) -> bool {
        self.watcher.is_synced()
    }

    /// Asks one server for `path` (which includes the query), trying each in turn.
    ///
    /// # Errors
    /// The last server's [`ClientError`] if none answers within two seconds.
    pub async fn get(&self, path: &str) -> Result<Reply, ClientError> {
        let mut last = ClientError::NoServers;
        for _ in 0..self.servers.list.len() {
            let Some(server) = self.servers.current() else {
                break;
            };
            match Http::default()
                .call(server, "GET", path, Vec::new(), Duration::from_secs(2))
                .await
            {
                Ok(reply) => return Ok(reply),
                Err(error) => last = error,
            }
            self.servers.fail_over(server);
        }
        Err(last)
    }
}

impl Discovery for RegistryClient {
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        self.watcher.watch(service)
    }
}
