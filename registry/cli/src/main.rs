//! `selvedge`: what the mesh knows, asked from a terminal or a script.
//!
//! Tables for people, `--output json` for scripts, and an exit code for both: 0 is an answer, 1 is
//! none (or a mesh that is not well, for `status`), 2 is a command that cannot be understood.

mod ask;
mod show;

use std::{io::Write, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use selvedge_registry::{
    ServiceName,
    client::{Discovery, RegistryClient},
};

use crate::{
    ask::Registry,
    show::{Answer, Table},
};

/// Asks the registry who is where.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  selvedge status\n  selvedge --registry http://10.0.0.5:7900 instances orders\n  selvedge --output json services | jq '.services[].name'"
)]
struct Args {
    /// A registry server, as "http://10.0.0.5:7900"; several, separated by commas, are tried in
    /// turn.
    #[arg(
        long,
        global = true,
        env = "SELVEDGE_REGISTRY",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7900",
        value_parser = ask::server
    )]
    registry: Vec<String>,
    /// Tables for people, or the API's own documents, one a line.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Whether every registry server that is known serves, and what the mesh holds.
    Status,
    /// The registry's servers.
    Members,
    /// Every service, and how many instances it has.
    Services,
    /// The instances of a service.
    Instances {
        /// Its name.
        service: ServiceName,
    },
    /// The instances of services that take calls, now and after each change, until Ctrl-C.
    Watch {
        /// Their names.
        #[arg(required = true)]
        services: Vec<ServiceName>,
        /// Ends after so many lists.
        #[arg(long)]
        count: Option<u64>,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime");
    match runtime.and_then(|runtime| runtime.block_on(run(&args))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever read us has enough: `selvedge watch … | head -1`.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a command line tool's errors")]
            {
                eprintln!("selvedge: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Whether all is well.
async fn run(args: &Args) -> anyhow::Result<bool> {
    let client = RegistryClient::builder(args.registry.iter().cloned()).spawn();
    let registry = Registry::new(&client);
    match &args.command {
        Command::Status => {
            let status = registry.status().await?;
            print(args.output, &status)?;
            return Ok(status.is_well());
        }
        Command::Members => print(args.output, &registry.members().await?)?,
        Command::Services => print(args.output, &registry.services().await?)?,
        Command::Instances { service } => {
            print(args.output, &registry.instances(service).await?)?;
        }
        Command::Watch { services, count } => {
            tokio::select! {
                done = watch(args.output, &client, services, *count) => done?,
                stopped = tokio::signal::ctrl_c() => stopped.context("wait for Ctrl-C")?,
            }
        }
    }
    Ok(true)
}

/// Prints each list of endpoints as it comes.
async fn watch(
    output: Output,
    client: &RegistryClient,
    services: &[ServiceName],
    count: Option<u64>,
) -> anyhow::Result<()> {
    let (tell, mut lists) = tokio::sync::mpsc::channel(1);
    for service in services {
        let (mut watch, tell) = (client.watch(service), tell.clone());
        tokio::spawn(async move {
            watch.synced().await;
            while tell.send(show::Seen(watch.current())).await.is_ok() {
                watch.changed().await;
            }
        });
    }
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(seen) = lists.recv().await else {
            break;
        };
        print(output, &seen)?;
        left -= 1;
    }
    Ok(())
}

fn print<A: Answer>(output: Output, answer: &A) -> anyhow::Result<()> {
    let text = match output {
        Output::Table => Table::of(answer).to_string(),
        Output::Json => serde_json::to_string(&answer.document())? + "\n",
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
