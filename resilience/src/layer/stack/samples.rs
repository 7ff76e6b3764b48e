//! What the cores of a destination have counted.

use std::time::Instant;

use super::Stack;
use crate::{
    balance::Key,
    metrics::{Emitter, Sample, Samples, cores},
};

impl<K: Key> Samples for Stack<K> {
    fn samples<'a>(&'a self, now: Instant, take: &mut dyn FnMut(Sample<'a>)) {
        let (plan, emit) = (self.0.plan.lend(), &mut Emitter::new(self.name(), take));
        if let Some(core) = &plan.throttle {
            cores::throttle(core, now, emit);
        }
        if let Some(core) = &plan.breaker {
            cores::breaker(core, now, emit);
        }
        if let Some(core) = &plan.bulkhead {
            cores::bulkhead(core, emit);
        }
        if let Some(core) = &plan.concurrency {
            cores::adaptive(core, emit);
        }
        if let Some(core) = &plan.rate {
            cores::rate_limit(core, now, emit);
        }
        if let Some(core) = &plan.budget {
            cores::budget(core, now, emit);
        }
        if let Some(core) = &plan.cost {
            cores::cost(core, emit);
        }
        if let Some(core) = &plan.hedge {
            cores::hedge(core, emit);
        }
        if let Some(core) = &plan.faults {
            cores::faults(core, emit);
        }
        if let Some(coalesce) = &plan.coalesce {
            cores::coalesce(&coalesce.core, emit);
        }
        cores::balancer(&self.0.balancer, emit);
    }
}
