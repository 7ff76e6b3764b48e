//! The cores that a configuration asks for, and which of them the last one had.

use std::{fmt, net::IpAddr, sync::Arc};

use http::HeaderMap;
use tokio::time::Instant;

use super::{super::keep::keep, Refused};
use crate::{
    adaptive::AdaptiveLimit,
    bulkhead::Bulkhead,
    config::{PolicyError, Rate},
    inbound::{InboundConfig, InboundRate, RateKey},
    rate_limit::KeyedRateLimit,
    rng::Rng,
    shed::Shedder,
};

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) config: InboundConfig,
    pub(super) shed: Option<Shedder>,
    pub(super) rate: Option<Limit>,
    pub(super) bulkhead: Option<Bulkhead>,
    pub(super) concurrency: Option<AdaptiveLimit>,
}

/// A rate, and what tells callers apart.
#[derive(Clone)]
pub(super) struct Limit {
    by: RateKey,
    rate: Rate,
    pub(super) keys: KeyedRateLimit<Arc<str>>,
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit")
            .field("by", &self.by)
            .field("rate", &self.rate)
            .finish_non_exhaustive()
    }
}

impl Limit {
    /// Lets one request of whoever asks pass, or says when to come back.
    pub(super) fn take(
        &self,
        headers: &HeaderMap,
        source: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), Refused> {
        let address;
        let key: &str = match &self.by {
            RateKey::All => "",
            RateKey::Header(name) => headers
                .get(name.as_str())
                .and_then(|value| value.to_str().ok())
                .unwrap_or(""),
            RateKey::Source => match source {
                Some(source) => {
                    address = source.to_canonical().to_string();
                    &address
                }
                None => "",
            },
        };
        match self.keys.try_acquire(key, now.into_std()) {
            Ok(_begun) => Ok(()),
            Err(rejected) => Err(Refused {
                rejected,
                rate: Some(self.rate),
            }),
        }
    }
}

impl Plan {
    /// The cores of `config`; those that `old` has too keep their state.
    pub(super) fn new(
        config: InboundConfig,
        old: Option<&Self>,
        rng: &Rng,
    ) -> Result<Self, PolicyError> {
        config.validate()?;
        let limit = |written: &InboundRate| -> Result<Limit, PolicyError> {
            Ok(Limit {
                by: written.by.clone(),
                rate: written.rate,
                keys: KeyedRateLimit::new(written.keyed())?,
            })
        };
        let mut rate = keep(
            config.rate_limit.as_ref(),
            old.and_then(|old| old.rate.as_ref()),
            limit,
            |core, written| {
                core.keys
                    .reconfigure(written.keyed(), Instant::now().into_std())
            },
        )?;
        if let (Some(limit), Some(written)) = (&mut rate, &config.rate_limit) {
            (limit.by, limit.rate) = (written.by.clone(), written.rate);
        }
        Ok(Self {
            shed: keep(
                config.shed.as_ref(),
                old.and_then(|old| old.shed.as_ref()),
                |config| Shedder::new(config.clone()),
                |core, config| core.reconfigure(config.clone()),
            )?,
            rate,
            bulkhead: keep(
                config.bulkhead.as_ref(),
                old.and_then(|old| old.bulkhead.as_ref()),
                Bulkhead::with_config,
                Bulkhead::reconfigure_with,
            )?,
            concurrency: keep(
                config.concurrency.as_ref(),
                old.and_then(|old| old.concurrency.as_ref()),
                |config| AdaptiveLimit::new(config.clone(), Rng::new(rng.next_u64())),
                |core, config| core.reconfigure(config.clone()),
            )?,
            config,
        })
    }
}
