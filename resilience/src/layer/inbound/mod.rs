//! What a service takes on, enforced before its handler.
//!
//! A service that begins whatever arrives is slow for everybody just when most arrives. What it had
//! better refuse (what matters least, what nobody waits for any more, what one caller asks too often)
//! can be told on arrival, where a refusal costs next to nothing. But the policies that tell it look
//! at each other: shedding at the wait of all, a limit at what the others have let in. So they are
//! one thing, in the one order that works:
//!
//! ```text
//! arrival → shed by priority → reject expired → rate limit → bulkhead → adaptive limit → handler
//!           └────────────── the wait that shedding looks at ───────────────────────────┘
//! ```
//!
//! Shedding comes first because it is cheapest and looks at the wait of all that follows; what
//! nobody waits for any more is not begun; limits come last, because only they can make a request
//! wait.

mod plan;
mod refused;
mod service;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::request::Parts;
use tokio::time::Instant;

use self::plan::Plan;
pub use self::{
    refused::Refused,
    service::{InboundFuture, InboundLayer, InboundService},
};
use super::{
    Completes, Moment, Patience,
    deadline::deadline_of,
    lookout::{self, Lookout},
    slot::slot,
};
use crate::{
    adaptive::{self, AdaptiveLimit},
    bulkhead::{self, Bulkhead},
    config::PolicyError,
    context::priority::Priority,
    events::Events,
    inbound::InboundConfig,
    keyed::KeyedStats,
    metrics::{Emitter, Sample, Samples, cores},
    outcome::{Outcome, Policy, Reason, Rejected},
    rng::Rng,
    shared::Replaced,
    shed::{self, Shedder, Ticket},
};

/// The cores that protect one service. Clones share them; so do layers made from it.
#[derive(Debug, Clone)]
pub struct Inbound(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    plan: Replaced<Plan>,
    name: Arc<str>,
    events: Option<Events>,
    /// What was told last of what is refused.
    lookout: parking_lot::Mutex<Lookout>,
    rng: Rng,
    /// One change at a time: each plan is made from the one before.
    changing: parking_lot::Mutex<()>,
}

/// Who asks, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller {
    /// Where the connection comes from.
    pub source: Option<IpAddr>,
    /// How much the request matters, if that is not to be believed of its header: an edge must not
    /// take a stranger's word for it.
    pub priority: Option<Priority>,
    /// When the request arrived, if that was earlier than now.
    pub arrived: Option<std::time::Instant>,
}

/// What an [`Inbound`] is doing. Sections that the policy does not have are `None`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct InboundStatus {
    /// What is shed, and who waits.
    pub shed: Option<shed::Status>,
    /// Callers, and what they asked beyond their rate.
    pub rate_limit: Option<RateStatus>,
    /// Requests under way, waiting, refused.
    pub bulkhead: Option<bulkhead::Status>,
    /// The same for the limit that finds itself.
    pub concurrency: Option<adaptive::Status>,
}

/// A rate for each caller: what is left is a number for each of them, and so not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateStatus {
    /// Requests that were refused.
    pub rejected: u64,
    /// The table of callers.
    pub keys: KeyedStats,
}

/// What a request that was taken on holds until its answer has ended.
#[derive(Debug)]
#[must_use = "dropped, it is given back at once, and the request counts as cancelled"]
pub struct InboundHeld {
    _bulkhead: Option<bulkhead::Permit>,
    concurrency: Option<adaptive::Permit>,
}

impl Completes for InboundHeld {
    fn complete(self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>) {
        Completes::complete(self.concurrency, outcome, ended, retry_after);
    }
}

/// A request that waits counts as waiting until it begins or is gone.
struct Waits(Option<Ticket>);

impl Waits {
    fn begun(mut self, now: Instant) {
        if let Some(ticket) = self.0.take() {
            ticket.begun(now.into_std());
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.gone(Instant::now().into_std());
        }
    }
}

impl Inbound {
    /// The cores of `config`, with nothing counted yet.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn new(config: InboundConfig) -> Result<Self, PolicyError> {
        Self::named("", config)
    }

    /// The same with what metrics call it.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn named(name: impl Into<Arc<str>>, config: InboundConfig) -> Result<Self, PolicyError> {
        Self::build(name.into(), config, None)
    }

    /// The same with somebody who hears what happens: see [`tick`](Self::tick).
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn with_events(
        name: impl Into<Arc<str>>,
        config: InboundConfig,
        events: Events,
    ) -> Result<Self, PolicyError> {
        Self::build(name.into(), config, Some(events))
    }

    fn build(
        name: Arc<str>,
        config: InboundConfig,
        events: Option<Events>,
    ) -> Result<Self, PolicyError> {
        let rng = Rng::from_entropy();
        let plan = Plan::new(config, None, &rng)?;
        Ok(Self(Arc::new(Shared {
            plan: Replaced::new(plan),
            name,
            events,
            lookout: parking_lot::Mutex::default(),
            rng,
            changing: parking_lot::Mutex::new(()),
        })))
    }

    /// Takes another configuration at once; what stays keeps its state.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure(&self, config: InboundConfig) -> Result<(), PolicyError> {
        let _one_at_a_time = self.0.changing.lock();
        let old = self.0.plan.lend();
        if old.config == config {
            return Ok(());
        }
        let plan = Plan::new(config, Some(&old), &self.0.rng)?;
        self.0.plan.replace(plan);
        Ok(())
    }

    /// Tells who listens what limits have begun or ceased to refuse since the last time, and whether
    /// the limit that finds itself has fallen; call it from a timer, about once a second. Reads
    /// counters; locks nothing that a request needs.
    pub fn tick(&self) {
        let (shared, now) = (&*self.0, Instant::now().into_std());
        let told = (shared.events.as_ref(), &shared.name);
        lookout::look(&shared.lookout, told, now, |mut look| {
            let plan = shared.plan.lend();
            let refused = plan.shed.as_ref().map(|core| core.status().rejected);
            look.one(Policy::Shed, Reason::Overloaded, refused);
            let refused = plan.rate.as_ref().map(|limit| limit.keys.rejected());
            look.one(Policy::RateLimit, Reason::Exhausted, refused);
            look.bulkhead(plan.bulkhead.as_ref());
            look.adaptive(plan.concurrency.as_ref());
        });
    }

    /// Whether nothing is written: every request is taken on, unless its deadline has passed.
    pub fn takes_all(&self) -> bool {
        let plan = self.0.plan.lend();
        plan.shed.is_none()
            && plan.rate.is_none()
            && plan.bulkhead.is_none()
            && plan.concurrency.is_none()
    }

    /// State and counters now.
    pub fn status(&self) -> InboundStatus {
        let plan = self.0.plan.lend();
        InboundStatus {
            shed: plan.shed.as_ref().map(Shedder::status),
            rate_limit: plan.rate.as_ref().map(|limit| RateStatus {
                rejected: limit.keys.rejected(),
                keys: limit.keys.keys(),
            }),
            bulkhead: plan.bulkhead.as_ref().map(Bulkhead::status),
            concurrency: plan.concurrency.as_ref().map(AdaptiveLimit::status),
        }
    }

    /// Takes a request on, or refuses it. Waits only where a limit is reached and has a queue, and
    /// not past the request's deadline (its extension, else its headers).
    ///
    /// Cancel-safe: dropping the future leaves every queue and gives back what it held.
    ///
    /// # Errors
    /// [`Refused`] with the policy that refused.
    pub async fn admit(&self, head: &Parts, caller: Caller) -> Result<InboundHeld, Refused> {
        let plan = self.0.plan.lend();
        let mut now = Instant::now();
        let priority = || {
            caller
                .priority
                .or_else(|| head.extensions.get::<Priority>().copied())
                .unwrap_or_else(|| Priority::extract(&head.headers))
        };
        let waits = match &plan.shed {
            Some(shedder) => {
                let at = now.into_std();
                let arrived = caller.arrived.unwrap_or(at);
                Waits(Some(shedder.admit_since(priority(), arrived, at)?))
            }
            None => Waits(None),
        };
        let deadline = deadline_of(&head.extensions, &head.headers, now.into_std());
        let deadline = deadline.map(|deadline| Instant::from_std(deadline.0));
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Rejected::new(Policy::Deadline, Reason::Expired).into());
        }
        if let Some(limit) = &plan.rate {
            limit.take(&head.headers, caller.source, now)?;
        }
        let patience = Patience::Queue;
        let bulkhead = match &plan.bulkhead {
            Some(core) => Some(slot(core, &mut now, deadline, patience).await?),
            None => None,
        };
        let concurrency = match &plan.concurrency {
            Some(core) => {
                let config = plan.config.concurrency.as_ref();
                let class = config.and_then(|config| config.class_of(priority, &head.headers));
                Some(match class.and_then(|name| core.partition(name)) {
                    Some(class) => class.try_acquire(now.into_std())?,
                    None => slot(core, &mut now, deadline, patience).await?,
                })
            }
            None => None,
        };
        waits.begun(now);
        Ok(InboundHeld {
            _bulkhead: bulkhead,
            concurrency,
        })
    }
}

impl Samples for Inbound {
    fn samples<'a>(&'a self, _: std::time::Instant, take: &mut dyn FnMut(Sample<'a>)) {
        let (plan, emit) = (self.0.plan.lend(), &mut Emitter::new(&self.0.name, take));
        if let Some(core) = &plan.shed {
            cores::shed(core, emit);
        }
        if let Some(limit) = &plan.rate {
            cores::keyed_rate(limit.keys.rejected(), limit.keys.keys(), emit);
        }
        if let Some(core) = &plan.bulkhead {
            cores::bulkhead(core, emit);
        }
        if let Some(core) = &plan.concurrency {
            cores::adaptive(core, emit);
        }
    }
}
