//! A balancer with more than its configurations: a name, a listener, a seed.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;

use super::{
    BalanceConfig, Balancer, Client, Core, Home, Key, Locality, OutlierConfig, Setup,
    shared::{Shared, Teller},
    view::View,
};
use crate::{
    config::PolicyError,
    events::Events,
    rng::Rng,
    sync::{AtomicU64, plain::Mutex},
};

/// Builds a [`Balancer`]. See [`Balancer::builder`].
#[must_use = "nothing is built yet"]
pub struct Builder<K> {
    config: BalanceConfig,
    outlier: OutlierConfig,
    rng: Option<Rng>,
    name: Arc<str>,
    events: Option<Events>,
    label: Option<fn(&K) -> String>,
}

impl<K> fmt::Debug for Builder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .field("outlier", &self.outlier)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K: Key> Builder<K> {
    pub(super) fn new(config: BalanceConfig, outlier: OutlierConfig) -> Self {
        Self {
            config,
            outlier,
            rng: None,
            name: Arc::from(""),
            events: None,
            label: None,
        }
    }

    /// Where chance comes from. Default: a seed of its own.
    pub fn rng(mut self, rng: Rng) -> Self {
        self.rng = Some(rng);
        self
    }

    /// What events call it. Default "".
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Where it tells what happens to its endpoints: ejections, their ends, panic.
    pub fn events(mut self, events: Events) -> Self {
        self.events = Some(events);
        self
    }

    /// What events call an endpoint; asked when there is something to tell. Default: nothing.
    pub fn label(mut self, label: fn(&K) -> String) -> Self {
        self.label = Some(label);
        self
    }

    /// A balancer without members, at home anywhere, with a subset of its own.
    ///
    /// # Errors
    /// [`PolicyError`] if a configuration cannot work.
    pub fn build(self) -> Result<Balancer<K>, PolicyError> {
        let Self {
            config,
            outlier,
            name,
            label,
            ..
        } = self;
        config.validate()?;
        outlier.validate()?;
        let rng = self.rng.unwrap_or_else(Rng::from_entropy);
        let home = Home {
            locality: Locality::default(),
            client: Client::Id(rng.next_u64()),
        };
        let seed = rng.next_u64();
        let teller = self.events.map(|events| Teller {
            name,
            events,
            label,
        });
        let shared = Shared::new(outlier, rng, teller);
        shared.set_pace(config.decay.0, config.slow_start.as_ref());
        Ok(Balancer(Arc::new(Core {
            view: ArcSwap::from_pointee(View::new(Vec::new(), &home, Arc::new(config))),
            shared: Arc::new(shared),
            seed,
            picks: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            sweeper: Mutex::default(),
            setup: Mutex::new(Setup {
                home,
                zones: HashMap::new(),
            }),
        })))
    }
}
