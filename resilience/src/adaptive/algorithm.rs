//! The rules by which a limit moves: one window of samples in, one limit out.
//!
//! They know neither threads nor clocks but the tick they are handed, and are asked once a window.

use std::time::Duration;

use super::config::{
    AimdConfig, AlgorithmConfig, CubicConfig, Gradient2Config, GradientConfig, VegasConfig,
};
use crate::{
    clock::{Tick, nanos},
    due::Due,
    rng::Rng,
};

/// What one window saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Mean round trip in nanoseconds; 0 if every call was dropped.
    pub(super) mean: f64,
    /// Median round trip in nanoseconds; 0 if every call was dropped.
    pub(super) median: f64,
    /// The most calls that were under way.
    pub(super) in_flight: u32,
    /// Whether a call was dropped: timed out, refused, reset.
    pub(super) dropped: bool,
}

/// Between which limits to move, and where to begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) initial: f64,
}

/// When the next window may close.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Next {
    /// After its usual time.
    Window,
    /// After so many samples, however long they take. Those that began before do not count.
    Fresh(u32),
    /// After its usual time; samples that began before do not count.
    FreshWindow,
}

/// What to do until then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    pub(super) limit: u32,
    pub(super) next: Next,
}

impl Verdict {
    fn limit(limit: f64) -> Self {
        Self {
            limit: limit as u32,
            next: Next::Window,
        }
    }
}

#[derive(Debug)]
pub(super) enum Algorithm {
    Aimd(Aimd),
    Cubic(Cubic),
    Vegas(Vegas),
    Gradient2(Gradient2),
    Gradient(Gradient),
}

impl Algorithm {
    /// The rule and what holds until its first window closes.
    pub(super) fn start(config: &AlgorithmConfig, bounds: Bounds, rng: &Rng) -> (Self, Verdict) {
        let verdict = Verdict::limit(bounds.initial);
        match config {
            AlgorithmConfig::Aimd(config) => (
                Self::Aimd(Aimd {
                    config: config.clone(),
                    limit: bounds.initial,
                }),
                verdict,
            ),
            AlgorithmConfig::Cubic(config) => {
                let cubic = Cubic::new(config.clone(), bounds);
                (Self::Cubic(cubic), verdict)
            }
            AlgorithmConfig::Vegas(config) => {
                let vegas = Vegas::new(config.clone(), bounds, rng);
                (Self::Vegas(vegas), verdict)
            }
            AlgorithmConfig::Gradient2(config) => {
                let gradient = Gradient2::new(config.clone(), bounds);
                (Self::Gradient2(gradient), verdict)
            }
            AlgorithmConfig::Gradient(config) => {
                let mut gradient = Gradient::new(config.clone(), bounds);
                let verdict = gradient.measure();
                (Self::Gradient(gradient), verdict)
            }
        }
    }

    /// Takes one window's samples.
    pub(super) fn update(
        &mut self,
        sample: &Sample,
        bounds: Bounds,
        now: Tick,
        rng: &Rng,
    ) -> Verdict {
        match self {
            Self::Aimd(aimd) => Verdict::limit(aimd.update(sample, bounds)),
            Self::Cubic(cubic) => Verdict::limit(cubic.update(sample, bounds, now)),
            Self::Vegas(vegas) => Verdict::limit(vegas.update(sample, bounds, rng)),
            Self::Gradient2(gradient) => Verdict::limit(gradient.update(sample, bounds)),
            Self::Gradient(gradient) => gradient.update(sample, bounds, now, rng),
        }
    }

    /// Whether the limit is not the algorithm's own but that of a measurement.
    pub(super) fn is_measuring(&self) -> bool {
        matches!(self, Self::Gradient(gradient) if gradient.measuring)
    }

    /// Takes new parameters and keeps what was learnt; false if it is another rule.
    pub(super) fn reconfigure(&mut self, config: &AlgorithmConfig) -> bool {
        match (self, config) {
            (Self::Aimd(aimd), AlgorithmConfig::Aimd(config)) => aimd.config = config.clone(),
            (Self::Cubic(cubic), AlgorithmConfig::Cubic(config)) => cubic.config = config.clone(),
            (Self::Vegas(vegas), AlgorithmConfig::Vegas(config)) => vegas.config = config.clone(),
            (Self::Gradient2(gradient), AlgorithmConfig::Gradient2(config)) => {
                gradient.config = config.clone();
            }
            (Self::Gradient(gradient), AlgorithmConfig::Gradient(config)) => {
                gradient.config = config.clone();
            }
            _ => return false,
        }
        true
    }
}

/// Back to where the last drop was, slowly past it, then on. Source: RFC 9438, AWS SDKs.
#[derive(Debug)]
pub(super) struct Cubic {
    config: CubicConfig,
    limit: f64,
    /// The limit before the last drop, and how long it has been since; not until there was one.
    curve: Option<(f64, Duration)>,
    last: Tick,
}

impl Cubic {
    fn new(config: CubicConfig, bounds: Bounds) -> Self {
        Self {
            config,
            limit: bounds.initial,
            curve: None,
            last: Tick(0),
        }
    }

    fn update(&mut self, sample: &Sample, bounds: Bounds, now: Tick) -> f64 {
        // None if the clock was set back: only what passes from here on counts.
        let passed = now.since(self.last);
        self.last = now;
        if sample.dropped {
            self.curve = Some((self.limit, Duration::ZERO));
            self.limit *= self.config.beta.fraction();
        } else if f64::from(sample.in_flight) * 2.0 >= self.limit.floor() {
            // Time in which nobody needs the limit says nothing of what would be too much.
            self.limit = match &mut self.curve {
                Some((top, since)) => {
                    *since = since.saturating_add(passed);
                    self.config.at(*top, *since).max(self.limit)
                }
                None => self.limit + 1.0,
            };
        }
        self.limit = self.limit.clamp(bounds.min, bounds.max);
        self.limit
    }
}

/// Additive increase, multiplicative decrease. Source: Netflix `AIMDLimit`.
#[derive(Debug)]
pub(super) struct Aimd {
    config: AimdConfig,
    limit: f64,
}

impl Aimd {
    fn update(&mut self, sample: &Sample, bounds: Bounds) -> f64 {
        if sample.dropped {
            self.limit = (self.limit * self.config.backoff.fraction()).floor();
        } else if f64::from(sample.in_flight) * 2.0 >= self.limit {
            self.limit += 1.0;
        }
        self.limit = self.limit.clamp(bounds.min, bounds.max);
        self.limit
    }
}

/// Compares the round trip with that of an idle callee, as TCP Vegas does: the difference is queue.
///
/// Source: Netflix `VegasLimit`. Unlike there, a dropped call always lowers the limit; there, one
/// that is faster than everything before only becomes the new baseline.
#[derive(Debug)]
pub(super) struct Vegas {
    config: VegasConfig,
    limit: f64,
    idle_rtt: Option<f64>,
    samples: f64,
    jitter: f64,
}

impl Vegas {
    fn new(config: VegasConfig, bounds: Bounds, rng: &Rng) -> Self {
        Self {
            config,
            limit: bounds.initial,
            idle_rtt: None,
            samples: 0.0,
            jitter: Self::jitter(rng),
        }
    }

    fn jitter(rng: &Rng) -> f64 {
        0.5 + rng.unit() / 2.0
    }

    fn update(&mut self, sample: &Sample, bounds: Bounds, rng: &Rng) -> f64 {
        if !sample.dropped {
            self.samples += 1.0;
            // The callee may have become slower for good: forget the baseline now and then.
            let every = f64::from(self.config.probe_every);
            let probe = self.jitter * every * self.limit <= self.samples;
            if probe {
                self.jitter = Self::jitter(rng);
                self.samples = 0.0;
            }
            if probe || self.idle_rtt.is_none_or(|idle| sample.mean < idle) {
                self.idle_rtt = Some(sample.mean);
                return self.limit;
            }
        }
        let Some(moved) = self.moved(sample) else {
            return self.limit;
        };
        let smoothing = self.config.smoothing.fraction();
        let moved = moved.clamp(bounds.min, bounds.max);
        self.limit = (1.0 - smoothing) * self.limit + smoothing * moved;
        self.limit
    }

    fn moved(&self, sample: &Sample) -> Option<f64> {
        let limit = self.limit;
        let step = log10(limit);
        let decreased = match self.config.decrease {
            Some(ratio) => limit * ratio.fraction(),
            None => limit - step,
        };
        if sample.dropped {
            return Some(decreased);
        }
        // Not even half used: there is nothing to learn about more.
        if f64::from(sample.in_flight) * 2.0 < limit {
            return None;
        }
        let idle = self.idle_rtt.unwrap_or(sample.mean);
        let queue = (limit * (1.0 - idle / sample.mean)).ceil();
        let alpha = f64::from(self.config.alpha) * step;
        let beta = f64::from(self.config.beta) * step;
        if queue <= step {
            Some(limit + beta)
        } else if queue < alpha {
            Some(limit + step)
        } else if queue > beta {
            Some(decreased)
        } else {
            None
        }
    }
}

/// Whole, and at least 1.
fn log10(limit: f64) -> f64 {
    limit.floor().max(1.0).log10().floor().max(1.0)
}

/// Compares the round trip now with its long average: the limit follows the ratio.
///
/// Source: Netflix `Gradient2Limit`, which ignores dropped calls and so climbs while its callee
/// refuses. Here a drop counts as the steepest gradient, without the allowance for a queue, and its
/// round trip (a timeout's length, a refusal's haste) spoils no average.
#[derive(Debug)]
pub(super) struct Gradient2 {
    config: Gradient2Config,
    limit: f64,
    long: LongAverage,
}

/// Least of the gradients that one window may apply.
const STEEPEST: f64 = 0.5;

impl Gradient2 {
    fn new(config: Gradient2Config, bounds: Bounds) -> Self {
        Self {
            config,
            limit: bounds.initial,
            long: LongAverage::default(),
        }
    }

    fn update(&mut self, sample: &Sample, bounds: Bounds) -> f64 {
        let target = if sample.dropped {
            self.limit * STEEPEST
        } else {
            let short = sample.mean;
            let long = self.long.add(short, self.config.long_window);
            // After a slow time: the average must come down faster than it would by itself.
            if long / short > 2.0 {
                self.long.value *= 0.95;
            }
            if f64::from(sample.in_flight) < self.limit / 2.0 {
                return self.limit;
            }
            let gradient = (self.config.tolerance.fraction() * long / short).clamp(STEEPEST, 1.0);
            self.limit * gradient + f64::from(self.config.queue)
        };
        let smoothing = self.config.smoothing.fraction();
        let next = self.limit * (1.0 - smoothing) + target * smoothing;
        self.limit = next.clamp(bounds.min, bounds.max);
        self.limit
    }
}

/// The mean of the first samples, then exponential.
#[derive(Debug, Default)]
struct LongAverage {
    count: u32,
    value: f64,
}

impl LongAverage {
    const WARM_UP: u32 = 10;

    fn add(&mut self, sample: f64, window: u32) -> f64 {
        if self.count < Self::WARM_UP {
            self.count += 1;
            self.value += (sample - self.value) / f64::from(self.count);
        } else {
            let weight = 2.0 / (f64::from(window) + 1.0);
            self.value = self.value * (1.0 - weight) + sample * weight;
        }
        self.value
    }
}

/// Measures the idle callee now and then, at a very low limit, and follows the ratio to it.
///
/// Source: Envoy `adaptive_concurrency` gradient controller. A dropped call counts as the steepest
/// gradient, without headroom.
#[derive(Debug)]
pub(super) struct Gradient {
    config: GradientConfig,
    limit: f64,
    idle_rtt: f64,
    measuring: bool,
    measure_at: Due,
    at_floor: u32,
}

impl Gradient {
    /// Windows at the lowest limit after which the baseline is doubted.
    const DOUBT_AFTER: u32 = 5;

    fn new(config: GradientConfig, bounds: Bounds) -> Self {
        Self {
            config,
            limit: bounds.initial,
            idle_rtt: 0.0,
            measuring: false,
            measure_at: Due::new(),
            at_floor: 0,
        }
    }

    fn measure(&mut self) -> Verdict {
        self.measuring = true;
        self.at_floor = 0;
        Verdict {
            limit: self.config.measure_limit,
            next: Next::Fresh(self.config.measure_samples),
        }
    }

    fn update(&mut self, sample: &Sample, bounds: Bounds, now: Tick, rng: &Rng) -> Verdict {
        if self.measuring {
            return self.measured(sample, now, rng);
        }
        if self.measure_at.is_now(now) {
            return self.measure();
        }
        self.limit = self.stepped(sample).clamp(bounds.min, bounds.max);
        self.at_floor = if self.limit <= bounds.min {
            self.at_floor + 1
        } else {
            0
        };
        if self.at_floor >= Self::DOUBT_AFTER {
            return self.measure();
        }
        Verdict::limit(self.limit)
    }

    fn stepped(&self, sample: &Sample) -> f64 {
        if sample.dropped {
            return (self.limit * STEEPEST).floor();
        }
        let target = self.idle_rtt * (1.0 + self.config.buffer.fraction());
        let base = self.limit * (target / sample.median).clamp(STEEPEST, 2.0);
        (base + base.sqrt()).floor()
    }

    /// The end of a measurement; one that saw only dropped calls begins anew.
    fn measured(&mut self, sample: &Sample, now: Tick, rng: &Rng) -> Verdict {
        if sample.median <= 0.0 {
            return self.measure();
        }
        self.idle_rtt = sample.median;
        self.measuring = false;
        let every = self.config.measure_every.0;
        let jitter = every.mul_f64(self.config.jitter.fraction() * rng.unit());
        self.measure_at
            .set(now, nanos(every.saturating_add(jitter)));
        Verdict {
            limit: self.limit as u32,
            next: Next::FreshWindow,
        }
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::float_cmp, reason = "what is held must not change at all")]
#[path = "algorithm_tests.rs"]
mod tests;
