//! The binaries of the mesh: built beside this one, with the same profile.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::ui::Ui;

/// What the mesh consists of, and the command that asks it.
const BINARIES: [&str; 6] = [
    "selvedge-registry",
    "selvedge-gateway",
    "selvedge-sidecar",
    "selvedge",
    "shop-inside",
    "shop-plain",
];

/// Where the binaries are.
#[derive(Debug, Clone)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// Those beside this program; built first, unless `build` is false.
    ///
    /// # Errors
    /// If cargo fails (it has said why), or a binary is not there.
    pub(crate) async fn find(ui: &Ui, build: bool) -> anyhow::Result<Self> {
        let me = std::env::current_exe().context("find this program")?;
        let dir = me.parent().context("this program is in no directory")?;
        if build {
            ui.step(
                "build",
                "the mesh's programs (the first time takes a few minutes)",
            );
            cargo_build(dir).await?;
        }
        let programs = Self(dir.to_owned());
        for name in BINARIES {
            let path = programs.path(name);
            ensure!(
                path.exists(),
                "{} is not there: leave --no-build out, so that it is built",
                path.display()
            );
        }
        Ok(programs)
    }

    /// The binary `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

async fn cargo_build(dir: &Path) -> anyhow::Result<()> {
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    // Under `cargo run`, the cargo that ran us.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // The whole workspace, as `cargo quickstart` itself is built from: with fewer packages cargo
    // would choose other features, and build this very program anew while it runs.
    command.args([
        "build",
        "--quiet",
        "--workspace",
        "--bins",
        "--profile",
        profile,
    ]);
    let status = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .status()
        .await
        .context("run cargo")?;
    ensure!(
        status.success(),
        "cargo could not build the mesh ({status})"
    );
    Ok(())
}
