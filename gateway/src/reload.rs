//! From a changed file to a changed gateway, or to a gateway that did not change and says why.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use selvedge_proxy::ProxyMetrics;
use selvedge_registry::{
    client::RegistryClient,
    node::metrics::{Metrics, Name},
};

use crate::{
    config::{self, Config},
    dump::dump,
    snapshot::Snapshot,
};

/// What an operator sees of the configuration in force.
#[derive(Debug)]
pub(crate) struct InForce {
    /// The configuration, as `/config_dump` shows it.
    config: serde_json::Value,
    taken: u64,
    rejected: u64,
    /// Why the newest file was not taken; `None` if it was.
    last_error: Option<String>,
}

/// Takes new configurations.
#[derive(Debug)]
pub(crate) struct Reloader {
    path: Option<PathBuf>,
    /// The file as it was last looked at, taken or not: the same mistake is told once.
    seen: Vec<u8>,
    fixed: Fixed,
    snapshot: Arc<ArcSwap<Snapshot>>,
    registry: Option<RegistryClient>,
    metrics: ProxyMetrics,
    in_force: Arc<Mutex<InForce>>,
    reloads: Counter,
    rejected: Counter,
}

/// What only a restart can change, by key.
type Fixed = [(&'static str, String); 5];

fn fixed(config: &Config) -> Fixed {
    use selvedge_registry::node::config::Secret;
    let admin_token = config.admin.token.as_ref().map(Secret::expose);
    let registry = config.registry.as_ref();
    let token = registry
        .and_then(|it| it.token.as_ref())
        .map(Secret::expose);
    [
        ("listeners", format!("{:?}", config.listeners)),
        ("process", format!("{:?}", config.process)),
        (
            "registry, locality",
            format!("{:?} {:?} {token:?}", config.registry, config.locality),
        ),
        ("admin", format!("{} {admin_token:?}", config.admin.bind)),
        (
            "access_log, telemetry",
            format!("{:?} {:?}", config.access_log, config.telemetry),
        ),
    ]
}

impl Reloader {
    /// Puts `config`, which came from `path`, in force.
    ///
    /// # Errors
    /// What cannot work, in words.
    pub(crate) fn start(
        path: Option<&Path>,
        mut config: Config,
        snapshot: Arc<ArcSwap<Snapshot>>,
        registry: Option<RegistryClient>,
        proxy: ProxyMetrics,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let shown = dump(&config);
        let fixed = fixed(&config);
        let first = Snapshot::build(&mut config, &Snapshot::default(), registry.as_ref(), &proxy);
        snapshot.store(Arc::new(first.map_err(|error| error.to_string())?));
        let seen = path.and_then(|path| std::fs::read(path).ok());
        Ok(Self {
            path: path.map(Path::to_owned),
            seen: seen.unwrap_or_default(),
            fixed,
            snapshot,
            registry,
            metrics: proxy,
            in_force: Arc::new(Mutex::new(InForce {
                config: shown,
                taken: 0,
                rejected: 0,
                last_error: None,
            })),
            reloads: metrics.register(Name::ConfigReloads, Counter::default()),
            rejected: metrics.register(Name::ConfigRejected, Counter::default()),
        })
    }

    /// For the admin port.
    pub(crate) fn in_force(&self) -> Arc<Mutex<InForce>> {
        Arc::clone(&self.in_force)
    }

    /// Whether the file is another than when it was last looked at.
    pub(crate) fn has_changed(&self) -> bool {
        let now = self.path.as_ref().and_then(|path| std::fs::read(path).ok());
        // A file that is away for a moment is being replaced.
        now.is_some_and(|now| now != self.seen)
    }

    /// Reads the file and takes it, as a whole or not at all.
    ///
    /// # Errors
    /// Why it was not taken, for a person; the same is on the admin port from now on.
    pub(crate) fn reload(&mut self) -> Result<(), String> {
        let result = self.take();
        let mut in_force = self.in_force.lock();
        match &result {
            Ok(()) => {
                in_force.taken += 1;
                in_force.last_error = None;
                self.reloads.inc();
                tracing::info!(reloads = in_force.taken, "configuration taken");
            }
            Err(error) => {
                in_force.rejected += 1;
                in_force.last_error = Some(error.clone());
                self.rejected.inc();
                tracing::error!(error, "configuration refused, the old one stays in force");
            }
        }
        result
    }

    fn take(&mut self) -> Result<(), String> {
        let Some(path) = &self.path else {
            return Err("this gateway was started without a file to read again".to_owned());
        };
        let text =
            std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        self.seen.clone_from(&text);
        let text = String::from_utf8(text)
            .map_err(|_| format!("read {}: it is not UTF-8", path.display()))?;
        let mut config = config::parse(path, text).map_err(|error| error.to_string())?;
        let fixed = fixed(&config);
        let changed = fixed.iter().zip(&self.fixed).find(|(new, old)| new != old);
        if let Some(((key, _), _)) = changed {
            return Err(format!(
                "{}: {key} differs from what runs; that takes a restart, so nothing of the file was taken",
                path.display()
            ));
        }
        let shown = dump(&config);
        let before = self.snapshot.load_full();
        let new = Snapshot::build(&mut config, &before, self.registry.as_ref(), &self.metrics)
            .map_err(|error| error.to_string())?;
        self.snapshot.store(Arc::new(new));
        self.in_force.lock().config = shown;
        Ok(())
    }
}

impl InForce {
    /// As `/config_dump` shows it.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "config": self.config,
            "reload": {
                "taken": self.taken,
                "rejected": self.rejected,
                "last_error": self.last_error,
            },
        })
    }
}
