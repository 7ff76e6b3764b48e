//! `selvedge-registry bench`, with next to nothing in it: that it measures, not what.

use std::process::Command;

/// What is promised, by the beginning of its line.
const PROMISED: [&str; 10] = [
    "memory of a server, filled",
    "bootstrap of one more",
    "renewals, a process' instances in one request",
    "renewals, each a request:",
    "a change seen on all servers",
    "… p99",
    "12 watchers of one service",
    "one that crashed is gone everywhere",
    "memory of a server, at the end",
    "filled by one client",
];

#[test]
fn every_number_that_is_promised_is_measured() {
    let size = [
        ("--services", "20"),
        ("--instances", "120"),
        ("--servers", "2"),
        ("--seconds", "1"),
        ("--writes", "40"),
        ("--renewals", "200"),
        ("--watchers", "12"),
    ];
    let mut bench = Command::new(env!("CARGO_BIN_EXE_selvedge-registry"));
    bench.arg("bench");
    for (key, value) in size {
        bench.args([key, value]);
    }
    let output = bench.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{failed}");
    for promised in PROMISED {
        let line = said
            .lines()
            .find(|line| line.starts_with(&format!("| {promised}")));
        let line = line.unwrap_or_else(|| panic!("{promised}: not in\n{said}"));
        let figure = line
            .split('|')
            .nth(2)
            .and_then(|f| f.split_whitespace().next());
        let figure: f64 = figure.and_then(|f| f.parse().ok()).expect(line);
        assert!(figure.is_finite() && figure >= 0.0, "{line}");
    }
}

#[test]
fn nothing_is_measured_of_nothing() {
    for size in ["--services", "--servers", "--seconds", "--watchers"] {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_selvedge-registry"));
        let output = bench.args(["bench", size, "0"]).output().expect("runs");
        assert!(!output.status.success(), "{size} 0");
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(failed.contains("bench: "), "{size} 0: {failed}");
    }
}
