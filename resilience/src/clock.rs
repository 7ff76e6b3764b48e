//! Time as one number, so that it fits an atomic.
//!
//! Cores take `now: Instant` and never read a clock. Inside they count nanoseconds from a fixed
//! point, because an `Instant` cannot live in an `AtomicU64`.

use std::{
    cell::Cell,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Nanoseconds since a fixed point shortly before the first use in this process.
///
/// 64 bits hold 584 years. Instants before the fixed point count as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(pub(crate) u64);

/// Room for tests and callers that hand in an `Instant` older than the first one seen.
const HEADROOM: Duration = Duration::from_secs(3600);

static EPOCH: OnceLock<Instant> = OnceLock::new();

thread_local! {
    /// The last conversion: a call asks up to ten cores at one and the same instant, and what they
    /// do with it costs some of them less than the conversion.
    static LAST: Cell<Option<(Instant, Tick)>> = const { Cell::new(None) };
}

impl Tick {
    #[inline]
    pub(crate) fn at(now: Instant) -> Self {
        match LAST.get() {
            Some((at, tick)) if at == now => tick,
            _ => Self::convert(now),
        }
    }

    fn convert(now: Instant) -> Self {
        let epoch = EPOCH.get_or_init(|| fixed_point(now));
        let tick = Self(nanos(now.saturating_duration_since(*epoch)));
        LAST.set(Some((now, tick)));
        tick
    }

    /// The instant that it stands for; `None` beyond what the clock can say.
    pub(crate) fn instant(self) -> Option<Instant> {
        EPOCH.get()?.checked_add(Duration::from_nanos(self.0))
    }

    pub(crate) fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where counting begins in a process whose first instant is `first`.
///
/// `first` is the caller's and may lie ahead of the clock. Were it the fixed point itself, every
/// instant until then would be zero, and time would stand still for all cores.
#[expect(
    clippy::disallowed_methods,
    reason = "once in a process, and no decision depends on it"
)]
fn fixed_point(first: Instant) -> Instant {
    let first = first.min(Instant::now());
    first.checked_sub(HEADROOM).unwrap_or(first)
}

/// A duration in nanoseconds, capped at what 64 bits hold.
pub(crate) fn nanos(d: Duration) -> u64 {
    // In 64 bits: every call converts a time or two.
    match d.as_secs().checked_mul(1_000_000_000) {
        Some(whole) => whole.saturating_add(u64::from(d.subsec_nanos())),
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_saturate() {
        let now = Instant::now();
        assert_eq!(Tick::at(now).plus(Duration::MAX).0, u64::MAX);
        assert_eq!(Tick(5).since(Tick(9)), Duration::ZERO);
        assert_eq!(nanos(Duration::new(3, 7)), 3_000_000_007);
        assert_eq!(nanos(Duration::from_nanos(u64::MAX)), u64::MAX);
        assert_eq!(nanos(Duration::from_nanos(u64::MAX - 1)), u64::MAX - 1);
        assert_eq!(Tick::at(now).instant(), Some(now));
        let tomorrow = now + Duration::from_secs(86_400);
        assert!(
            fixed_point(tomorrow) <= now,
            "time would stand still until tomorrow"
        );
        let long_ago = now.checked_sub(Duration::from_secs(7200));
        if let Some(then) = long_ago {
            assert!(Tick::at(then) <= Tick::at(now));
        }
    }

    #[test]
    fn a_remembered_conversion_is_of_the_same_instant() {
        let now = Instant::now();
        let (first, later) = (Tick::at(now), Tick::at(now + Duration::from_nanos(7)));
        assert_eq!(later.0, first.0 + 7);
        assert_eq!((Tick::at(now), Tick::at(now)), (first, first));
        let elsewhere = std::thread::spawn(move || Tick::at(now)).join();
        assert_eq!(elsewhere.expect("it converts"), first);
    }
}
