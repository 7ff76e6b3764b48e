//! The breaker against a slow, obvious one, over random scripts.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Begin,
    End(usize, Outcome),
    Drop(usize),
    Operator(State),
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(OK),
        4 => Just(ERR),
        1 => Just(Outcome::RateLimited),
        1 => Just(Outcome::Ignored),
        1 => Just(Outcome::Cancelled),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let by_hand = [
        State::Closed,
        State::ForcedOpen,
        State::Disabled,
        State::MetricsOnly,
    ];
    let step = prop_oneof![
        3 => (0u64..2_500).prop_map(Step::Wait),
        8 => Just(Step::Begin),
        8 => (0usize..8, outcomes()).prop_map(|(which, outcome)| Step::End(which, outcome)),
        1 => (0usize..8).prop_map(Step::Drop),
        1 => (0usize..12).prop_map(move |i| by_hand.get(i).map_or(Step::Begin, |s| Step::Operator(*s))),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Everything in lists and milliseconds; looks at all of it each time.
struct Obvious {
    config: BreakerConfig,
    state: State,
    epoch: u64,
    now: u64,
    open_until: u64,
    streak: u32,
    /// When, failed, slow; since the epoch began.
    log: VecDeque<(u64, bool, bool)>,
    origin: Option<u64>,
    row: u32,
    probes: (u32, u32, u32, u32),
    last_probe: u64,
}

impl Obvious {
    fn window(&self) -> Vec<(bool, bool)> {
        let all = self.log.iter();
        match self.config.over {
            Window::Calls(n) => {
                let skip = self.log.len().saturating_sub(n as usize);
                all.skip(skip).map(|&(_, f, s)| (f, s)).collect()
            }
            Window::Time(span) => {
                let width = span.0.as_millis() as u64 / u64::from(self.config.buckets);
                let origin = self.origin.unwrap_or(0);
                let bucket = |at: u64| (at - origin) / width;
                all.filter(|(at, ..)| {
                    bucket(*at) + u64::from(self.config.buckets) > bucket(self.now)
                })
                .map(|&(_, f, s)| (f, s))
                .collect()
            }
            Window::Fading(_) => unreachable!("not in these scripts"),
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
        if matches!(state, State::Closed | State::MetricsOnly) {
            self.log.clear();
            self.origin = None;
            self.row = 0;
        }
        if !matches!(state, State::Open | State::HalfOpen) {
            self.streak = 0;
        }
        if state == State::HalfOpen {
            self.probes = (0, 0, 0, 0);
            self.last_probe = self.now;
        }
    }

    fn open(&mut self) {
        let time = (5_000.0 * self.config.open_multiplier.powi(self.streak as i32)) as u64;
        self.open_until = self.now + time.min(60_000);
        self.enter(State::Open);
        self.streak += 1;
    }

    fn admit(&mut self) -> Option<u64> {
        if self.state == State::Open && self.now > self.open_until {
            self.enter(State::HalfOpen);
        }
        match self.state {
            State::Closed | State::Disabled | State::MetricsOnly => Some(self.epoch),
            State::Open | State::ForcedOpen => None,
            State::HalfOpen if self.probes.0 < self.config.probes => {
                self.probes.0 += 1;
                self.last_probe = self.now;
                Some(self.epoch)
            }
            State::HalfOpen => {
                if self.now - self.last_probe > 60_000 {
                    self.open();
                }
                None
            }
        }
    }

    fn end(&mut self, epoch: u64, began: u64, outcome: Outcome, dropped: bool) {
        if epoch != self.epoch {
            return;
        }
        let took = if dropped { 0 } else { self.now - began };
        let slow = took > 4_000;
        let outcome = match outcome {
            Outcome::Cancelled if took >= 4_000 => Outcome::Failure(FailureClass::Timeout),
            other => other,
        };
        let silent = matches!(outcome, Outcome::Ignored | Outcome::Cancelled);
        match self.state {
            State::HalfOpen if silent => self.probes.0 -= 1,
            State::HalfOpen => {
                let bad = outcome.is_failure() || outcome == Outcome::RateLimited;
                self.probes.1 += 1;
                self.probes.2 += u32::from(bad);
                self.probes.3 += u32::from(slow);
                let (_, done, bad, slow) = self.probes;
                if done >= self.config.probes.min(self.config.min_calls()) {
                    if 2 * bad >= done || 2 * slow >= done {
                        self.open();
                    } else {
                        self.enter(State::Closed);
                    }
                }
            }
            State::Closed | State::MetricsOnly if !silent => {
                self.origin.get_or_insert(self.now);
                self.log.push_back((self.now, outcome.is_failure(), slow));
                match outcome {
                    Outcome::Success => self.row = 0,
                    Outcome::Failure(_) => self.row += 1,
                    _ => {}
                }
                let window = self.window();
                let share = |of: fn(&(bool, bool)) -> bool| {
                    let n = window.iter().filter(|call| of(call)).count();
                    window.len() >= self.config.min_calls() as usize && 2 * n >= window.len()
                };
                let consecutive = self.config.consecutive;
                let row = outcome.is_failure() && consecutive > 0 && self.row >= consecutive;
                let trips = row || share(|c| c.0) || share(|c| c.1);
                if trips && self.state == State::Closed {
                    self.open();
                }
            }
            _ => {}
        }
    }
}

fn agree(config: &BreakerConfig, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut b = Bench::new(config.clone());
    let start = b.now;
    let mut model = Obvious {
        config: config.clone(),
        state: State::Closed,
        epoch: 0,
        now: 0,
        open_until: 0,
        streak: 0,
        log: VecDeque::new(),
        origin: None,
        row: 0,
        probes: (0, 0, 0, 0),
        last_probe: 0,
    };
    let mut out: Vec<(Permit, u64, u64)> = Vec::new();
    let (mut admitted, mut refused) = (0, 0);
    for step in steps {
        match step {
            Step::Wait(ms) => model.now += ms,
            Step::Begin => {
                b.now = start + Duration::from_millis(model.now);
                let ours = b.breaker.try_acquire(b.now);
                let theirs = model.admit();
                prop_assert_eq!(ours.is_ok(), theirs.is_some());
                match (ours, theirs) {
                    (Ok(permit), Some(epoch)) => {
                        admitted += 1;
                        out.push((permit, epoch, model.now));
                    }
                    _ => refused += 1,
                }
            }
            Step::End(which, outcome) if !out.is_empty() => {
                let (permit, epoch, began) = out.remove(which % out.len());
                b.now = start + Duration::from_millis(model.now);
                permit.complete(outcome, b.now);
                model.end(epoch, began, outcome, false);
            }
            Step::Drop(which) if !out.is_empty() => {
                let (permit, epoch, began) = out.remove(which % out.len());
                drop(permit);
                model.end(epoch, began, Outcome::Cancelled, true);
            }
            Step::End(..) | Step::Drop(_) => {}
            Step::Operator(state) => {
                b.breaker.transition_to(state, start).expect("legal");
                model.enter(state);
            }
        }
        b.now = start + Duration::from_millis(model.now);
        let snapshot = b.breaker.snapshot(b.now);
        prop_assert_eq!(snapshot.state, model.state);
        prop_assert_eq!(snapshot.epoch, model.epoch);
        prop_assert_eq!(snapshot.calls.in_flight, out.len() as u64);
        prop_assert_eq!(snapshot.calls.admitted(), admitted);
        prop_assert_eq!(snapshot.rejected, refused);
        if matches!(model.state, State::Closed | State::MetricsOnly) {
            let window = model.window();
            let want = Counts {
                total: window.len() as u32,
                failed: window.iter().filter(|call| call.0).count() as u32,
                slow: window.iter().filter(|call| call.1).count() as u32,
            };
            prop_assert_eq!(snapshot.window, want);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::sync::rounds(512, 2) as u32))]

    #[test]
    fn a_breaker_over_time_behaves_as_the_obvious_one(steps in steps(), consecutive in 0u32..4) {
        let config = BreakerConfig {
            over: Window::Time(Millis::new(5_000)),
            buckets: 5,
            consecutive,
            probes: 2,
            ..setup()
        };
        agree(&config, steps)?;
    }

    #[test]
    fn a_breaker_over_calls_behaves_as_the_obvious_one(steps in steps(), size in 1u32..40) {
        let config = BreakerConfig {
            over: Window::Calls(size),
            probes: 3,
            ..setup()
        };
        agree(&config, steps)?;
    }
}
