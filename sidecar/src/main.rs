//! `selvedge-sidecar`: the mesh beside one app.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use selvedge_registry::node::config::{ConfigError, EXIT_CODE};

/// A request is some thirty small allocations, freed on the thread that made them: what mimalloc is
/// best at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Brings the mesh to an app: registers it, watches its health, carries calls to it and from it.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  selvedge-sidecar --config sidecar.toml"
)]
struct Args {
    /// The configuration.
    #[arg(long, env = "SELVEDGE_CONFIG")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Write the bound addresses here as JSON, for those who asked for port 0.
    #[arg(long)]
    ports_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "there may be no log yet")]
            {
                eprintln!("selvedge-sidecar: {error:#}");
            }
            ExitCode::from(if error.is::<ConfigError>() {
                EXIT_CODE
            } else {
                1
            })
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = selvedge_sidecar::config::load(&args.config)?;
    if args.check {
        return Ok(());
    }
    // What carries requests has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(selvedge_sidecar::run(config, args.ports_file.as_deref()))
}
