//! A whole mesh on loopback in one command.
//!
//! Starts three registry servers, two gateways and a shop of four services as processes of their
//! own, sends customers through, kills some of the processes with SIGKILL on the way, and says
//! whether anybody noticed.

mod args;
mod balancers;
mod files;
mod guard;
mod http_client;
mod kills;
mod load;
mod mesh;
mod ports;
mod process;
mod programs;
mod report;
mod trace;
mod ui;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use selvedge_registry::node::shutdown::Signals;

use crate::args::{Cli, Inner, Options};
use crate::load::{Plan, Record};
use crate::mesh::Mesh;
use crate::programs::Programs;
use crate::report::Report;
use crate::ui::Ui;

/// How long children may take to leave before they are killed.
const GRACE: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.inner, Some(Inner::Guard)) {
        guard::run();
        return ExitCode::SUCCESS;
    }
    let ui = Ui::detect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(run(&cli.options, &ui)));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            ui.line(ui.verdict(false, &format!("quickstart: {error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
async fn run(options: &Options, ui: &Ui) -> anyhow::Result<bool> {
    let mut signals = Signals::new().context("listen to signals")?;
    let programs = tokio::select! {
        programs = Programs::find(ui, !options.no_build) => programs?,
        _ = signals.next() => return Ok(false),
    };
    let temporary = tempfile::tempdir().context("make a directory for logs")?;
    let dir = match &options.keep_logs {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            std::path::absolute(dir)?
        }
        None => temporary.path().to_owned(),
    };
    shop(options, &programs, ui, &dir, &mut signals).await
}

async fn shop(
    options: &Options,
    programs: &Programs,
    ui: &Ui,
    dir: &Path,
    signals: &mut Signals,
) -> anyhow::Result<bool> {
    let mesh = tokio::select! {
        mesh = Mesh::start(options, programs, ui, dir) => Arc::new(mesh?),
        // What was started is dropped with the future, and killed.
        _ = signals.next() => return Ok(false),
    };
    let result = tokio::select! {
        result = load(options, &mesh, ui) => result,
        signal = signals.next() => Err(anyhow::anyhow!("{signal} came before the load was done")),
    };
    if let Ok(report) = &result {
        report.print(ui);
        if !options.once {
            report::what_to_try(ui, &mesh, programs);
            let signal = signals.next().await;
            ui.line(format!("{signal}: the mesh ends"));
        }
    }
    let late = tokio::select! {
        late = mesh.supervisor.stop(GRACE) => late,
        // Whoever insists does not want to wait: the rest is killed.
        _ = signals.next() => return Ok(false),
    };
    if !late.is_empty() {
        let names = late.join(", ");
        ui.line(ui.verdict(false, &format!("killed, since they did not leave: {names}")));
    }
    Ok(result?.is_good() && late.is_empty())
}

/// Sends the load, kills on the way, and gathers what came of it.
async fn load(options: &Options, mesh: &Arc<Mesh>, ui: &Ui) -> anyhow::Result<Report> {
    let kills = kills::plan(options, mesh)?;
    let plan = Plan {
        requests: options.requests,
        rate: options.rate,
        gateways: mesh.gateways.clone(),
    };
    let text = format!(
        "{} requests at {}/s through both gateways",
        plan.requests, plan.rate
    );
    ui.step("load", &text);
    let record = Arc::new(Record::new());
    let mut progress = ui.progress(plan.requests);
    let requests = plan.requests;
    let duration = plan.duration();
    let killing = tokio::spawn(kills::carry_out(kills, duration, Arc::clone(mesh)));
    let sending = load::run(plan, Arc::clone(&record));
    tokio::pin!(sending);
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    let mut told = 0;
    loop {
        tokio::select! {
            () = &mut sending => break,
            _ = looks.tick() => {
                let summary = record.summary();
                progress.update(summary.done, summary.failed, summary.p99);
                for failure in summary.failures.iter().skip(told) {
                    ui.line_over(&progress, &ui.verdict(false, &failure.to_string()));
                }
                told = summary.failures.len();
            }
        }
    }
    let summary = record.summary();
    progress.update(summary.done, summary.failed, summary.p99);
    progress.finish();
    let killed = killing.await.context("kill processes")?;
    Report::gather(requests, duration, summary, killed, mesh).await
}
