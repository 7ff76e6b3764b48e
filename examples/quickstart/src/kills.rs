//! Processes that are killed while the load runs.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::args::Options;
use crate::balancers::{Noticed, callers, until_noticed};
use crate::mesh::{Mesh, Target};

/// Killed unless the command line says otherwise: a plain service with its sidecar, a service with
/// the layers inside, and a registry server.
const DEFAULT: [&str; 3] = ["catalog-2", "cart-2", "registry-3"];

/// One name, and what it stands for.
#[derive(Debug)]
pub(crate) struct Kill {
    name: String,
    target: Target,
}

/// A kill, and who noticed.
#[derive(Debug)]
pub(crate) struct Killed {
    pub(crate) name: String,
    /// After the start of the load.
    pub(crate) at: Duration,
    /// `None` for what no balancer chooses.
    pub(crate) noticed: Option<Noticed>,
}

/// What is to be killed.
///
/// # Errors
/// If a name stands for nothing.
pub(crate) fn plan(options: &Options, mesh: &Mesh) -> anyhow::Result<Vec<Kill>> {
    if options.no_kill {
        return Ok(Vec::new());
    }
    let mut names = options.kill.clone();
    if names.is_empty() {
        // With one instance a service cannot lose any.
        let alone = options.instances == Some(1);
        let default = DEFAULT
            .iter()
            .filter(|name| !alone || name.starts_with("registry"));
        names = default.map(|name| (*name).to_owned()).collect();
    }
    let kill = |name: String| {
        let target = mesh.target(&name)?;
        Ok(Kill { name, target })
    };
    names.into_iter().map(kill).collect()
}

/// Kills at even distances between a fifth and three fifths of `duration`.
pub(crate) async fn carry_out(
    kills: Vec<Kill>,
    duration: Duration,
    mesh: Arc<Mesh>,
) -> Vec<Killed> {
    let start = Instant::now();
    let first = duration / 5;
    let apart = first * 2 / u32::try_from(kills.len().max(1)).unwrap_or(1);
    let mut watching = Vec::new();
    for (n, Kill { name, target }) in kills.into_iter().enumerate() {
        let at = first + apart * u32::try_from(n).unwrap_or(0);
        tokio::time::sleep_until(start + at).await;
        let callers = match target.endpoint {
            Some(endpoint) => callers(&mesh.balancers, endpoint).await,
            None => Vec::new(),
        };
        let since = Instant::now();
        for process in &target.processes {
            process.signal(Signal::KILL).await;
        }
        watching.push(tokio::spawn(async move {
            let noticed = match target.endpoint {
                Some(endpoint) => Some(until_noticed(callers, endpoint, since).await),
                None => None,
            };
            Killed { name, at, noticed }
        }));
    }
    let mut killed = Vec::new();
    for watch in watching {
        if let Ok(one) = watch.await {
            killed.push(one);
        }
    }
    killed
}
