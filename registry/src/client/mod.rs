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

mod cache;
pub mod connect;
mod discovery;
mod http;
mod registrar;
mod servers;
mod sse;
mod view;
mod watcher;

use std::{path::PathBuf, sync::Arc, time::Duration};

use ::http::{HeaderName, StatusCode};

use self::{
    connect::Connector,
    http::Http,
    registrar::Registrar,
    servers::Servers,
    watcher::{Options, Watcher},
};
pub use self::{
    discovery::{
        Discovery, EndpointSnapshot, PolicyWatch, PublishedPolicy, ServiceWatch, StaticDiscovery,
    },
    http::{ClientError, Reply},
    registrar::{Registration, RegistrationRefused},
};
use crate::{
    instance::{Instance, Locality},
    name::ServiceName,
    wire::HEARTBEAT,
};

/// Silence on a watch after which its server counts as gone: three missed heartbeats.
pub const STALL: Duration = Duration::from_secs(HEARTBEAT.as_secs() * 3);

/// How a client is set up. Finish with [`spawn`](Self::spawn).
#[derive(Debug, Clone)]
pub struct Builder {
    servers: Vec<String>,
    here: Locality,
    connector: Connector,
    options: Options,
}

impl Builder {
    /// Where this process runs: servers of its zone, then of its region, are preferred. They are
    /// asked once where they run: the first call waits for the first answer and some milliseconds,
    /// for a silent server a second if no other answers.
    #[must_use]
    pub fn locality(mut self, here: Locality) -> Self {
        self.here = here;
        self
    }

    /// How servers are reached: TLS, our certificate, a token. Default: plain, without a token.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// Keeps the last good lists and policies in this file, and begins with them.
    #[must_use]
    pub fn cache(mut self, file: impl Into<PathBuf>) -> Self {
        self.options.cache = Some(file.into());
        self
    }

    /// Where a service takes no calls in this region, its endpoints are the gateways of the next
    /// region that has it, in the order that the servers are configured with.
    #[must_use]
    pub fn region_fallback(mut self, wanted: bool) -> Self {
        self.options.region_fallback = wanted;
        self
    }

    /// Starts the client's task. It connects in the background and keeps trying: a registry that
    /// is away when a service starts is no reason for the service not to start.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(self) -> RegistryClient {
        let servers = Arc::new(Servers::new(self.servers, self.here, self.connector));
        RegistryClient {
            watcher: Watcher::spawn(Arc::clone(&servers), self.options),
            registrar: Registrar::new(Arc::clone(&servers)),
            servers,
        }
    }
}

/// A request to the registry, as [`RegistryClient::call`] sends it.
#[derive(Debug, Clone, Default)]
pub struct Call<'a> {
    /// Path and query.
    pub path: &'a str,
    /// The document, if there is one.
    pub body: Vec<u8>,
    /// Headers beyond `Host` and `Authorization`.
    pub headers: Vec<(HeaderName, String)>,
    /// How long one server may take to answer; `None`: two seconds.
    pub within: Option<Duration>,
}

/// A client of the registry. Clones share its tasks and its lists.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    servers: Arc<Servers>,
    watcher: Watcher,
    registrar: Arc<Registrar>,
}

/// How long one server may take to answer a single question.
const ANSWER: Duration = Duration::from_secs(2);

impl RegistryClient {
    /// A client of these servers (`host:port`); any of them will do, more are safer.
    pub fn builder(servers: impl IntoIterator<Item = impl Into<String>>) -> Builder {
        Builder {
            servers: servers.into_iter().map(Into::into).collect(),
            here: Locality::default(),
            connector: Connector::plain(),
            options: Options::default(),
        }
    }

    /// Registers `instance` and keeps it registered until the [`Registration`] ends. However many
    /// instances a client registers, one task renews them, in one request where it can.
    ///
    /// Returns at once; see [`Registration::registered`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn register(&self, instance: Instance) -> Registration {
        self.registrar.register(instance)
    }

    /// Whether every watched service has been heard of at least once.
    pub fn is_synced(&self) -> bool {
        self.watcher.is_synced()
    }

    /// Whether what is known may be old: no server answers, or only one that is cut off from its
    /// peers.
    pub fn is_stale(&self) -> bool {
        self.watcher.is_stale()
    }

    /// Asks one server for `path` (which includes the query), trying each in turn.
    ///
    /// # Errors
    /// The last server's [`ClientError`] if none answers within two seconds.
    pub async fn get(&self, path: &str) -> Result<Reply, ClientError> {
        let call = Call {
            path,
            ..Call::default()
        };
        self.call("GET", &call).await
    }

    /// Sends `call` to one server, and to the next if there is no answer, or none yet (503). A write
    /// may then have happened twice: all of the registry's are idempotent.
    ///
    /// # Errors
    /// The last server's [`ClientError`] if none answers in time.
    pub async fn call(&self, method: &'static str, call: &Call<'_>) -> Result<Reply, ClientError> {
        let mut last = Err(ClientError::NoServers);
        let limit = call.within.unwrap_or(ANSWER);
        self.servers.ranked().await;
        for _ in 0..self.servers.count {
            let Some(server) = self.servers.current() else {
                break;
            };
            let mut http = Http::new(self.servers.connector.clone());
            let body = call.body.clone();
            last = http
                .call_with(&server, method, call.path, body, &call.headers, limit)
                .await;
            match &last {
                Ok(reply) if reply.status != StatusCode::SERVICE_UNAVAILABLE => break,
                _ => self.servers.fail_over(&server),
            }
        }
        last
    }
}

impl Discovery for RegistryClient {
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        self.watcher.watch(service)
    }

    fn policy(&self, service: &ServiceName) -> PolicyWatch {
        self.watcher.policy(service)
    }
}
