//! The newcomer's command, as a newcomer types it: a mesh, a load, kills, and nobody notices.

use std::{
    process::{Command, Output, Stdio},
    sync::Mutex,
};

/// Two meshes at once would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

/// `cargo quickstart`, at the top of the workspace; what is not built yet is built.
fn quickstart(args: &[&str]) -> Output {
    let _alone = ALONE.lock();
    let mut command = Command::new(env!("CARGO"));
    command
        .arg("quickstart")
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .stdin(Stdio::null());
    command.output().expect("cargo runs")
}

fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    String::from_utf8_lossy(&output.stdout).into_owned() + &error
}

#[test]
fn processes_are_killed_under_load_and_no_request_fails() {
    let kills = [
        "--kill",
        "catalog-2",
        "--kill",
        "gateway-1",
        "--kill",
        "registry-3",
    ];
    let args = ["--once", "--requests", "6000"];
    let output = quickstart(&[&args[..], &kills[..]].concat());
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for victim in ["catalog-2", "gateway-1", "registry-3"] {
        assert!(text.contains(victim), "{victim} was killed: {text}");
    }
    assert!(text.contains("nobody noticed"), "{text}");
}

#[test]
fn a_process_that_is_not_there_is_refused_with_those_that_are() {
    let output = quickstart(&["--once", "--requests", "10", "--kill", "catalog-9"]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["catalog-9", "catalog-2", "registry-1"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
