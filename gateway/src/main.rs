//! `selvedge-gateway`: the mesh's edge.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use selvedge_gateway::config::{self, Config};
use selvedge_registry::node::config::{ConfigError, EXIT_CODE};

/// A request is some thirty small allocations, freed on the thread that made them: what mimalloc is
/// best at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes requests at the edge and brings them to services that answer.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  selvedge-gateway --config gateway.toml\n  \
                  selvedge-gateway --route '/=http://127.0.0.1:9000'"
)]
struct Args {
    /// The configuration.
    #[arg(long, env = "SELVEDGE_CONFIG", required_unless_present = "routes")]
    config: Option<PathBuf>,
    /// A route instead of a file: 'HOST/PATH=http://ADDR:PORT'. May be repeated.
    #[arg(long = "route", value_name = "ROUTE", conflicts_with = "config")]
    routes: Vec<String>,
    /// Where to listen without a file.
    #[arg(long, default_value = "127.0.0.1:8080", conflicts_with = "config")]
    bind: SocketAddr,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Write the bound addresses here as JSON, for those who asked for port 0.
    #[arg(long)]
    ports_file: Option<PathBuf>,
}

// Not async: Pingora makes its runtimes itself.
fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "there may be no log yet")]
            {
                eprintln!("selvedge-gateway: {error:#}");
            }
            ExitCode::from(if error.is::<ConfigError>() {
                EXIT_CODE
            } else {
                1
            })
        }
    }
}

fn load(args: &Args) -> anyhow::Result<Config> {
    if let Some(path) = &args.config {
        return Ok(config::load(path)?);
    }
    let text = config::quick(args.bind, &args.routes).map_err(anyhow::Error::msg)?;
    Ok(config::parse("the command line".as_ref(), text)?)
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = load(args)?;
    if args.check {
        return Ok(());
    }
    selvedge_gateway::run(config, args.config.clone(), args.ports_file.as_deref())
}
