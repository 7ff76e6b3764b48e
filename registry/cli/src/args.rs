//! The command line, as clap reads it.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use selvedge_registry::{AppProtocol, InstanceId, InstanceStatus, ServiceName};
use selvedge_resilience::config::Millis;
use serde::de::DeserializeOwned;

const AFTER: &str = "\
Examples:
  selvedge status
  selvedge --server http://10.0.0.5:7900 --server http://10.0.0.6:7900 instances orders
  selvedge --output json services | jq '.services[].name'
  selvedge register orders orders-1 --addr 10.0.0.7:8080 -- ./orders --port 8080
  selvedge policy put orders orders.toml
  selvedge events --follow http://127.0.0.1:8081 http://127.0.0.1:7002

A token is taken from SELVEDGE_TOKEN or from --token-file, never from the command line, where every
user of the machine can read it.

Exit codes:
  0  done
  1  refused, not found, or (status) not well
  2  the command, or a file that it names, cannot be understood
  3  no registry server answers
  4  the registry does not let this client do this
  `register … -- command` exits as the command does; 128 + n if signal n ended it";

/// Asks and operates a registry; asks gateways and sidecars what happened.
#[derive(Debug, Parser)]
#[command(name = "selvedge", version, after_help = AFTER)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) at: At,
    /// Tables for people, or the API's own documents, one a line.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

/// Which registry, and who we are to it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Registry")]
pub(crate) struct At {
    /// A registry server, as "http://10.0.0.5:7900" or "https://…"; given several times, or with
    /// commas, whichever answers.
    #[arg(
        long = "server",
        visible_alias = "registry",
        global = true,
        env = "SELVEDGE_REGISTRY",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7900"
    )]
    pub(crate) servers: Vec<String>,
    /// File that holds the token; else SELVEDGE_TOKEN does.
    #[arg(long, global = true, env = "SELVEDGE_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file of the authorities of the servers' certificates; needed with https.
    #[arg(long, global = true, env = "SELVEDGE_CA", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ca: Option<PathBuf>,
    /// PEM file of our certificate chain, where the servers ask for one.
    #[arg(long, global = true, env = "SELVEDGE_CERT", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) cert: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, global = true, env = "SELVEDGE_KEY", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key: Option<PathBuf>,
    /// The name on the servers' certificates, if not the one that is dialled.
    #[arg(long, global = true, env = "SELVEDGE_SERVER_NAME", value_name = "NAME")]
    pub(crate) server_name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Whether every registry server serves and can be believed, and what the mesh holds.
    Status,
    /// The registry's servers.
    Members,
    /// A server hands its leases over and takes no new ones, before it is stopped.
    Drain {
        /// Its name, as `members` shows it.
        node: String,
        /// How long to wait until nothing is left there.
        #[arg(long, default_value = "60s", value_name = "DURATION")]
        wait: Millis,
        /// Even if no other server serves.
        #[arg(long)]
        force: bool,
    },
    /// Every service, and how many instances it has.
    Services,
    /// Every service: whose it is, which versions run where.
    Catalog {
        /// Those of this team.
        #[arg(long)]
        team: Option<String>,
    },
    /// The instances of a service, or of all.
    Instances {
        /// Its name; not given: all services.
        service: Option<ServiceName>,
        #[command(flatten)]
        filter: Filter,
    },
    /// All that is known of one instance.
    Instance {
        /// Its service.
        service: ServiceName,
        /// Its name.
        id: InstanceId,
    },
    /// The instances of services, now and after each change, until Ctrl-C.
    Watch {
        /// Their names.
        #[arg(required = true)]
        services: Vec<ServiceName>,
        #[command(flatten)]
        filter: Filter,
        /// Ends after so many lists.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Registers an instance and keeps it registered: while the command after `--` runs, or until
    /// Ctrl-C.
    Register(Register),
    /// Renews an instance's lease, once.
    Renew {
        /// Its service.
        service: ServiceName,
        /// Its name.
        id: InstanceId,
    },
    /// Takes an instance out.
    Deregister {
        /// Its service.
        service: ServiceName,
        /// Its name.
        id: InstanceId,
    },
    /// An operator's word about an instance, which counts for more than its own.
    #[command(subcommand)]
    Override(Override),
    /// Policies that the registry publishes to gateways, sidecars and services.
    #[command(subcommand)]
    Policy(Policy),
    /// What policies did of late at gateways and sidecars: circuits, ejections, what was refused.
    Events(Events),
    /// The keys that the servers' gossip is sealed with, on their admin ports.
    #[command(subcommand)]
    Keys(Keys),
    /// Prints a script that completes this command.
    Completions {
        /// For which shell.
        shell: Shell,
    },
}

/// Which instances.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which instances")]
pub(crate) struct Filter {
    /// Of this region; `any`, of a service: here, or where else it takes calls.
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// Of this zone.
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Of this version.
    #[arg(long = "version", value_name = "VERSION")]
    pub(crate) software: Option<String>,
    /// With this tag; given several times, with all of them.
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// Of this status.
    #[arg(long, value_parser = word::<InstanceStatus>, value_name = "STATUS")]
    pub(crate) status: Option<InstanceStatus>,
    /// `up`: that take calls; `up_or_all`: those, or all if there are none.
    #[arg(long, value_parser = ["any", "up", "up_or_all"])]
    pub(crate) health: Option<String>,
    /// With this metadata.
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
}

/// What is registered.
#[derive(Debug, Args)]
pub(crate) struct Register {
    /// Its service.
    pub(crate) service: ServiceName,
    /// Its name, unique within the service.
    pub(crate) id: InstanceId,
    /// Where callers reach it, as "10.0.0.7:8080".
    #[arg(long)]
    pub(crate) addr: SocketAddr,
    /// Its lease, "1s" to "1h": silent for longer, it is taken out.
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    pub(crate) ttl: Millis,
    /// Its share of calls, 1 to 1000.
    #[arg(long, default_value_t = 1)]
    pub(crate) weight: u32,
    /// Whether it takes calls: UP, STARTING, DOWN, OUT_OF_SERVICE, UNKNOWN.
    #[arg(long, default_value = "UP", value_parser = word::<InstanceStatus>)]
    pub(crate) status: InstanceStatus,
    /// What it speaks: http1, h2c.
    #[arg(long, default_value = "http1", value_parser = word::<AppProtocol>)]
    pub(crate) protocol: AppProtocol,
    /// Its region.
    #[arg(long, default_value = "")]
    pub(crate) region: String,
    /// Its zone.
    #[arg(long, default_value = "")]
    pub(crate) zone: String,
    /// The version of its software.
    #[arg(long = "version", value_name = "VERSION")]
    pub(crate) software: Option<String>,
    /// A word to choose it by; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// Metadata; may be given several times.
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
    /// The team that answers for it.
    #[arg(long)]
    pub(crate) team: Option<String>,
    /// Registers and exits; whoever started this renews.
    #[arg(long, conflicts_with = "command")]
    pub(crate) once: bool,
    /// How long the command may take until it listens on --addr; only then is it registered. "0s":
    /// it is registered at once, for an address that this host cannot reach.
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    pub(crate) wait: Millis,
    /// How long the command goes on after it was taken out, for calls that are under way.
    #[arg(long, default_value = "500ms", value_name = "DURATION")]
    pub(crate) linger: Millis,
    /// The command to run, and its arguments.
    #[arg(last = true, value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Override {
    /// Sets its status, whatever it says itself.
    Set {
        /// Its service.
        service: ServiceName,
        /// Its name.
        id: InstanceId,
        /// UP, STARTING, DOWN, OUT_OF_SERVICE or UNKNOWN.
        #[arg(value_parser = word::<InstanceStatus>)]
        status: InstanceStatus,
    },
    /// Its own word counts again.
    Clear {
        /// Its service.
        service: ServiceName,
        /// Its name.
        id: InstanceId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Every published policy.
    List,
    /// The policy of a service, as a file that `put` takes.
    Get {
        /// Its name; `default` is for all that have none of their own.
        service: ServiceName,
    },
    /// Publishes a policy; everybody who calls the service follows it within a second.
    Put {
        /// Its name; `default` is for all that have none of their own.
        service: ServiceName,
        /// TOML, or JSON if its name ends in .json; `-`: standard input.
        file: PathBuf,
        #[command(flatten)]
        only: Only,
    },
    /// Withdraws a policy.
    Delete {
        /// Its name.
        service: ServiceName,
        /// Only this version.
        #[arg(long, value_name = "N")]
        if_version: Option<u64>,
    },
    /// The last changes of a policy, who made them and when.
    History {
        /// Its name.
        service: ServiceName,
    },
    /// Publishes an earlier version again, as a new one.
    Rollback {
        /// Its name.
        service: ServiceName,
        /// The version, as `history` shows it.
        version: u64,
    },
    /// Says whether files are policies that can work. Asks no registry.
    Validate {
        /// TOML, or JSON if the name ends in .json.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Prints the JSON Schema of a policy, for an editor. Asks no registry.
    Schema,
}

/// A change of what its author has seen, and of nothing else.
#[derive(Debug, Args)]
pub(crate) struct Only {
    /// Only if this version is in force.
    #[arg(long, value_name = "N", conflicts_with = "new")]
    pub(crate) if_version: Option<u64>,
    /// Only if there is none yet.
    #[arg(long)]
    pub(crate) new: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// The keys' names, and what is verified, on each server.
    List(AdminAt),
    /// A key opens from now on.
    Install {
        #[command(flatten)]
        at: AdminAt,
        /// File with the key, as `selvedge-registry keygen` prints it; `-`: standard input.
        key_file: PathBuf,
    },
    /// A key seals from now on.
    Use {
        #[command(flatten)]
        at: AdminAt,
        /// Its name, as `list` shows it.
        id: String,
    },
    /// A key opens no longer.
    Remove {
        #[command(flatten)]
        at: AdminAt,
        /// Its name, as `list` shows it.
        id: String,
    },
    /// Replaces every key by a new one, without a datagram lost: installs it everywhere, then uses
    /// it everywhere, then removes the others everywhere. Each step waits for the one before.
    Rotate {
        #[command(flatten)]
        at: AdminAt,
        /// File with the new key; `-`: standard input.
        key_file: PathBuf,
    },
    /// Whether datagrams that are not sealed are refused, and whether what is sent is sealed.
    Verify {
        #[command(flatten)]
        at: AdminAt,
        /// true or false
        #[arg(long, action = clap::ArgAction::Set)]
        incoming: bool,
        /// true or false
        #[arg(long, action = clap::ArgAction::Set)]
        outgoing: bool,
    },
}

/// Where the servers' admin ports are.
#[derive(Debug, Args)]
pub(crate) struct AdminAt {
    /// The admin port of each registry server, as "http://127.0.0.1:7901"; all of them, or keys
    /// differ.
    #[arg(
        long = "admin",
        env = "SELVEDGE_ADMIN",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7901"
    )]
    pub(crate) servers: Vec<String>,
    /// File that holds the admin token; else SELVEDGE_ADMIN_TOKEN does.
    #[arg(long, env = "SELVEDGE_ADMIN_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) admin_token_file: Option<PathBuf>,
}

/// Whose events, and which.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Admin ports of gateways and sidecars, as "http://127.0.0.1:8081".
    #[arg(required = true, value_name = "URL", value_hint = ValueHint::Url)]
    pub(crate) ports: Vec<String>,
    /// Of this service.
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// Those after this one: an `id` of an event, or the `last` of a document, of one port.
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<String>,
    /// Goes on until Ctrl-C.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// File that holds the admin token; else SELVEDGE_ADMIN_TOKEN does. Reading needs one only where
    /// a port is not on loopback.
    #[arg(long, env = "SELVEDGE_ADMIN_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) admin_token_file: Option<PathBuf>,
}

/// A word of the API, as it is written there, in any case.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let read = |text: String| serde_json::from_value(serde_json::Value::String(text));
    read(text.to_owned())
        .or_else(|_| read(text.to_ascii_uppercase()))
        .map_err(|error: serde_json::Error| error.to_string())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}
