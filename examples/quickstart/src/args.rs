//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A whole mesh on loopback: three registry servers, two gateways, a shop of four services, a load
/// through all of it, and a few processes killed on the way.
#[derive(Debug, Parser)]
#[command(
    name = "cargo quickstart",
    bin_name = "cargo quickstart",
    version,
    after_help = "Example: cargo quickstart --once --requests 50000 --rate 2000 --kill pricing-1"
)]
pub(crate) struct Cli {
    /// What the supervisor runs for itself.
    #[command(subcommand)]
    pub(crate) inner: Option<Inner>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Not for people.
#[derive(Debug, Subcommand)]
pub(crate) enum Inner {
    /// Kills the process groups named on its standard input once that closes.
    #[command(hide = true)]
    Guard,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Requests in all
    #[arg(long, default_value_t = 24_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) requests: u64,
    /// Requests a second; sent at this rate whether or not earlier ones were answered
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// Instances of each service [default: 3 of storefront and catalog, 2 of cart and pricing]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=20))]
    pub(crate) instances: Option<u16>,
    /// Kill this one with SIGKILL, for example `cart-2`, `registry-1`, `gateway-2`, `catalog-1`
    /// (the app and its sidecar), `catalog-1.app`, `catalog-1.sidecar`; may be repeated
    /// [default: catalog-2, cart-2 and registry-3]
    #[arg(long, value_name = "NAME", conflicts_with = "no_kill")]
    pub(crate) kill: Vec<String>,
    /// Kill nothing
    #[arg(long)]
    pub(crate) no_kill: bool,
    /// Exit after the table: 0 if every request was answered well, else 1
    #[arg(long)]
    pub(crate) once: bool,
    /// Write logs and configuration files there and keep them
    #[arg(long, value_name = "DIR")]
    pub(crate) keep_logs: Option<PathBuf>,
    /// Send spans to this OpenTelemetry collector, for example `http://127.0.0.1:4318`
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// Use the binaries that are there instead of building them first
    #[arg(long)]
    pub(crate) no_build: bool,
}
