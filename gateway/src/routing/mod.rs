//! Which rule a request belongs to.
//!
//! A gateway that tries its rules in the order of the file is slow with a thousand of them and
//! wrong with two: whether `/v2` is served depends on who edited the file last. Gateway API's
//! `HTTPRoute` gives an order that does not depend on the file, and this module is that order as a
//! data structure, built once at a reload and only read afterwards:
//!
//! ```text
//! RouteTable
//!  └ host: exact → longest wildcard suffix → any          a level that has no match falls to the next
//!     └ path: exact → deepest prefix → shorter prefixes   a leaf that has no match falls to the next
//!        └ method > more headers > more query parameters > earlier in the file
//! ```
//!
//! # Guarantees
//! - The same rules in any order of declaration route alike, but for true ties, which the earlier
//!   one wins.
//! - Two rules that match exactly the same requests are refused: the later would never be used.
//! - A lookup allocates nothing and costs one walk over the path, plus the candidates that share a
//!   path.
//!
//! # What it does not do
//! It does not normalise paths (`selvedge_proxy` has, before anything is matched), and knows
//! nothing of destinations: the answer is an index into the caller's rules.
//!
//! # Source
//! Gateway API v1, `HTTPRouteRule` and `HTTPRouteMatch`: precedence and matching; hostname fallback
//! inside a listener as its text reads (Envoy's virtual hosts answer 404 instead).

mod host;
mod pattern;
mod table;
mod trie;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use self::{
    host::canonical_host,
    pattern::{HostPattern, PathPattern, PatternError, Rule},
    table::{Duplicate, RouteTable, RuleIndex},
};
