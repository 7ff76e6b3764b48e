//! What nobody does on the path of a call.

use super::{Stack, now};
use crate::{
    balance::Key,
    layer::lookout,
    outcome::{Policy, Reason},
    rate_limit::RateLimit,
    throttle::Throttle,
};

impl<K: Key> Stack<K> {
    /// Does what is due by the clock and not by a call; call it from a timer, about once a second.
    ///
    /// Endpoints whose time is over are let in where nobody calls, too; and who
    /// [listens](super::StackBuilder::events) is told what limits, budget and balancer have begun or
    /// ceased to refuse since the last time. Reads counters; locks nothing that a call needs.
    ///
    /// ```
    /// use selvedge_resilience::{TrafficPolicy, events::Events, layer::Stack};
    ///
    /// let policy: TrafficPolicy = toml::from_str("breaker = {}")?;
    /// let events = Events::new();
    /// let heard = events.subscribe_to_changes(256);
    /// let stack = Stack::<&str>::builder(policy)
    ///     .name("orders")
    ///     .events(events)
    ///     .label(|addr| (*addr).to_owned())
    ///     .build()?;
    /// stack.breaker().expect("one is written").force_open();
    /// // Each second:
    /// stack.tick();
    /// let mut log = Vec::new();
    /// while let Some(event) = heard.next() {
    ///     log.push(format!("{} of {}: {}", event.policy.as_str(), event.name, event.kind));
    /// }
    /// assert_eq!(log, ["breaker of orders: forced_open, was closed: operator"]);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn tick(&self) {
        let (shared, now) = (&*self.0, now());
        shared.balancer.tick(now);
        let told = (shared.origin.events.as_ref(), &shared.origin.name);
        lookout::look(&shared.lookout, told, now, |mut look| {
            let plan = shared.plan.lend();
            let refused = plan.throttle.as_ref().map(Throttle::rejected);
            look.one(Policy::Throttle, Reason::Throttled, refused);
            look.bulkhead(plan.bulkhead.as_ref());
            look.adaptive(plan.concurrency.as_ref());
            let refused = plan.rate.as_ref().map(RateLimit::rejected);
            look.one(Policy::RateLimit, Reason::Exhausted, refused);
            let counts = plan.budget.as_ref().map(|budget| {
                let counts = budget.counts();
                [
                    (Reason::Exhausted, counts.exhausted),
                    (Reason::Full, counts.capped),
                ]
            });
            look.refusals(Policy::RetryBudget, counts.as_ref().map(<[_; 2]>::as_slice));
            let refused = Some(shared.balancer.rejected());
            look.one(Policy::Balancer, Reason::NoEndpoint, refused);
        });
    }
}
