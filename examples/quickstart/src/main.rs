//! A whole mesh on loopback in one command.
#![expect(dead_code, reason = "the daemons are not wired in yet")]

mod args;
mod guard;
mod http_client;
mod load;
mod ports;
mod process;
mod ui;

use clap::Parser as _;

fn main() {
    let cli = args::Cli::parse();
    if matches!(cli.inner, Some(args::Inner::Guard)) {
        guard::run();
    }
}
