//! Which life of a server this is: a number that grows with every start, whatever the clock says.
//!
//! Gossip tells lives of one name apart by it. Were it taken from the clock alone, a clock set back
//! would make a restarted server an *earlier* life of itself, which nobody listens to. So the last
//! one is kept on disk, where there is a directory to keep it in.
//!
//! Each life stays in every server's digest for some minutes after it ends, and a digest that is
//! too large stops gossip. A server that crashes in a loop therefore joins more and more slowly:
//! the start times of the last lives are kept beside the number.
//!
//! # Guarantees
//! With a directory, the number is higher than any that was handed out before, after a crash at any
//! moment too: it is on disk before it is used. At most about 40 lives of a server are remembered by
//! its peers, however often it restarts.
//!
//! # What it does not do
//! Without a directory the number is the clock's, and nothing slows a crash loop down.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::roster::GRACE;

/// Starts within [`QUICK`] before a start has to wait. A guess: a bad deployment tried a few times.
const FREE_STARTS: usize = 8;
/// How long a past life burdens the digest: chitchat stops to gossip the dead after half the grace.
const QUICK: Duration = Duration::from_secs(GRACE.as_secs() / 2);
/// The longest wait. Source: systemd's default `TimeoutStartSec` is 90 s, a probe's patience less.
const MAX_WAIT: Duration = Duration::from_secs(20);
const FILE: &str = "generation.json";

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {why}")]
pub struct StateError {
    what: &'static str,
    path: PathBuf,
    why: String,
}

/// A life that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Its number.
    pub generation: u64,
    /// How long it must wait before it joins, because it was started too often.
    pub wait: Duration,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    generation: u64,
    /// Nanoseconds since 1970, oldest first, of the last [`QUICK`].
    starts: Vec<u64>,
}

/// Begins a life at `now_ns` (nanoseconds since 1970), remembered in `state_dir` if there is one.
///
/// # Errors
/// [`StateError`] if the directory cannot be written, or holds a damaged file: a number that might
/// go back is not used.
pub fn begin(state_dir: Option<&Path>, now_ns: u64) -> Result<Start, StateError> {
    let Some(dir) = state_dir else {
        return Ok(Start {
            generation: now_ns,
            wait: Duration::ZERO,
        });
    };
    let path = dir.join(FILE);
    let error = |what| {
        let path = path.clone();
        move |why: &dyn std::fmt::Display| StateError {
            what,
            path,
            why: why.to_string(),
        }
    };
    fs::create_dir_all(dir).map_err(|e| error("create the directory of")(&e))?;
    let mut saved = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| error("read")(&e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Saved::default(),
        Err(e) => return Err(error("read")(&e)),
    };
    let recent = |at: &u64| {
        now_ns
            .checked_sub(*at)
            .is_some_and(|ago| ago < nanos(QUICK))
    };
    // A clock that was set back leaves starts in the future: they tell nothing.
    saved.starts.retain(recent);
    let wait = wait(saved.starts.len());
    saved.generation = now_ns.max(saved.generation.saturating_add(1));
    saved.starts.push(now_ns);
    // More would not make the wait longer.
    let surplus = saved.starts.len().saturating_sub(4 * FREE_STARTS);
    saved.starts.drain(..surplus);
    write_durably(&path, &saved).map_err(|e| error("write")(&e))?;
    Ok(Start {
        generation: saved.generation,
        wait,
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn wait(starts: usize) -> Duration {
    match starts.checked_sub(FREE_STARTS) {
        None => Duration::ZERO,
        Some(over) => MAX_WAIT.min(Duration::from_secs(1 << over.min(16))),
    }
}

/// Writes `value` as JSON so that a crash leaves the old file or the new one: temporary file,
/// fsync, rename, fsync of the directory.
pub(super) fn write_durably(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1_790_000_000 * SECOND;

    #[test]
    fn it_grows_whatever_the_clock_says() {
        let dir = tempfile::tempdir().expect("dir");
        let at = dir.path().join("not-there-yet");
        let mut last = 0;
        for (what, now) in [
            ("first", NOW),
            ("an hour later", NOW + 3_600 * SECOND),
            ("the clock goes back an hour", NOW),
            ("and stands still", NOW),
            ("before 1970", 0),
            ("forward again", NOW + 7_200 * SECOND),
        ] {
            let start = begin(Some(&at), now).expect(what);
            assert!(start.generation > last, "{what}");
            last = start.generation;
        }
        assert_eq!(last, NOW + 7_200 * SECOND, "the clock's when it is ahead");
        assert_eq!(begin(None, 7).expect("no directory").generation, 7);
    }

    #[test]
    fn a_crash_while_writing_loses_nothing_and_damage_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let first = begin(Some(dir.path()), NOW).expect("first");
        // As a crash between create and rename leaves it.
        fs::write(dir.path().join("generation.tmp"), b"{\"gen").expect("written");
        let second = begin(Some(dir.path()), NOW - SECOND).expect("second");
        assert_eq!(second.generation, first.generation + 1);
        fs::write(dir.path().join(FILE), b"{\"gen").expect("written");
        let error = begin(Some(dir.path()), NOW)
            .expect_err("damaged")
            .to_string();
        assert!(error.contains("generation.json"), "{error}");
    }

    #[test]
    fn a_crash_loop_joins_more_and_more_slowly_and_so_stays_bounded() {
        let dir = tempfile::tempdir().expect("dir");
        let mut now = NOW;
        let mut joins = Vec::new();
        for _ in 0..200 {
            let start = begin(Some(dir.path()), now).expect("starts");
            now += nanos(start.wait);
            joins.push(now);
            // It lives for a tenth of a second.
            now += SECOND / 10;
        }
        let most = joins
            .iter()
            .map(|end| {
                joins
                    .iter()
                    .filter(|at| **at <= *end && *end - **at < nanos(QUICK))
                    .count()
            })
            .max();
        assert!(most <= Some(40), "{most:?} lives within one grace period");
        // And an hour of peace is forgiveness.
        let start = begin(Some(dir.path()), now + 3_600 * SECOND).expect("starts");
        assert_eq!(start.wait, Duration::ZERO);
    }
}
