//! Load shedding: when more is asked than can be done, refuse what matters least.
//!
//! A service at three times its capacity serves nobody if it tries to serve all: everything waits,
//! and what waits too long was work for nothing. It must refuse two thirds, at once and cheaply,
//! and which two thirds is no matter of chance: batch before default before critical, and the same
//! users on every hop.
//!
//! Whether it is overloaded, the *queue* tells: the time between a request's arrival and the
//! moment at which its handler begins. Not the response time, which a slow dependency stretches
//! too, and not the processor, which may well be busy and keep up. If requests waited longer than
//! the target on average over a window, fewer are admitted in the next one; otherwise, a little
//! more. A histogram of the priorities that came turns "fewer" into a cursor: what matters more
//! than it passes, what matters less does not, and of the level at the cursor passes a share.
//!
//! ```text
//! priorities that came:   critical ▂  default ▆  batch ▇▇        lower matters more
//! admitted:               ▂           ▃│                         ▲ cursor: part of default
//! ```
//!
//! # Guarantees
//! - A request costs one load (the cursor) and a few additions, no lock, no allocation. The cursor
//!   moves once a window, by one caller, while the others go on.
//! - A request is never refused while one that matters less, by a level (64 priorities) or more,
//!   is admitted under the same cursor.
//! - What waited and was never begun counts with its wait: otherwise a queue that serves the newest
//!   first would look short while the old ones starve in it.
//! - Nothing begins for a whole window while requests wait: that is overload too, though there is
//!   no delay to measure yet.
//!
//! # What it does not do
//! It does not limit concurrency, so it reacts in a window or two, not at once: put a bulkhead or
//! an adaptive limit with a *bounded* queue behind it. It does not see what waits before it: in the
//! kernel, in the server's accept loop, in a runtime whose threads are blocked.
//!
//! # Source
//! Zhou et al., "Overload Control for Scaling WeChat Microservices" (DAGOR), SoCC 2018: mean
//! queuing time, the window, the cursor over a histogram, 5 % down and 1 % up (the last two from
//! secondary sources). Ours: after an overloaded window no more is admitted than was *begun* in it
//! (Uber's Cinnamon compares inflow and outflow likewise), so that three times the load needs two
//! windows, not twenty; and the share of one level, without which a class is refused as a whole.

mod config;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub use self::config::ShedConfig;
use crate::{
    clock::{Tick, nanos},
    config::PolicyError,
    context::priority::Priority,
    due::Due,
    lanes::{Lane, Line},
    outcome::{Policy, Reason, Rejected},
    shared::{Lent, Shared},
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// Priorities of one level: 2⁶.
const LEVEL_SHIFT: u32 = 6;
const LEVELS: usize = 1 << (16 - LEVEL_SHIFT);

/// `level (16 bits) | share of it (16 bits)`: all levels below pass, and that share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor(u32);

impl Cursor {
    const ALL: Self = Self((LEVELS as u32) << 16);

    fn new(level: usize, share: f64) -> Self {
        let share = (share * 65_536.0) as u32;
        Self(((level as u32) << 16) | share.min(0xFFFF))
    }

    /// The cursor that would have let `expected` of those pass that came.
    fn letting(expected: f64, came: &[u32]) -> Self {
        let mut below = 0.0;
        for (level, &n) in came.iter().enumerate() {
            let n = f64::from(n);
            if below + n > expected {
                return Self::new(level, (expected - below) / n);
            }
            below += n;
        }
        Self::ALL
    }

    /// Whether the `nth` request of `level` passes. Fibonacci hashing spreads the share evenly over
    /// any stretch of requests; chance would not.
    fn passes(self, level: usize, nth: u32) -> bool {
        let at = (self.0 >> 16) as usize;
        level < at || (level == at && (nth.wrapping_mul(0x9E37_79B9) >> 16) < (self.0 & 0xFFFF))
    }
}

/// Waits: `count (20 bits) | sum in µs (44 bits)`.
const COUNT_SHIFT: u32 = 44;
const SUM: u64 = (1 << COUNT_SHIFT) - 1;
/// The longest wait that counts as it is: 2²³ µs, 8 s. The sum holds 2²⁰ of them.
const CLIP: u64 = 1 << 23;
/// Waits after which a window has seen enough, well below what the count holds.
const ENOUGH: u64 = 1 << 19;

#[derive(Debug)]
struct Core {
    config: ArcSwap<ShedConfig>,
    cursor: AtomicU32,
    /// Requests that came in this window, by level.
    levels: Box<[AtomicU32]>,
    waits: Line<AtomicU64>,
    /// Waits of this window that were for nothing.
    gone: AtomicU32,
    window_ends: Due,
    /// Waits after which the window closes early.
    samples: AtomicU32,
    refused: AtomicU64,
    overloaded: AtomicU64,
    control: Mutex<Control>,
}

/// What the last window left behind.
#[derive(Debug)]
struct Control {
    refused: u64,
    /// Requests waited and none began.
    stalled: bool,
    /// Who came, by level; kept, so that the end of a window allocates nothing.
    came: Box<[u32]>,
}

/// A shedder. Clones share one cursor.
///
/// ```
/// use std::time::{Duration, Instant};
/// use selvedge_resilience::{context::priority::Priority, shed::{ShedConfig, Shedder}};
///
/// let shedder = Shedder::new(ShedConfig::default())?;
/// let arrived = Instant::now();
/// let ticket = shedder.admit(Priority::CRITICAL, arrived).expect("nothing waits");
/// // … the request waits for a slot …
/// ticket.begun(arrived + Duration::from_millis(3));
/// # Ok::<_, selvedge_resilience::config::PolicyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Shedder(Shared<Core>);

/// Gauges and counters, read without a lock.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// The first priority that does not pass as a whole; `None` if all do.
    pub cursor: Option<Priority>,
    /// How much of the cursor's level passes, in [0, 1).
    pub share: f64,
    /// Requests admitted that have not begun yet.
    pub waiting: u32,
    /// Requests refused so far.
    pub rejected: u64,
    /// Windows that were overloaded so far.
    pub overloaded: u64,
}

impl Shedder {
    /// A shedder that lets everything pass.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: ShedConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self(Shared::new(Core {
            cursor: AtomicU32::new(Cursor::ALL.0),
            levels: (0..LEVELS).map(|_| AtomicU32::new(0)).collect(),
            waits: Line(AtomicU64::new(0)),
            gone: AtomicU32::new(0),
            window_ends: Due::new(),
            samples: AtomicU32::new(config.samples),
            refused: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
            control: Mutex::new(Control {
                refused: 0,
                stalled: false,
                came: vec![0; LEVELS].into(),
            }),
            config: ArcSwap::from_pointee(config),
        })))
    }

    /// Admits a request that arrives at `now`, or refuses it.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Overloaded`], and one window as the time after which asking
    /// again makes sense.
    pub fn admit(&self, priority: Priority, now: Instant) -> Result<Ticket, Rejected> {
        self.admit_since(priority, now, now)
    }

    /// The same for a request that arrived a while ago: it has been waiting since.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub fn admit_since(
        &self,
        priority: Priority,
        arrived: Instant,
        now: Instant,
    ) -> Result<Ticket, Rejected> {
        let (core, tick) = (&self.0, Tick::at(now));
        if core.window_ends.is_now(tick) {
            core.close_window(tick, self.0.lent() > 0);
        }
        let level = usize::from(priority.0 >> LEVEL_SHIFT);
        let nth = core.levels[level].fetch_add(1, Ordering::Relaxed);
        if !Cursor(core.cursor.load(Ordering::Relaxed)).passes(level, nth) {
            return Err(core.refuse());
        }
        Ok(Ticket {
            core: self.0.lend(Lane::here()),
            arrived: Tick::at(arrived),
        })
    }

    /// Gauges and counters.
    pub fn status(&self) -> Status {
        let core = &self.0;
        let cursor = core.cursor.load(Ordering::Relaxed);
        let first = (cursor >> 16) << LEVEL_SHIFT;
        Status {
            cursor: u16::try_from(first).ok().map(Priority),
            share: f64::from(cursor & 0xFFFF) / 65_536.0,
            waiting: u32::try_from(self.0.lent()).unwrap_or(u32::MAX),
            rejected: core.refused.load(Ordering::Relaxed),
            overloaded: core.overloaded.load(Ordering::Relaxed),
        }
    }

    /// Takes new parameters at once; the cursor stays.
    ///
    /// # Errors
    /// [`PolicyError`] if they cannot work; nothing changes then.
    pub fn reconfigure(&self, config: ShedConfig) -> Result<(), PolicyError> {
        config.validate()?;
        self.0.samples.store(config.samples, Ordering::Relaxed);
        self.0.config.store(Arc::new(config));
        Ok(())
    }
}

impl Core {
    #[cold]
    fn refuse(&self) -> Rejected {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let wait = self.config.load().window.0;
        Rejected::after(Policy::Shed, Reason::Overloaded, wait)
    }

    /// A request has waited for so long.
    fn waited(&self, wait: Duration, now: Tick) {
        let micros = (nanos(wait) / 1000).min(CLIP);
        let count = self.waits.load(Ordering::Relaxed) >> COUNT_SHIFT;
        if count < ENOUGH {
            self.waits
                .fetch_add((1 << COUNT_SHIFT) | micros, Ordering::Relaxed);
        }
        if count + 1 >= u64::from(self.samples.load(Ordering::Relaxed))
            || self.window_ends.is_now(now)
        {
            // Not stalled: this one has begun, or has left.
            self.close_window(now, false);
        }
    }

    /// Moves the cursor. Whoever finds another at it goes on. `waiting`: somebody does.
    #[cold]
    fn close_window(&self, now: Tick, waiting: bool) {
        let Some(mut control) = self.control.try_lock() else {
            return;
        };
        let config = self.config.load();
        let count = self.waits.load(Ordering::Relaxed) >> COUNT_SHIFT;
        let early = !self.window_ends.is_now(now);
        // Another was here just before.
        if early && count < u64::from(config.samples) {
            return;
        }
        self.window_ends.set(now, nanos(config.window.0));
        let waits = self.waits.swap(0, Ordering::Relaxed);
        let (count, sum) = (waits >> COUNT_SHIFT, waits & SUM);
        let gone = u64::from(self.gone.swap(0, Ordering::Relaxed));
        self.take_levels(&mut control.came);
        let all: u64 = control.came.iter().map(|n| u64::from(*n)).sum();
        let refused = self.refused.load(Ordering::Relaxed);
        let admitted = all.saturating_sub(refused - control.refused);
        control.refused = refused;

        // One such window may be a request that came just before its end; two are not.
        let stalled = count == 0 && waiting;
        let stuck = stalled && control.stalled;
        control.stalled = stalled;
        let late = count > 0 && Duration::from_micros(sum / count) > config.target.0;
        let next = if late || stuck {
            self.overloaded.fetch_add(1, Ordering::Relaxed);
            let begun = count.saturating_sub(gone).min(admitted);
            begun as f64 * (1.0 - config.decrease.fraction())
        } else {
            // At least one more: a share of nothing would be nothing for ever.
            admitted as f64 + (all as f64 * config.increase.fraction()).max(1.0)
        };
        let cursor = Cursor::letting(next, &control.came);
        self.cursor.store(cursor.0, Ordering::Relaxed);
    }

    /// Who came, by level; the next window begins with nobody.
    fn take_levels(&self, came: &mut [u32]) {
        for (came, level) in came.iter_mut().zip(&self.levels) {
            *came = match level.load(Ordering::Relaxed) {
                0 => 0,
                _ => level.swap(0, Ordering::Relaxed),
            };
        }
    }
}

/// An admitted request that has not begun yet. Say [`begun`](Self::begun) when its handler starts,
/// [`gone`](Self::gone) if it never will. Dropping it only forgets it: without a clock, its wait
/// cannot be told.
#[derive(Debug)]
#[must_use = "a ticket that is dropped at once measures no wait"]
pub struct Ticket {
    core: Lent<Core>,
    arrived: Tick,
}

impl Ticket {
    /// Its handler starts.
    pub fn begun(self, now: Instant) {
        let now = Tick::at(now);
        self.core.waited(now.since(self.arrived), now);
    }

    /// It was refused, timed out or cancelled before its handler started, and has waited all that
    /// time for nothing.
    pub fn gone(self, now: Instant) {
        self.core.gone.fetch_add(1, Ordering::Relaxed);
        self.begun(now);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
