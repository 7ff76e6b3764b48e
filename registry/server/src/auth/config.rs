//! Who is known, as it is written down.

use std::net::SocketAddr;

use selvedge_registry::{ServiceName, node::config::Secret};
use selvedge_resilience::config::PolicyError;
use serde::{Deserialize, Serialize};

/// `[auth]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Serve everybody on an address that others can reach. Said aloud or refused.
    pub insecure: bool,
    /// What a client without a token or certificate may do, where clients are configured. Default
    /// `none`.
    pub anonymous: Anonymous,
    /// What the servers of the cluster present to each other. Needed where clients are configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Secret>,
    /// Who is known.
    pub clients: Vec<ClientConfig>,
}

/// What somebody unknown may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Nothing.
    #[default]
    None,
    /// Ask and watch.
    Read,
}

/// What a client may do; each may what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ask and watch.
    Read,
    /// And register.
    Register,
    /// And overrides, policies, draining.
    Operate,
}

/// `[[auth.clients]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// What it is called in the audit log.
    pub name: String,
    /// Its token. By `{ file = … }` it can be renewed, and thereby taken away, without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Or the SHA-256 of its token, in hex: then not even this file's reader knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<String>,
    /// Or a name that its certificate carries (DNS or URI, such as a SPIFFE id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// What it may do.
    pub role: Role,
    /// The services that it may register: names, or prefixes as `"shop-*"`. `register` only.
    #[serde(default)]
    pub services: Vec<String>,
    /// Live instances that the services it may register can have in all. `register` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_instances: Option<usize>,
}

impl AuthConfig {
    /// Whether anybody is told apart.
    pub fn is_on(&self) -> bool {
        !self.clients.is_empty() || self.peer.is_some()
    }

    /// Refuses what cannot work, and what would be open by mistake.
    ///
    /// # Errors
    /// [`PolicyError`] with the field's path, its value and what is allowed.
    pub fn validate(&self, http: SocketAddr, mutual_tls: bool) -> Result<(), PolicyError> {
        for (n, client) in self.clients.iter().enumerate() {
            let checked = client.validate(mutual_tls);
            checked.map_err(|error| error.within(&format!("auth.clients[{n}]")))?;
        }
        if !self.clients.is_empty() && self.peer.is_none() {
            let allowed = "clients are told apart, so servers must be too: set auth.peer, the same on every server";
            return Err(PolicyError::new("auth.peer", "nothing", allowed));
        }
        if !http.ip().is_loopback() && !self.is_on() && !mutual_tls && !self.insecure {
            let allowed = "others can reach this address: configure [[auth.clients]] and auth.peer, or tls.client_ca, or say auth.insecure = true";
            return Err(PolicyError::new("http", http, allowed));
        }
        Ok(())
    }
}

impl ClientConfig {
    fn validate(&self, mutual_tls: bool) -> Result<(), PolicyError> {
        let (token, hash) = (self.token.is_some(), self.token_sha256.is_some());
        let ways = [token, hash, self.certificate.is_some()];
        if ways.into_iter().filter(|way| *way).count() != 1 {
            let allowed = "exactly one of token, token_sha256 and certificate";
            return Err(PolicyError::new("name", &self.name, allowed));
        }
        if let Some(hash) = &self.token_sha256
            && from_hex(hash).is_none()
        {
            let allowed = "64 hexadecimal digits: printf %s TOKEN | sha256sum";
            return Err(PolicyError::new("token_sha256", "something else", allowed));
        }
        if let Some(error) = self.token.as_ref().and_then(is_guessed) {
            return Err(error);
        }
        if let Some(name) = self.certificate.as_ref().filter(|_| !mutual_tls) {
            let allowed = "certificates are asked for where tls.client_ca is set";
            return Err(PolicyError::new("certificate", name, allowed));
        }
        let registers = self.role == Role::Register;
        if registers == self.services.is_empty() {
            let allowed = "named for the role \"register\" and for no other: names, or prefixes as \"shop-*\"";
            return Err(PolicyError::new(
                "services",
                format!("{:?}", self.services),
                allowed,
            ));
        }
        if self.max_instances.is_some() && !registers {
            let allowed = "for the role \"register\" only";
            return Err(PolicyError::new("max_instances", "set", allowed));
        }
        for pattern in &self.services {
            Pattern::parse(pattern)?;
        }
        Ok(())
    }
}

/// What is wrong with a token that is too short.
pub(super) fn is_guessed(token: &Secret) -> Option<PolicyError> {
    let len = token.expose().len();
    let allowed = "at least 16 bytes, or it is guessed: openssl rand -hex 32";
    (len < 16).then(|| PolicyError::new("token", format!("{len} bytes"), allowed))
}

/// The services that a client may register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This one.
    Name(ServiceName),
    /// Those that begin with it.
    Prefix(String),
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, PolicyError> {
        let fail = || {
            let allowed = "a service's name, or a prefix as \"shop-*\"";
            PolicyError::new("services", text, allowed)
        };
        match text.strip_suffix('*') {
            // "*" alone would be the role `operate` in disguise.
            Some(prefix) => ServiceName::new(format!("{prefix}x"))
                .ok()
                .filter(|_| !prefix.is_empty())
                .map(|_| Self::Prefix(prefix.to_owned()))
                .ok_or_else(fail),
            None => ServiceName::new(text).map(Self::Name).map_err(|_| fail()),
        }
    }

    /// Whether `service` is one of them.
    pub fn fits(&self, service: &ServiceName) -> bool {
        match self {
            Self::Name(name) => name == service,
            Self::Prefix(prefix) => service.as_str().starts_with(prefix.as_str()),
        }
    }
}

pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.chunks(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(out)
}
