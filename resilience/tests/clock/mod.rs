//! Every core under clocks that no machine should have. What such a clock said may be lost; but
//! nothing panics, and once the clock is sane again, every core does what it is for.

use std::time::{Duration, Instant};

use selvedge_resilience::{
    FailureClass, Outcome, Rng,
    adaptive::{AdaptiveConfig, AdaptiveLimit, AimdConfig, AlgorithmConfig, GradientConfig},
    balance::{BalanceConfig, Balancer, EndpointState, Member, OutlierConfig, PickContext},
    breaker::{BreakerConfig, CircuitBreaker, State},
    bulkhead::{Bulkhead, BulkheadConfig, Entry, QueueConfig, Queued},
    context::Priority,
    hedge::{Hedge, HedgeConfig},
    keyed::KeyedConfig,
    rate_limit::{KeyedRateLimit, KeyedRateLimitConfig, RateLimit},
    retry::{Safety, budget::Budget},
    shed::{ShedConfig, Shedder},
    throttle::{Throttle, ThrottleConfig},
};

const BROKEN: Outcome = Outcome::Failure(FailureClass::ServerError);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One core: what a call does at two instants, its beginning and its end, and whether it still
/// does what it is for from an instant on.
trait Core {
    fn call(&self, began: Instant, ended: Instant);
    /// Panics with `case` if not.
    fn works_from(&self, now: Instant, case: &str);
}

struct Breaker(CircuitBreaker);

impl Breaker {
    fn over(over: &str) -> Self {
        let config = format!(
            "over = {over:?}\nmin_requests = 10\nopen_for = \"1s\"\nprobes = 1\nopen_jitter = 0.0"
        );
        let config: BreakerConfig = toml::from_str(&config).expect("a breaker");
        Self(CircuitBreaker::new(config).expect("valid"))
    }
}

impl Core for Breaker {
    fn call(&self, began: Instant, ended: Instant) {
        if let Ok(permit) = self.0.try_acquire(began) {
            permit.complete(BROKEN, ended);
        }
    }

    fn works_from(&self, now: Instant, case: &str) {
        // Open or half-open since: for no longer than its open time, and a probe.
        let mut now = now;
        for _ in 0..10 {
            now += 31 * SECOND;
            if let Ok(permit) = self.0.try_acquire(now) {
                permit.complete(Outcome::Success, now);
            }
        }
        assert_eq!(self.0.state(), State::Closed, "{case}: closes");
        for _ in 0..1000 {
            if let Ok(permit) = self.0.try_acquire(now) {
                permit.complete(BROKEN, now + ms(1));
            }
        }
        assert_eq!(self.0.state(), State::Open, "{case}: opens");
        let rejected = self.0.try_acquire(now + ms(500)).expect_err(case);
        let wait = rejected.retry_after.expect(case);
        assert!(wait <= 2 * SECOND, "{case}: opens for {wait:?}");
    }
}

struct Balanced(Balancer<u32>);

impl Balanced {
    fn new() -> Self {
        let config: BalanceConfig =
            toml::from_str("slow_start = { window = \"10s\" }").expect("valid");
        let balancer = Balancer::new(config, OutlierConfig::default(), Rng::new(1));
        Self(balancer.expect("valid"))
    }

    fn members(&self, n: u32, now: Instant) {
        self.0.set_members((0..n).map(Member::new), now);
    }

    fn fail(&self, began: Instant, ended: Instant) {
        if let Ok(pick) = self.0.pick(&PickContext::at(began)) {
            pick.complete(Outcome::Failure(FailureClass::Connect), ended);
        }
    }
}

impl Core for Balanced {
    fn call(&self, began: Instant, ended: Instant) {
        // Some come and go, and are warm one day.
        self.members(3, began);
        self.members(4, began);
        self.fail(began, ended);
    }

    fn works_from(&self, now: Instant, case: &str) {
        self.members(4, now);
        // Picks are enough: nobody needs a timer. Longer than the longest ejection.
        let later = now + 400 * SECOND;
        for after in [400 * SECOND, 401 * SECOND] {
            if let Ok(pick) = self.0.pick(&PickContext::at(now + after)) {
                pick.complete(Outcome::Success, now + after);
            }
        }
        let status = self.0.status(later + SECOND);
        let all_in = status.iter().all(|it| it.state == EndpointState::In);
        assert!(
            all_in && status.len() == 4,
            "{case}: all are in, and warm: {status:?}"
        );
        // Whoever fails is out, and comes back.
        let now = later + 2 * SECOND;
        self.fail(now, now);
        assert_eq!(self.0.ejected(), 1, "{case}: ejects");
        self.fail(now + 400 * SECOND, now + 400 * SECOND);
        assert_eq!(self.0.ejected(), 1, "{case}: lets in, and ejects the next");
        let status = self.0.status(now + 401 * SECOND);
        let costs = status.iter().filter(|it| it.state == EndpointState::In);
        assert_eq!(costs.count(), 3, "{case}: {status:?}");
    }
}

struct Throttled(Throttle);

impl Core for Throttled {
    fn call(&self, began: Instant, ended: Instant) {
        if let Ok(permit) = self.0.try_acquire(began) {
            permit.complete(BROKEN, ended);
        }
    }

    fn works_from(&self, now: Instant, case: &str) {
        let later = now + 300 * SECOND;
        let p = self.0.probability(later);
        assert!(p <= 0.0, "{case}: forgets, {p}");
        for _ in 0..100 {
            if let Ok(permit) = self.0.try_acquire(later) {
                permit.complete(BROKEN, later);
            }
        }
        assert!(self.0.probability(later) > 0.5, "{case}: counts");
        let p = self.0.probability(later + 121 * SECOND);
        assert!(p <= 0.0, "{case}: forgets again, {p}");
    }
}

struct Rate(RateLimit);

impl Core for Rate {
    fn call(&self, began: Instant, ended: Instant) {
        if let Ok(grant) = self.0.try_acquire(began) {
            self.0.refund(grant, ended);
        }
        let _taken = self.0.try_acquire(ended);
    }

    fn works_from(&self, now: Instant, case: &str) {
        let _taken = self.0.try_acquire(now);
        let mut now = now + SECOND;
        for round in 0..3 {
            let passed = (0..20).filter(|_| self.0.try_acquire(now).is_ok()).count();
            assert_eq!(passed, 5, "{case}: a burst, round {round}");
            now += SECOND;
        }
    }
}

struct KeyedRate(KeyedRateLimit<u64>);

impl Core for KeyedRate {
    fn call(&self, began: Instant, ended: Instant) {
        for key in 0..8 {
            let _taken = self.0.try_acquire(&key, began);
            let _taken = self.0.try_acquire(&key, ended);
        }
    }

    fn works_from(&self, now: Instant, case: &str) {
        for key in 0..4 {
            let _taken = self.0.try_acquire(&key, now);
        }
        self.0.sweep(now);
        let mut now = now + SECOND;
        for _ in 0..3 {
            for key in 0..4 {
                let passed = (0..20).filter(|_| self.0.try_acquire(&key, now).is_ok());
                assert_eq!(passed.count(), 5, "{case}: a burst of {key}");
            }
            now += SECOND;
        }
        let later = now + HOUR;
        self.0.sweep(later);
        let left = self.0.keys().tracked;
        assert_eq!(left, 0, "{case}: the idle leave");
    }
}

struct Compartment(Bulkhead);

impl Core for Compartment {
    fn call(&self, began: Instant, ended: Instant) {
        let held = self.0.try_acquire();
        if let Ok(Entry::Waits(waiter)) = self.0.acquire(began) {
            let _waited = waiter.waited(ended);
            drop(waiter.expire(ended));
        }
        drop(held);
    }

    fn works_from(&self, now: Instant, case: &str) {
        let held = self.0.try_acquire().expect(case);
        let Ok(Entry::Waits(waiter)) = self.0.acquire(now) else {
            panic!("{case}: there is a queue");
        };
        drop(held);
        let permit = waiter.expire(now + ms(5)).expect(case);
        drop(permit);
        assert_eq!(self.0.in_flight(), 0, "{case}");
    }
}

struct Adaptive(AdaptiveLimit);

impl Core for Adaptive {
    fn call(&self, began: Instant, ended: Instant) {
        for _ in 0..20 {
            if let Ok(permit) = self.0.try_acquire(began) {
                permit.complete(Outcome::Success, ended);
            }
        }
    }

    fn works_from(&self, now: Instant, case: &str) {
        let before = self.0.status().windows;
        for window in 0..20 {
            let now = now + 2 * SECOND * window;
            for _ in 0..60 {
                let permit = self.0.try_acquire(now).expect(case);
                permit.complete(Outcome::Success, now + ms(2));
            }
        }
        let windows = self.0.status().windows - before;
        assert!(windows >= 15, "{case}: {windows} windows of 20");
    }
}

/// The one that measures its baseline anew now and then: not in a hundred years.
struct Measuring(AdaptiveLimit);

impl Core for Measuring {
    fn call(&self, began: Instant, ended: Instant) {
        Adaptive(self.0.clone()).call(began, ended);
    }

    fn works_from(&self, now: Instant, case: &str) {
        let mut measured = 0;
        for second in 0..200 {
            let now = now + SECOND * second;
            for _ in 0..60 {
                let before = self.0.limit();
                if let Ok(permit) = self.0.try_acquire(now) {
                    permit.complete(Outcome::Success, now + ms(2));
                }
                measured += u32::from(before != 3 && self.0.limit() == 3);
            }
        }
        assert!(measured >= 2, "{case}: measures {measured} times in 200 s");
    }
}

struct Shed(Shedder);

impl Core for Shed {
    fn call(&self, began: Instant, ended: Instant) {
        if let Ok(ticket) = self.0.admit_since(Priority::DEFAULT, ended, began) {
            ticket.begun(ended);
        }
        if let Ok(ticket) = self.0.admit(Priority::DEFAULT, began) {
            ticket.gone(ended);
        }
    }

    fn works_from(&self, now: Instant, case: &str) {
        let before = self.0.status().overloaded;
        for window in 0..5 {
            let now = now + 2 * SECOND * window;
            for _ in 0..20 {
                if let Ok(ticket) = self.0.admit(Priority::CRITICAL, now) {
                    ticket.begun(now + ms(500));
                }
            }
        }
        let overloaded = self.0.status().overloaded - before;
        assert!(overloaded >= 3, "{case}: {overloaded} windows of 5");
    }
}

struct Retries(Budget);

impl Core for Retries {
    fn call(&self, began: Instant, ended: Instant) {
        let call = self.0.begin(began);
        drop(call.try_extra(ended));
    }

    fn works_from(&self, now: Instant, case: &str) {
        let mut now = now;
        for round in 0..3 {
            now += 30 * SECOND;
            assert_eq!(self.0.balance(now), 10, "{case}: the floor, round {round}");
            for _ in 0..100 {
                drop(self.0.begin(now));
            }
            assert_eq!(self.0.balance(now), 20, "{case}: deposits");
            let paid = (0..50).filter(|_| self.0.try_withdraw(now).is_ok());
            assert_eq!(paid.count(), 20, "{case}: withdrawals");
            let soon = self.0.balance(now + SECOND);
            assert_eq!(soon, 0, "{case}: spent is spent");
        }
    }
}

struct Hedged(Hedge);

impl Core for Hedged {
    fn call(&self, began: Instant, ended: Instant) {
        for _ in 0..50 {
            let race = self.0.begin(Safety::Always, began, None);
            race.ended(Outcome::Success, began, ended);
        }
    }

    fn works_from(&self, now: Instant, case: &str) {
        let now = now + HOUR;
        for step in 0..200 {
            let now = now + ms(100) * step;
            let race = self.0.begin(Safety::Always, now, None);
            race.ended(Outcome::Success, now, now + ms(40));
        }
        let delay = self.0.delay(now + 21 * SECOND).expect(case);
        assert!(
            (ms(40)..=ms(60)).contains(&delay),
            "{case}: hedges after {delay:?}"
        );
    }
}

fn cores() -> Vec<(&'static str, Box<dyn Core>)> {
    let rate = || "10/s burst 5".parse().expect("a rate");
    let adaptive = |algorithm| {
        let config = AdaptiveConfig {
            algorithm,
            ..AdaptiveConfig::default()
        };
        AdaptiveLimit::new(config, Rng::new(1)).expect("valid")
    };
    let queue = BulkheadConfig {
        max: 1,
        queue: Some(QueueConfig::default()),
    };
    let budget = "10% min 1/s".parse().expect("a budget");
    vec![
        ("breaker, time", Box::new(Breaker::over("10s"))),
        ("breaker, calls", Box::new(Breaker::over("20 calls"))),
        (
            "breaker, fading",
            Box::new(Breaker::over("fading 20 calls")),
        ),
        (
            "throttle",
            Box::new(Throttled(
                Throttle::new(ThrottleConfig::default(), Rng::new(1)).expect("valid"),
            )),
        ),
        ("rate limit", Box::new(Rate(RateLimit::new(rate())))),
        (
            "keyed rate limit",
            Box::new(KeyedRate(
                KeyedRateLimit::new(KeyedRateLimitConfig {
                    rate: rate(),
                    keys: KeyedConfig::default(),
                })
                .expect("valid"),
            )),
        ),
        (
            "bulkhead",
            Box::new(Compartment(Bulkhead::with_config(&queue).expect("valid"))),
        ),
        (
            "adaptive",
            Box::new(Adaptive(adaptive(AlgorithmConfig::Aimd(
                AimdConfig::default(),
            )))),
        ),
        (
            "adaptive, measuring",
            Box::new(Measuring(adaptive(AlgorithmConfig::Gradient(
                GradientConfig::default(),
            )))),
        ),
        (
            "shed",
            Box::new(Shed(Shedder::new(ShedConfig::default()).expect("valid"))),
        ),
        (
            "budget",
            Box::new(Retries(Budget::new(budget).expect("valid"))),
        ),
        ("balancer", Box::new(Balanced::new())),
        (
            "hedge",
            Box::new(Hedged(Hedge::new(HedgeConfig::default()).expect("valid"))),
        ),
    ]
}

/// What a clock says, one after the other, from `start` on; and when it is sane again.
fn clocks(start: Instant) -> Vec<(&'static str, Vec<Instant>, Instant)> {
    let back = |by: Duration| start.checked_sub(by).unwrap_or(start);
    let ahead = |by: Duration| start.checked_add(by).unwrap_or(start);
    let century = ahead(100 * YEAR);
    vec![
        ("stands still", vec![start; 300], start + SECOND),
        (
            "runs backwards",
            (0..300).map(|n| back(SECOND * n)).collect(),
            start + SECOND,
        ),
        (
            "is set back for good",
            vec![start, start, back(HOUR / 2)],
            back(HOUR / 2) + SECOND,
        ),
        (
            "is set ahead a hundred years, and back",
            vec![start, century, century + SECOND, start],
            start + 2 * SECOND,
        ),
        (
            "is set ahead and stays there",
            vec![start, century],
            century + SECOND,
        ),
        (
            "begins a hundred years ahead",
            vec![century],
            start + SECOND,
        ),
        (
            "goes to and fro",
            (0..300)
                .map(|n| if n % 2 == 0 { start } else { century })
                .collect(),
            start + 3 * SECOND,
        ),
        (
            "goes further than 64 bits of nanoseconds",
            vec![start, ahead(600 * YEAR), ahead(1000 * YEAR), start],
            start + 2 * SECOND,
        ),
        (
            "sleeps for ten hours",
            vec![start, start + 10 * HOUR],
            start + 20 * HOUR,
        ),
        (
            "is half an hour ahead, and back",
            vec![start, start + HOUR / 2, start],
            start + 2 * SECOND,
        ),
    ]
}

#[test]
fn no_clock_panics_or_freezes_a_core() {
    let start = Instant::now();
    // The process has begun sanely.
    let _taken = RateLimit::new("1/s".parse().expect("a rate")).try_acquire(start);
    let mut frozen = Vec::new();
    for clock in 0..clocks(start).len() {
        for (core, policy) in cores() {
            let (name, ticks, sane) = &clocks(start)[clock];
            let case = format!("{core}, when the clock {name}");
            let run = || {
                for pair in ticks.windows(2) {
                    policy.call(pair[0], pair[1]);
                }
                policy.call(ticks[0], ticks[ticks.len() - 1]);
                policy.works_from(*sane, &case);
            };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                frozen.push(case);
            }
        }
    }
    assert!(frozen.is_empty(), "{frozen:#?}");
}
