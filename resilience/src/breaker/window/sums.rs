//! What windows add up, and what is judged of it.

/// What a window holds at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that count.
    pub total: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that took longer than the slow threshold.
    pub slow: u32,
}

impl Counts {
    /// Share of failed calls; `None` below `min_calls`.
    pub fn failure_ratio(&self, min_calls: u32) -> Option<f64> {
        (self.total >= min_calls.max(1)).then(|| f64::from(self.failed) / f64::from(self.total))
    }

    /// Share of slow calls; `None` below `min_calls`.
    pub fn slow_ratio(&self, min_calls: u32) -> Option<f64> {
        (self.total >= min_calls.max(1)).then(|| f64::from(self.slow) / f64::from(self.total))
    }
}

/// One call, as a window sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

impl Sample {
    pub(crate) const GOOD: Self = Self {
        failed: false,
        slow: false,
    };

    pub(crate) fn is_bad(self) -> bool {
        self.failed || self.slow
    }
}

/// What is judged: how many calls, and which shares of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    pub(crate) calls: u64,
    pub(crate) failed: f64,
    pub(crate) slow: f64,
}

/// What a judgement is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged {
    pub(crate) rates: Rates,
    /// End of the bucket, and number of bad calls, that it was seen at.
    pub(super) end: u64,
    pub(super) bad: u64,
}

/// Sums that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub(super) total: u64,
    pub(super) failed: u64,
    pub(super) slow: u64,
    /// Failed or slow or both, over all banks.
    pub(super) bad: u64,
}

/// Where [`Sums::bad`] is in [`Sums::to_array`].
pub(super) const BAD: usize = 3;

impl Sums {
    pub(super) fn to_array(self) -> [u64; 4] {
        [self.total, self.failed, self.slow, self.bad]
    }

    pub(super) fn from_array([total, failed, slow, bad]: [u64; 4]) -> Self {
        Self {
            total,
            failed,
            slow,
            bad,
        }
    }

    pub(super) fn counts(self) -> Counts {
        let cap = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Counts {
            total: cap(self.total),
            failed: cap(self.failed.min(self.total)),
            slow: cap(self.slow.min(self.total)),
        }
    }

    pub(super) fn rates(self) -> Rates {
        let share = |n: u64| n.min(self.total) as f64 / self.total.max(1) as f64;
        Rates {
            calls: self.total,
            failed: share(self.failed),
            slow: share(self.slow),
        }
    }
}

impl From<Counts> for Sums {
    fn from(counts: Counts) -> Self {
        Self {
            total: counts.total.into(),
            failed: counts.failed.into(),
            slow: counts.slow.into(),
            bad: 0,
        }
    }
}
