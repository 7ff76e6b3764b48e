//! The behaviour tables of `resilience/cases`, run against the cores, and against the Tower stack
//! and layers.
//!
//! The cases of the kind `adaptive` are run by the crate's unit tests: the rule alone is no public
//! item.

mod calls;
mod coalesced;
mod core;
mod cores;
#[cfg(feature = "tower")]
mod layers;
mod numbers;
#[path = "../../cases/table/mod.rs"]
mod table;
#[cfg(feature = "tower")]
mod tower;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use self::table::{Case, Tables};

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

fn tables() -> Tables {
    Tables::read(&dir())
}

/// Runs every case, tells how many there were, and of every one that fails.
fn run_all<T: Case>(driver: &str, kind: &str, cases: &[T], run: impl Fn(&T) -> Vec<String>) {
    assert!(!cases.is_empty(), "no cases of kind {kind}");
    let mut failures = Vec::new();
    for case in cases {
        let found = run(case);
        failures.extend(found.iter().map(|text| format!("{}: {text}", case.name())));
    }
    eprintln!("{driver}: {} cases of kind {kind}", cases.len());
    assert!(failures.is_empty(), "{driver}:\n{}", failures.join("\n"));
}

#[test]
fn calls_through_the_cores() {
    run_all("cores", "calls", &tables().calls, cores::run);
}

#[cfg(feature = "tower")]
#[test]
fn calls_through_a_tower_stack() {
    run_all("tower", "calls", &tables().calls, tower::run);
}

#[test]
fn every_kind_that_is_one_cores_affair() {
    let all = tables();
    run_all("cores", "breaker", &all.breaker, core::breaker);
    run_all("cores", "cubic", &all.cubic, numbers::cubic);
    run_all("cores", "partitions", &all.partitions, core::partitions);
    run_all("cores", "budget", &all.budget, core::budget);
    run_all("cores", "bucket", &all.bucket, core::bucket);
    run_all("cores", "rate_limit", &all.rate_limit, core::rate_limit);
    run_all("cores", "outlier", &all.outlier, core::outlier);
    run_all("cores", "ewma", &all.ewma, core::ewma);
    run_all("cores", "backoff", &all.backoff, numbers::backoff);
    run_all("cores", "throttle", &all.throttle, numbers::throttle);
    run_all("cores", "headers", &all.headers, numbers::headers);
}

#[cfg(feature = "tower")]
#[test]
fn every_kind_that_is_one_core_s_affair_through_its_layer() {
    let all = tables();
    run_all("tower", "breaker", &all.breaker, layers::breaker);
    run_all("tower", "cubic", &all.cubic, layers::cubic);
    run_all("tower", "partitions", &all.partitions, layers::partitions);
    run_all("tower", "budget", &all.budget, layers::budget);
    run_all("tower", "bucket", &all.bucket, layers::bucket);
    run_all("tower", "rate_limit", &all.rate_limit, layers::rate_limit);
    run_all("tower", "outlier", &all.outlier, layers::outlier);
    run_all("tower", "ewma", &all.ewma, layers::ewma);
    run_all("tower", "backoff", &all.backoff, layers::backoff);
    run_all("tower", "throttle", &all.throttle, layers::throttle);
    run_all("tower", "headers", &all.headers, layers::headers);
}

/// The kinds that the tests above and the unit tests of `adaptive` run: a new one needs a driver.
const RUN: &[&str] = &[
    "adaptive",
    "backoff",
    "breaker",
    "bucket",
    "budget",
    "calls",
    "cubic",
    "ewma",
    "headers",
    "outlier",
    "partitions",
    "rate_limit",
    "throttle",
];

#[test]
fn no_kind_is_left_out_and_none_is_empty() {
    let counts = tables().counts();
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), RUN);
    for (kind, count) in counts {
        assert!(count > 0, "no cases of kind {kind}");
    }
}

const PUBLIC: &[(&str, u32)] = &[
    ("WIN", 4),
    ("BRK", 10),
    ("BUD", 3),
    ("BKO", 1),
    ("RL", 1),
    ("ADP", 6),
    ("THR", 2),
    ("OUT", 1),
    ("LB", 1),
    ("HDR", 3),
];

#[test]
fn every_public_case_is_in_a_table() {
    let all = tables();
    let ids: BTreeSet<&str> = all
        .names()
        .into_iter()
        .filter_map(|name| name.split([' ', ':']).next())
        .collect();
    for (group, last) in PUBLIC {
        for n in 1..=*last {
            let id = format!("{group}-{n}");
            assert!(ids.contains(id.as_str()), "{id} is in no table");
        }
    }
    let ours = all
        .names()
        .iter()
        .filter(|name| name.starts_with("OURS"))
        .count();
    assert!(ours >= 15, "{ours} of ours");
}

#[test]
fn what_no_driver_knows_is_refused() {
    let case = "\n[[case]]\nname = \"n\"\nsource = \"s\"\n";
    for (text, says) in [
        ("kind = \"quartic\"", "no driver knows"),
        ("[[case]]", "kind"),
        ("kind = \"calls\"", "missing field `case`"),
        ("kind = \"calls\"\ncase = []", "without cases"),
        (
            &format!("kind = \"calls\"{case}policy = {{}}\nsteps = []"),
            "expects nothing",
        ),
        (
            &format!("kind = \"calls\"{case}policy = {{}}\nsteps = [{{ wnat = 200 }}]"),
            "unknown field `wnat`",
        ),
        (
            &format!("kind = \"calls\"{case}policy = {{ brekaer = {{}} }}\nsteps = [{{}}]"),
            "unknown field `brekaer`",
        ),
        (
            &format!(
                "kind = \"calls\"{case}policy = {{}}\nsteps = [{{ call = 200, want = \"rest\" }}]"
            ),
            "neither",
        ),
    ] {
        let refused = Tables::default().add(text).expect_err(text);
        assert!(refused.contains(says), "{text}: {refused}");
    }
}
