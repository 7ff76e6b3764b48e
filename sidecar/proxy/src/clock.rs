//! How long a connection may say nothing, or not finish what it says.
//!
//! hyper's own timer for heads also ends idle connections, and starts anew with each request's
//! end, not with a head's first byte; so both times are kept here, glanced at once a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// When a connection last did what. Milliseconds since it began; relaxed, since a glance that sees
/// an old value sees the new one a second later.
#[derive(Debug)]
pub(crate) struct Clock {
    base: Instant,
    busy: AtomicU32,
    /// End of the last request.
    idle_since: AtomicU64,
    /// First byte after that; 0 is none yet.
    head_since: AtomicU64,
}

/// Which time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// A head began and did not end.
    Head,
    /// No request came.
    Idle,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.base);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes have come.
    pub(crate) fn heard(&self) {
        if self.busy.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now().max(1), Ordering::Relaxed);
        }
    }

    /// A request is under way until the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        Busy {
            clock: Arc::clone(self),
            ended: None,
        }
    }

    /// Whether time is up. HTTP/2 has bytes without requests: only `Idle` is said of it.
    pub(crate) fn over(&self, head: Option<Duration>, idle: Duration) -> Option<Over> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let since = |mark: u64| Duration::from_millis(self.now().saturating_sub(mark));
        let began = self.head_since.load(Ordering::Relaxed);
        match head {
            Some(head) if began > 0 => (since(began) >= head).then_some(Over::Head),
            _ => (since(self.idle_since.load(Ordering::Relaxed)) >= idle).then_some(Over::Idle),
        }
    }
}

/// See [`Clock::busy`].
#[derive(Debug)]
pub(crate) struct Busy {
    clock: Arc<Clock>,
    ended: Option<Instant>,
}

impl Busy {
    /// Says when it ended, so that the clock need not be read again.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let clock = &self.clock;
        let now = self.ended.map_or_else(|| clock.now(), |end| clock.at(end));
        clock.idle_since.store(now, Ordering::Relaxed);
        clock.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Option<Duration> = Some(Duration::from_secs(10));
    const IDLE: Duration = Duration::from_secs(75);

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_and_dripping_does_not_extend_it() {
        let clock = Arc::new(Clock::new());
        for _ in 0..9 {
            clock.heard();
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(clock.over(HEAD, IDLE), None);
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.over(HEAD, IDLE), Some(Over::Head));
        assert_eq!(
            clock.over(None, IDLE),
            None,
            "HTTP/2 speaks without requests"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_counts_from_the_last_request() {
        let clock = Arc::new(Clock::new());
        tokio::time::advance(Duration::from_secs(70)).await;
        clock.heard();
        let busy = clock.busy();
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(clock.over(HEAD, IDLE), None);
        drop(busy);
        tokio::time::advance(Duration::from_secs(74)).await;
        assert_eq!(clock.over(HEAD, IDLE), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.over(HEAD, IDLE), Some(Over::Idle));
    }
}
