//! The app's way to others: by name, spread over their instances, refused with a reason.

use crate::support::{App, Registry, Sidecar, ask, eventually, status};

fn caller(registry: &Registry) -> Sidecar {
    let sidecar = Sidecar::start(&format!(
        r#"
[registry]
servers = ["{}"]
[policies.default]
timeouts = {{ request = "2s" }}
"#,
        registry.url()
    ));
    eventually("it is ready", || sidecar.is_ready());
    sidecar
}

#[test]
fn a_service_is_called_by_its_name_in_every_form_of_a_request() {
    let (app, registry) = (App::start("pricing"), Registry::start());
    let registration = registry.register("pricing", &app);
    let sidecar = caller(&registry);
    let outbound = sidecar.port("outbound");
    for (host, target) in [
        ("pricing", "/quote?sku=7"),
        ("pricing.mesh", "/quote?sku=7"),
        ("pricing:80", "/quote?sku=7"),
        // As clients with `http_proxy` set write it.
        ("pricing", "http://pricing/quote?sku=7"),
    ] {
        let answer = ask(outbound, host, target).expect("an answer");
        assert_eq!(status(&answer), 200, "{host} {target}: {answer}");
        assert!(answer.contains("/quote?sku=7"), "{host} {target}: {answer}");
        assert!(answer.contains("traceparent"), "{answer}");
    }
    assert_eq!(app.requests(), 4);
    let clusters = sidecar.admin("/clusters");
    assert!(clusters.contains(&app.addr.to_string()), "{clusters}");
    drop(registration);
}

#[test]
fn what_cannot_be_called_is_refused_with_a_reason() {
    let registry = Registry::start();
    let sidecar = caller(&registry);
    let outbound = sidecar.port("outbound");
    let answer = ask(outbound, "nobody", "/").expect("an answer");
    assert_eq!(status(&answer), 503, "{answer}");
    for part in ["retry-after: ", "application/problem+json", "no-endpoint"] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    // Not a name that a service can have.
    let answer = ask(outbound, "www.example.com", "/").expect("an answer");
    assert_eq!(status(&answer), 404, "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
}

#[test]
fn an_instance_that_comes_later_is_found_and_one_that_goes_is_left() {
    let (first, second) = (App::start("first"), App::start("second"));
    let registry = Registry::start();
    let held = registry.register("pricing", &first);
    let sidecar = caller(&registry);
    let outbound = sidecar.port("outbound");
    let asked = || ask(outbound, "pricing", "/").expect("an answer");
    assert!(asked().contains("first: "));
    registry.runtime.block_on(held.deregister());
    let _held = registry.register("pricing", &second);
    eventually("the other answers", || asked().contains("second: "));
}

#[test]
fn two_sidecars_make_one_way_and_one_trace() {
    let (app, registry) = (App::start("orders"), Registry::start());
    let beside = Sidecar::start(&format!(
        "[service]\nname = \"orders\"\napp = \"{}\"\n[registry]\nservers = [\"{}\"]\n",
        app.addr,
        registry.url()
    ));
    eventually("it is registered", || {
        registry.instances("orders").len() == 1
    });
    let sidecar = caller(&registry);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let text = format!(
        "GET / HTTP/1.1\r\nhost: orders\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\nconnection: close\r\n\r\n"
    );
    let answer = crate::support::talk(sidecar.port("outbound"), &text).expect("an answer");
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains(trace), "{answer}");
    let counted = |sidecar: &Sidecar| {
        let metrics = sidecar.admin("/metrics");
        metrics.contains("http_server_request_duration_seconds_count{")
    };
    assert!(counted(&beside) && counted(&sidecar));
}
