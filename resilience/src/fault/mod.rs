//! Fault injection: failures on purpose, small ones, where somebody is watching.
//!
//! A timeout that was never reached, a fallback that was never asked, a retry policy that was never
//! needed: nobody knows whether they work until the night on which they must. So make the failure:
//! slow or broken calls for a thousandth of the traffic, or for one tester's requests, in production
//! and with one switch that ends all of it at once.
//!
//! # Guarantees
//! - Percentages are whole millionths, so 0.01 % is 0.01 % and 0 % is never.
//! - Delay and abort are drawn apart, as Envoy does: both at 10 % give 1 % that is delayed *and*
//!   aborted. The same seed makes the same draws.
//! - [`KillSwitch::kill`] ends all faults of the process that have not begun; one load a request.
//! - Never more than `max_active` calls suffer at once; one that would be too many passes unharmed.
//! - Without a fault for it, a request costs a load, a match of its headers and a draw.
//!
//! # What it does not do
//! A delay that has begun is not cut short by the switch. Nobody is authenticated: `by_header` lets
//! whoever can send a header ask for a fault, so leave it off where strangers can.
//!
//! # Source
//! Envoy's fault filter (delay, abort, percentages, headers, active faults); Netflix' FIT for
//! faults by request.

mod config;

use std::{
    sync::{
        Arc,
        // No part of a model: a switch has no protocol.
        atomic::AtomicBool,
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub use self::config::{AbortConfig, DelayConfig, FaultConfig, HeaderMatch};
use crate::{
    config::{PolicyError, Ratio},
    rng::Rng,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// `x-envoy-fault-delay-request`.
pub static DELAY_REQUEST: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
/// `x-envoy-fault-delay-request-percentage`.
pub static DELAY_PERCENTAGE: HeaderName =
    HeaderName::from_static("x-envoy-fault-delay-request-percentage");
/// `x-envoy-fault-abort-request`.
pub static ABORT_REQUEST: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
/// `x-envoy-fault-abort-grpc-request`.
pub static ABORT_GRPC_REQUEST: HeaderName =
    HeaderName::from_static("x-envoy-fault-abort-grpc-request");
/// `x-envoy-fault-abort-request-percentage`.
pub static ABORT_PERCENTAGE: HeaderName =
    HeaderName::from_static("x-envoy-fault-abort-request-percentage");

const MILLION: u64 = 1_000_000;

fn millionths(share: Ratio) -> u64 {
    (share.fraction() * MILLION as f64).round() as u64
}

/// Ends all faults at once.
#[derive(Debug)]
pub struct KillSwitch(AtomicBool);

/// The switch of this process.
pub static KILL_SWITCH: KillSwitch = KillSwitch::new();

impl KillSwitch {
    /// A switch that lets faults happen.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// No more faults.
    pub fn kill(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Faults may happen again.
    pub fn revive(&self) {
        self.0.store(false, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether there are no faults.
    pub fn is_killed(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Default for KillSwitch {
    fn default() -> Self {
        Self::new()
    }
}

/// What happens in a call's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abort {
    /// An answer with this status.
    Status(StatusCode),
    /// An answer with this gRPC status.
    Grpc(u8),
    /// No answer.
    Reset,
}

/// What a call is to suffer. While it lives, the fault is active.
#[derive(Debug)]
#[must_use = "a fault that is dropped harms nobody"]
#[non_exhaustive]
pub struct Fault {
    /// To wait before all else.
    pub delay: Option<Duration>,
    /// Instead of the call.
    pub abort: Option<Abort>,
    _active: Active,
}

/// Counters, read without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Calls that suffer now.
    pub active: u32,
    /// Calls that were delayed so far.
    pub delayed: u64,
    /// Calls that were aborted so far.
    pub aborted: u64,
    /// Calls that passed unharmed because too many suffered already.
    pub overflow: u64,
}

/// A configuration as it is asked.
#[derive(Debug)]
struct Plan {
    delay: Option<(DelayConfig, u64)>,
    abort: Option<(Option<Abort>, bool, u64)>,
    headers: Vec<(HeaderName, HeaderMatch)>,
    max_active: u32,
}

#[derive(Debug)]
struct Core {
    plan: ArcSwap<Plan>,
    switch: &'static KillSwitch,
    rng: Rng,
    active: AtomicU32,
    delayed: AtomicU64,
    aborted: AtomicU64,
    overflow: AtomicU64,
}

/// Decides which calls suffer what. Clones share one configuration.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Core>);

impl Faults {
    /// Faults under the process's own [`KILL_SWITCH`].
    ///
    /// # Errors
    /// [`PolicyError`] if the configuration cannot work.
    pub fn new(config: &FaultConfig, rng: Rng) -> Result<Self, PolicyError> {
        Self::with_switch(config, rng, &KILL_SWITCH)
    }

    /// The same under a switch of its own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_switch(
        config: &FaultConfig,
        rng: Rng,
        switch: &'static KillSwitch,
    ) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self(Arc::new(Core {
            plan: ArcSwap::from_pointee(Plan::new(config)),
            switch,
            rng,
            active: AtomicU32::new(0),
            delayed: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
        })))
    }

    /// What the call with these headers is to suffer, if anything.
    pub fn decide(&self, headers: &HeaderMap) -> Option<Fault> {
        let core = &self.0;
        if core.switch.is_killed() {
            return None;
        }
        let plan = core.plan.load();
        if !plan
            .headers
            .iter()
            .all(|(name, want)| matches(want, headers.get(name)))
        {
            return None;
        }
        let delay = plan.delay(headers, &core.rng);
        let abort = plan.abort(headers, &core.rng);
        if delay.is_none() && abort.is_none() {
            return None;
        }
        let Some(active) = Active::take(core, plan.max_active) else {
            core.overflow.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let one_if = u64::from;
        core.delayed
            .fetch_add(one_if(delay.is_some()), Ordering::Relaxed);
        core.aborted
            .fetch_add(one_if(abort.is_some()), Ordering::Relaxed);
        Some(Fault {
            delay,
            abort,
            _active: active,
        })
    }

    /// Counters.
    pub fn status(&self) -> Status {
        Status {
            active: self.0.active.load(Ordering::Relaxed),
            delayed: self.0.delayed.load(Ordering::Relaxed),
            aborted: self.0.aborted.load(Ordering::Relaxed),
            overflow: self.0.overflow.load(Ordering::Relaxed),
        }
    }

    /// Takes another configuration at once; faults that have begun go on.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: &FaultConfig) -> Result<(), PolicyError> {
        config.validate()?;
        self.0.plan.store(Arc::new(Plan::new(config)));
        Ok(())
    }
}

impl Plan {
    fn new(config: &FaultConfig) -> Self {
        let abort = |abort: &AbortConfig| {
            let status = abort
                .status
                .and_then(|status| StatusCode::from_u16(status).ok());
            let fixed = match (status, abort.grpc_status) {
                (Some(status), _) => Some(Abort::Status(status)),
                (None, Some(code)) => Some(Abort::Grpc(code)),
                (None, None) => abort.reset.then_some(Abort::Reset),
            };
            (fixed, abort.by_header, millionths(abort.percentage))
        };
        let delay = |delay: &DelayConfig| (delay.clone(), millionths(delay.percentage));
        let header = |header: &HeaderMatch| {
            let name = header.name.parse().expect("validated");
            (name, header.clone())
        };
        Self {
            delay: config.delay.as_ref().map(delay),
            abort: config.abort.as_ref().map(abort),
            headers: config.headers.iter().map(header).collect(),
            max_active: config.max_active.unwrap_or(u32::MAX),
        }
    }

    fn delay(&self, headers: &HeaderMap, rng: &Rng) -> Option<Duration> {
        let (config, share) = self.delay.as_ref()?;
        let asked = || {
            let asked = number::<u64>(headers, &DELAY_REQUEST)?;
            Some(Duration::from_millis(asked).min(config.max.0))
        };
        let fixed = || config.fixed.map(Duration::from);
        let delay = if config.by_header {
            asked().or_else(fixed)
        } else {
            fixed()
        };
        let delay = delay.filter(|delay| !delay.is_zero())?;
        let less = config.by_header.then_some(&DELAY_PERCENTAGE);
        drawn(*share, headers, less, rng).then_some(delay)
    }

    fn abort(&self, headers: &HeaderMap, rng: &Rng) -> Option<Abort> {
        let (fixed, by_header, share) = self.abort?;
        let asked = || {
            let http = number::<u16>(headers, &ABORT_REQUEST)
                .filter(|status| (200..=599).contains(status))
                .and_then(|status| StatusCode::from_u16(status).ok());
            let grpc = || number::<u8>(headers, &ABORT_GRPC_REQUEST).filter(|code| *code <= 16);
            http.map(Abort::Status).or_else(|| grpc().map(Abort::Grpc))
        };
        let abort = if by_header { asked().or(fixed) } else { fixed };
        let less = by_header.then_some(&ABORT_PERCENTAGE);
        abort.filter(|_| drawn(share, headers, less, rng))
    }
}

/// Whether the call is one of the `share`, or of what it asks for itself where that is less.
fn drawn(share: u64, headers: &HeaderMap, less: Option<&HeaderName>, rng: &Rng) -> bool {
    let asked = less.and_then(|name| number::<u64>(headers, name));
    let share = asked.map_or(share, |percent| percent.saturating_mul(10_000).min(share));
    share > 0 && rng.below(MILLION) < share
}

fn number<N: std::str::FromStr>(headers: &HeaderMap, name: &HeaderName) -> Option<N> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn matches(want: &HeaderMatch, value: Option<&HeaderValue>) -> bool {
    let found = value.is_some_and(|value| match (&want.exact, &want.prefix) {
        (Some(exact), _) => value.as_bytes() == exact.as_bytes(),
        (None, Some(prefix)) => value.as_bytes().starts_with(prefix.as_bytes()),
        (None, None) => true,
    });
    found != want.invert
}

/// One of the calls that suffer.
#[derive(Debug)]
struct Active(Arc<Core>);

impl Active {
    fn take(core: &Arc<Core>, max: u32) -> Option<Self> {
        core.active
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |active| {
                (active < max).then(|| active + 1)
            })
            .ok()
            .map(|_| Self(Arc::clone(core)))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    #[test]
    fn no_more_suffer_at_once_than_may() {
        loom::model(|| {
            let config = FaultConfig {
                max_active: Some(1),
                ..FaultConfig::default()
            };
            let faults = Faults::new(&config, Rng::new(1)).expect("valid");
            let threads = [(); 2].map(|()| {
                let core = Arc::clone(&faults.0);
                thread::spawn(move || Active::take(&core, 1))
            });
            let taken = threads.map(|thread| thread.join().expect("no panic"));
            assert_eq!(taken.iter().flatten().count(), 1);
            assert_eq!(faults.status().active, 1);
            drop(taken);
            assert_eq!(faults.status().active, 0);
        });
    }
}
