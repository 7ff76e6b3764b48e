//! Events in the log: each is an event of `tracing`, with fields that keep their names.
//!
//! A text is for people; what is to be searched and counted needs fields, and fields that every
//! service names as it likes are not searched by anybody. So here is the one form that a library, a
//! sidecar and a gateway share.
//!
//! | field | of what | |
//! |---|---|---|
//! | `service` | all | the name of the core; see [`Owner`] |
//! | `policy`, `kind` | all | [`Policy::as_str`](crate::Policy::as_str), [`EventKind::as_str`] |
//! | `event` | all | the same in words |
//! | `server.address` | an endpoint's | what it is called |
//! | `from`, `to`, `cause`, `open_for_ms` | `transition` | states |
//! | `cause` | `exceeded`, `ejected`, `returned` | why |
//! | `lasts_ms` | `ejected` | for how long |
//! | `reason` | `rejected`, `refusals_began` | [`Reason::as_str`](crate::Reason::as_str) |
//! | `refused` | `refusals_ended` | how many in between |
//! | `limit.from`, `limit.to` | `limit_fell`, `limit_settled` | calls |
//! | `healthy`, `endpoints`, `begun` | `panic` | how many are in, of how many |
//! | `passed` | `checked` | |
//! | `generation` | `reconfigured` | |
//!
//! What makes calls worse off ([`EventKind::is_trouble`]) is a warning, a new configuration and a
//! single refusal are for who debugs, the rest informs. Target: `selvedge_resilience::events`.
//!
//! # What it does not do
//! It suppresses nothing: a circuit that opens and closes all day writes lines all day.

use std::time::Duration;

use super::{Event, EventKind, Subscription};

const TARGET: &str = "selvedge_resilience::events";

/// Whose policy it is, where a host has more than one kind of them. End it with
/// `..Owner::default()`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner<'a> {
    /// `client`, `server` or what else a host tells apart: the field `side`.
    pub side: Option<&'a str>,
    /// The field `service`.
    pub service: Option<&'a str>,
    /// The field `listener`.
    pub listener: Option<&'a str>,
}

/// The fields of some kinds only; what is `None` is not written.
#[derive(Default)]
struct Fields {
    from: Option<&'static str>,
    to: Option<&'static str>,
    cause: Option<&'static str>,
    reason: Option<&'static str>,
    open_for_ms: Option<u64>,
    lasts_ms: Option<u64>,
    limit_from: Option<u32>,
    limit_to: Option<u32>,
    healthy: Option<u32>,
    endpoints: Option<u32>,
    begun: Option<bool>,
    passed: Option<bool>,
    refused: Option<u64>,
    generation: Option<u64>,
}

fn fields(kind: &EventKind) -> Fields {
    let mut it = Fields::default();
    match *kind {
        EventKind::Transition {
            from,
            to,
            cause,
            open_for,
        } => {
            (it.from, it.to) = (Some(from.as_str()), Some(to.as_str()));
            it.cause = Some(cause.as_str());
            it.open_for_ms = open_for.map(millis);
        }
        EventKind::Exceeded { cause } => it.cause = Some(cause.as_str()),
        EventKind::Rejected { reason } | EventKind::RefusalsBegan { reason } => {
            it.reason = Some(reason.as_str());
        }
        EventKind::Reconfigured { generation } => it.generation = Some(generation),
        EventKind::Ejected { cause, lasts } => {
            it.cause = Some(cause.as_str());
            it.lasts_ms = Some(millis(lasts));
        }
        EventKind::Returned { why } => it.cause = Some(why.as_str()),
        EventKind::Checked { passed } => it.passed = Some(passed),
        EventKind::Panic {
            begun,
            healthy,
            all,
        } => {
            (it.healthy, it.endpoints) = (Some(healthy), Some(all));
            it.begun = Some(begun);
        }
        EventKind::RefusalsEnded { refused } => it.refused = Some(refused),
        EventKind::LimitFell { from, to } | EventKind::LimitSettled { from, to } => {
            (it.limit_from, it.limit_to) = (Some(from), Some(to));
        }
    }
    it
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Event {
    /// Writes it as an event of `tracing`, as a service's.
    pub fn trace(&self) {
        self.trace_of(Owner {
            service: Some(&self.name),
            ..Owner::default()
        });
    }

    /// The same of somebody else.
    pub fn trace_of(&self, owner: Owner<'_>) {
        let it = fields(&self.kind);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: TARGET,
                    side = owner.side,
                    service = owner.service,
                    listener = owner.listener,
                    policy = self.policy.as_str(),
                    kind = self.kind.as_str(),
                    server.address = self.endpoint.as_deref(),
                    from = it.from,
                    to = it.to,
                    cause = it.cause,
                    reason = it.reason,
                    open_for_ms = it.open_for_ms,
                    lasts_ms = it.lasts_ms,
                    limit.from = it.limit_from,
                    limit.to = it.limit_to,
                    healthy = it.healthy,
                    endpoints = it.endpoints,
                    begun = it.begun,
                    passed = it.passed,
                    refused = it.refused,
                    generation = it.generation,
                    event = %self.kind,
                    "policy event"
                )
            };
        }
        match self.kind {
            _ if self.kind.is_trouble() => line!(warn),
            EventKind::Reconfigured { .. } | EventKind::Rejected { .. } => line!(debug),
            _ => line!(info),
        }
    }
}

impl Subscription {
    /// Writes all that waits as events of `tracing`, and says how many there were. Call it from a
    /// timer.
    ///
    /// ```
    /// use selvedge_resilience::{TrafficPolicy, events::Events, layer::Stack};
    ///
    /// let events = Events::new();
    /// let heard = events.subscribe_to_changes(256);
    /// let policy: TrafficPolicy = toml::from_str("breaker = {}")?;
    /// let orders = Stack::<&str>::builder(policy).name("orders").events(events).build()?;
    /// orders.breaker().expect("in the policy").force_open();
    /// // Once a second: `orders.tick();`, and then
    /// assert_eq!(heard.trace(), 1);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn trace(&self) -> usize {
        std::iter::from_fn(|| self.next())
            .inspect(Event::trace)
            .count()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
