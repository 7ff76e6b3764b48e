//! From `gateway.toml` to something that can be used, or to one clear message.
//!
//! A gateway that takes half of a bad file is worse than one that does not start, so a file is
//! read as a whole: parsed with unknown keys refused, every reference followed, every policy
//! validated, and the routing table built, before anything that runs is touched. A reload uses
//! the very same function.

mod build;
mod quick;
pub mod written;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use selvedge_registry::{
    Endpoint, Locality, ServiceName,
    node::{
        admin::AdminConfig,
        cidr::Cidr,
        config::{self as file, ConfigError},
        registry::RegistryFile,
        telemetry::TelemetryConfig,
    },
};
use selvedge_resilience::{TrafficPolicy, inbound::InboundConfig};

use self::written::{AccessLogFile, GatewayFile, LimitsFile};
pub use self::{build::MAX_SOCKETS, quick::quick};
use crate::routing::RouteTable;

/// A configuration that can be used.
#[derive(Debug)]
pub struct Config {
    /// Where clients come in.
    pub listeners: Vec<Listener>,
    /// What is taken on through each of them, by name; those that take all are not here.
    pub inbound: BTreeMap<String, InboundConfig>,
    /// Who knows where services are.
    pub registry: Option<RegistryFile>,
    /// Where the gateway runs.
    pub locality: Locality,
    /// What can be called.
    pub services: Vec<Service>,
    /// What requests are sent where, in the order of the file.
    pub routes: Vec<Route>,
    /// From a request to the index of its route.
    pub table: RouteTable,
    /// The operator's port.
    pub admin: AdminConfig,
    /// A line a request.
    pub access_log: Option<AccessLogFile>,
    /// The process's own logs, and spans.
    pub telemetry: TelemetryConfig,
    /// Threads, and how the process ends.
    pub process: Process,
}

/// Where clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name in the file.
    pub name: String,
    /// The address that was asked for.
    pub bind: SocketAddr,
    /// What a client may take.
    pub limits: LimitsFile,
    /// Whose `X-Forwarded-*` is believed.
    pub trusted: Arc<[Cidr]>,
}

/// What can be called.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name, here and in the registry.
    pub name: ServiceName,
    /// Where it is; `None`: ask the registry.
    pub endpoints: Option<Vec<Endpoint>>,
    /// How it is called.
    pub policy: TrafficPolicy,
    /// Whether a policy that is published for it counts instead: none is written down here.
    pub published: bool,
}

/// What becomes of a request that a rule matched.
#[derive(Debug, Clone)]
pub struct Route {
    /// What it is called in logs and metrics.
    pub name: Arc<str>,
    /// `file:line` of its beginning.
    pub place: String,
    /// Index into [`Config::services`].
    pub service: usize,
    /// All tries together, if not as the service's policy says; zero is for ever.
    pub timeout: Option<Duration>,
    /// Bytes of the path to cut off, and what to put there.
    pub rewrite: Option<Rewrite>,
}

/// A prefix that is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// Length of what the route matched, without a trailing slash.
    pub cut: usize,
    /// What stands there instead, without a trailing slash.
    pub with: Box<str>,
}

impl Rewrite {
    /// The path that the service sees; always begins with a slash.
    pub fn apply(&self, path: &str) -> String {
        let rest = path.get(self.cut..).unwrap_or_default();
        let mut new = String::with_capacity(self.with.len() + rest.len() + 1);
        new.push_str(&self.with);
        new.push_str(rest);
        if new.is_empty() {
            new.push('/');
        }
        new
    }
}

/// Threads, and how the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Threads that carry requests.
    pub workers: usize,
    /// How long requests under way may go on.
    pub drain: Duration,
    /// How long it goes on accepting, un-ready.
    pub lame_duck: Duration,
    /// How often the file is looked at; `None` is never.
    pub watch: Option<Duration>,
}

/// Reads, checks and builds the configuration in `path`.
///
/// # Errors
/// [`ConfigError`], ready to be shown to a person.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    build::build(&file::load::<GatewayFile>(path)?)
}

/// As [`load`], from `text` that came from `path`.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: String) -> Result<Config, ConfigError> {
    build::build(&file::parse::<GatewayFile>(path, text)?)
}
