//! From `sidecar.toml` to something that can be used, or to one clear message.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use selvedge_registry::{
    AppProtocol, InstanceId, Locality, ServiceName,
    node::{
        admin::AdminConfig,
        cidr::Cidr,
        config::{self as file, ConfigError, Loaded, nearest},
        registry::RegistryFile,
        telemetry::TelemetryConfig,
    },
};
use selvedge_resilience::{TrafficPolicy, config::Millis};
use serde::{Deserialize, Serialize};

/// `sidecar.toml` as it is written. Every key is enforced somewhere; any other is refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidecarFile {
    /// The app beside us; without it the sidecar only calls others.
    pub service: Option<ServiceFile>,
    /// Where the mesh reaches the app.
    #[serde(default)]
    pub inbound: InboundFile,
    /// Where the app reaches the mesh.
    #[serde(default)]
    pub outbound: OutboundFile,
    /// Who knows where services are.
    pub registry: Option<RegistryFile>,
    /// How services are called, by name; `default` is for those that no other is named for.
    #[serde(default)]
    pub policies: BTreeMap<String, TrafficPolicy>,
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

/// `[service]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceFile {
    /// What it is registered as.
    pub name: ServiceName,
    /// Where it listens; on loopback, or the mesh can be walked around.
    pub app: SocketAddr,
    /// What it speaks: `http1` (default) or `h2c`.
    #[serde(default)]
    pub protocol: AppProtocol,
    /// Its name among its like. Default: the service and the advertised address.
    pub id: Option<InstanceId>,
    /// Its share of calls relative to the others. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
    /// How it shows that it can take calls.
    #[serde(default)]
    pub health: HealthFile,
    /// One of `[policies]`, for calls to the app. Default: no retries, 15 s.
    pub policy: Option<String>,
    /// Silent for longer, it is taken out of the registry. Default "10s".
    #[serde(default = "ttl")]
    pub ttl: Millis,
    /// Anything else, for people and for queries.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

fn one() -> u32 {
    1
}

fn ttl() -> Millis {
    Millis::new(10_000)
}

/// `health = { … }` of the service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthFile {
    /// A path that answers 200 to 399; not set: whether it takes connections.
    pub http: Option<String>,
    /// How often. Default "1s": ten seconds, as Kubernetes has it, is long for callers.
    pub interval: Millis,
    /// How long an answer may take. Default "1s": Kubernetes `timeoutSeconds`.
    pub timeout: Millis,
    /// Good answers in a row that put it in. Default 1: Kubernetes `successThreshold`.
    pub healthy: u32,
    /// Bad ones in a row that take it out. Default 3: Kubernetes `failureThreshold`.
    pub unhealthy: u32,
}

impl Default for HealthFile {
    fn default() -> Self {
        Self {
            http: None,
            interval: Millis::new(1_000),
            timeout: Millis::new(1_000),
            healthy: 1,
            unhealthy: 3,
        }
    }
}

/// `[inbound]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InboundFile {
    /// The mesh port. Default "127.0.0.1:0".
    pub bind: SocketAddr,
    /// What the registry tells callers. Default: the address that was bound.
    pub advertise: Option<SocketAddr>,
    /// Networks whose `X-Forwarded-*` is believed: the gateways'. Default: none.
    pub trusted_proxies: Vec<String>,
}

impl Default for InboundFile {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            trusted_proxies: Vec::new(),
        }
    }
}

/// `[outbound]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboundFile {
    /// Where the app sends requests with a service's name as `Host`. Default "127.0.0.1:0".
    pub bind: SocketAddr,
    /// Which of `[policies]` is for which service.
    pub policies: BTreeMap<ServiceName, String>,
}

impl Default for OutboundFile {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            policies: BTreeMap::new(),
        }
    }
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
    /// Threads that carry requests. Default 1: linkerd's `proxy-cores`; a sidecar should cost less
    /// than its app.
    pub workers: usize,
    /// How long requests under way may go on after the end was asked for. Default "30s":
    /// Kubernetes' `terminationGracePeriodSeconds`.
    pub drain: Millis,
    /// How long the app goes on taking calls after the registry was told. Default "2s": news
    /// reaches watchers within 100 ms; the rest is for callers that missed it.
    pub lame_duck: Millis,
}

impl Default for ProcessFile {
    fn default() -> Self {
        Self {
            workers: 1,
            drain: Millis::new(30_000),
            lame_duck: Millis::new(2_000),
        }
    }
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Config {
    /// The app, if there is one.
    pub service: Option<Service>,
    /// The mesh port.
    pub inbound: SocketAddr,
    /// What the registry tells callers, if not the bound address.
    pub advertise: Option<SocketAddr>,
    /// Whose `X-Forwarded-*` is believed.
    pub trusted: Arc<[Cidr]>,
    /// The app's port to the mesh.
    pub outbound: SocketAddr,
    /// How services are called.
    pub policies: Policies,
    /// Who knows where services are.
    pub registry: Option<RegistryFile>,
    /// The operator's port.
    pub admin: AdminConfig,
    /// A line a request.
    pub access_log: Option<PathBuf>,
    /// Logs and spans.
    pub telemetry: TelemetryConfig,
    /// Threads that carry requests.
    pub workers: usize,
    /// How long requests under way may go on.
    pub drain: Duration,
    /// How long the app goes on taking calls once it is out of service.
    pub lame_duck: Duration,
}

/// The app beside us.
#[derive(Debug, Clone)]
pub struct Service {
    /// As written.
    pub file: ServiceFile,
    /// How it is called.
    pub policy: TrafficPolicy,
}

/// How services are called.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Policies {
    /// Those that have one of their own.
    pub named: BTreeMap<ServiceName, TrafficPolicy>,
    /// All others'.
    pub default: TrafficPolicy,
}

impl Policies {
    /// How `service` is called.
    pub fn of(&self, service: &ServiceName) -> TrafficPolicy {
        self.named.get(service).unwrap_or(&self.default).clone()
    }
}

/// Reads, checks and builds the configuration in `path`.
///
/// # Errors
/// [`ConfigError`], ready to be shown to a person.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    build(&file::load(path)?)
}

/// As [`load`], from `text` that came from `path`.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: String) -> Result<Config, ConfigError> {
    build(&file::parse(path, text)?)
}

fn build(file: &Loaded<SidecarFile>) -> Result<Config, ConfigError> {
    let written = &file.value;
    for (name, policy) in &written.policies {
        policy.validate().map_err(|error| {
            let path = format!("policies.{name}.{}", error.path);
            file.error(&path, error.to_string())
        })?;
    }
    let service = match &written.service {
        Some(service) => Some(app(file, service)?),
        None => None,
    };
    let advertised = written.inbound.advertise.unwrap_or(written.inbound.bind);
    if service.is_some() && is_nowhere(advertised.ip()) {
        return Err(file.error(
            "inbound",
            format!("{advertised} is no address that a caller can reach: set inbound.advertise"),
        ));
    }
    written
        .admin
        .validate()
        .map_err(|why| file.error("admin.bind", why))?;
    if written.process.workers == 0 {
        let why = "process.workers = 0: allowed is at least 1";
        return Err(file.error("process.workers", why));
    }
    Ok(Config {
        service,
        inbound: written.inbound.bind,
        advertise: written.inbound.advertise,
        trusted: trusted(file)?,
        outbound: written.outbound.bind,
        policies: policies(file)?,
        registry: registry(file)?,
        admin: written.admin.clone(),
        access_log: written.access_log.as_ref().map(|log| log.path.clone()),
        telemetry: written.telemetry.clone(),
        workers: written.process.workers,
        drain: written.process.drain.0,
        lame_duck: written.process.lame_duck.0,
    })
}

fn is_nowhere(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_multicast()
}

fn app(file: &Loaded<SidecarFile>, written: &ServiceFile) -> Result<Service, ConfigError> {
    let health = &written.health;
    let refuse = |key: &str, why: String| file.error(&format!("service.{key}"), why);
    if let Some(path) = health.http.as_ref().filter(|path| !path.starts_with('/')) {
        let why = format!("health.http = {path:?} is not a path: expected \"/healthz\"");
        return Err(refuse("health", why));
    }
    let positive = [
        ("interval", !health.interval.0.is_zero()),
        ("timeout", !health.timeout.0.is_zero()),
        ("healthy", health.healthy > 0),
        ("unhealthy", health.unhealthy > 0),
    ];
    if let Some((key, _)) = positive.iter().find(|(_, ok)| !ok) {
        return Err(refuse(
            "health",
            format!("health.{key} must be more than 0"),
        ));
    }
    if written.weight == 0 || written.app.port() == 0 {
        let why = "allowed are a weight of at least 1 and an app with a port";
        return Err(refuse("app", why.to_owned()));
    }
    let policy = match &written.policy {
        Some(name) => named(file, "service.policy", name)?,
        None => TrafficPolicy::default(),
    };
    Ok(Service {
        file: written.clone(),
        policy,
    })
}

fn named(file: &Loaded<SidecarFile>, path: &str, name: &str) -> Result<TrafficPolicy, ConfigError> {
    let policies = &file.value.policies;
    policies.get(name).cloned().ok_or_else(|| {
        let known: Vec<_> = policies.keys().map(|known| format!("`{known}`")).collect();
        let mut why = format!(
            "unknown policy `{name}`, expected one of {}",
            known.join(", ")
        );
        if known.is_empty() {
            why = format!("unknown policy `{name}`: there is no [policies] in this file");
        }
        if let Some(guess) = nearest(name, policies.keys().map(String::as_str)) {
            why = format!("{why}; did you mean `{guess}`?");
        }
        file.error(path, why)
    })
}

fn policies(file: &Loaded<SidecarFile>) -> Result<Policies, ConfigError> {
    let mut named_for = BTreeMap::new();
    for (service, name) in &file.value.outbound.policies {
        let path = format!("outbound.policies.{service}");
        named_for.insert(service.clone(), named(file, &path, name)?);
    }
    Ok(Policies {
        named: named_for,
        default: file
            .value
            .policies
            .get("default")
            .cloned()
            .unwrap_or_default(),
    })
}

fn trusted(file: &Loaded<SidecarFile>) -> Result<Arc<[Cidr]>, ConfigError> {
    let written = file.value.inbound.trusted_proxies.iter();
    written
        .map(|text| {
            text.parse()
                .map_err(|error: selvedge_registry::node::cidr::CidrError| {
                    file.error("inbound.trusted_proxies", error.to_string())
                })
        })
        .collect()
}

fn registry(file: &Loaded<SidecarFile>) -> Result<Option<RegistryFile>, ConfigError> {
    let Some(registry) = &file.value.registry else {
        return Ok(None);
    };
    registry.client(&Locality::default()).map_err(|error| {
        let path = format!("registry.{}", error.key);
        file.error(&path, error.to_string())
    })?;
    Ok(Some(registry.clone()))
}
