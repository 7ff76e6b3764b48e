//! `gateway.toml` as it is written. Every key here is enforced somewhere; any other is refused.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use selvedge_registry::{
    AppProtocol, Locality, ServiceName,
    node::{admin::AdminConfig, registry::RegistryFile, telemetry::TelemetryConfig},
};
use selvedge_resilience::{
    TrafficPolicy,
    config::{ByteSize, Millis},
    inbound::InboundConfig,
};
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayFile {
    /// Where clients come in, by name.
    pub listeners: BTreeMap<String, ListenerFile>,
    /// Where it runs: registry servers nearby are preferred.
    #[serde(default)]
    pub locality: Locality,
    /// Where services without fixed endpoints are found.
    pub registry: Option<RegistryFile>,
    /// What requests can be sent to, by name.
    #[serde(default)]
    pub services: BTreeMap<ServiceName, ServiceFile>,
    /// How services are called, by name.
    #[serde(default)]
    pub policies: BTreeMap<String, TrafficPolicy>,
    /// Which request goes to which service.
    #[serde(default)]
    pub routes: Vec<RouteFile>,
    /// The operator's port.
    #[serde(default)]
    pub admin: AdminConfig,
    /// A line a request.
    pub access_log: Option<AccessLogFile>,
    /// Logs of the process itself, and spans.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Threads, and how the process ends.
    #[serde(default)]
    pub process: ProcessFile,
}

/// `[listeners.NAME]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerFile {
    /// The address; port 0 takes a free one, which is logged.
    pub bind: SocketAddr,
    /// What a client may take.
    #[serde(default)]
    pub limits: LimitsFile,
    /// What the services behind take on together: section `inbound` of a policy.
    #[serde(default)]
    pub inbound: InboundConfig,
    /// Networks whose `X-Forwarded-*` is believed, as `"10.0.0.0/8"`; everybody else's is dropped.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
}

/// `limits = { … }` of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// Bytes of a request's head; more is answered 431. Default "32KiB": two thirds of the
    /// proxies compared allow 32 to 64 KiB.
    pub headers: ByteSize,
    /// How long a connection may be without a request. Default "75s": nginx `keepalive_timeout`.
    pub idle: Millis,
    /// Bytes of a request's body; more is answered 413. Not set: any size, streamed.
    pub body: Option<ByteSize>,
    /// Requests at once on an HTTP/2 connection. Default 100: the least that RFC 9113 §6.5.2
    /// recommends.
    pub h2_streams: u32,
    /// Connections at once. Default 10,000: a guess, half of a common descriptor limit (each needs
    /// one down and one up).
    pub connections: usize,
    /// Connections at once from one address. Default 1,000: a guess; a proxy in front is one
    /// address, so it must not be small.
    pub per_source: usize,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            headers: ByteSize(32 << 10),
            idle: Millis::new(75_000),
            body: None,
            h2_streams: 100,
            connections: 10_000,
            per_source: 1_000,
        }
    }
}

/// `[services.NAME]`: found in the registry unless `endpoints` says where it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceFile {
    /// Fixed addresses.
    pub endpoints: Option<Vec<EndpointFile>>,
    /// One of `[policies]`; not set: what is published in the registry, or else the defaults.
    pub policy: Option<String>,
}

/// `"10.1.0.4:80"`, or `{ addr = "10.1.0.5:80", weight = 2, protocol = "h2c" }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"10.1.0.4:80\" or { addr = \"10.1.0.4:80\", weight = 2 }"
)]
pub enum EndpointFile {
    /// An address of weight 1.
    Addr(SocketAddr),
    /// With what else is known of it.
    Described(DescribedFile),
}

/// `{ addr = "10.1.0.5:80", weight = 2, protocol = "h2c", locality = { zone = "a" } }`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedFile {
    /// The address.
    pub addr: SocketAddr,
    /// Its share relative to the others; at least 1. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// What it speaks: `http1` (default) or `h2c`.
    #[serde(default)]
    pub protocol: AppProtocol,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
}

impl DescribedFile {
    /// An address of which nothing else is known.
    pub(super) fn plain(addr: SocketAddr) -> Self {
        Self {
            addr,
            weight: one(),
            protocol: AppProtocol::default(),
            locality: Locality::default(),
        }
    }
}

/// `[[routes]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteFile {
    /// What it is called in logs and metrics.
    pub name: String,
    /// `"api.example.com"` or `"*.example.com"`; none is any.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// `"/x"` for all below, `"=/x"` for that path alone. Default "/".
    pub path: Option<String>,
    /// Any of these; none is any.
    #[serde(default)]
    pub methods: Vec<String>,
    /// All of these, each with that value.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// All of these, each with that value.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// The service.
    pub to: ServiceName,
    /// Other than its policy's.
    pub timeouts: Option<RouteTimeoutsFile>,
    /// What the service gets to see.
    pub rewrite: Option<RewriteFile>,
}

/// `timeouts = { request = "3s" }` of a route.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTimeoutsFile {
    /// All tries together, to the end of the answer.
    pub request: Millis,
}

/// `rewrite = { prefix = "/orders" }`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteFile {
    /// Replaces what the route's path matched.
    pub prefix: String,
}

/// `[access_log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLogFile {
    /// The file, appended to; `-` is standard output.
    pub path: PathBuf,
}

/// `[process]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessFile {
    /// Threads that carry requests. Not set: one a core.
    pub workers: Option<usize>,
    /// How long requests under way may go on after the end was asked for. Default "30s":
    /// Kubernetes' `terminationGracePeriodSeconds`.
    pub drain: Millis,
    /// How long it goes on accepting, un-ready, so that those in front notice. Default "5s": one
    /// round of a load balancer's probes, as Envoy's and linkerd's guides advise.
    pub lame_duck: Millis,
    /// How often the file is looked at for changes; "0s" for SIGHUP only. Default "1s".
    pub watch: Millis,
}

impl Default for ProcessFile {
    fn default() -> Self {
        Self {
            workers: None,
            drain: Millis::new(30_000),
            lame_duck: Millis::new(5_000),
            watch: Millis::new(1_000),
        }
    }
}

const fn one() -> u32 {
    1
}
