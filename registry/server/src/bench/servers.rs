//! Servers as processes, and what the kernel says of them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use selvedge_registry::api::ServerStatus;
use tokio::time::{Instant, sleep};

use super::http::Http;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is asked.
const LOOK: Duration = Duration::from_millis(5);

/// A directory of one's own.
pub(super) fn scratch() -> anyhow::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("selvedge-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// A server that ends with this value.
pub(super) struct Server {
    child: Child,
    pub(super) http: SocketAddr,
    pub(super) gossip: SocketAddr,
}

impl Server {
    /// Starts another process of this program, with the defaults but for the limit on what one
    /// client may ask for: here one client is everybody.
    pub(super) async fn start(dir: &Path, n: usize, seeds: &[SocketAddr]) -> anyhow::Result<Self> {
        let (config, ports) = (dir.join(format!("{n}.toml")), dir.join(format!("{n}.json")));
        let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        let state = dir.join(n.to_string());
        std::fs::create_dir_all(&state)?;
        let text = format!(
            "node = \"n{n}\"\nhttp = \"127.0.0.1:0\"\nstate_dir = {:?}\n\
             [gossip]\nbind = \"127.0.0.1:0\"\nseeds = {seeds:?}\n\
             [limits]\nrequests = \"1000000/s\"\ninstances_per_service = 1000000\n\
             [admin]\nbind = \"127.0.0.1:0\"\n\
             [telemetry]\nlog = \"warn\"\n",
            state.display().to_string()
        );
        std::fs::write(&config, text)?;
        let program = std::env::current_exe().context("find this program")?;
        let mut child = Command::new(program)
            .arg("--config")
            .arg(&config)
            .arg("--ports-file")
            .arg(&ports)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("start a server")?;
        let began = Instant::now();
        while !ports.exists() {
            if let Some(status) = child.try_wait()? {
                bail!("server {n} ended: {status}");
            }
            if began.elapsed() > PATIENCE {
                let _may_be_gone = child.kill();
                bail!("server {n} did not come up");
            }
            sleep(LOOK).await;
        }
        let ports: std::collections::BTreeMap<String, SocketAddr> =
            serde_json::from_slice(&std::fs::read(&ports)?)?;
        let addr = |what: &str| ports.get(what).copied().context("a port is missing");
        Ok(Self {
            http: addr("http")?,
            gossip: addr("gossip")?,
            child,
        })
    }

    /// Waits until it serves, and has `instances`.
    pub(super) async fn holds(&self, instances: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut http = Http::connect(self.http).await?;
        loop {
            let (_, body) = http.send("GET", "/v1/status", Vec::new()).await?;
            let status: ServerStatus = serde_json::from_slice(&body)?;
            if status.serving && status.instances == instances {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!(
                    "{} has {} of {instances} instances",
                    status.node,
                    status.instances
                );
            }
            sleep(LOOK).await;
        }
    }

    /// Lets it leave in order.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        asked.context("run kill")?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                bail!("a server did not leave");
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Bytes of memory, by the kernel's name for them.
    pub(super) fn memory(&self, what: &str) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(what));
        let digits = line.and_then(|line| line.split_whitespace().nth(1));
        let kib: u64 = digits.context("a number of kB")?.parse()?;
        Ok(kib * 1024)
    }

    /// Seconds of a processor that it has used.
    pub(super) fn processor_time(&self) -> anyhow::Result<f64> {
        processor_time(&self.child.id().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _may_be_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Seconds of a processor that a process has used: user and system.
pub(super) fn processor_time(pid: &str) -> anyhow::Result<f64> {
    /// Of a second: what Linux counts in for those who ask, whatever its own timer does.
    const TICKS: f64 = 100.0;
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // After the name, which may hold anything: the third field is the first.
    let (_, fields) = text.rsplit_once(") ").context("a process' line")?;
    let fields = fields.split(' ').skip(11).take(2);
    let mut ticks = 0;
    for field in fields {
        ticks += field.parse::<u32>()?;
    }
    Ok(f64::from(ticks) / TICKS)
}
