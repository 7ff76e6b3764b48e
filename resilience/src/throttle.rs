//! Client-side throttle: a caller that is being refused stops asking so often.
//!
//! A callee that refuses work still pays for refusing it: it reads the request, answers, and does
//! nothing for anybody meanwhile. When most of its time goes into refusals, it cannot recover. Only
//! the callers can help, by not sending what would be refused; and none of them knows the callee's
//! load. Each does know how many of its own calls were accepted.
//!
//! # Idea
//! Count calls and accepted calls over a sliding window; refuse a call locally with a probability
//! that grows with the share that was not accepted. The probability never reaches one, so the
//! callee's recovery is noticed by the calls that still get through.
//!
//! | form | probability | for |
//! |---|---|---|
//! | [`Form::Accepts`] | `max(0, (n − K·accepts)/(n + 1))` | overload: up to K calls for each accepted one |
//! | [`Form::Success`] | `((n − accepts/threshold)/(n + 1))^(1/aggression)`, at most `max` | error rates: from `1 − threshold` on |
//!
//! In the first, `n` counts calls that were refused locally too (the book's "requests"): as long as
//! nothing is accepted, the application's own demand drives the probability up. In the second only
//! calls that were made count, as in Envoy.
//!
//! # Guarantees
//! - Lock-free, no allocation. As long as every call of the window was accepted, a call reads four
//!   words and counts itself in its thread's lane; only when some were not are they added up.
//! - Below the threshold no random number is drawn. A cancelled call counts as nothing.
//! - A clock that was set back, or forth and back again, empties the window; it never freezes it.
//!
//! # Source
//! Google SRE book, "Handling Overload" (K = 2, two minutes); Envoy admission control filter
//! (threshold 95 %, 30 s, max 80 %).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::{
    clock::{Tick, nanos},
    config::{Millis, PolicyError, Ratio, ensure},
    lanes::{Lane, Lanes},
    outcome::{Outcome, Policy, Reason, Rejected},
    rng::Rng,
    shared::{Lent, Shared},
    sliding::Sliding,
    sync::{AtomicU64, Ordering},
};

/// Steps in which the window moves.
const BUCKETS: u32 = 10;

/// How a client throttles itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ThrottleConfig {
    /// Which formula. Default `{ kind = "accepts", k = 2.0 }`: SRE book.
    pub form: Form,
    /// How far back it looks, "1s" to "10m". Default "2m": SRE book.
    pub window: Millis,
    /// The highest probability, below 100 %. Default "90%": failsafe-go; some calls must get
    /// through, or nobody notices that the callee is back.
    pub max: Ratio,
    /// Calls that the window must hold before it counts. Default 10: a guess; fewer, and one failed
    /// call of two throttles the third.
    pub min_requests: u32,
}

/// The formula of a throttle. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Form {
    /// By accepted calls.
    Accepts {
        /// Calls sent for each one that is accepted; more than 1. Default 2: SRE book.
        #[cfg_attr(feature = "schema", schemars(range(min = 1.0, max = 100.0)))]
        #[serde(default = "default_k")]
        k: f64,
    },
    /// By the success rate.
    Success {
        /// The success rate below which calls are refused. Default "95%": Envoy.
        #[serde(default = "default_threshold")]
        threshold: Ratio,
        /// How steeply: 1 is linear, more refuses earlier. Default 1: Envoy.
        #[cfg_attr(feature = "schema", schemars(range(min = 1.0, max = 100.0)))]
        #[serde(default = "default_aggression")]
        aggression: f64,
    },
}

const fn default_k() -> f64 {
    2.0
}
const fn default_threshold() -> Ratio {
    Ratio::percent(95)
}
const fn default_aggression() -> f64 {
    1.0
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self {
            form: Form::Accepts { k: default_k() },
            window: Millis::new(120_000),
            max: Ratio::percent(90),
            min_requests: 10,
        }
    }
}

impl ThrottleConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`PolicyError`] with the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), PolicyError> {
        match self.form {
            Form::Accepts { k } => ensure(
                k > 1.0 && k <= 100.0,
                "form.k",
                k,
                "more than 1, at most 100",
            )?,
            Form::Success {
                threshold,
                aggression,
            } => {
                let share = threshold.fraction();
                ensure(
                    share > 0.0 && share <= 1.0,
                    "form.threshold",
                    threshold,
                    "more than 0% and at most 100%",
                )?;
                ensure(
                    (1.0..=100.0).contains(&aggression),
                    "form.aggression",
                    aggression,
                    "1 to 100",
                )?;
            }
        }
        ensure(
            (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&self.window.0),
            "window",
            self.window,
            "\"1s\" to \"10m\"",
        )?;
        let max = self.max.fraction();
        ensure(
            max > 0.0 && max < 1.0,
            "max",
            self.max,
            "more than 0% and less than 100%",
        )
    }
}

impl Form {
    /// The probability of refusing the next call after `requests` calls of which `accepts` were
    /// accepted; in `[0, 1)`, before any maximum.
    ///
    /// ```
    /// use selvedge_resilience::throttle::Form;
    /// let sre = Form::Accepts { k: 2.0 };
    /// assert_eq!(sre.probability(100, 50), 0.0);
    /// assert_eq!(sre.probability(1, 0), 0.5);
    /// ```
    pub fn probability(self, requests: u64, accepts: u64) -> f64 {
        let (n, accepts) = (requests as f64, accepts as f64);
        let linear = |served: f64| ((n - served) / (n + 1.0)).max(0.0);
        match self {
            Self::Accepts { k } => linear(k * accepts),
            Self::Success {
                threshold,
                aggression,
            } => {
                let p = linear(accepts / threshold.fraction());
                // `powf` only where it changes something: it costs more than the rest.
                if p > 0.0 && aggression > 1.0 {
                    p.powf(1.0 / aggression)
                } else {
                    p
                }
            }
        }
    }

    fn counts_local_refusals(self) -> bool {
        matches!(self, Self::Accepts { .. })
    }
}

#[derive(Debug)]
struct Core {
    config: ArcSwap<ThrottleConfig>,
    /// Over `accepted` and `missed`, in this order.
    window: Sliding<2>,
    /// Calls that were made and accepted; the one thing that is counted where all is well.
    accepted: Lanes<AtomicU64>,
    /// Calls that were not accepted, by the callee or, in the book's form, by us.
    missed: AtomicU64,
    rng: Rng,
    refused: AtomicU64,
}

/// Where `missed` is in [`Core::sums`].
const MISSED: usize = 1;

impl Core {
    fn sums(&self) -> [u64; 2] {
        [
            self.accepted.sum(|lane| lane),
            self.missed.load(Ordering::Acquire),
        ]
    }

    #[inline]
    fn turn(&self, now: Tick) -> u64 {
        self.window.turn(now, || self.sums())
    }

    /// The probability with which a call is refused at `now`.
    #[inline]
    fn probability(&self, now: Tick) -> f64 {
        let end = self.turn(now);
        // Nobody was refused: whatever the form, there is nothing to add up.
        if self.missed.load(Ordering::Acquire) == self.window.begin(MISSED) {
            return 0.0;
        }
        self.weigh(end, now)
    }

    #[inline(never)]
    fn weigh(&self, end: u64, now: Tick) -> f64 {
        let [accepts, missed] = self.window.held_at(end, now, || self.sums());
        let requests = accepts + missed;
        let config = self.config.load();
        if missed == 0 || requests < u64::from(config.min_requests) {
            return 0.0;
        }
        config
            .form
            .probability(requests, accepts)
            .min(config.max.fraction())
    }

    #[cold]
    fn refuse(&self) -> Rejected {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if self.config.load().form.counts_local_refusals() {
            self.missed.fetch_add(1, Ordering::AcqRel);
        }
        Rejected::new(Policy::Throttle, Reason::Throttled)
    }
}

/// A client-side throttle towards one destination. Clones share its counts.
#[derive(Debug, Clone)]
pub struct Throttle(Shared<Core>);

/// Calls of the last window, as the throttle counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that were asked for, those that were kept back too.
    pub requests: u64,
    /// Those that the callee accepted.
    pub accepts: u64,
}

impl Throttle {
    /// A throttle that has seen nothing yet.
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: ThrottleConfig, rng: Rng) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self(Shared::new(Core {
            window: Sliding::new(nanos(config.window.0), BUCKETS),
            config: ArcSwap::from_pointee(config),
            accepted: Lanes::new(|| AtomicU64::new(0)),
            missed: AtomicU64::new(0),
            rng,
            refused: AtomicU64::new(0),
        })))
    }

    /// Admits a call, or refuses it with the probability of now.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Throttled`].
    pub fn try_acquire(&self, now: Instant) -> Result<Permit, Rejected> {
        let p = self.0.probability(Tick::at(now));
        if p > 0.0 && self.0.rng.unit() < p {
            return Err(self.0.refuse());
        }
        Ok(Permit(self.0.lend(Lane::here())))
    }

    /// The probability with which a call is refused now.
    pub fn probability(&self, now: Instant) -> f64 {
        self.0.probability(Tick::at(now))
    }

    /// Calls and accepted calls within the window.
    pub fn counts(&self, now: Instant) -> Counts {
        let core = &self.0;
        let [accepts, missed] = core.window.held(Tick::at(now), || core.sums());
        Counts {
            requests: accepts + missed,
            accepts,
        }
    }

    /// Calls refused so far.
    pub fn rejected(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Takes a new configuration; counts stay, as far as the new window reaches back.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: ThrottleConfig) -> Result<(), PolicyError> {
        config.validate()?;
        let core = &self.0;
        let change = core.window.change();
        if config.window != core.config.load().window {
            change.reshape(nanos(config.window.0), BUCKETS, core.sums());
        }
        core.config.store(Arc::new(config));
        Ok(())
    }
}

/// A call that was let through. Dropped, it was cancelled and counts as nothing.
#[derive(Debug)]
#[must_use = "dropped, the call was cancelled"]
pub struct Permit(Lent<Core>);

impl Permit {
    /// The call has ended. Accepted is what the callee dealt with: a success, or an answer that is
    /// the caller's affair. Refused is a failure, and "less, please".
    pub fn complete(self, outcome: Outcome, now: Instant) {
        let core = &*self.0;
        match outcome {
            Outcome::Success | Outcome::Ignored => {
                core.turn(Tick::at(now));
                let lane = Lane::here();
                lane.add(core.accepted.of(lane), 1);
            }
            Outcome::Failure(_) | Outcome::RateLimited => {
                core.turn(Tick::at(now));
                core.missed.fetch_add(1, Ordering::AcqRel);
            }
            Outcome::Cancelled => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "throttle_tests.rs"]
mod tests;
