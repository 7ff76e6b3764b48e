//! Who may do what: tokens and client certificates, by role.
//!
//! Whoever can register an instance of `payments` receives payments. So writing needs a name and a
//! right, and the right can be as narrow as one service. Reading is a role of its own: a list of
//! everything that runs is worth having for an attacker.
//!
//! | role | may |
//! |---|---|
//! | `read` | ask and watch |
//! | `register` | that, and register, renew, change and take out instances of the services named |
//! | `operate` | that for every service, and overrides, policies, draining |
//! | `peer` | follow this server's log and be asked for a region's summary: servers among themselves |
//!
//! # Guarantees
//! - Tokens are kept as SHA-256 only, and compared in constant time over every entry: neither a
//!   dump of this process's configuration nor the time of an answer tells one.
//! - With no client configured an address that others can reach is refused, unless `insecure` is
//!   said aloud.
//!
//! # What it does not do
//! Tell two servers of one cluster apart (they share one secret), or revoke without a restart.

use std::{net::SocketAddr, sync::Arc};

use ring::digest::{SHA256, digest};
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
    /// Its token.
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
        if let Some(short) = self.token.as_ref().filter(|t| t.expose().len() < 16) {
            let allowed = "at least 16 bytes, or it is guessed: openssl rand -hex 32";
            return Err(PolicyError::new(
                "token",
                format!("{} bytes", short.expose().len()),
                allowed,
            ));
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

/// The services that a client may register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This one.
    Name(ServiceName),
    /// Those that begin with it.
    Prefix(String),
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, PolicyError> {
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

fn from_hex(text: &str) -> Option<[u8; 32]> {
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

fn hash(token: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, token).as_ref());
    out
}

/// Compares in a time that does not tell how much was right.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// Who is asking, and what they may do. In every request's extensions.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Known>);

#[derive(Debug)]
struct Known {
    name: Arc<str>,
    may: May,
    patterns: Vec<Pattern>,
    max_instances: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    Nothing,
    Role(Role),
    Peer,
    /// Nobody is told apart.
    Everything,
}

impl Caller {
    fn new(name: &str, may: May) -> Self {
        Self(Arc::new(Known {
            name: name.into(),
            may,
            patterns: Vec::new(),
            max_instances: None,
        }))
    }

    /// What the audit log calls it.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Whether it is nobody in particular.
    pub fn is_anonymous(&self) -> bool {
        matches!(&*self.0.name, ANYBODY)
    }

    /// Whether it may ask and watch.
    pub fn may_read(&self) -> bool {
        self.0.may != May::Nothing
    }

    /// Whether it may register instances of `service`.
    pub fn may_register(&self, service: &ServiceName) -> bool {
        match self.0.may {
            May::Everything | May::Role(Role::Operate) => true,
            May::Role(Role::Register) => self.0.patterns.iter().any(|p| p.fits(service)),
            May::Role(Role::Read) | May::Nothing | May::Peer => false,
        }
    }

    /// Whether there is a service that it may register.
    pub fn may_register_some(&self) -> bool {
        let role = |role| matches!(role, Role::Register | Role::Operate);
        match self.0.may {
            May::Everything => true,
            May::Role(it) => role(it),
            May::Nothing | May::Peer => false,
        }
    }

    /// Whether it may set overrides, publish policies and drain.
    pub fn may_operate(&self) -> bool {
        matches!(self.0.may, May::Everything | May::Role(Role::Operate))
    }

    /// Whether it is another server of the cluster.
    pub fn is_peer(&self) -> bool {
        matches!(self.0.may, May::Everything | May::Peer)
    }

    /// The services it may register and how many live instances those can have, where there is
    /// such a limit.
    pub fn quota(&self) -> Option<(&[Pattern], usize)> {
        self.0.max_instances.map(|most| (&*self.0.patterns, most))
    }
}

const ANYBODY: &str = "anonymous";

/// Why a caller was not taken for anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownToken;

/// Who is known, ready to be asked.
#[derive(Debug)]
pub struct Auth {
    anonymous: Caller,
    tokens: Vec<([u8; 32], Caller)>,
    certificates: Vec<(String, Caller)>,
}

impl Auth {
    /// By a configuration that was validated.
    pub fn new(config: &AuthConfig) -> Self {
        let mut auth = Self {
            anonymous: Caller::new(ANYBODY, May::Everything),
            tokens: Vec::new(),
            certificates: Vec::new(),
        };
        if !config.is_on() {
            return auth;
        }
        let may = match config.anonymous {
            Anonymous::None => May::Nothing,
            Anonymous::Read => May::Role(Role::Read),
        };
        auth.anonymous = Caller::new(ANYBODY, may);
        if let Some(peer) = &config.peer {
            let caller = Caller::new("peer", May::Peer);
            auth.tokens.push((hash(peer.expose().as_bytes()), caller));
        }
        for client in &config.clients {
            let patterns = client.services.iter();
            let caller = Caller(Arc::new(Known {
                name: client.name.as_str().into(),
                may: May::Role(client.role),
                patterns: patterns.filter_map(|p| Pattern::parse(p).ok()).collect(),
                max_instances: client.max_instances,
            }));
            let given = client.token.as_ref().map(|t| hash(t.expose().as_bytes()));
            let hashed = client.token_sha256.as_deref().and_then(from_hex);
            if let Some(hash) = given.or(hashed) {
                auth.tokens.push((hash, caller.clone()));
            }
            if let Some(name) = &client.certificate {
                auth.certificates.push((name.clone(), caller));
            }
        }
        auth
    }

    /// Who presents this `Authorization` on a connection whose client certificate carries `names`.
    /// A token wins over a certificate.
    ///
    /// # Errors
    /// [`UnknownToken`] if there is a token and it is nobody's: that is never taken for anonymous.
    pub fn who(
        &self,
        authorization: Option<&[u8]>,
        names: &[String],
    ) -> Result<Caller, UnknownToken> {
        if self.tokens.is_empty() && self.certificates.is_empty() {
            return Ok(self.anonymous.clone());
        }
        if let Some(value) = authorization {
            let token = token(value).ok_or(UnknownToken)?;
            let given = hash(&token);
            let mut found = None;
            for (hash, caller) in &self.tokens {
                if same(hash, &given) {
                    found = Some(caller);
                }
            }
            return found.cloned().ok_or(UnknownToken);
        }
        let named = self
            .certificates
            .iter()
            .find(|(name, _)| names.contains(name));
        Ok(named.map_or_else(|| self.anonymous.clone(), |(_, caller)| caller.clone()))
    }
}

/// `Bearer TOKEN`; or `Basic`, whose password is the token: Eureka clients carry it in their URL.
fn token(value: &[u8]) -> Option<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (scheme, rest) = value.split_at(value.iter().position(|b| *b == b' ')?);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|b| *b == b':')?;
    Some(pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> AuthConfig {
        // Secrets come from files and the environment: tests put them in as they are.
        serde_json::from_str(text).expect(text)
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).expect("name")
    }

    const TOKEN: &str = "0123456789abcdef";

    fn known(client: &str) -> AuthConfig {
        let mut config = config(&format!(r#"{{"clients":[{client}]}}"#));
        config.peer = Some(Secret::new("the servers' own secret"));
        for client in &mut config.clients {
            if client.certificate.is_none() && client.token_sha256.is_none() {
                client.token = Some(Secret::new(TOKEN));
            }
        }
        config
    }

    #[test]
    fn an_address_that_others_reach_wants_clients_or_a_loud_word() {
        let open: SocketAddr = "10.0.0.1:7900".parse().expect("addr");
        let loopback: SocketAddr = "127.0.0.1:7900".parse().expect("addr");
        let none = AuthConfig::default();
        assert!(none.validate(loopback, false).is_ok());
        let error = none.validate(open, false).expect_err("open to all");
        assert!(error.to_string().contains("insecure = true"), "{error}");
        assert!(none.validate(open, true).is_ok(), "certificates will do");
        let loud = config(r#"{"insecure":true}"#);
        assert!(loud.validate(open, false).is_ok());
        let clients = known(r#"{"name":"ci","role":"operate"}"#);
        assert!(clients.validate(open, false).is_ok());
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_path() {
        let at: SocketAddr = "127.0.0.1:1".parse().expect("addr");
        for (client, path) in [
            (
                r#"{"name":"a","role":"register"}"#,
                "auth.clients[0].services",
            ),
            (
                r#"{"name":"a","role":"read","services":["b"]}"#,
                "auth.clients[0].services",
            ),
            (
                r#"{"name":"a","role":"register","services":["*"]}"#,
                "auth.clients[0].services",
            ),
            (
                r#"{"name":"a","role":"register","services":["No"]}"#,
                "auth.clients[0].services",
            ),
            (
                r#"{"name":"a","role":"operate","max_instances":1}"#,
                "auth.clients[0].max_instances",
            ),
            (
                r#"{"name":"a","role":"read","token_sha256":"12"}"#,
                "auth.clients[0].token_sha256",
            ),
            (
                r#"{"name":"a","role":"read","certificate":"x"}"#,
                "auth.clients[0].certificate",
            ),
        ] {
            let error = known(client).validate(at, false).expect_err(client);
            assert_eq!(error.path, path, "{error}");
        }
        let mut short = known(r#"{"name":"a","role":"read"}"#);
        short.clients[0].token = Some(Secret::new("hunter2"));
        let error = short.validate(at, false).expect_err("guessable");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let mut no_peer = known(r#"{"name":"a","role":"read"}"#);
        no_peer.peer = None;
        assert_eq!(
            no_peer.validate(at, false).expect_err("no peer").path,
            "auth.peer"
        );
    }

    #[test]
    fn each_role_may_what_the_table_says() {
        let (orders, shop) = (name("orders"), name("shop-cart"));
        for (role, services, may) in [
            ("read", "[]", [true, false, false, false, false]),
            (
                "register",
                r#"["orders"]"#,
                [true, true, false, false, false],
            ),
            (
                "register",
                r#"["shop-*"]"#,
                [true, false, true, false, false],
            ),
            ("operate", "[]", [true, true, true, true, false]),
        ] {
            let client = format!(r#"{{"name":"c","role":"{role}","services":{services}}}"#);
            let auth = Auth::new(&known(&client));
            let bearer = format!("Bearer {TOKEN}");
            let caller = auth.who(Some(bearer.as_bytes()), &[]).expect("known");
            let got = [
                caller.may_read(),
                caller.may_register(&orders),
                caller.may_register(&shop),
                caller.may_operate(),
                caller.is_peer(),
            ];
            assert_eq!(got, may, "{role} {services}");
        }
    }

    #[test]
    fn a_wrong_token_is_never_taken_for_anonymous() {
        let mut config = known(r#"{"name":"c","role":"read"}"#);
        config.anonymous = Anonymous::Read;
        let auth = Auth::new(&config);
        assert!(auth.who(None, &[]).expect("anonymous").may_read());
        let basic = {
            use base64::{Engine, engine::general_purpose::STANDARD};
            format!("Basic {}", STANDARD.encode(format!("me:{TOKEN}")))
        };
        assert_eq!(
            &**auth
                .who(Some(basic.as_bytes()), &[])
                .expect("eureka")
                .name(),
            "c"
        );
        for wrong in [
            "Bearer x",
            "Bearer",
            "",
            "Digest a",
            &format!("Bearer {TOKEN}x"),
        ] {
            assert!(auth.who(Some(wrong.as_bytes()), &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_certificate_and_a_hash_do_as_well_as_a_token() {
        let certificate = r#"{"name":"c","role":"read","certificate":"spiffe://mesh/c"}"#;
        let auth = Auth::new(&known(certificate));
        let names = ["spiffe://mesh/c".to_owned()];
        assert!(auth.who(None, &names).expect("known").may_read());
        assert!(!auth.who(None, &[]).expect("nobody").may_read());
        let hex = hash(TOKEN.as_bytes())
            .iter()
            .fold(String::new(), |mut hex, byte| {
                use std::fmt::Write;
                write!(hex, "{byte:02x}").expect("a string takes all");
                hex
            });
        let auth = Auth::new(&known(&format!(
            r#"{{"name":"c","role":"read","token_sha256":"{hex}"}}"#
        )));
        let bearer = format!("bearer {TOKEN}");
        assert!(auth.who(Some(bearer.as_bytes()), &[]).is_ok());
    }

    #[test]
    fn nothing_that_is_shown_holds_a_secret() {
        let config = known(r#"{"name":"c","role":"read"}"#);
        let auth = Auth::new(&config);
        let dump = serde_json::to_string(&config).expect("json");
        for shown in [format!("{config:?} {auth:?}"), dump] {
            assert!(
                !shown.contains(TOKEN) && !shown.contains("own secret"),
                "{shown}"
            );
        }
    }
}
