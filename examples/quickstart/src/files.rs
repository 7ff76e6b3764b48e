//! The configuration file of each daemon, as a person would write it.

use std::net::SocketAddr;
use std::path::Path;

/// What all files say alike.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    /// `["http://…", …]`
    pub(crate) registry: Vec<SocketAddr>,
    /// Where spans go, if anywhere.
    pub(crate) otlp: Option<String>,
}

impl Common {
    /// The servers as TOML.
    fn servers(&self) -> String {
        let servers: Vec<_> = self
            .registry
            .iter()
            .map(|addr| format!("\"http://{addr}\""))
            .collect();
        format!("[{}]", servers.join(", "))
    }

    fn telemetry(&self) -> String {
        match &self.otlp {
            Some(endpoint) => format!("[telemetry]\notlp = \"{endpoint}\"\n"),
            None => String::new(),
        }
    }
}

/// `registry-N.toml`
pub(crate) fn registry(
    name: &str,
    http: SocketAddr,
    gossip: SocketAddr,
    admin: SocketAddr,
    seeds: &[SocketAddr],
    common: &Common,
) -> String {
    let seeds: Vec<_> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
    let telemetry = common.telemetry();
    format!(
        r#"node = "{name}"
http = "{http}"
[gossip]
bind = "{gossip}"
seeds = [{}]
interval = "100ms"
join_timeout = "1s"
[admin]
bind = "{admin}"
{telemetry}"#,
        seeds.join(", ")
    )
}

/// Every POST of this shop carries an idempotency key: all may be tried again.
const POLICY: &str = r#"timeouts = { request = "5s", backendRequest = "2s" }
retry = { attempts = 3, backoff = "10ms..100ms", budget = "20% min 10/s", non_idempotent = true }
breaker = { failure_rate = "60%", min_requests = 50, open_for = "1s" }
"#;

/// `gateway-N.toml`
pub(crate) fn gateway(
    http: SocketAddr,
    admin: SocketAddr,
    host: &str,
    access_log: &Path,
    common: &Common,
) -> String {
    let (servers, telemetry) = (common.servers(), common.telemetry());
    let access_log = access_log.display();
    format!(
        r#"[listeners.http]
bind = "{http}"
[registry]
servers = {servers}
[services.storefront]
policy = "shop"
[[routes]]
name = "shop"
hosts = ["{host}"]
to = "storefront"
[policies.shop]
{POLICY}[admin]
bind = "{admin}"
[access_log]
path = "{access_log}"
[process]
workers = 1
lame_duck = "100ms"
drain = "5s"
{telemetry}"#
    )
}

/// What a sidecar is beside.
#[derive(Debug, Clone)]
pub(crate) struct Beside<'a> {
    pub(crate) service: &'a str,
    pub(crate) instance: &'a str,
    pub(crate) app: SocketAddr,
    /// Whom the app calls.
    pub(crate) calls: &'a [&'static str],
}

/// Addresses of a sidecar.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SidecarPorts {
    pub(crate) inbound: SocketAddr,
    pub(crate) outbound: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// `SERVICE-N.sidecar.toml`
pub(crate) fn sidecar(
    beside: &Beside<'_>,
    ports: SidecarPorts,
    access_log: &Path,
    common: &Common,
) -> String {
    let (servers, telemetry) = (common.servers(), common.telemetry());
    let access_log = access_log.display();
    let Beside {
        service,
        instance,
        app,
        calls,
    } = beside;
    let SidecarPorts {
        inbound,
        outbound,
        admin,
    } = ports;
    let calls: String = calls
        .iter()
        .map(|callee| [callee, " = \"shop\"\n"].concat())
        .collect();
    format!(
        r#"[service]
name = "{service}"
id = "{instance}"
app = "{app}"
health = {{ http = "/healthz", interval = "500ms" }}
[inbound]
bind = "{inbound}"
[outbound]
bind = "{outbound}"
[outbound.policies]
{calls}[registry]
servers = {servers}
[policies.shop]
{POLICY}[admin]
bind = "{admin}"
[access_log]
path = "{access_log}"
[process]
lame_duck = "100ms"
drain = "5s"
{telemetry}"#
    )
}
