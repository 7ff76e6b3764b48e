//! What gossip sends, receives and refuses, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Digest bytes at which an operator should know. Source: half of what stops chitchat for good.
const LARGE_DIGEST: u64 = 32 << 10;

/// Why a datagram, or a message, was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// Not one of ours: its length or its first bytes.
    Malformed,
    /// Its source is in none of the allowed networks.
    Forbidden,
    /// Of another cluster, as it says itself.
    OtherCluster,
    /// Not sealed, where that is required.
    Unsealed,
    /// Sealed with a key that is not installed.
    UnknownKey,
    /// Does not open: changed on the way, made up, or of another cluster.
    Forged,
    /// Sent by this very server.
    Reflected,
    /// Sealed for another server, or for an earlier life of this one.
    Misaddressed,
    /// Seen before, or too old to tell.
    Replayed,
    /// A piece that fits nothing.
    BadFragment,
    /// A message whose pieces did not all arrive.
    Incomplete,
    /// Opens, but chitchat does not understand it.
    Undecodable,
    /// Nobody took it in time.
    QueueFull,
    /// The socket would not send it.
    SendFailed,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 14] = [
        Self::Malformed,
        Self::Forbidden,
        Self::OtherCluster,
        Self::Unsealed,
        Self::UnknownKey,
        Self::Forged,
        Self::Reflected,
        Self::Misaddressed,
        Self::Replayed,
        Self::BadFragment,
        Self::Incomplete,
        Self::Undecodable,
        Self::QueueFull,
        Self::SendFailed,
    ];

    /// Its name in metrics.
    pub fn text(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Forbidden => "forbidden",
            Self::OtherCluster => "other_cluster",
            Self::Unsealed => "unsealed",
            Self::UnknownKey => "unknown_key",
            Self::Forged => "forged",
            Self::Reflected => "reflected",
            Self::Misaddressed => "misaddressed",
            Self::Replayed => "replayed",
            Self::BadFragment => "bad_fragment",
            Self::Incomplete => "incomplete",
            Self::Undecodable => "undecodable",
            Self::QueueFull => "queue_full",
            Self::SendFailed => "send_failed",
        }
    }
}

/// How a digest was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// As chitchat wrote it.
    Full,
    /// In a byte or two for each server: [`compact`](super::compact).
    Short,
    /// In full because the peer could not make it out of the short form; counted as
    /// [`Full`](Self::Full) too.
    Again,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Full, Self::Short, Self::Again];

    /// Its name in metrics.
    pub fn text(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Short => "short",
            Self::Again => "again",
        }
    }
}

/// Counters of one server's gossip; they only grow, but for the digest's size.
#[derive(Debug, Default)]
pub struct Traffic {
    dropped: [AtomicU64; DropReason::ALL.len()],
    digests: [AtomicU64; Form::ALL.len()],
    sent_datagrams: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    digest: AtomicU64,
}

impl Traffic {
    /// Counts `n` of something dropped.
    pub(super) fn dropped_n(&self, reason: DropReason, n: u64) {
        if let Some(count) = self.dropped.get(reason as usize) {
            count.fetch_add(n, Ordering::Relaxed);
        }
    }

    pub(super) fn dropped(&self, reason: DropReason) {
        self.dropped_n(reason, 1);
    }

    pub(super) fn digest_sent(&self, form: Form) {
        if let Some(count) = self.digests.get(form as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_datagrams.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether the digest has just become large.
    #[must_use]
    pub(super) fn digest_was(&self, bytes: usize) -> bool {
        let before = self.digest.swap(bytes as u64, Ordering::Relaxed);
        before <= LARGE_DIGEST && bytes as u64 > LARGE_DIGEST
    }

    /// Dropped for `reason`.
    pub fn count(&self, reason: DropReason) -> u64 {
        self.dropped
            .get(reason as usize)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Digests sent in this form.
    pub fn digests(&self, form: Form) -> u64 {
        self.digests
            .get(form as usize)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Datagrams sent.
    pub fn sent_datagrams(&self) -> u64 {
        self.sent_datagrams.load(Ordering::Relaxed)
    }

    /// Bytes of datagrams sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of datagrams received, dropped ones too.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the digest last sent, before it was made short. Gossip stops for good at some 65,000.
    pub fn digest_bytes(&self) -> u64 {
        self.digest.load(Ordering::Relaxed)
    }
}
