//! What a server says of itself by gossip, and the limits on it.
//!
//! Every fact of every server is cloned on each change, in every server, under the lock that
//! gossip itself needs; a value that is too long is cut or blocks what comes after it. So facts are
//! few and small, and whoever publishes more is refused here, not surprised there.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use chitchat::{Chitchat, NodeState};
use selvedge_registry::{Locality, wire::MemberState};

/// Bytes that one fact may have. Source: chitchat never delivers an operation larger than what is
/// left of its 64 KiB datagram; 1 KiB keeps all facts of a server well below it.
pub const MAX_FACT: usize = 1 << 10;
/// Bytes of a fact's name. A guess: they are our own names.
pub const MAX_NAME: usize = 64;
/// Facts that one server may have, its address and state among them. Source: a change of one clones
/// all of them, in every server.
pub const MAX_FACTS: usize = 20;
/// Bytes of all facts of a server together.
pub const MAX_FACTS_BYTES: usize = 4 << 10;

const HTTP: &str = "http";
const STATE: &str = "state";
const REGION: &str = "region";
const ZONE: &str = "zone";
/// The head of a server's own log.
pub const HEAD: &str = "head";
/// The hashes of what a server owns.
pub const BUCKETS: &str = "buckets";
const OWN: [&str; 4] = [HTTP, STATE, REGION, ZONE];

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its life.
    pub generation: u64,
    /// Where it gossips.
    pub gossip: SocketAddr,
    /// Where its API is.
    pub http: SocketAddr,
    /// How it is.
    pub state: MemberState,
    /// Where it runs.
    pub locality: Locality,
    /// The head of its log, as published under [`HEAD`].
    pub head: Option<String>,
    /// The hashes of what it owns, as published under [`BUCKETS`].
    pub buckets: Option<String>,
    /// Everything else it has published, by name.
    pub facts: BTreeMap<String, String>,
}

impl Member {
    /// Whether it takes part: it is heard of and has not left.
    pub fn is_present(&self) -> bool {
        self.state.is_present()
    }
}

/// A state as it is gossiped, and shown.
pub(crate) fn text(state: MemberState) -> &'static str {
    match state {
        MemberState::Joining => "joining",
        MemberState::Serving => "serving",
        MemberState::Draining => "draining",
        MemberState::Left => "left",
        MemberState::Dead => "dead",
    }
}

/// The facts a server begins with.
pub(super) fn first_facts(http: SocketAddr, locality: &Locality) -> Vec<(String, String)> {
    let facts = [
        (HTTP, http.to_string()),
        (STATE, text(MemberState::Joining).to_owned()),
        (REGION, locality.region.clone()),
        (ZONE, locality.zone.clone()),
    ];
    facts.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

/// A node's facts; `None` while they have not all arrived.
pub(super) fn read(generation: u64, state: &NodeState) -> Option<Member> {
    let state_of = |text: &str| match text {
        "joining" => Some(MemberState::Joining),
        "serving" => Some(MemberState::Serving),
        "draining" => Some(MemberState::Draining),
        "left" => Some(MemberState::Left),
        _ => None,
    };
    let other = |key: &str| !OWN.contains(&key) && key != HEAD && key != BUCKETS;
    let facts = state.key_values().filter(|(key, _)| other(key));
    Some(Member {
        generation,
        gossip: state.chitchat_id().gossip_advertise_addr,
        http: state.get(HTTP)?.parse().ok()?,
        state: state_of(state.get(STATE)?)?,
        locality: Locality {
            region: state.get(REGION)?.to_owned(),
            zone: state.get(ZONE)?.to_owned(),
        },
        head: state.get(HEAD).map(str::to_owned),
        buckets: state.get(BUCKETS).map(str::to_owned),
        facts: facts.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    })
}

/// A fact that gossip would not carry well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FactRefused {
    /// Its name cannot be used.
    #[error(
        "publish {name:?}: a name is 1 to {MAX_NAME} of a-z, 0-9, '-', '_', '.' and '/', not one of {OWN:?}"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// It is too long.
    #[error("publish {name}: {length} bytes, allowed are {MAX_FACT}")]
    TooLong {
        /// The fact's name.
        name: String,
        /// Its length.
        length: usize,
    },
    /// There are too many already.
    #[error(
        "publish {name}: a server has at most {MAX_FACTS} facts of together {MAX_FACTS_BYTES} bytes"
    )]
    TooMany {
        /// The fact's name.
        name: String,
    },
}

/// Tells the others how this server is.
#[derive(Clone)]
pub struct Announcer(pub(super) Arc<tokio::sync::Mutex<Chitchat>>);

impl std::fmt::Debug for Announcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Announcer")
    }
}

impl Announcer {
    /// Says so from the next round of gossip on. Cancel-safe.
    pub async fn set(&self, state: MemberState) {
        self.0
            .lock()
            .await
            .self_node_state()
            .set(STATE, text(state));
    }

    /// Publishes a fact, or changes it. A value that has not changed costs nothing; publish at
    /// most once per gossip interval. Cancel-safe.
    ///
    /// # Errors
    /// [`FactRefused`] if it is more than gossip should carry; what was published before stays.
    pub async fn publish(&self, name: &str, value: &str) -> Result<(), FactRefused> {
        check(name, value)?;
        let mut chitchat = self.0.lock().await;
        let state = chitchat.self_node_state();
        let (count, bytes) = state
            .key_values()
            .filter(|(key, _)| *key != name)
            .fold((1, name.len() + value.len()), |(count, bytes), (k, v)| {
                (count + 1, bytes + k.len() + v.len())
            });
        if count > MAX_FACTS || bytes > MAX_FACTS_BYTES {
            return Err(FactRefused::TooMany { name: name.into() });
        }
        state.set(name, value);
        Ok(())
    }

    /// Takes a fact back. Cancel-safe.
    pub async fn withdraw(&self, name: &str) {
        if !OWN.contains(&name) {
            self.0.lock().await.self_node_state().delete(name);
        }
    }
}

fn check(name: &str, value: &str) -> Result<(), FactRefused> {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/');
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed);
    if !fits || OWN.contains(&name) {
        let name = name.chars().take(MAX_NAME).collect();
        return Err(FactRefused::Name { name });
    }
    if value.len() > MAX_FACT {
        return Err(FactRefused::TooLong {
            name: name.into(),
            length: value.len(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_that_gossip_would_not_carry_are_refused_by_name() {
        let long = "x".repeat(MAX_FACT + 1);
        for (name, value, want) in [
            ("head", "1:2:3:4", None),
            ("b/07", &long[1..], None),
            ("b/07", long.as_str(), Some("1025 bytes, allowed are 1024")),
            ("", "v", Some("1 to 64")),
            ("State", "v", Some("1 to 64")),
            ("state", "serving", Some("not one of")),
        ] {
            let got = check(name, value).map_err(|error| error.to_string());
            match (want, got) {
                (None, got) => assert_eq!(got, Ok(()), "{name}"),
                (Some(hint), got) => {
                    let message = got.expect_err(name);
                    assert!(message.contains(hint), "{name}: {message}");
                }
            }
        }
    }
}
