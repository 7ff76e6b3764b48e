//! Deadlines on the wire: how much time a callee has left.
//!
//! Clocks differ, so what travels is the time that remains, not the time at which it ends.
//!
//! | header | says | read | written |
//! |---|---|---|---|
//! | `grpc-timeout` | the whole call, 1 to 8 digits and a unit | yes | if it was there, or the call is gRPC |
//! | `x-envoy-expected-rq-timeout-ms` | what the callee has | yes | always |
//! | `x-envoy-upstream-rq-timeout-ms` | the whole call, as asked of a proxy | yes | if it was there |
//! | `x-envoy-upstream-rq-per-try-timeout-ms` | one try, as asked of a proxy | yes | if it was there |
//! | `Finagle-Ctx-com.twitter.finagle.Deadline` | two points of the wall clock | by [`extract_at`] | if it was there |
//!
//! The shortest counts, and a header that was there is replaced, never left to grant more time than
//! there is. Inside a process a deadline is a [`Deadline`]: a point of the clock that stands still
//! while the work goes on, carried in a request's extensions.
//!
//! # What it does not do
//! It trusts: a stranger can only shorten its own time, because what a policy allows still bounds it.
//! Finagle's header compares two machines' clocks; it is read where it is sent, and no better than
//! their synchronisation.
//!
//! # Source
//! gRPC over HTTP/2; Envoy `source/common/grpc/common.cc` and the router filter; Finagle
//! `Deadline.scala` (merge: the latest timestamp with the earliest deadline).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

use super::digits::number;
use crate::{classify::is_grpc_type, clock::nanos};

/// `grpc-timeout`.
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// `x-envoy-expected-rq-timeout-ms`.
pub static EXPECTED_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
/// `x-envoy-upstream-rq-timeout-ms`.
pub static UPSTREAM_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
/// `x-envoy-upstream-rq-per-try-timeout-ms`.
pub static PER_TRY_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
/// `finagle-ctx-com.twitter.finagle.deadline`.
pub static FINAGLE: HeaderName =
    HeaderName::from_static("finagle-ctx-com.twitter.finagle.deadline");

/// When a call must be over: a request extension, set by whoever reads the headers first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// `left` after `now`; `None` if that is further than the clock goes.
    pub fn after(now: Instant, left: Duration) -> Option<Self> {
        now.checked_add(left).map(Self)
    }

    /// The time that remains; zero if it has passed.
    pub fn left(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Whether nobody waits any more.
    pub fn has_passed(self, now: Instant) -> bool {
        self.0 <= now
    }

    /// The earlier of two that may be there.
    pub fn earlier(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }
}

/// How long a caller gives to the whole call and to one try of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Limits {
    /// All tries together.
    pub total: Option<Duration>,
    /// One try.
    pub per_try: Option<Duration>,
}

/// The time that the caller of `headers` still has; `None` if it did not say.
///
/// Finagle's header is not read: see [`extract_at`].
pub fn extract(headers: &HeaderMap) -> Option<Duration> {
    limits(headers).total
}

/// The same, with Finagle's header, which needs the wall clock; a deadline in the past is zero.
pub fn extract_at(headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
    Said::of(headers).left(wall)
}

/// What `headers` say of the whole call and of one try.
pub fn limits(headers: &HeaderMap) -> Limits {
    Said::of(headers).limits
}

/// All that headers say of deadlines, read in one pass over what there is: looking a name up hashes
/// it, and these are long.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Said {
    limits: Limits,
    grpc: bool,
    upstream: bool,
    has_finagle: bool,
    finagle: Option<FinagleDeadline>,
}

impl Said {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut said = Self::default();
        let limits = &mut said.limits;
        for (name, value) in headers {
            if *name == GRPC_TIMEOUT {
                said.grpc = true;
                limits.total = shortest(limits.total, parse_grpc(value.as_bytes()));
            } else if *name == EXPECTED_TIMEOUT_MS || *name == UPSTREAM_TIMEOUT_MS {
                said.upstream |= *name == UPSTREAM_TIMEOUT_MS;
                limits.total = shortest(limits.total, parse_ms(value));
            } else if *name == PER_TRY_TIMEOUT_MS {
                limits.per_try = shortest(limits.per_try, parse_ms(value));
            } else if *name == FINAGLE {
                // Of several, the first counts.
                if !said.has_finagle {
                    said.finagle = FinagleDeadline::parse(value);
                }
                said.has_finagle = true;
            } else if *name == CONTENT_TYPE {
                said.grpc |= is_grpc_type(value);
            }
        }
        said
    }

    /// Whether the wall clock matters.
    #[cfg(feature = "tower")]
    pub(crate) fn needs_wall(&self) -> bool {
        self.has_finagle
    }

    /// The time that the caller still has; `None` if it did not say.
    pub(crate) fn left(&self, wall: SystemTime) -> Option<Duration> {
        shortest(
            self.limits.total,
            self.finagle.map(|finagle| finagle.left(wall)),
        )
    }

    /// Tells the callee that it has `left`, in `headers`, which said this.
    pub(crate) fn replace(&self, headers: &mut HeaderMap, left: Duration) {
        let ms = whole_ms(left);
        if self.grpc {
            headers.insert(GRPC_TIMEOUT.clone(), format_grpc(ms));
        }
        if self.upstream {
            headers.insert(UPSTREAM_TIMEOUT_MS.clone(), number(ms));
        }
        if let Some(per_try) = self.limits.per_try {
            let ms = whole_ms(per_try.min(left));
            headers.insert(PER_TRY_TIMEOUT_MS.clone(), number(ms));
        }
        headers.insert(EXPECTED_TIMEOUT_MS.clone(), number(ms));
    }

    /// The same, and keeps Finagle's header in step if it is there.
    pub(crate) fn replace_at(&self, headers: &mut HeaderMap, left: Duration, wall: SystemTime) {
        self.replace(headers, left);
        if self.has_finagle {
            let ours = FinagleDeadline::new(wall, left);
            let merged = self.finagle.map_or(ours, |theirs| ours.merge(theirs));
            headers.insert(FINAGLE.clone(), merged.header());
        }
    }
}

/// What the callee of one try is told: the shorter of one try and what remains of the whole call,
/// at least a millisecond; `None` if there is no limit.
///
/// A hedged try is not over when its own time is, so it is told of the whole call only.
/// Source: Envoy `FilterUtility::setTimeoutHeaders`.
pub fn expected(
    total_left: Option<Duration>,
    per_try: Option<Duration>,
    hedged: bool,
) -> Option<Duration> {
    let per_try = per_try.filter(|_| !hedged);
    shortest(total_left, per_try).map(|left| left.max(Duration::from_millis(1)))
}

/// Tells the callee that it has `left`; what the caller said is replaced, never added to.
pub fn inject(headers: &mut HeaderMap, left: Duration) {
    Said::of(headers).replace(headers, left);
}

/// The same, and keeps Finagle's header in step if it is there.
pub fn inject_at(headers: &mut HeaderMap, left: Duration, wall: SystemTime) {
    Said::of(headers).replace_at(headers, left, wall);
}

/// At least a millisecond: zero would mean "for ever".
fn whole_ms(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn shortest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Digits only; 0 is "no limit" in Envoy's word.
fn parse_ms(value: &HeaderValue) -> Option<Duration> {
    let ms = digits(value.as_bytes())?;
    (ms > 0).then(|| Duration::from_millis(ms))
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads `grpc-timeout`: 1 to 8 digits and `H M S m u n`; parts of a millisecond round up.
pub fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, number) = value.split_last()?;
    if number.len() > 8 {
        return None;
    }
    let n = digits(number)?;
    let ms = match unit {
        b'H' => n * 3_600_000,
        b'M' => n * 60_000,
        b'S' => n * 1_000,
        b'm' => n,
        b'u' => n.div_ceil(1_000),
        b'n' => n.div_ceil(1_000_000),
        _ => return None,
    };
    Some(Duration::from_millis(ms))
}

fn format_grpc(ms: u64) -> HeaderValue {
    let text = match ms {
        0..=99_999_999 => format!("{ms}m"),
        _ => format!("{}S", (ms / 1000).min(99_999_999)),
    };
    HeaderValue::try_from(text).expect("digits and a letter are a header value")
}

/// Finagle's own header: two points of the wall clock, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinagleDeadline {
    /// When it was set.
    pub timestamp_ns: u64,
    /// When the call must be over.
    pub deadline_ns: u64,
}

impl FinagleDeadline {
    /// `left` from `wall` on.
    pub fn new(wall: SystemTime, left: Duration) -> Self {
        let timestamp_ns = since_epoch(wall);
        Self {
            timestamp_ns,
            deadline_ns: timestamp_ns.saturating_add(nanos(left)),
        }
    }

    /// What `headers` say; `None` if nothing that can be read.
    pub fn find(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(&FINAGLE)?)
    }

    fn parse(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        let (timestamp, deadline) = text.split_once(' ')?;
        Some(Self {
            timestamp_ns: digits(timestamp.as_bytes())?,
            deadline_ns: digits(deadline.as_bytes())?,
        })
    }

    /// Both at once: the later timestamp with the earlier deadline.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            timestamp_ns: self.timestamp_ns.max(other.timestamp_ns),
            deadline_ns: self.deadline_ns.min(other.deadline_ns),
        }
    }

    /// The time that remains; zero if it has passed.
    pub fn left(self, wall: SystemTime) -> Duration {
        Duration::from_nanos(self.deadline_ns.saturating_sub(since_epoch(wall)))
    }

    /// The header's value.
    pub fn header(self) -> HeaderValue {
        let text = format!("{} {}", self.timestamp_ns, self.deadline_ns);
        HeaderValue::try_from(text).expect("digits and a space are a header value")
    }
}

fn since_epoch(wall: SystemTime) -> u64 {
    nanos(wall.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(all(test, not(loom)))]
#[path = "deadline_tests.rs"]
mod tests;
