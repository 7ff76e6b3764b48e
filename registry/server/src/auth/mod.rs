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
//! - A token that is given by a file is what the file holds: it is read again every half minute. The
//!   old token is nobody's from then on, and what is being watched by it ends. A file that cannot be
//!   used changes nothing and is said in the log.
//!
//! # What it does not do
//! Tell two servers of one cluster apart (they share one secret). Take clients, their rights and
//! `auth.peer` anew without a restart.

mod config;
mod renew;

use std::{future::Future, sync::Arc};

use arc_swap::ArcSwap;

use ring::digest::{SHA256, digest};
use selvedge_registry::ServiceName;
use tokio_util::sync::CancellationToken;

pub use self::config::{Anonymous, AuthConfig, ClientConfig, Pattern, Role};
use self::{config::from_hex, renew::TokenFile};

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
    /// Its token is another one by now.
    revoked: CancellationToken,
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
            revoked: CancellationToken::new(),
        }))
    }

    /// The same client, by another token.
    fn renewed(&self) -> Self {
        Self(Arc::new(Known {
            name: Arc::clone(&self.0.name),
            may: self.0.may,
            patterns: self.0.patterns.clone(),
            max_instances: self.0.max_instances,
            revoked: CancellationToken::new(),
        }))
    }

    /// Resolves once the token that it has shown is no longer its own.
    pub(crate) fn revoked(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.revoked.clone().cancelled_owned()
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
/// Who presents a token that is nobody's.
const NOBODY: &str = "unknown";

/// Why a caller was not taken for anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownToken;

/// Who is known, ready to be asked.
#[derive(Debug)]
pub struct Auth {
    anonymous: Caller,
    unknown: Caller,
    tokens: ArcSwap<Tokens>,
    certificates: Vec<(String, Caller)>,
    files: Vec<TokenFile>,
}

type Tokens = Vec<([u8; 32], Caller)>;

impl Auth {
    /// By a configuration that was validated.
    pub fn new(config: &AuthConfig) -> Self {
        let mut auth = Self {
            anonymous: Caller::new(ANYBODY, May::Everything),
            unknown: Caller::new(NOBODY, May::Nothing),
            tokens: ArcSwap::default(),
            certificates: Vec::new(),
            files: Vec::new(),
        };
        let mut tokens = Tokens::new();
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
            tokens.push((hash(peer.expose().as_bytes()), caller));
        }
        for client in &config.clients {
            let patterns = client.services.iter();
            let caller = Caller(Arc::new(Known {
                name: client.name.as_str().into(),
                may: May::Role(client.role),
                patterns: patterns.filter_map(|p| Pattern::parse(p).ok()).collect(),
                max_instances: client.max_instances,
                revoked: CancellationToken::new(),
            }));
            let given = client.token.as_ref().map(|t| hash(t.expose().as_bytes()));
            let hashed = client.token_sha256.as_deref().and_then(from_hex);
            if let Some(hash) = given.or(hashed) {
                let file = client.token.as_ref().and_then(|token| token.file());
                let file = file.map(|path| TokenFile::new(tokens.len(), path));
                auth.files.extend(file);
                tokens.push((hash, caller.clone()));
            }
            if let Some(name) = &client.certificate {
                auth.certificates.push((name.clone(), caller));
            }
        }
        auth.tokens = ArcSwap::from_pointee(tokens);
        auth
    }

    /// Whoever presents a token that is nobody's, by the name that the audit log has for them.
    pub fn unknown(&self) -> Caller {
        self.unknown.clone()
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
        let tokens = self.tokens.load();
        if tokens.is_empty() && self.certificates.is_empty() {
            return Ok(self.anonymous.clone());
        }
        if let Some(value) = authorization {
            let token = token(value).ok_or(UnknownToken)?;
            let given = hash(&token);
            let mut found = None;
            for (hash, caller) in tokens.iter() {
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
mod tests;
