//! The keys that gossip is sealed with, and how they change while it runs.
//!
//! One key seals, several open: so a new key is installed everywhere first, then used everywhere,
//! then the old one is removed everywhere, and at no moment do two servers fail to understand each
//! other. A cluster that began without keys gets them the same way: install, then seal what goes
//! out, then refuse what comes in unsealed.
//!
//! # Guarantees
//! - A key is never shown, logged or written: only its id is, which tells nothing about it.
//! - The key that seals cannot be removed; an id names one key at most.
//! - Readers take no lock.
//!
//! # What it does not do
//! Keep what was changed at run time: after a restart the configuration counts, so change it too.
//!
//! # Source
//! memberlist's keyring and Consul's `verify_incoming`, `verify_outgoing`.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use ring::{
    aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey},
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use serde::Serialize;

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// Keys a ring holds. A guess: a rotation needs two.
pub const MAX_KEYS: usize = 8;

/// What a key is called: tells which to open with, and nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub(super) [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}
impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for KeyId {
    type Err = KeyringError;
    fn from_str(text: &str) -> Result<Self, KeyringError> {
        let hex = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = u32::from_str_radix(text, 16).ok().filter(|_| hex);
        id.map(|id| Self(id.to_be_bytes()))
            .ok_or_else(|| KeyringError::Unknown {
                id: text.chars().take(16).collect(),
            })
    }
}

/// Why a keyring was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// Not a key. What it was is not said.
    #[error(
        "not a gossip key: expected {KEY_LEN} bytes in base64, as `selvedge-registry keygen` prints"
    )]
    Malformed,
    /// No such key.
    #[error("no key {id} is installed")]
    Unknown {
        /// What was asked for.
        id: String,
    },
    /// The primary key stays.
    #[error("key {id} is the primary key: use another one first")]
    Primary {
        /// The key.
        id: KeyId,
    },
    /// There are enough.
    #[error("{MAX_KEYS} keys are installed already: remove one first")]
    Full,
    /// Another key has the same id.
    #[error("another key has the id {id} too: generate a new one")]
    Collision {
        /// The id.
        id: KeyId,
    },
    /// Nothing can be sealed.
    #[error("no key is installed: install one first")]
    Empty,
}

/// A key.
pub struct Key {
    id: KeyId,
    /// For telling the same key from one with the same id.
    check: [u8; 32],
    aead: LessSafeKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Key {
    /// Reads a key as [`generate`] writes it.
    ///
    /// # Errors
    /// [`KeyringError::Malformed`], without saying what it was.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let bytes = STANDARD.decode(text.trim());
        let bytes = bytes.map_err(|_| KeyringError::Malformed)?;
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
        let aead = LessSafeKey::new(unbound.map_err(|_| KeyringError::Malformed)?);
        let named = [b"selvedge gossip key id".as_slice(), &bytes].concat();
        let mut check = [0; 32];
        check.copy_from_slice(digest(&SHA256, &named).as_ref());
        let [a, b, c, d, ..] = check;
        let id = KeyId([a, b, c, d]);
        Ok(Self { id, check, aead })
    }

    /// What it is called.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(super) fn aead(&self) -> &LessSafeKey {
        &self.aead
    }
}

/// The system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system has no randomness to give")]
pub struct NoRandomness;

/// A new key, as configuration and [`Key::parse`] take it.
///
/// # Errors
/// [`NoRandomness`].
pub fn generate() -> Result<String, NoRandomness> {
    let mut bytes = [0; KEY_LEN];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| NoRandomness)?;
    Ok(STANDARD.encode(bytes))
}

/// What an operator sees of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// What it is called.
    pub id: String,
    /// Whether it seals.
    pub primary: bool,
}

/// The keys; the first one seals.
type Ring = Vec<Arc<Key>>;

/// The keys of a server, and what it insists on.
#[derive(Debug, Default)]
pub struct Keyring {
    ring: ArcSwap<Ring>,
    changing: Mutex<()>,
    verify_incoming: AtomicBool,
    verify_outgoing: AtomicBool,
}

impl Keyring {
    /// The first of `keys` seals, every one opens. Without any, nothing is sealed nor verified,
    /// until that is asked for.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn new(
        keys: impl IntoIterator<Item = Key>,
        verify_incoming: bool,
        verify_outgoing: bool,
    ) -> Result<Self, KeyringError> {
        let ring = Self::default();
        for key in keys {
            ring.install(key)?;
        }
        if !ring.ring.load().is_empty() {
            ring.verify(verify_incoming, verify_outgoing)?;
        }
        Ok(ring)
    }

    fn change<T>(
        &self,
        with: impl FnOnce(&mut Ring) -> Result<T, KeyringError>,
    ) -> Result<T, KeyringError> {
        let _one_at_a_time = self.changing.lock();
        let mut ring = Ring::clone(&self.ring.load());
        let done = with(&mut ring)?;
        self.ring.store(Arc::new(ring));
        Ok(done)
    }

    /// `key` opens from now on; the first one seals too. One that is there already stays.
    ///
    /// # Errors
    /// [`KeyringError::Full`] or [`KeyringError::Collision`].
    pub fn install(&self, key: Key) -> Result<KeyId, KeyringError> {
        let id = key.id;
        self.change(|ring| match ring.iter().find(|known| known.id == id) {
            Some(known) if known.check == key.check => Ok(id),
            Some(_) => Err(KeyringError::Collision { id }),
            None if ring.len() >= MAX_KEYS => Err(KeyringError::Full),
            None => {
                ring.push(Arc::new(key));
                Ok(id)
            }
        })
    }

    /// The key `id` seals from now on.
    ///
    /// # Errors
    /// [`KeyringError::Unknown`].
    pub fn use_key(&self, id: KeyId) -> Result<(), KeyringError> {
        self.change(|ring| {
            let at = position(ring, id)?;
            let key = ring.remove(at);
            ring.insert(0, key);
            Ok(())
        })
    }

    /// The key `id` no longer opens.
    ///
    /// # Errors
    /// [`KeyringError::Unknown`], or [`KeyringError::Primary`] for the key that seals.
    pub fn remove(&self, id: KeyId) -> Result<(), KeyringError> {
        self.change(|ring| match position(ring, id)? {
            0 => Err(KeyringError::Primary { id }),
            at => {
                ring.remove(at);
                Ok(())
            }
        })
    }

    /// Insists, or no longer insists, on sealed datagrams: `incoming`, that what is not sealed is
    /// refused; `outgoing`, that what is sent is sealed.
    ///
    /// # Errors
    /// [`KeyringError::Empty`] without a key.
    pub fn verify(&self, incoming: bool, outgoing: bool) -> Result<(), KeyringError> {
        let _one_at_a_time = self.changing.lock();
        if self.ring.load().is_empty() && (incoming || outgoing) {
            return Err(KeyringError::Empty);
        }
        self.verify_incoming.store(incoming, Ordering::Relaxed);
        self.verify_outgoing.store(outgoing, Ordering::Relaxed);
        Ok(())
    }

    /// Every key's id, the one that seals first.
    pub fn list(&self) -> Vec<KeyInfo> {
        let ring = self.ring.load();
        let info = |(at, key): (usize, &Arc<Key>)| KeyInfo {
            id: key.id.to_string(),
            primary: at == 0,
        };
        ring.iter().enumerate().map(info).collect()
    }

    /// Whether what is not sealed is refused.
    pub fn verifies_incoming(&self) -> bool {
        self.verify_incoming.load(Ordering::Relaxed)
    }

    /// Whether what is sent is sealed.
    pub fn verifies_outgoing(&self) -> bool {
        self.verify_outgoing.load(Ordering::Relaxed)
    }

    /// The key to seal with, if what is sent is to be sealed.
    pub(super) fn sealing(&self) -> Option<Arc<Key>> {
        let ring = self.ring.load();
        ring.first().filter(|_| self.verifies_outgoing()).cloned()
    }

    /// The key of this id.
    pub(super) fn find(&self, id: [u8; 4]) -> Option<Arc<Key>> {
        self.ring.load().iter().find(|key| key.id.0 == id).cloned()
    }
}

fn position(ring: &Ring, id: KeyId) -> Result<usize, KeyringError> {
    ring.iter()
        .position(|key| key.id == id)
        .ok_or_else(|| KeyringError::Unknown { id: id.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::parse(&generate().expect("random")).expect("a key")
    }

    #[test]
    fn any_installed_key_opens_the_primary_seals_and_stays() {
        let (old, new) = (key(), key());
        let (old_id, new_id) = (old.id(), new.id());
        let ring = Keyring::new([old], true, true).expect("a ring");
        let primary = || ring.sealing().expect("one").id();
        assert_eq!(ring.install(new), Ok(new_id));
        assert_eq!(primary(), old_id, "installing does not use");
        assert!(ring.find(new_id.0).is_some() && ring.find(old_id.0).is_some());
        assert_eq!(
            ring.remove(old_id),
            Err(KeyringError::Primary { id: old_id })
        );
        ring.use_key(new_id).expect("installed");
        assert_eq!(primary(), new_id);
        ring.remove(old_id).expect("no longer primary");
        assert!(ring.find(old_id.0).is_none());
        let unknown = KeyringError::Unknown {
            id: old_id.to_string(),
        };
        assert_eq!(ring.use_key(old_id), Err(unknown.clone()));
        assert_eq!(ring.remove(old_id), Err(unknown));
        let listed: Vec<(String, bool)> =
            ring.list().into_iter().map(|k| (k.id, k.primary)).collect();
        assert_eq!(listed, [(new_id.to_string(), true)]);
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_the_same_key_counts_once() {
        let text = generate().expect("random");
        let ring = Keyring::new([], true, true).expect("empty");
        assert_eq!(ring.verify(true, true), Err(KeyringError::Empty));
        for _ in 0..3 {
            ring.install(Key::parse(&text).expect("a key"))
                .expect("there already");
        }
        assert_eq!(ring.list().len(), 1);
        for _ in 1..MAX_KEYS {
            ring.install(key()).expect("room");
        }
        assert_eq!(ring.install(key()), Err(KeyringError::Full));
        assert!(
            ring.sealing().is_none(),
            "began without keys: nothing is sealed yet"
        );
        ring.verify(false, true).expect("has keys");
        assert!(ring.sealing().is_some() && !ring.verifies_incoming());
    }

    #[test]
    fn what_is_not_a_key_is_refused_and_not_repeated() {
        for text in ["", "hunter2", "aHVudGVyMg==", &"A".repeat(44)] {
            let error = Key::parse(text).expect_err(text).to_string();
            assert!(error.contains("32 bytes in base64"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        let text = generate().expect("random");
        let shown = format!(
            "{:?}",
            Keyring::new([Key::parse(&text).expect("key")], true, true)
        );
        assert!(!shown.contains(&text[..8]), "{shown}");
        for text in ["", "1", "123456789", "+1234567", "zzzzzzzz"] {
            assert!(text.parse::<KeyId>().is_err(), "{text}");
        }
        assert_eq!(
            "00ab12ff".parse::<KeyId>().expect("id").to_string(),
            "00ab12ff"
        );
    }
}
