//! The ring itself: a value, computed from its members and from nothing else.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use super::farmhash::fingerprint32;

/// Points a member has on the ring. Source: ringpop-go `options.go`, `ReplicaPoints: 100`; the
/// shares of three members are then within 6 % of the mean.
pub const POINTS: u32 = 100;

/// A member of a ring.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Where it is reached, `host:port`; unique on the ring.
    pub address: Arc<str>,
    /// What its points are made of instead of its address, so that a member that moves keeps its
    /// keys. Two members may share one; then they share its keys too, the lower address first.
    pub identity: Option<Arc<str>>,
}

impl Member {
    /// A member whose points are made of its address.
    pub fn new(address: impl Into<Arc<str>>) -> Self {
        Self {
            address: address.into(),
            identity: None,
        }
    }

    /// With points made of `identity`.
    #[must_use]
    pub fn identity(mut self, identity: impl Into<Arc<str>>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    fn label(&self) -> &str {
        self.identity.as_deref().unwrap_or(&self.address)
    }
}

/// One point: its place, whose it is, and which of that member's it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub(super) hash: u32,
    // Members are sorted by address, so this orders by address.
    pub(super) member: u32,
    pub(super) index: u32,
}

/// Who owns which key.
///
/// # Guarantees
/// - The same members give the same ring, whatever the order in which they are named.
/// - A member that comes takes keys, one that goes leaves keys; nothing moves between the others.
#[derive(Clone, PartialEq, Eq)]
pub struct HashRing {
    members: Vec<Member>,
    pub(super) points: Vec<Point>,
    checksum: u32,
    replica_checksum: u32,
}

impl fmt::Debug for HashRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashRing")
            .field("members", &self.members)
            .field("points", &self.points.len())
            .field("checksum", &self.checksum)
            .finish_non_exhaustive()
    }
}

impl Default for HashRing {
    fn default() -> Self {
        Self::new([])
    }
}

impl HashRing {
    /// A ring of [`POINTS`] points a member. An address named twice counts once, with the greater
    /// identity. O(n log n) in points.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        Self::with_points(members, POINTS)
    }

    /// A ring of `points` points a member; fewer are cheaper and less even.
    pub fn with_points(members: impl IntoIterator<Item = Member>, points: u32) -> Self {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_by(|a, b| (&a.address, &b.identity).cmp(&(&b.address, &a.identity)));
        members.dedup_by(|a, b| a.address == b.address);
        let mut ring = Self {
            points: place(&members, points),
            members,
            checksum: 0,
            replica_checksum: 0,
        };
        ring.checksum = ring.sum_members();
        ring.replica_checksum = ring.sum_points();
        ring
    }

    /// Its members, by address.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether it has no members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The same for two rings of the same members (Ringpop's legacy checksum): cheap to compare
    /// before a key is handed over.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// The same for two rings with the same points (Ringpop's replica checksum): sees a different
    /// number of points, or identities that swapped addresses, too.
    pub fn replica_checksum(&self) -> u32 {
        self.replica_checksum
    }

    /// The owner of `key`; `None` if the ring is empty. O(log n); no allocation.
    pub fn lookup(&self, key: impl AsRef<[u8]>) -> Option<&Member> {
        self.walk(key.as_ref()).next()
    }

    /// The `n` distinct members that keep `key`, its owner first, then in ring order; all of them
    /// if there are fewer.
    pub fn lookup_n(&self, key: impl AsRef<[u8]>, n: usize) -> Vec<&Member> {
        let mut found: Vec<&Member> = Vec::with_capacity(n.min(self.members.len()));
        for member in self.walk(key.as_ref()) {
            if found.len() == n.min(self.members.len()) {
                break;
            }
            // Distinct by address; `n` is a replication factor, so this stays short.
            if !found.iter().any(|known| known.address == member.address) {
                found.push(member);
            }
        }
        found
    }

    /// Every point from `key`'s place on, once around.
    fn walk(&self, key: &[u8]) -> impl Iterator<Item = &Member> {
        let hash = fingerprint32(key);
        let from = self.points.partition_point(|point| point.hash < hash);
        let (before, after) = self.points.split_at(from);
        let around = after.iter().chain(before);
        around.map(|point| &self.members[point.member as usize])
    }

    fn sum_members(&self) -> u32 {
        let mut labels: Vec<&str> = self.members.iter().map(Member::label).collect();
        labels.sort_unstable();
        labels.dedup();
        fingerprint32(labels.join(";").as_bytes())
    }

    fn sum_points(&self) -> u32 {
        let mut text = String::with_capacity(self.points.len() * 28);
        for point in &self.points {
            let address = &self.members[point.member as usize].address;
            write!(text, "{}-{address};", point.hash).expect("strings take everything");
        }
        fingerprint32(text.as_bytes())
    }
}

fn place(members: &[Member], count: u32) -> Vec<Point> {
    let mut points = Vec::with_capacity(members.len() * count as usize);
    let mut text = String::new();
    for (at, member) in members.iter().enumerate() {
        for index in 0..count {
            text.clear();
            let written = match &member.identity {
                Some(identity) if **identity != *member.address => {
                    write!(text, "{identity}#{index}")
                }
                _ => write!(text, "{}{index}", member.address),
            };
            written.expect("strings take everything");
            points.push(Point {
                hash: fingerprint32(text.as_bytes()),
                member: at as u32,
                index,
            });
        }
    }
    // Equal hashes happen: the order of addresses settles them alike everywhere.
    points.sort_unstable();
    points
}
