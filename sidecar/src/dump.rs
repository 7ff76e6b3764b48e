//! The configuration in force, for an operator's eyes: every value, no secret.

use serde_json::{Value, json};

use crate::config::{Config, Service};

/// `config` as JSON.
pub(crate) fn dump(config: &Config) -> Value {
    json!({
        "service": config.service.as_ref().map(service),
        "inbound": {
            "bind": config.inbound,
            "advertise": config.advertise,
            "trusted_proxies": config.trusted.len(),
        },
        "outbound": { "bind": config.outbound, "policies": config.policies },
        "registry": config.registry,
        // Its token is written as `***`.
        "admin": config.admin,
        "access_log": config.access_log.as_ref().map(|path| path.display().to_string()),
        "telemetry": config.telemetry,
        "process": {
            "workers": config.workers,
            "drain_ms": millis(config.drain),
            "lame_duck_ms": millis(config.lame_duck),
        },
    })
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn service(service: &Service) -> Value {
    let written = &service.file;
    let health = &written.health;
    json!({
        "name": written.name,
        "id": written.id,
        "app": written.app,
        "protocol": written.protocol,
        "weight": written.weight,
        "ttl": written.ttl,
        "health": {
            "http": health.http,
            "interval": health.interval,
            "timeout": health.timeout,
            "healthy": health.healthy,
            "unhealthy": health.unhealthy,
        },
        "policy": service.policy,
    })
}
