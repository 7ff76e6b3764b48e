//! Child processes: started with a log file, watched, killed by their own number.
//!
//! Each child leads a process group of its own, so that Ctrl-C at the terminal reaches only the
//! quickstart, which then ends the children in its own order. A task owns each child and is the
//! only one that signals it: a signal goes out only while the child is not yet reaped, so a reused
//! process number can never be hit.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::guard::Guard;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// `catalog-2.sidecar`: name in tables and of the log file.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(&'static str, OsString)>,
}

/// What became of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// `expected`: after a signal of ours.
    Ended {
        status: ExitStatus,
        expected: bool,
    },
}

/// A running (or ended) child.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) log: PathBuf,
    signals: mpsc::Sender<Signal>,
    state: watch::Receiver<State>,
}

impl Process {
    /// The state now.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Sends `signal` unless the process has ended.
    pub(crate) async fn signal(&self, signal: Signal) {
        // The owning task is gone exactly when the child is.
        self.signals.send(signal).await.ok();
    }

    /// Waits for the end. Cancel-safe.
    pub(crate) async fn ended(&self) {
        let mut state = self.state.clone();
        state
            .wait_for(|state| matches!(state, State::Ended { .. }))
            .await
            .ok();
    }

    /// The last `lines` lines of the log.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Starts children and ends them.
#[derive(Debug)]
pub(crate) struct Supervisor {
    logs: PathBuf,
    guard: Arc<Guard>,
    children: Vec<Arc<Process>>,
}

impl Supervisor {
    /// `logs`: existing directory for one log file a child.
    pub(crate) fn new(logs: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            logs: logs.to_owned(),
            guard: Arc::new(Guard::start()?),
            children: Vec::new(),
        })
    }

    /// Starts a child. Its output goes to `<logs>/<name>.log`.
    pub(crate) fn spawn(&mut self, spec: &Spec) -> anyhow::Result<Arc<Process>> {
        let log = self.logs.join(format!("{}.log", spec.name));
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let err = out.try_clone().context("share the log file")?;
        let child = Command::new(&spec.program)
            .args(&spec.args)
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {} ({})", spec.name, spec.program.display()))?;
        let pid = child.id().context("child has no process number")?;
        self.guard.add(pid).context("tell the guard")?;
        let (signals, orders) = mpsc::channel(4);
        let (report, state) = watch::channel(State::Running);
        tokio::spawn(own(child, pid, orders, report, Arc::clone(&self.guard)));
        let process = Arc::new(Process {
            name: spec.name.clone(),
            pid,
            log,
            signals,
            state,
        });
        self.children.push(Arc::clone(&process));
        Ok(process)
    }

    /// All children, in the order of their start.
    pub(crate) fn children(&self) -> &[Arc<Process>] {
        &self.children
    }

    /// Names of the children that ended although nobody asked them to.
    pub(crate) fn unexpected(&self) -> Vec<String> {
        self.children
            .iter()
            .filter_map(|child| match child.state() {
                State::Ended {
                    status,
                    expected: false,
                } => Some(format!("{} ended by itself ({status})", child.name)),
                _ => None,
            })
            .collect()
    }

    /// SIGTERM to all, SIGKILL to those that still run after `grace`. Returns the latter's names.
    pub(crate) async fn stop(&self, grace: Duration) -> Vec<String> {
        for child in &self.children {
            child.signal(Signal::TERM).await;
        }
        let all = async {
            for child in &self.children {
                child.ended().await;
            }
        };
        if tokio::time::timeout(grace, all).await.is_ok() {
            return Vec::new();
        }
        let mut late = Vec::new();
        for child in &self.children {
            if child.state() == State::Running {
                late.push(child.name.clone());
                child.signal(Signal::KILL).await;
            }
        }
        for child in &self.children {
            child.ended().await;
        }
        late
    }
}

/// Owns one child until it has ended.
async fn own(
    mut child: Child,
    pid: u32,
    mut orders: mpsc::Receiver<Signal>,
    report: watch::Sender<State>,
    guard: Arc<Guard>,
) {
    let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let mut expected = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            Some(signal) = orders.recv() => {
                expected = true;
                if let Some(group) = group {
                    // Ended between the two branches: nothing to signal.
                    kill_process_group(group, signal).ok();
                }
            }
        }
    };
    // A closed pipe means that the guard was killed by hand; the children have their own `Drop`.
    guard.forget(pid).ok();
    if let Ok(status) = status {
        report.send(State::Ended { status, expected }).ok();
    }
}

/// Polls `probe` until it says yes, the process ends or `limit` is over.
///
/// # Errors
/// Says what did not happen, and the end of the log.
pub(crate) async fn wait_until<F, Fut>(
    process: &Process,
    what: &str,
    limit: Duration,
    mut probe: F,
) -> anyhow::Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let poll = async {
        while !probe().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let why = tokio::select! {
        () = poll => return Ok(()),
        () = process.ended() => match process.state() {
            State::Ended { status, .. } => format!("it ended ({status})"),
            State::Running => "it is gone".to_owned(),
        },
        () = tokio::time::sleep(limit) => format!("not within {limit:?}"),
    };
    bail!(
        "wait until {} {what}: {why}\nthe end of {}:\n{}",
        process.name,
        process.log.display(),
        process.tail(15)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str) -> Spec {
        Spec {
            name: name.to_owned(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("WORD", "selvedge".into())],
        }
    }

    /// The guard is this very program, which under test is the test harness: `cat` stands in.
    fn supervisor(dir: &Path) -> Supervisor {
        Supervisor {
            logs: dir.to_owned(),
            guard: Arc::new(Guard::with_program(std::process::Command::new("cat")).unwrap()),
            children: Vec::new(),
        }
    }

    #[tokio::test]
    async fn output_goes_to_the_log_and_an_unasked_end_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut supervisor = supervisor(dir.path());
        let process = supervisor
            .spawn(&shell("one", "echo out $WORD; echo err >&2; exit 3"))
            .unwrap();
        process.ended().await;
        assert_eq!(process.tail(5), "out selvedge\nerr");
        let unexpected = supervisor.unexpected();
        assert!(
            unexpected[0].starts_with("one ended by itself"),
            "{unexpected:?}"
        );
    }

    #[tokio::test]
    async fn stop_terminates_then_kills() {
        let dir = tempfile::tempdir().unwrap();
        let mut supervisor = supervisor(dir.path());
        let polite = supervisor
            .spawn(&shell("polite", "echo up; exec sleep 600"))
            .unwrap();
        let deaf = supervisor
            .spawn(&shell(
                "deaf",
                "trap '' TERM; echo up; while :; do sleep 600; done",
            ))
            .unwrap();
        for process in [&polite, &deaf] {
            wait_until(process, "is up", Duration::from_secs(10), || async {
                process.tail(1) == "up"
            })
            .await
            .unwrap();
        }
        assert_eq!(supervisor.stop(Duration::from_millis(300)).await, ["deaf"]);
        assert!(supervisor.unexpected().is_empty());
    }

    #[tokio::test]
    async fn waiting_for_a_dead_process_shows_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut supervisor = supervisor(dir.path());
        let process = supervisor
            .spawn(&shell("broken", "echo error: port 80 is in use; exit 2"))
            .unwrap();
        let error = wait_until(&process, "is ready", Duration::from_secs(10), || async {
            false
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("wait until broken is ready: it ended"),
            "{error}"
        );
        assert!(error.contains("port 80 is in use"), "{error}");
    }
}
