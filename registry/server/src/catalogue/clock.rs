//! The clock that orders what different servers write.

/// A hybrid logical clock: wall time in its upper bits, never going back, never standing still.
///
/// Source: Kulkarni et al., "Logical Physical Clocks", 2014.
#[derive(Debug, Default)]
pub struct Clock {
    last: u64,
    /// Stamps that were not believed.
    ahead: u64,
}

/// How far ahead of the wall another server's stamp may be to be believed. Source: a clock that
/// NTP disciplines is a thousand times better.
const BELIEVED_MS: u64 = 60_000;

impl Clock {
    /// One that goes on from where an earlier life of this server had come.
    pub fn resume(last: u64) -> Self {
        Self { last, ahead: 0 }
    }

    /// The next stamp, given the wall clock in milliseconds.
    pub fn tick(&mut self, wall_ms: u64) -> u64 {
        self.last = (wall_ms << 16).max(self.last + 1);
        self.last
    }

    /// The next stamp for something whose last one was `known`: later than that, even if that came
    /// from a server whose clock is wrong. So every change of an instance is later than what it
    /// changes, though this clock does not follow the wrong one.
    pub fn tick_after(&mut self, known: u64, wall_ms: u64) -> u64 {
        self.tick(wall_ms).max(known.saturating_add(1))
    }

    /// Takes notice of another server's stamp, so that what comes after it here is later. One that
    /// is more than a minute ahead of the wall is not believed: a wrong clock must not drag every
    /// other along.
    pub fn observe(&mut self, hlc: u64, wall_ms: u64) {
        if hlc >> 16 <= wall_ms + BELIEVED_MS {
            self.last = self.last.max(hlc);
        } else {
            self.ahead += 1;
        }
    }

    /// The last stamp.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Stamps that were not believed.
    pub fn ahead(&self) -> u64 {
        self.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back_and_does_not_believe_the_absurd() {
        let mut clock = Clock::default();
        let first = clock.tick(1000);
        assert!(clock.tick(1000) > first && clock.tick(10) > first);
        let other = 2000 << 16;
        clock.observe(other, 1000);
        assert!(clock.tick(1000) > other);
        clock.observe(u64::MAX, 1000);
        assert!(clock.tick(1000) < 3000 << 16);
        assert_eq!(clock.ahead(), 1);
        let absurd = 9_000_000_000 << 16;
        assert_eq!(clock.tick_after(absurd, 1000), absurd + 1);
        assert!(clock.tick(1000) < 3000 << 16, "was not dragged along");
    }
}
