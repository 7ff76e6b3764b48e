//! Nothing outlives the quickstart, however it ends.
//!
//! Ctrl-C, an error and a panic all run destructors, and those kill the children. SIGKILL does
//! not, and neither does an out-of-memory kill. So one more process waits with a pipe from the
//! parent as its standard input: the kernel closes that pipe whatever the parent died of, and the
//! guard then kills every process group that it was told of and not told to forget.
//! (`PR_SET_PDEATHSIG` would need `unsafe` code after fork, and exists on Linux only.)

use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};

/// The parent's end of the pipe.
#[derive(Debug)]
pub(crate) struct Guard {
    // Never killed: it ends by itself when the pipe closes, that is when this value drops.
    _process: std::process::Child,
    pipe: parking_lot::Mutex<std::process::ChildStdin>,
}

impl Guard {
    /// Starts the guard: this same program with the hidden argument `guard`.
    pub(crate) fn start() -> anyhow::Result<Self> {
        // On Linux by the link that works even when cargo has put a newer build in its place.
        let running = std::path::Path::new("/proc/self/exe");
        let program = if running.exists() {
            running.to_owned()
        } else {
            std::env::current_exe().context("find this program")?
        };
        let mut command = Command::new(&program);
        command.arg("guard");
        Self::with_program(command)
    }

    /// Starts `command` in the place of the guard.
    pub(crate) fn with_program(mut command: Command) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C goes to the foreground group; the guard must not be in it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start the guard ({command:?})"))?;
        let pipe = process
            .stdin
            .take()
            .context("guard has no standard input")?;
        Ok(Self {
            _process: process,
            pipe: parking_lot::Mutex::new(pipe),
        })
    }

    /// Process group `pid` lives from now on.
    pub(crate) fn add(&self, pid: u32) -> std::io::Result<()> {
        self.tell('+', pid)
    }

    /// Process group `pid` has ended and its number may belong to somebody else.
    pub(crate) fn forget(&self, pid: u32) -> std::io::Result<()> {
        self.tell('-', pid)
    }

    fn tell(&self, what: char, pid: u32) -> std::io::Result<()> {
        use std::io::Write as _;
        writeln!(self.pipe.lock(), "{what}{pid}")
    }
}

/// What the guard process does.
pub(crate) fn run() {
    let mut groups = BTreeSet::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        apply(&mut groups, &line);
    }
    for pid in groups {
        if let Some(pid) = Pid::from_raw(pid) {
            // Gone already is what we want.
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

fn apply(groups: &mut BTreeSet<i32>, line: &str) {
    // 0 and 1 as group numbers mean "my own group" and init: never to be killed.
    match line
        .split_at_checked(1)
        .map(|(what, pid)| (what, pid.parse()))
    {
        Some(("+", Ok(pid))) if pid > 1 => {
            groups.insert(pid);
        }
        Some(("-", Ok(pid))) => {
            groups.remove(&pid);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_only_what_still_lives() {
        let mut groups = BTreeSet::new();
        for line in ["+12", "+13", "-12", "+0", "+1", "+-5", "nonsense", "", "+é"] {
            apply(&mut groups, line);
        }
        assert_eq!(groups.into_iter().collect::<Vec<_>>(), [13]);
    }
}
