//! `registry/README.md` says what is so: the operator's commands in it run, in their order.

use std::time::Duration;

use crate::support::{command, config, says, serving, text, url};

const README: &str = include_str!("../../README.md");

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_work() {
    let server = serving(&config("n1", &[])).await;
    let url = url(&server);
    let orders = [
        "register",
        "orders",
        "orders-1",
        "--addr",
        "10.0.0.7:8080",
        "--version",
        "1.4",
        "--once",
    ];
    says(&url, &orders, 0, &[]).await;
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("orders.toml"), "bulkhead = 7\n").expect("write");
    let blocks = README.split("\n```console\n").skip(1);
    let lines = blocks
        .filter_map(|block| block.split_once("\n```"))
        .flat_map(|(block, _)| block.lines());
    let mut run = 0;
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["selvedge", args @ ..] = &words[..] else {
            panic!("{line:?} is not checked: mark its block otherwise");
        };
        let output = command(&url, args).current_dir(dir.path()).output();
        let output = tokio::time::timeout(Duration::from_secs(30), output).await;
        let output = output.expect("ends").expect("runs");
        assert_eq!(output.status.code(), Some(0), "{line}\n{}", text(&output));
        run += 1;
    }
    assert!(run >= 10, "only {run} commands were found");
}
