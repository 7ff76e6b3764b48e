//! The configuration in force, for an operator's eyes: every value, no secret.

use serde_json::{Value, json};

use crate::config::{Config, Listener, Route, Service};

/// `config` as JSON.
pub(crate) fn dump(config: &Config) -> Value {
    json!({
        "listeners": config.listeners.iter().map(listener).collect::<Value>(),
        "inbound": config.inbound,
        "registry": config.registry,
        "services": config.services.iter().map(service).collect::<Value>(),
        "routes": config.routes.iter().map(|it| route(it, config)).collect::<Value>(),
        // Its token is written as `***`.
        "admin": config.admin,
        "access_log": config.access_log.as_ref().map(|log| log.path.display().to_string()),
        "telemetry": config.telemetry,
        "process": {
            "workers": config.process.workers,
            "drain_ms": millis(config.process.drain),
            "lame_duck_ms": millis(config.process.lame_duck),
            "watch_ms": config.process.watch.map(millis),
        },
    })
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn listener(listener: &Listener) -> Value {
    let limits = &listener.limits;
    json!({
        "name": listener.name,
        "bind": listener.bind,
        "trusted_proxies": listener.trusted.len(),
        "limits": {
            "headers": limits.headers,
            "idle": limits.idle,
            "body": limits.body,
            "h2_streams": limits.h2_streams,
            "connections": limits.connections,
            "per_source": limits.per_source,
        },
    })
}

fn service(service: &Service) -> Value {
    let addr = |endpoint: &selvedge_registry::Endpoint| json!({ "addr": endpoint.addr, "weight": endpoint.weight });
    let endpoints = service.endpoints.as_ref();
    json!({
        "name": service.name,
        "endpoints": endpoints.map(|list| list.iter().map(addr).collect::<Value>()),
        "policy": service.policy,
        "published_policy_counts": service.published,
    })
}

fn route(route: &Route, config: &Config) -> Value {
    json!({
        "name": &*route.name,
        "place": route.place,
        "to": config.services.get(route.service).map(|service| &service.name),
        "timeout_ms": route.timeout.map(millis),
        "rewrite": route.rewrite.as_ref().map(|rewrite| &rewrite.with),
    })
}
