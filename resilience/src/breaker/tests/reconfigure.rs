//! A new configuration keeps what the old one knew.

use super::*;

fn with(over: Window, buckets: u32) -> BreakerConfig {
    BreakerConfig {
        over,
        buckets,
        // Only the window is looked at; no threshold must act on it.
        mode: Mode::MetricsOnly,
        ..setup()
    }
}

fn seconds(n: u64) -> Window {
    Window::Time(Millis::new(n * 1_000))
}

#[test]
fn thresholds_keep_everything() {
    let mut b = Bench::new(BreakerConfig {
        min_requests: 1_000,
        ..setup()
    });
    b.call(ERR).call(ERR).call(OK).call(ERR);
    let before = b.breaker.snapshot(b.now);
    b.breaker.reconfigure(setup()).expect("valid");
    let after = b.breaker.snapshot(b.now);
    assert_eq!((after.window, after.epoch), (before.window, before.epoch));
    assert_eq!(after.generation, 1);
    b.call(OK);
    assert_eq!(b.state(), State::Open, "3 of 5, by the new minimum");
}

#[test]
fn a_window_of_another_shape_begins_with_what_it_can_hold() {
    // Five failures at 0 s, five at 6 s; read at 9 s. (from, to, what the new one holds)
    let cases = [
        (with(seconds(10), 10), with(seconds(20), 20), Some(10)),
        (with(seconds(10), 10), with(seconds(5), 5), Some(5)),
        (with(seconds(20), 20), with(seconds(10), 5), Some(10)),
        (
            with(Window::Calls(100), 10),
            with(Window::Calls(4), 10),
            Some(4),
        ),
        (
            with(Window::Calls(7), 10),
            with(Window::Calls(100), 10),
            Some(7),
        ),
        (
            with(Window::Fading(100), 10),
            with(Window::Fading(8), 10),
            Some(8),
        ),
        (with(Window::Calls(100), 10), with(seconds(10), 10), None),
        (with(seconds(10), 10), with(Window::Calls(100), 10), None),
    ];
    for (from, to, holds) in cases {
        let name = format!("{} to {}", from.over, to.over);
        let mut b = Bench::new(from);
        for _ in 0..5 {
            b.call(ERR);
        }
        b.wait(6_000);
        for _ in 0..5 {
            b.call(ERR);
        }
        b.wait(3_000);
        let before = b.breaker.snapshot(b.now);
        b.breaker.reconfigure(to).expect(&name);
        let after = b.breaker.snapshot(b.now);
        assert_eq!(
            (after.state, after.epoch),
            (before.state, before.epoch),
            "{name}"
        );
        assert_eq!(after.window.failed, holds.unwrap_or(0), "{name}");
        b.call(ERR);
        let next = b.breaker.snapshot(b.now).window;
        assert!(
            next.failed > 0 && next.failed >= after.window.failed,
            "{name}: {next:?}"
        );
    }
}

#[test]
fn an_open_circuit_stays_open_for_the_time_it_was_told() {
    let mut b = Bench::new(setup()).open();
    let epoch = b.breaker.snapshot(b.now).epoch;
    b.breaker
        .reconfigure(BreakerConfig {
            open_for: Millis::new(1_000),
            over: Window::Calls(10),
            ..setup()
        })
        .expect("valid");
    b.wait(4_999);
    assert!(b.breaker.try_acquire(b.now).is_err());
    assert_eq!(b.breaker.snapshot(b.now).epoch, epoch);
    b.wait(2);
    assert!(b.breaker.try_acquire(b.now).is_ok());
}

#[test]
fn fewer_probes_than_are_done_decide_at_the_next_call() {
    let mut b = Bench::new(setup()).half_open();
    b.call(OK).call(OK);
    b.breaker
        .reconfigure(BreakerConfig {
            probes: 2,
            ..setup()
        })
        .expect("valid");
    b.call(OK);
    assert_eq!(b.state(), State::Closed);
}

#[test]
fn a_new_mode_changes_the_state_and_the_same_mode_does_not() {
    let b = Bench::new(setup());
    let mode = |mode| BreakerConfig { mode, ..setup() };
    b.breaker
        .reconfigure(mode(Mode::ForcedOpen))
        .expect("valid");
    assert_eq!(b.state(), State::ForcedOpen);
    b.breaker.reset();
    b.breaker
        .reconfigure(mode(Mode::ForcedOpen))
        .expect("valid");
    assert_eq!(b.state(), State::Closed, "the operator's hand stays");
    b.breaker.reconfigure(mode(Mode::Auto)).expect("valid");
    assert_eq!(b.state(), State::Closed);
}

#[test]
fn what_cannot_work_changes_nothing() {
    let b = Bench::new(setup());
    let bad = BreakerConfig {
        probes: 0,
        mode: Mode::ForcedOpen,
        ..setup()
    };
    assert_eq!(b.breaker.reconfigure(bad).expect_err("bad").path, "probes");
    assert_eq!((*b.breaker.config()).clone(), setup());
    assert_eq!(
        (b.state(), b.breaker.snapshot(b.now).generation),
        (State::Closed, 0)
    );
}

#[test]
fn every_form_of_a_configuration_is_read_back() {
    for (text, over) in [
        (r#"over = "30s""#, seconds(30)),
        (r#"over = "100 calls""#, Window::Calls(100)),
        (r#"over = "fading 1_000 calls""#, Window::Fading(1_000)),
    ] {
        let config: BreakerConfig = toml::from_str(text).expect(text);
        assert_eq!(config.over, over, "{text}");
        let printed = toml::to_string(&config).expect("prints");
        assert_eq!(
            toml::from_str::<BreakerConfig>(&printed).expect("reads"),
            config
        );
    }
    for text in [
        r#"over = "100""#,
        r#"over = "calls""#,
        "over = 100",
        r#"mode = "open""#,
        "probe = 3",
    ] {
        assert!(toml::from_str::<BreakerConfig>(text).is_err(), "{text}");
    }
    for text in [
        r#"over = "0 calls""#,
        "buckets = 0",
        "open_multiplier = 0.5",
        "open_multiplier = nan",
        r#"open_jitter = "101%""#,
        r#"close_rate = "0%""#,
    ] {
        let config: BreakerConfig = toml::from_str(text).expect(text);
        let path = text.split(' ').next().expect("a key");
        assert_eq!(config.validate().expect_err(text).path, path);
    }
}
