//! Who of a service's instances owns a key, and how a request gets there.
//!
//! State that is spread over instances (sessions, counters, caches, actors) needs one place for
//! each key. A table of keys needs a store, and a modulus moves nearly every key when an instance
//! comes or goes. A consistent-hash ring is computed by everybody from the list of instances
//! alone: who has the same list has the same ring, and a change moves only the keys of whoever
//! came or went.
//!
//! ```text
//!  ServiceWatch ──► Ring (ArcSwap<HashRing>) ──► lookup(key) ──► mine: handle
//!                                                  └───────────► another's: forward, once
//! ```
//!
//! - [`HashRing`]: the ring as a value; [`fingerprint32`]: its hash.
//! - [`Ring`] (feature `client`): the ring of a service, kept up to date.
//! - [`ForwardLayer`] (feature `client`): a Tower layer that handles a request whose key is this
//!   instance's and forwards any other to its owner.
//!
//! # Guarantees
//! Two instances with the same list agree on the owner of every key. A request is forwarded once
//! at most; one forwarded by an instance with another list is refused and looked up again.
//!
//! # What it does not do
//! Exclude that two instances believe for a moment that both own a key: discovery is available
//! rather than consistent, so while a change travels, lists differ. State that must have one
//! writer needs a fencing token or a store that compares and swaps.
//!
//! # Source
//! Karger et al., "Consistent Hashing and Random Trees", 1997; Uber's Ringpop (ringpop-go
//! `hashring`, `forward`): points, labels, checksums and retry times are its, so that the values
//! are the same.

mod farmhash;
mod hash_ring;

#[cfg(feature = "client")]
mod exchange;
#[cfg(feature = "client")]
mod follow;
#[cfg(feature = "client")]
mod forward;

#[cfg(test)]
#[cfg(feature = "client")]
mod forward_tests;
#[cfg(test)]
mod tests;

pub use self::{
    farmhash::fingerprint32,
    hash_ring::{HashRing, Member, POINTS},
};
#[cfg(feature = "client")]
pub use self::{
    follow::{Labels, Ring},
    forward::{FORWARDED, Forward, ForwardConfig, ForwardLayer, KEYS, MISMATCH, RingBody},
};
