//! `selvedge-registry bench`: what three servers cost and how quick they are, on this machine.
//!
//! It starts servers as processes of the very binary that it is part of, on loopback, fills them,
//! and measures from outside: time by one monotonic clock, as whoever writes and whoever watches
//! live in this process; processor time and memory as the kernel counts them. Every lease is
//! renewed all the time, as it would be. What this process itself takes is told too: on a small
//! machine it competes with the servers, and the figures contain that.
//!
//! Numbers and method: `registry/docs/numbers.md`.

mod fill;
mod http;
mod report;
mod servers;
mod visible;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use self::{
    fill::{Fleet, Home},
    report::{Report, ms},
    servers::{Server, processor_time},
};

/// What there is, and for how long it is measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Services.
    #[arg(long, default_value_t = 15_000)]
    services: usize,
    /// Instances of all of them.
    #[arg(long, default_value_t = 100_000)]
    instances: usize,
    /// Servers that hold them; one more joins.
    #[arg(long, default_value_t = 3)]
    servers: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Changes a second.
    #[arg(long, default_value_t = 500)]
    writes: u64,
    /// Renewals a second.
    #[arg(long, default_value_t = 10_000)]
    renewals: u64,
    /// Watchers of one service.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Exit with 1 if a number is worse than what is promised.
    #[arg(long)]
    strict: bool,
}

/// A lease in this benchmark.
const LEASE: Duration = Duration::from_secs(30);

/// Runs all of it; tells whether every promise was kept.
pub(crate) async fn run(args: &Args) -> anyhow::Result<bool> {
    ensure!(
        args.services > 0 && args.instances >= args.services && args.servers > 0,
        "bench: at least one server and one service, and no more services than instances"
    );
    ensure!(
        args.seconds > 0 && args.writes > 0 && args.renewals > 0 && args.watchers > 0,
        "bench: seconds, writes, renewals and watchers are at least 1"
    );
    let dir = servers::scratch()?;
    let mut report = Report::default();
    let measured = measure(&mut report, args, &dir).await;
    let _left_behind_is_no_failure = std::fs::remove_dir_all(&dir);
    report.print()?;
    measured?;
    Ok(report.kept() || !args.strict)
}

async fn measure(report: &mut Report, args: &Args, dir: &Path) -> anyhow::Result<()> {
    let mut all: Vec<Server> = Vec::new();
    for n in 0..args.servers {
        let seeds: Vec<_> = all.iter().map(|server| server.gossip).collect();
        all.push(Server::start(dir, n, &seeds).await?);
    }
    let homes: Vec<_> = all.iter().map(|server| server.http).collect();
    let fleet = Arc::new(Fleet::new(args.services, args.instances, homes));

    let began = Instant::now();
    let renewing = fill::renew_for_ever(&fleet, args.renewals);
    fleet.register().await.context("register")?;
    let took = began.elapsed();
    report.note(
        "filled by one client",
        &format!(
            "{:.0} registrations/s",
            args.instances as f64 / took.as_secs_f64()
        ),
    );
    for server in &all {
        server.holds(args.instances).await?;
    }
    sleep(Duration::from_secs(3)).await;
    memory(report, "memory of a server, filled", &all)?;

    bootstrap(report, args, dir, &all).await?;
    renewals(report, args, &all, &fleet, renewing).await?;
    let renewing = fill::renew_for_ever(&fleet, args.renewals);
    let before = times(&all)?;
    let began = Instant::now();
    visible::everywhere(report, args, &fleet).await?;
    let cores = (times(&all)? - before) / began.elapsed().as_secs_f64();
    report.note(
        "… processor meanwhile, all servers",
        &format!("{cores:.2} cores"),
    );
    visible::to_watchers(report, args, &fleet).await?;
    visible::of_crashes(report, &fleet).await?;
    memory(report, "memory of a server, at the end", &all)?;
    for server in &all {
        server
            .holds(args.instances)
            .await
            .context("somebody was evicted")?;
    }
    renewing.abort();
    Ok(())
}

fn memory(report: &mut Report, what: &str, all: &[Server]) -> anyhow::Result<()> {
    let mut most = 0;
    for server in all {
        most = most.max(server.memory("VmRSS")?);
    }
    report.most(what, most as f64 / 1e6, 250.0, "MB");
    Ok(())
}

/// A server that knows nobody until it knows everything, three times.
async fn bootstrap(
    report: &mut Report,
    args: &Args,
    dir: &Path,
    all: &[Server],
) -> anyhow::Result<()> {
    let seeds: Vec<_> = all.iter().map(|server| server.gossip).collect();
    let mut took = Vec::new();
    let mut memory = 0;
    for n in 0..3 {
        let began = Instant::now();
        let server = Server::start(dir, all.len() + n, &seeds).await?;
        server.holds(args.instances).await?;
        took.push(began.elapsed());
        memory = memory.max(server.memory("VmHWM")?);
        server.stop().await?;
    }
    let worst = took.iter().max().copied().unwrap_or_default();
    report.most(
        "bootstrap of one more, from exec to complete, worst of 3",
        worst.as_secs_f64(),
        3.0,
        "s",
    );
    report.note(
        "… its memory, highest",
        &format!("{:.0} MB", memory as f64 / 1e6),
    );
    Ok(())
}

fn times(all: &[Server]) -> anyhow::Result<f64> {
    all.iter().map(Server::processor_time).sum()
}

async fn renewals(
    report: &mut Report,
    args: &Args,
    all: &[Server],
    fleet: &Arc<Fleet>,
    in_background: tokio::task::JoinHandle<()>,
) -> anyhow::Result<()> {
    in_background.abort();
    for (what, together, home, promised) in [
        (
            "renewals, a process' instances in one request of 100",
            true,
            Home::Own,
            true,
        ),
        ("renewals, each a request", false, Home::Own, true),
        (
            "renewals, each a request, by a balancer",
            false,
            Home::Any,
            false,
        ),
    ] {
        let (before, mine) = (times(all)?, processor_time("self")?);
        let began = Instant::now();
        let length = Duration::from_secs(args.seconds);
        let done = fill::renew_at(fleet, args.renewals, together, home, length).await?;
        let took = began.elapsed().as_secs_f64();
        let cores = (times(all)? - before) / took;
        let mine = (processor_time("self")? - mine) / took;
        let what = format!("{what}: {:.0}/s, all servers", done as f64 / took);
        if promised {
            report.most(&what, cores, 0.5, "cores");
        } else {
            report.note(&what, &format!("{cores:.2} cores"));
        }
        report.note("… this client itself", &format!("{mine:.2} cores"));
    }
    Ok(())
}

/// Half of `all`, and all but one in a hundred; milliseconds.
fn quantiles(all: &mut [Duration]) -> (f64, f64) {
    all.sort_unstable();
    let at = |share: f64| {
        let n = (all.len() as f64 * share).ceil() as usize;
        all.get(n.max(1) - 1).copied().unwrap_or_default()
    };
    (ms(at(0.5)), ms(at(0.99)))
}
