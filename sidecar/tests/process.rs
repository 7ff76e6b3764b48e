//! Refusing to start, and saying why.

use std::net::TcpListener;

use crate::support::{App, Sidecar, output};

#[test]
fn a_file_is_refused_with_its_line_and_what_is_allowed() {
    let app = "[service]\nname = \"orders\"\napp = \"127.0.0.1:8080\"\n";
    let cases = [
        (
            "[service]\nname = \"orders\"\nprot = \"http1\"\n",
            ":3:",
            "unknown field `prot`",
        ),
        (
            "[process]\ndrain = \"30\"\n",
            ":2:",
            "\"30\" is not a duration",
        ),
        (
            "[registry]\nservers = [\"10.0.0.5:7900\"]\n",
            ":2:",
            "expected \"http://10.0.0.5:7900\"",
        ),
        (
            "[outbound.policies]\npricing = \"carefull\"\n[policies.careful]\n",
            ":2:",
            "did you mean `careful`?",
        ),
        (
            &format!("{app}[inbound]\nbind = \"0.0.0.0:7000\"\n"),
            ":4:",
            "set inbound.advertise",
        ),
        (
            &format!("{app}health = {{ http = \"healthz\" }}\n"),
            ":4:",
            "is not a path",
        ),
        ("[admin]\nbind = \"0.0.0.0:1\"\n", ":2:", "token"),
        ("[process]\nworkers = 0\n", ":2:", "at least 1"),
        (
            "[policies.default]\nbreaker = { failure_rate = \"120%\" }\n",
            ":2:",
            "failure_rate",
        ),
    ];
    for (text, place, why) in cases {
        let (code, error) = output(text, &["--check"]);
        assert_eq!(code, Some(2), "{text}: {error}");
        assert!(error.contains("sidecar.toml"), "{text}: {error}");
        assert!(error.contains(place), "{place} for {text}: {error}");
        assert!(error.contains(why), "{why} for {text}: {error}");
    }
    assert_eq!(output(app, &["--check"]), (Some(0), String::new()));
}

#[test]
fn a_port_in_use_is_one_clear_message() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = taken.local_addr().expect("bound");
    let (code, error) = output(&format!("[outbound]\nbind = \"{addr}\"\n"), &[]);
    assert_eq!(code, Some(1), "{error}");
    for part in ["outbound", &addr.to_string(), "in use"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_registry_that_is_away_is_named_where_operators_look() {
    let app = App::start("orders");
    let sidecar = Sidecar::start(&format!(
        "[service]\nname = \"orders\"\napp = \"{}\"\n[registry]\nservers = [\"http://127.0.0.1:9\"]\n",
        app.addr
    ));
    // It carries calls to the app all the same: the registry is no part of them.
    let answer = crate::support::ask(sidecar.port("inbound"), "orders", "/").expect("an answer");
    assert_eq!(crate::support::status(&answer), 200, "{answer}");
    let log = || sidecar.read("log");
    crate::support::eventually("the log names the server, and why", || {
        log().contains("127.0.0.1:9: Connection refused")
    });
    // Nobody can find the app, so it does not count as ready.
    let readyz = sidecar.admin("/readyz");
    assert_eq!(crate::support::status(&readyz), 503, "{readyz}");
    assert!(readyz.contains("registration"), "{readyz}");
}
