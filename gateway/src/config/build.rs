//! From what is written to what is used.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderName, HeaderValue, Method};
use selvedge_registry::{
    Endpoint, ServiceName,
    node::{
        config::{ConfigError, Loaded, nearest},
        registry::RegistryFile,
    },
};
use selvedge_resilience::{TrafficPolicy, inbound::InboundConfig};

use super::{
    Config, Listener, Process, Rewrite, Route, Service,
    written::{DescribedFile, EndpointFile, GatewayFile, RouteFile, ServiceFile},
};
use crate::routing::{PathPattern, RouteTable, Rule};

/// Sockets that can be handed to a successor. Source: Pingora 0.9.1 `transfer_fd`, `MAX_FDS`:
/// beyond it, the successor fails and the old process ends all the same.
pub const MAX_SOCKETS: usize = 32;

type File = Loaded<GatewayFile>;

pub(super) fn build(file: &File) -> Result<Config, ConfigError> {
    let listeners = listeners(file)?;
    let process = process(file, listeners.len())?;
    let registry = registry(file)?;
    let services = services(file)?;
    let (routes, rules) = routes(file, &services)?;
    let table = RouteTable::build(&rules).map_err(|duplicate| {
        let (first, second) = (&routes[duplicate.first], &routes[duplicate.second]);
        file.error(
            &format!("routes[{}]", duplicate.second),
            format!(
                "route {:?} matches the same requests as route {:?} at {}, and would never be used",
                second.name, first.name, first.place,
            ),
        )
    })?;
    let admin = file.value.admin.clone();
    admin
        .validate()
        .map_err(|why| file.error("admin.bind", why))?;
    let written = file.value.listeners.iter();
    let inbound = written.map(|(name, listener)| (name.clone(), listener.inbound.clone()));
    Ok(Config {
        listeners,
        inbound: inbound
            .filter(|(_, inbound)| *inbound != InboundConfig::default())
            .collect(),
        registry,
        locality: file.value.locality.clone(),
        services,
        routes,
        table,
        admin,
        access_log: file.value.access_log.clone(),
        telemetry: file.value.telemetry.clone(),
        process,
    })
}

fn listeners(file: &File) -> Result<Vec<Listener>, ConfigError> {
    let written = &file.value.listeners;
    if written.is_empty() {
        return Err(file.error("listeners", "there is no listener: at least one is needed"));
    }
    let mut listeners: Vec<Listener> = Vec::with_capacity(written.len());
    for (name, listener) in written {
        let path = format!("listeners.{name}");
        let mut trusted = Vec::new();
        for network in &listener.trusted_proxies {
            let network = network.parse().map_err(|error| {
                file.error(&format!("{path}.trusted_proxies"), format!("{error}"))
            })?;
            trusted.push(network);
        }
        let inbound = listener.inbound.validate();
        inbound.map_err(|error| {
            file.error(&format!("{path}.inbound.{}", error.path), error.to_string())
        })?;
        let limits = &listener.limits;
        let positive = [
            ("connections", limits.connections > 0),
            ("per_source", limits.per_source > 0),
            ("h2_streams", limits.h2_streams > 0),
            ("idle", !limits.idle.0.is_zero()),
            // hyper's smallest read buffer.
            ("headers", limits.headers.0 >= 8 << 10),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, ok)| !ok) {
            let allowed = if *key == "headers" {
                "at least \"8KiB\""
            } else {
                "more than 0"
            };
            return Err(file.error(
                &format!("{path}.limits"),
                format!("limits.{key} is too small: allowed is {allowed}"),
            ));
        }
        let taken = listeners
            .iter()
            .find(|other| other.bind == listener.bind && listener.bind.port() != 0);
        if let Some(other) = taken {
            return Err(file.error(
                &format!("{path}.bind"),
                format!(
                    "{} is already the address of listener {:?}",
                    other.bind, other.name
                ),
            ));
        }
        listeners.push(Listener {
            name: name.clone(),
            bind: listener.bind,
            limits: limits.clone(),
            trusted: trusted.into(),
        });
    }
    Ok(listeners)
}

fn process(file: &File, listeners: usize) -> Result<Process, ConfigError> {
    let written = &file.value.process;
    let most = MAX_SOCKETS / listeners;
    let workers = match written.workers {
        Some(workers) if workers == 0 || workers > most => {
            return Err(file.error(
                "process.workers",
                format!(
                    "{workers} workers on {listeners} listeners: allowed is 1 to {most}, since \
                     {MAX_SOCKETS} sockets can be handed to a successor"
                ),
            ));
        }
        Some(workers) => workers,
        None => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(most),
    };
    Ok(Process {
        workers,
        drain: written.drain.0,
        lame_duck: written.lame_duck.0,
        watch: (!written.watch.0.is_zero()).then_some(written.watch.0),
    })
}

fn registry(file: &File) -> Result<Option<RegistryFile>, ConfigError> {
    let Some(registry) = &file.value.registry else {
        return Ok(None);
    };
    registry
        .client(&file.value.locality)
        .map_err(|error| file.error(&format!("registry.{}", error.key), error.to_string()))?;
    Ok(Some(registry.clone()))
}

fn services(file: &File) -> Result<Vec<Service>, ConfigError> {
    for (name, policy) in &file.value.policies {
        policy.validate().map_err(|error| {
            file.error(
                &format!("policies.{name}.{}", error.path),
                error.to_string(),
            )
        })?;
    }
    file.value
        .services
        .iter()
        .map(|(name, service)| build_service(file, name, service))
        .collect()
}

fn build_service(
    file: &File,
    name: &ServiceName,
    written: &ServiceFile,
) -> Result<Service, ConfigError> {
    let path = format!("services.{name}");
    let policy = match &written.policy {
        None => TrafficPolicy::default(),
        Some(policy) => file.value.policies.get(policy).cloned().ok_or_else(|| {
            let known = file.value.policies.keys().map(String::as_str);
            file.error(&format!("{path}.policy"), unknown("policy", policy, known))
        })?,
    };
    let endpoints = match &written.endpoints {
        Some(list) if list.is_empty() => {
            return Err(file.error(
                &format!("{path}.endpoints"),
                "no endpoint is listed: name at least one, or leave the key out to ask the registry",
            ));
        }
        Some(list) => Some(fixed(file, &path, name, list)?),
        None if file.value.registry.is_none() => {
            return Err(file.error(
                &path,
                format!("service {name} has no `endpoints`, and there is no [registry] to ask"),
            ));
        }
        None => None,
    };
    Ok(Service {
        name: name.clone(),
        endpoints,
        policy,
        published: written.policy.is_none(),
    })
}

fn fixed(
    file: &File,
    path: &str,
    name: &ServiceName,
    list: &[EndpointFile],
) -> Result<Vec<Endpoint>, ConfigError> {
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(list.len());
    for (n, written) in list.iter().enumerate() {
        let DescribedFile {
            addr,
            weight,
            protocol,
            locality,
        } = match written {
            EndpointFile::Addr(addr) => DescribedFile::plain(*addr),
            EndpointFile::Described(described) => described.clone(),
        };
        let refuse = |why: String| file.error(&format!("{path}.endpoints"), why);
        if weight == 0 || addr.port() == 0 {
            return Err(refuse(format!(
                "{addr} of weight {weight}: allowed are a port and a weight of at least 1"
            )));
        }
        if endpoints.iter().any(|other| other.addr == addr) {
            return Err(refuse(format!("{addr} is listed twice")));
        }
        let id = format!("{name}-{n}");
        endpoints.push(Endpoint {
            id: id.parse().map_err(|error| refuse(format!("{error}")))?,
            addr,
            incarnation: 0,
            weight,
            protocol,
            locality,
        });
    }
    Ok(endpoints)
}

fn routes(file: &File, services: &[Service]) -> Result<(Vec<Route>, Vec<Rule>), ConfigError> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut routes = Vec::with_capacity(file.value.routes.len());
    let mut rules = Vec::with_capacity(file.value.routes.len());
    for (n, written) in file.value.routes.iter().enumerate() {
        let path = format!("routes[{n}]");
        if let Some(first) = names.insert(&written.name, n) {
            return Err(file.error(
                &format!("{path}.name"),
                format!(
                    "route {:?} is already at {}: names must differ",
                    written.name,
                    file.place(&format!("routes[{first}]")),
                ),
            ));
        }
        let rule = rule(file, &path, written)?;
        let rewrite = rewrite(file, &path, written, &rule.path)?;
        let service = services
            .iter()
            .position(|service| service.name == written.to)
            .ok_or_else(|| {
                let known = services.iter().map(|service| service.name.as_str());
                file.error(
                    &format!("{path}.to"),
                    unknown("service", written.to.as_str(), known),
                )
            })?;
        routes.push(Route {
            name: Arc::from(written.name.as_str()),
            place: file.place(&path),
            service,
            timeout: written.timeouts.map(|timeouts| timeouts.request.0),
            rewrite,
        });
        rules.push(rule);
    }
    Ok((routes, rules))
}

fn rule(file: &File, path: &str, written: &RouteFile) -> Result<Rule, ConfigError> {
    let refuse = |key: &str, why: String| file.error(&format!("{path}.{key}"), why);
    let hosts = written
        .hosts
        .iter()
        .map(|host| {
            host.parse()
                .map_err(|error| refuse("hosts", format!("{error}")))
        })
        .collect::<Result<_, _>>()?;
    let pattern = match &written.path {
        None => PathPattern::default(),
        Some(text) => text
            .parse()
            .map_err(|error| refuse("path", format!("{error}")))?,
    };
    let methods = written
        .methods
        .iter()
        .map(|text| method(text).map_err(|why| refuse("methods", why)))
        .collect::<Result<_, _>>()?;
    let headers = written
        .headers
        .iter()
        .map(|(name, value)| {
            let pair = name
                .parse::<HeaderName>()
                .ok()
                .zip(value.parse::<HeaderValue>().ok());
            pair.ok_or_else(|| refuse("headers", format!("{name:?} = {value:?} is not a header")))
        })
        .collect::<Result<_, _>>()?;
    Ok(Rule {
        hosts,
        path: pattern,
        methods,
        headers,
        query: written.query.clone().into_iter().collect(),
    })
}

fn method(text: &str) -> Result<Method, String> {
    let method: Method = text
        .parse()
        .map_err(|_| format!("{text:?} is not a method"))?;
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        // Methods are case-sensitive: `get` would never match.
        return Err(format!(
            "{text:?} would never match: did you mean {:?}?",
            text.to_ascii_uppercase()
        ));
    }
    Ok(method)
}

fn rewrite(
    file: &File,
    path: &str,
    written: &RouteFile,
    pattern: &PathPattern,
) -> Result<Option<Rewrite>, ConfigError> {
    let Some(rewrite) = &written.rewrite else {
        return Ok(None);
    };
    let refuse = |why: String| file.error(&format!("{path}.rewrite"), why);
    let PathPattern::Prefix(matched) = pattern else {
        return Err(refuse(format!(
            "route {:?} matches one path alone, so there is no prefix to rewrite",
            written.name
        )));
    };
    // A pattern's rules for a prefix are the rules for its replacement.
    match rewrite.prefix.parse() {
        Ok(PathPattern::Prefix(with)) => Ok(Some(Rewrite {
            cut: matched.len(),
            with,
        })),
        Ok(PathPattern::Exact(_)) => Err(refuse(format!(
            "{:?} is not a prefix: expected \"/orders\"",
            rewrite.prefix
        ))),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// "unknown policy `sdt`, expected one of …", with a guess.
fn unknown<'a>(what: &str, text: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let list: Vec<String> = known.clone().map(|name| format!("`{name}`")).collect();
    let expected = match list.as_slice() {
        [] => format!("there is no {what} in this file"),
        names => format!("expected one of {}", names.join(", ")),
    };
    match nearest(text, known) {
        Some(guess) => format!("unknown {what} `{text}`, {expected}; did you mean `{guess}`?"),
        None => format!("unknown {what} `{text}`, {expected}"),
    }
}
