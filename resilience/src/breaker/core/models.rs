//! Loom models of the transitions: who opens, who probes, and that one of them does.

use loom::thread;

use super::*;
use crate::config::Millis;
use crate::{
    config::Ratio,
    outcome::{FailureClass, Outcome},
};

fn circuit() -> (Arc<Core>, Instant) {
    let config = BreakerConfig {
        consecutive: 1,
        probes: 1,
        open_for: Millis::new(1_000),
        open_jitter: Ratio::percent(0),
        over: super::super::config::Window::Calls(1),
        ..BreakerConfig::default()
    };
    let core = Core::new(config, "model".into(), None, Rng::new(1)).expect("valid");
    #[expect(clippy::disallowed_methods, reason = "a model has to start somewhere")]
    let now = Instant::now();
    (Arc::new(core), now)
}

fn end(permit: Ctl, outcome: Outcome) -> End {
    End {
        permit,
        started: Tick(0),
        deadline: None,
        outcome,
        retry_after: None,
        trips: false,
    }
}

const FAILED: Outcome = Outcome::Failure(FailureClass::ServerError);

#[test]
fn two_failures_at_once_open_the_circuit_once() {
    loom::model(|| {
        let (core, now) = circuit();
        let permit = core.admit(now).expect("closed");
        let other = {
            let core = Arc::clone(&core);
            thread::spawn(move || core.complete(&end(permit, FAILED), now))
        };
        core.complete(&end(permit, FAILED), now);
        other.join().expect("no panic");
        assert_eq!((core.ctl().state(), core.opened()), (State::Open, 1));
        assert!(core.admit(now).is_err());
    });
}

#[test]
fn when_the_time_is_up_one_of_two_probes() {
    loom::model(|| {
        let (core, now) = circuit();
        core.lead_open(Some(Duration::from_secs(1)), now);
        let later = now + Duration::from_secs(2);
        let other = {
            let core = Arc::clone(&core);
            thread::spawn(move || core.admit(later).is_ok())
        };
        let mine = core.admit(later).is_ok();
        let theirs = other.join().expect("no panic");
        assert!(mine ^ theirs, "{mine} {theirs}");
        assert_eq!(core.ctl().state(), State::HalfOpen);
    });
}
