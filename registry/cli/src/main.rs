//! `selvedge`: what the mesh knows, and what its operators do to it, from a terminal or a script.
//!
//! Tables for people, `--output json` for scripts, and an exit code for both (`--help` lists them).

mod agreement;
mod args;
mod ask;
mod cluster;
mod events;
mod failure;
mod instances;
mod policies;
mod print;
mod register;
mod show;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::{
    args::{Cli, Command},
    ask::Registry,
    failure::Failure,
    print::Printer,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::System {
            what: "start the runtime".to_owned(),
            source,
        });
    match runtime.and_then(|runtime| runtime.block_on(run(&cli))) {
        Ok(code) => ExitCode::from(code),
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            Printer::note(&failure.message());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What the process exits with.
async fn run(cli: &Cli) -> Result<u8, Failure> {
    let printer = Printer(cli.output);
    // Some orders ask no registry, and must not mind how one would be reached.
    let registry = || Registry::new(&cli.at);
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "selvedge", &mut script);
            Printer::text(&String::from_utf8_lossy(&script))
        }
        Command::Keys(order) => cluster::keys(printer, order).await,
        Command::Events(order) => events::run(printer, order).await,
        Command::Policy(order) => policies::run(&cli.at, printer, order).await,
        Command::Status => {
            let well = cluster::status(&registry()?, printer).await?;
            return Ok(u8::from(!well));
        }
        Command::Register(order) => return register::run(&registry()?, printer, order).await,
        Command::Members => printer.show(&cluster::members(&registry()?).await?),
        Command::Drain { node, wait, force } => {
            cluster::drain(&registry()?, printer, node, *wait, *force).await
        }
        Command::Services => instances::services(&registry()?, printer).await,
        Command::Catalog { team } => instances::catalog(&registry()?, printer, team.clone()).await,
        Command::Instances { service, filter } => {
            instances::list(&registry()?, printer, service.as_ref(), filter).await
        }
        Command::Instance { service, id } => {
            instances::one(&registry()?, printer, service, id).await
        }
        Command::Watch {
            services,
            filter,
            count,
        } => instances::watch(&registry()?, printer, services, filter, *count).await,
        Command::Renew { service, id } => {
            instances::renew(&registry()?, printer, service, id).await
        }
        Command::Deregister { service, id } => {
            instances::deregister(&registry()?, printer, service, id).await
        }
        Command::Override(order) => instances::overrule(&registry()?, printer, order).await,
    }?;
    Ok(0)
}
