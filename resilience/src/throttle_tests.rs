use super::*;
use crate::outcome::FailureClass;

const BROKEN: Outcome = Outcome::Failure(FailureClass::ServerError);

fn success(threshold: u32, aggression: f64) -> Form {
    Form::Success {
        threshold: Ratio::percent(threshold),
        aggression,
    }
}

fn counts(t: &Throttle, now: Instant) -> (u64, u64) {
    let counts = t.counts(now);
    (counts.requests, counts.accepts)
}

#[test]
fn thr_1_to_the_digits_of_the_table() {
    let sre = Form::Accepts { k: 2.0 };
    // requests, accepts → probability, to so many digits.
    let cases: &[(&str, Form, u64, u64, f64, i32)] = &[
        ("sre", sre, 100, 50, 0.0, 9),
        ("sre", sre, 100, 49, 0.0198, 4),
        ("sre", sre, 200, 90, 0.0995, 4),
        ("sre", sre, 1000, 100, 0.7992, 4),
        ("sre", sre, 1, 0, 0.5, 9),
        ("sre", sre, 0, 0, 0.0, 9),
        ("envoy", success(95, 1.0), 100, 95, 0.0, 9),
        ("envoy", success(95, 1.0), 100, 90, 0.05211, 5),
        ("envoy", success(95, 1.0), 100, 50, 0.46899, 5),
        ("envoy, aggression 2", success(95, 2.0), 100, 50, 0.68483, 5),
        ("failsafe-go", success(90, 1.0), 120, 90, 20.0 / 121.0, 9),
    ];
    for (name, form, requests, accepts, want, digits) in cases {
        let got = form.probability(*requests, *accepts);
        let close = 0.5 * 10f64.powi(-digits);
        assert!(
            (got - want).abs() <= close,
            "{name} ({requests},{accepts}): {got}, want {want}"
        );
    }
}

fn throttle(form: Form, max: u32) -> Throttle {
    let config = ThrottleConfig {
        form,
        max: Ratio::percent(max),
        min_requests: 0,
        ..ThrottleConfig::default()
    };
    Throttle::new(config, Rng::new(4)).expect("valid")
}

/// Records without drawing: as if `n` calls had been made and had come to `outcome`.
fn record(throttle: &Throttle, n: u64, outcome: Outcome, now: Instant) {
    for _ in 0..n {
        Permit(throttle.0.lend(Lane::here())).complete(outcome, now);
    }
}

#[test]
fn thr_1_the_cap_holds() {
    let now = Instant::now();
    for (form, accepts, refused) in [(success(95, 1.0), 0, 100), (success(90, 1.0), 10, 990)] {
        let t = throttle(form, 80);
        record(&t, accepts, Outcome::Success, now);
        record(&t, refused, BROKEN, now);
        assert!((t.probability(now) - 0.8).abs() < 1e-12);
    }
}

#[test]
fn what_is_refused_is_what_the_probability_says_and_a_seed_is_a_run() {
    let now = Instant::now();
    let run = || {
        let t = throttle(success(95, 1.0), 90);
        record(&t, 50, Outcome::Success, now);
        record(&t, 50, BROKEN, now);
        // Permits that are dropped count as nothing, so the probability stays where it is.
        let admitted: Vec<_> = (0..10_000).map(|_| t.try_acquire(now).is_ok()).collect();
        assert_eq!(
            counts(&t, now),
            (100, 50),
            "Envoy's form counts what was made"
        );
        admitted
    };
    let first = run();
    let refused = first.iter().filter(|admitted| !**admitted).count();
    assert!((4590..=4790).contains(&refused), "{refused} of 10000");
    assert_eq!(first, run());
}

#[test]
fn local_refusals_count_as_requests_in_the_book_s_form() {
    let now = Instant::now();
    let t = throttle(Form::Accepts { k: 2.0 }, 99);
    record(&t, 100, BROKEN, now);
    let before = t.counts(now).requests;
    let refused = (0..100).filter(|_| t.try_acquire(now).is_err()).count();
    assert!(refused > 50);
    assert_eq!(t.counts(now).requests, before + refused as u64);
    assert_eq!(t.rejected(), refused as u64);
}

#[test]
fn the_window_slides_and_the_callee_s_recovery_is_noticed() {
    let start = Instant::now();
    let t = throttle(Form::Accepts { k: 2.0 }, 90);
    record(&t, 1000, Outcome::RateLimited, start);
    assert!(t.probability(start + Duration::from_secs(100)) > 0.8);
    assert!(t.probability(start + Duration::from_secs(121)) < 1e-9);
    for days in [1, 200, 70_000] {
        let later = start + Duration::from_secs(days * 86_400);
        assert_eq!(counts(&t, later), (0, 0), "after {days} days");
    }
}

#[test]
fn a_healthy_callee_is_never_throttled_and_few_calls_decide_nothing() {
    let now = Instant::now();
    let t = Throttle::new(ThrottleConfig::default(), Rng::new(1)).expect("valid");
    record(&t, 9, BROKEN, now);
    assert!(
        (0..100).all(|_| t.try_acquire(now).is_ok()),
        "9 of 10 calls"
    );
    let t = throttle(Form::Accepts { k: 2.0 }, 90);
    record(&t, 500, Outcome::Success, now);
    record(&t, 100, Outcome::Ignored, now);
    record(&t, 500, BROKEN, now);
    record(&t, 99, Outcome::Cancelled, now);
    assert_eq!(counts(&t, now), (1100, 600));
    assert!((0..1000).all(|_| t.try_acquire(now).is_ok()));
}

#[test]
fn a_new_configuration_keeps_the_counts() {
    let now = Instant::now();
    let t = throttle(Form::Accepts { k: 2.0 }, 90);
    record(&t, 100, BROKEN, now);
    let new = |window| ThrottleConfig {
        form: success(95, 1.0),
        window: Millis::new(window),
        ..ThrottleConfig::default()
    };
    t.reconfigure(new(120_000)).expect("valid");
    assert_eq!(counts(&t, now), (100, 0));
    assert!(t.reconfigure(new(0)).is_err());
    assert_eq!(counts(&t, now), (100, 0));
    t.reconfigure(new(60_000)).expect("valid");
    assert_eq!(counts(&t, now), (100, 0), "another window, the same calls");
    record(&t, 1, Outcome::Success, now + Duration::from_secs(40));
    t.reconfigure(new(30_000)).expect("valid");
    let later = now + Duration::from_secs(41);
    assert_eq!(counts(&t, later), (1, 1), "no further back than it reaches");
}

#[test]
fn what_cannot_work_is_refused_with_its_path() {
    const CASES: &[(&str, &str)] = &[
        (r#"form = { kind = "accepts", k = 1.0 }"#, "form.k"),
        (
            r#"form = { kind = "success", threshold = "0%" }"#,
            "form.threshold",
        ),
        (
            r#"form = { kind = "success", threshold = "101%" }"#,
            "form.threshold",
        ),
        (
            r#"form = { kind = "success", aggression = 0.5 }"#,
            "form.aggression",
        ),
        (r#"window = "0s""#, "window"),
        (r#"max = "100%""#, "max"),
    ];
    for (text, path) in CASES {
        let config: ThrottleConfig = toml::from_str(text).expect(text);
        assert_eq!(config.validate().expect_err(text).path, *path, "{text}");
    }
    assert!(toml::from_str::<ThrottleConfig>(r#"form = { kind = "guess" }"#).is_err());
    let config: ThrottleConfig = toml::from_str("").expect("empty");
    assert_eq!(config, ThrottleConfig::default());
    config.validate().expect("works");
}

#[test]
fn two_threads_lose_no_count() {
    const CALLS: u64 = crate::sync::rounds(200_000, 400);
    let now = Instant::now();
    let t = throttle(success(50, 1.0), 90);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| record(&t, CALLS, Outcome::Success, now));
        }
    });
    assert_eq!(counts(&t, now), (2 * CALLS, 2 * CALLS));
}
