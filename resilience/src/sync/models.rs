//! What admits a call and takes its result takes no lock: tower's budget and load, tower-resilience's
//! and failsafe's breaker take one or two for each call.

use std::time::{Duration, Instant};

use super::modelled::locks;
use crate::{
    Outcome, Rng, adaptive::AdaptiveLimit, breaker::CircuitBreaker, bulkhead::Bulkhead,
    hedge::Hedge, rate_limit::RateLimit, retry::budget::Budget, shed::Shedder, throttle::Throttle,
};

/// Calls `core` a few times, and counts the locks of the last: what is set up once, or once a
/// window, is not the path of a call.
fn takes_none(name: &str, mut call: impl FnMut(Instant)) {
    #[expect(clippy::disallowed_methods, reason = "a model has to start somewhere")]
    let now = Instant::now();
    (0..3).for_each(|_| call(now));
    assert_eq!(locks(|| call(now)), 0, "{name}");
}

#[test]
fn no_closed_path_takes_a_lock() {
    // One thread has one order, but a long one.
    let mut model = loom::model::Builder::new();
    model.max_branches = 1_000_000;
    model.check(|| {
        let ended = Duration::from_millis(1);
        for over in ["10s", "100 calls", "fading 100 calls"] {
            let config = crate::breaker::BreakerConfig {
                over: over.parse().expect("a window"),
                ..Default::default()
            };
            let breaker = CircuitBreaker::new(config).expect("valid");
            takes_none(over, |now| {
                let permit = breaker.try_acquire(now).expect("closed");
                permit.complete(Outcome::Success, now + ended);
            });
        }
        let bulkhead = Bulkhead::new(2);
        takes_none("bulkhead", |_| drop(bulkhead.try_acquire().expect("room")));
        let limit = AdaptiveLimit::new(Default::default(), Rng::new(1)).expect("valid");
        takes_none("adaptive", |now| {
            let permit = limit.try_acquire(now).expect("room");
            permit.complete(Outcome::Success, now + ended);
        });
        let rate = RateLimit::new("1000000/s".parse().expect("a rate"));
        takes_none("rate limit", |now| {
            rate.try_acquire(now).expect("conforms");
        });
        let budget = Budget::new("100% min 3/s".parse().expect("a budget")).expect("valid");
        takes_none("budget", |now| {
            let call = budget.begin(now);
            drop(call.try_extra(now).expect("paid"));
        });
        let throttle = Throttle::new(Default::default(), Rng::new(1)).expect("valid");
        takes_none("throttle", |now| {
            let permit = throttle.try_acquire(now).expect("accepted");
            permit.complete(Outcome::Success, now);
        });
        let shedder = Shedder::new(Default::default()).expect("valid");
        takes_none("shed", |now| {
            let ticket = shedder.admit(crate::context::Priority::DEFAULT, now);
            ticket.expect("no queue").begun(now);
        });
        let hedge = Hedge::new(Default::default()).expect("valid");
        takes_none("hedge", |now| {
            let race = hedge.begin(crate::retry::Safety::Always, now, None);
            race.ended(Outcome::Success, now, now + ended);
        });
        // And the counter counts.
        let changed =
            locks(|| rate.reconfigure("5/s".parse().expect("a rate"), std::time::Instant::now()));
        assert!(changed > 0);
    });
}
