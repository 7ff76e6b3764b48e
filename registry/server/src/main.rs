//! `selvedge-registry`: one server of the registry.

mod bench;

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use axum::{Json, routing::get};
use clap::{Parser, Subcommand};
use selvedge_registry::node::{
    admin::Admin,
    config::{self, ConfigError},
    descriptors, listen,
    shutdown::Signals,
    telemetry,
};
use selvedge_registry_server::{
    RegistryConfig, RegistryServer, StartError,
    config::{DEV_PORT, DEV_SERVERS},
    gossip,
    limits::LimitsConfig,
};

/// Keeps the list of who is where, together with its peers, without any other store.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  selvedge-registry --dev 1\n  selvedge-registry --config registry.toml",
    args_conflicts_with_subcommands = true
)]
struct Args {
    /// The configuration; without one every default is used.
    #[arg(long, env = "SELVEDGE_CONFIG")]
    config: Option<PathBuf>,
    /// Server N of a cluster on this machine's loopback, to try things with: needs no
    /// configuration. The first three find each other.
    #[arg(long, value_name = "N", conflicts_with = "config",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(DEV_SERVERS)))]
    dev: Option<u16>,
    /// The API's port of the first server of that cluster; each takes ten from there.
    #[arg(long, value_name = "PORT", requires = "dev", default_value_t = DEV_PORT)]
    dev_port: u16,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Write the bound addresses here as JSON, for those who asked for port 0.
    #[arg(long)]
    ports_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a new key for `gossip.keys`.
    Keygen,
    /// Measure what three servers cost and how quick they are, on this machine (Linux).
    Bench(bench::Args),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "there may be no log yet")]
            {
                eprintln!("selvedge-registry: {error:#}");
            }
            let usage = error.is::<ConfigError>() || error.is::<StartError>();
            ExitCode::from(if usage { config::EXIT_CODE } else { 1 })
        }
    }
}

fn load(args: &Args) -> Result<RegistryConfig, ConfigError> {
    let Some(path) = &args.config else {
        let dev = args.dev.map(|n| RegistryConfig::dev(n, args.dev_port));
        return Ok(dev.unwrap_or_default());
    };
    let loaded = config::load::<RegistryConfig>(path)?;
    match loaded.value.validate() {
        Ok(()) => Ok(loaded.value),
        Err(error) => Err(loaded.error(&error.path, error.to_string())),
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Some(Command::Keygen) => {
            let key = gossip::keyring::generate()?;
            return writeln!(std::io::stdout(), "{key}").context("print the key");
        }
        Some(Command::Bench(args)) => {
            let kept = runtime()?.block_on(bench::run(args))?;
            anyhow::ensure!(kept, "bench: a number is worse than what is promised");
            return Ok(());
        }
        None => {}
    }
    let config = load(args)?;
    if args.check {
        return Ok(());
    }
    runtime()?.block_on(serve(config, args.ports_file.clone()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")
}

/// Takes no more connections than there are descriptors for them, and for all else.
fn fit_to_descriptors(limits: &mut LimitsConfig) {
    let limit = match descriptors::raise() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "raise the limit of open files failed");
            return;
        }
    };
    let (wanted, room) = (
        limits.connections,
        descriptors::room(limits.connections, limit),
    );
    if room < wanted {
        let why = "fewer connections than limits.connections: the system lets this process open so \
                   many files (ulimit -n, LimitNOFILE)";
        if wanted == LimitsConfig::default().connections {
            tracing::info!(open_files = limit, connections = room, wanted, why);
        } else {
            tracing::warn!(open_files = limit, connections = room, wanted, why);
        }
    }
    limits.connections = room;
}

async fn serve(mut config: RegistryConfig, ports_file: Option<PathBuf>) -> anyhow::Result<()> {
    let _flush = telemetry::init("selvedge-registry", &config.telemetry)?;
    fit_to_descriptors(&mut config.limits);
    let mut signals = Signals::new().context("listen to signals")?;
    let admin = Admin::default();
    let admin_listener = listen::bind("admin port", config.admin.bind).map_err(StartError::from)?;
    let admin_addr = admin_listener.local_addr()?;
    let server = RegistryServer::start(&config, &admin).await?;
    let shared = Arc::clone(server.shared());
    if let Some(path) = ports_file {
        let mut ports = vec![
            ("http", shared.http),
            ("gossip", server.gossip_addr()),
            ("admin", admin_addr),
        ];
        ports.extend(server.dns_addr().map(|dns| ("dns", dns)));
        listen::write_ports(&path, &ports).with_context(|| format!("write {}", path.display()))?;
    }
    tracing::info!(address = %admin_addr, "admin port");
    let members = Arc::clone(&shared);
    let keys = gossip::admin::routes(Arc::clone(server.gossip().keys()));
    let extra = keys.route(
        "/clusters",
        get(move || async move { Json(members.member_list()) }),
    );
    let dump = serde_json::to_value(&config)?;
    let router = admin.router(&config.admin, move || dump.clone(), extra);
    let admin_port = tokio::spawn(Admin::serve(admin_listener, router, std::future::pending()));
    let signal = signals.next().await;
    tracing::info!(signal, "registry server leaves");
    let leaving = admin.readiness.wait_for("shutdown", "leaving");
    tokio::select! {
        () = server.shutdown() => {}
        signal = signals.next() => tracing::warn!(signal, "second signal, leaving at once"),
    }
    drop(leaving);
    admin_port.abort();
    Ok(())
}
