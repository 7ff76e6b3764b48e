//! What a service takes on: the half of a policy that protects it from its callers.
//!
//! The other half says how the service is *called*. This one is enforced by whoever stands right
//! before the handler: the layer inside the service, the sidecar before an app that knows nothing
//! of it, a listener of the gateway before all services.

use serde::{Deserialize, Serialize};

use crate::{
    adaptive::AdaptiveConfig,
    bulkhead::BulkheadConfig,
    config::{PolicyError, Rate, ensure},
    keyed::KeyedConfig,
    rate_limit::KeyedRateLimitConfig,
    shed::ShedConfig,
};

/// Section `inbound` of a policy. What is not written is not enforced.
///
/// Asked in this order: shed, rate limit, bulkhead, concurrency. Whoever is refused early costs
/// least.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct InboundConfig {
    /// Under overload, what matters least is refused first, by the wait that it causes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shed: Option<ShedConfig>,
    /// Requests that may begin in a span of time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<InboundRate>,
    /// Requests under way at once, and who may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulkhead: Option<BulkheadConfig>,
    /// The same with a limit that finds itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<AdaptiveConfig>,
}

/// A rate limit on callers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InboundRate {
    /// How many, of each caller.
    pub rate: Rate,
    /// What tells callers apart. Default "source": their address.
    #[serde(default)]
    pub by: RateKey,
    /// How many callers are told apart, and for how long.
    #[serde(default)]
    pub keys: KeyedConfig,
}

/// What tells callers apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RateKey {
    /// The address that the connection comes from; where nobody knows it, all are one.
    #[default]
    Source,
    /// A header field, as `{ header = "x-api-key" }`; those without it are one.
    Header(String),
    /// Nothing: all are one.
    All,
}

impl InboundRate {
    pub(crate) fn keyed(&self) -> KeyedRateLimitConfig {
        KeyedRateLimitConfig {
            rate: self.rate,
            keys: self.keys,
        }
    }
}

impl InboundConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        if let Some(shed) = &self.shed {
            shed.validate().map_err(|e| e.within("shed"))?;
        }
        if let Some(limit) = &self.rate_limit {
            if let RateKey::Header(name) = &limit.by {
                let token = http::HeaderName::try_from(name.as_str()).is_ok();
                ensure(token, "rate_limit.by.header", name, "a header's name")?;
            }
            limit
                .keyed()
                .validate()
                .map_err(|e| e.within("rate_limit"))?;
        }
        if let Some(bulkhead) = &self.bulkhead {
            bulkhead.validate().map_err(|e| e.within("bulkhead"))?;
        }
        if let Some(limit) = &self.concurrency {
            let valid = limit.validate_for_requests();
            valid.map_err(|e| e.within("concurrency"))?;
        }
        Ok(())
    }
}
