//! What the behaviour tables beside this folder hold, and how they are read.
//!
//! One policy, several hosts: the library's cores, its Tower stack, the sidecar, the gateway. That
//! they behave alike is worth only what is checked, so what is expected is written down once, as
//! data, and each host has a driver that runs it. This module is what the drivers share. It is
//! included by path, `#[path = "…/resilience/cases/table/mod.rs"] mod table;`, and not a module of
//! the crate: a test's vocabulary is no API, and a feature for it would be on for every build of the
//! workspace that has tests.
//!
//! # A file
//! ```toml
//! kind = "calls"
//! [[case]]
//! name = "…"        # unique among all files
//! source = "…"      # which system's test, or why it must be so
//! policy = { breaker = { consecutive = 3 } }
//! steps = [
//!     { call = 503, times = 3, want = 503 },
//!     { at = "1s", call = 200, want = "breaker: open", retry_after = "4s", read = { breaker = "open" } },
//! ]
//! ```
//!
//! Only `calls` mean something to every host: requests, a callee that does as it is told, answers.
//! The other kinds are numbers and states of one core. A driver names the kinds that it runs and
//! says how many cases there were; a kind that nobody knows, a folder without tables and a table
//! without cases are failures.
//!
//! Times are whole milliseconds (Tokio's timers know no others) and no two things that depend on
//! each other may happen at the same time, so that every host has one answer.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::len_without_is_empty,
    reason = "included by drivers that each use the kinds and fields that their host knows"
)]

mod calls;
mod cores;
mod reading;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    path::Path,
};

use serde::{Deserialize, de::DeserializeOwned};

pub use self::{calls::*, cores::*, reading::*};

/// Every table of a folder, by kind.
#[derive(Debug, Default)]
pub struct Tables {
    /// Scripted calls through a whole policy: for every host.
    pub calls: Vec<Calls>,
    /// One breaker, told of results and by an operator.
    pub breaker: Vec<Breaker>,
    /// A rule of the adaptive limit: samples in, limits out. Run by the crate's unit tests, as the
    /// rule alone is no public item.
    pub adaptive: Vec<Adaptive>,
    /// The curve of the rule "cubic".
    pub cubic: Vec<Cubic>,
    /// The shares of an adaptive limit's partitions.
    pub partitions: Vec<Partitions>,
    /// The retry budget.
    pub budget: Vec<Budget>,
    /// The cost bucket.
    pub bucket: Vec<Bucket>,
    /// Waits before tries.
    pub backoff: Vec<Backoff>,
    /// The rate limit.
    pub rate_limit: Vec<RateLimit>,
    /// The throttle's formulas.
    pub throttle: Vec<Throttle>,
    /// Ejections.
    pub outlier: Vec<Outlier>,
    /// Costs of peak EWMA.
    pub ewma: Vec<Ewma>,
    /// Values of headers.
    pub headers: Vec<Headers>,
}

impl Tables {
    /// Reads every `*.toml` of `dir`.
    pub fn read(dir: &Path) -> Self {
        let mut all = Self::default();
        let entries =
            std::fs::read_dir(dir).unwrap_or_else(|e| panic!("read {}: {e}", dir.display()));
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("entry of the folder").path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "no tables in {}", dir.display());
        for path in paths {
            let text = std::fs::read_to_string(&path).expect("a table is text");
            let read = all.add(&text);
            read.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        all.check_names();
        all
    }

    /// Adds one file's cases.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        #[derive(Deserialize)]
        struct Head {
            kind: String,
        }
        let head: Head = toml::from_str(text).map_err(|e| e.to_string())?;
        match head.kind.as_str() {
            "calls" => take(text, &mut self.calls),
            "breaker" => take(text, &mut self.breaker),
            "adaptive" => take(text, &mut self.adaptive),
            "cubic" => take(text, &mut self.cubic),
            "partitions" => take(text, &mut self.partitions),
            "budget" => take(text, &mut self.budget),
            "bucket" => take(text, &mut self.bucket),
            "backoff" => take(text, &mut self.backoff),
            "rate_limit" => take(text, &mut self.rate_limit),
            "throttle" => take(text, &mut self.throttle),
            "outlier" => take(text, &mut self.outlier),
            "ewma" => take(text, &mut self.ewma),
            "headers" => take(text, &mut self.headers),
            other => Err(format!("no driver knows the kind {other:?}")),
        }
    }

    /// How many cases of each kind there are.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("calls", self.calls.len()),
            ("breaker", self.breaker.len()),
            ("adaptive", self.adaptive.len()),
            ("cubic", self.cubic.len()),
            ("partitions", self.partitions.len()),
            ("budget", self.budget.len()),
            ("bucket", self.bucket.len()),
            ("backoff", self.backoff.len()),
            ("rate_limit", self.rate_limit.len()),
            ("throttle", self.throttle.len()),
            ("outlier", self.outlier.len()),
            ("ewma", self.ewma.len()),
            ("headers", self.headers.len()),
        ])
    }

    /// The names of all cases.
    pub fn names(&self) -> Vec<&str> {
        fn of<T: Case>(cases: &[T]) -> impl Iterator<Item = &str> {
            cases.iter().map(Case::name)
        }
        of(&self.calls)
            .chain(of(&self.breaker))
            .chain(of(&self.adaptive))
            .chain(of(&self.cubic))
            .chain(of(&self.partitions))
            .chain(of(&self.budget))
            .chain(of(&self.bucket))
            .chain(of(&self.backoff))
            .chain(of(&self.rate_limit))
            .chain(of(&self.throttle))
            .chain(of(&self.outlier))
            .chain(of(&self.ewma))
            .chain(of(&self.headers))
            .collect()
    }

    fn check_names(&self) {
        let mut seen = BTreeSet::new();
        for name in self.names() {
            assert!(seen.insert(name), "two cases are called {name:?}");
        }
    }
}

fn take<T: Case + DeserializeOwned>(text: &str, into: &mut Vec<T>) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File<T> {
        #[serde(rename = "kind")]
        _kind: String,
        case: Vec<T>,
    }
    let file: File<T> = toml::from_str(text).map_err(|e| e.to_string())?;
    if file.case.is_empty() {
        return Err("a table without cases".to_owned());
    }
    for case in &file.case {
        if case.len() == 0 {
            return Err(format!("{} expects nothing", case.name()));
        }
    }
    into.extend(file.case);
    Ok(())
}

/// What all kinds have.
pub trait Case: Debug {
    /// What a failure is reported under.
    fn name(&self) -> &str;
    /// How many steps or values it has.
    fn len(&self) -> usize;
}

macro_rules! case {
    ($($kind:ident . $steps:ident),+ $(,)?) => {
        $(impl Case for $kind {
            fn name(&self) -> &str {
                &self.name
            }
            fn len(&self) -> usize {
                self.$steps.len()
            }
        })+
    };
}

case!(
    Calls.steps,
    Breaker.steps,
    Adaptive.samples,
    Cubic.points,
    Partitions.steps,
    Budget.steps,
    Bucket.steps,
    Backoff.waits,
    RateLimit.steps,
    Throttle.points,
    Outlier.steps,
    Ewma.samples,
    Headers.lines,
);
