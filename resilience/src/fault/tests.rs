use super::*;

fn faults_with(text: &str, switch: &'static KillSwitch) -> Faults {
    let config: FaultConfig = toml::from_str(text).expect(text);
    Faults::with_switch(&config, Rng::new(7), switch).expect(text)
}

fn faults(text: &str) -> Faults {
    faults_with(text, Box::leak(Box::default()))
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

#[test]
fn percentages_are_whole_millionths_and_drawn_apart() {
    const CALLS: u64 = 400_000;
    let faults = faults(
        "delay = { fixed = \"1ms\", percentage = \"10%\" }\nabort = { status = 503, percentage = \"0.5%\" }",
    );
    let mut both = 0;
    for _ in 0..CALLS {
        if let Some(fault) = faults.decide(&HeaderMap::new()) {
            both += u64::from(fault.delay.is_some() && fault.abort.is_some());
        }
    }
    let status = faults.status();
    let near = |n: u64, share: f64| {
        let want = CALLS as f64 * share;
        (n as f64 - want).abs() < 4.0 * want.sqrt()
    };
    assert!(near(status.delayed, 0.1), "{status:?}");
    assert!(near(status.aborted, 0.005), "{status:?}");
    assert!(near(both, 0.0005), "{both} of both");
    assert_eq!(status.active, 0);
}

#[test]
fn none_is_never_all_is_always_and_the_same_seed_draws_the_same() {
    for (percentage, want) in [("0%", 0), ("100%", 10_000)] {
        let faults = faults(&format!(
            "abort = {{ reset = true, percentage = \"{percentage}\" }}"
        ));
        let hit = (0..10_000).filter(|_| faults.decide(&HeaderMap::new()).is_some());
        assert_eq!(hit.count(), want, "{percentage}");
    }
    let draw = || {
        let faults = faults("abort = { reset = true, percentage = \"50%\" }");
        let hit = move |_| faults.decide(&HeaderMap::new()).is_some();
        (0..64).map(hit).collect::<Vec<_>>()
    };
    assert_eq!(draw(), draw());
}

#[test]
fn only_requests_whose_headers_match_suffer() {
    let faults = faults(
        r#"
        abort = { grpc_status = 14, percentage = "100%" }
        headers = [
            { name = "x-tester", exact = "ada" },
            { name = "x-build", prefix = "canary-" },
            { name = "x-session" },
            { name = "x-vip", invert = true },
        ]
        "#,
    );
    let fitting = [
        ("x-tester", "ada"),
        ("x-build", "canary-7"),
        ("x-session", "s"),
    ];
    let abort = |pairs: &[(&'static str, &'static str)]| {
        faults.decide(&headers(pairs)).and_then(|fault| fault.abort)
    };
    assert_eq!(abort(&fitting), Some(Abort::Grpc(14)));
    for missing in 0..3 {
        let mut some = fitting.to_vec();
        some.remove(missing);
        assert_eq!(abort(&some), None, "without {:?}", fitting[missing]);
    }
    let mut vip = fitting.to_vec();
    vip.push(("x-vip", "yes"));
    assert_eq!(abort(&vip), None);
}

#[test]
fn a_request_may_ask_where_it_may_and_for_no_more_than_allowed() {
    let asked = |text: &str, pairs: &[(&'static str, &'static str)]| {
        let fault = faults(text).decide(&headers(pairs));
        fault.map(|fault| (fault.delay, fault.abort))
    };
    let delay = "delay = { by_header = true, max = \"2s\", percentage = \"100%\" }";
    let abort = "abort = { by_header = true, percentage = \"100%\" }";
    let ms = |n| Some((Some(Duration::from_millis(n)), None));
    let ask = "x-envoy-fault-delay-request";
    assert_eq!(asked(delay, &[(ask, "150")]), ms(150));
    assert_eq!(asked(delay, &[(ask, "999999")]), ms(2000));
    for nothing in ["0", "-1", "soon"] {
        assert_eq!(asked(delay, &[(ask, nothing)]), None, "{nothing}");
    }
    let none = [
        (ask, "150"),
        ("x-envoy-fault-delay-request-percentage", "0"),
    ];
    assert_eq!(asked(delay, &none), None);
    let fixed = delay.replace("by_header = true", "fixed = \"1s\"");
    assert_eq!(asked(&fixed, &none), ms(1000), "not asked where it may not");

    let status = StatusCode::IM_A_TEAPOT;
    let http = [("x-envoy-fault-abort-request", "418")];
    assert_eq!(
        asked(abort, &http),
        Some((None, Some(Abort::Status(status))))
    );
    let grpc = [("x-envoy-fault-abort-grpc-request", "8")];
    assert_eq!(asked(abort, &grpc), Some((None, Some(Abort::Grpc(8)))));
    for bad in ["199", "600", "99999", "x"] {
        let bad = [("x-envoy-fault-abort-request", bad)];
        assert_eq!(asked(abort, &bad), None, "{bad:?}");
    }
}

#[test]
fn no_more_suffer_at_once_than_may() {
    let faults = faults("abort = { status = 500, percentage = \"100%\" }\nmax_active = 2");
    let none = HeaderMap::new();
    let held = [faults.decide(&none), faults.decide(&none)];
    assert!(held.iter().all(Option::is_some));
    assert!(faults.decide(&none).is_none());
    assert_eq!(faults.status().overflow, 1);
    drop(held);
    assert!(faults.decide(&none).is_some());
    assert_eq!(faults.status().active, 0);
}

#[test]
fn the_kill_switch_ends_all_of_it_and_a_new_configuration_takes_effect_at_once() {
    let switch: &'static KillSwitch = Box::leak(Box::default());
    let text = "abort = { status = 500, percentage = \"100%\" }";
    let (a, b) = (faults_with(text, switch), faults_with(text, switch));
    let none = HeaderMap::new();
    assert!(a.decide(&none).is_some());
    switch.kill();
    assert!(switch.is_killed() && a.decide(&none).is_none() && b.decide(&none).is_none());
    switch.revive();
    assert!(b.decide(&none).is_some());
    a.reconfigure(&FaultConfig::default()).expect("nothing");
    assert!(a.decide(&none).is_none());
}

#[test]
fn what_cannot_work_is_refused_with_its_path() {
    for (text, path) in [
        ("delay = {}", "delay.fixed"),
        ("delay = { fixed = \"0s\" }", "delay.fixed"),
        ("delay = { by_header = true, max = \"0s\" }", "delay.max"),
        (
            "delay = { fixed = \"1s\", percentage = \"101%\" }",
            "delay.percentage",
        ),
        (
            "delay = { fixed = \"1s\", percentage = 0.0000001 }",
            "delay.percentage",
        ),
        ("abort = {}", "abort.status"),
        ("abort = { status = 500, reset = true }", "abort.status"),
        ("abort = { status = 101 }", "abort.status"),
        ("abort = { grpc_status = 17 }", "abort.grpc_status"),
        ("headers = [{ name = \"a b\" }]", "headers.name"),
        (
            "headers = [{ name = \"a\", exact = \"1\", prefix = \"2\" }]",
            "headers.prefix",
        ),
        ("max_active = 0", "max_active"),
    ] {
        let config: FaultConfig = toml::from_str(text).expect(text);
        assert_eq!(config.validate().expect_err(text).path, path, "{text}");
    }
    assert!(toml::from_str::<FaultConfig>("enabled = true").is_err());
}
