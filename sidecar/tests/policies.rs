//! Policies that are published in the registry, as a running sidecar enforces them.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use selvedge_registry::client::{Call, RegistryClient};

use crate::support::{App, Registry, Sidecar, ask, eventually, status, talk};

/// As `selvedge policy put` does. The answer's status and document.
fn publish(registry: &Registry, service: &str, policy: &str) -> (u16, String) {
    let path = format!("/v1/policies/{service}");
    let (method, headers) = match policy {
        "" => ("DELETE", Vec::new()),
        _ => ("PUT", vec![(CONTENT_TYPE, "application/toml".to_owned())]),
    };
    let call = Call {
        path: &path,
        body: policy.as_bytes().to_vec(),
        headers,
        ..Call::default()
    };
    let server = registry.server.shared().http.to_string();
    registry.runtime.block_on(async {
        let client = RegistryClient::builder([server]).spawn();
        let reply = client.call(method, &call).await.expect("an answer");
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        (reply.status.as_u16(), text)
    })
}

#[test]
fn what_is_published_is_enforced_at_once_and_what_cannot_work_changes_nothing() {
    let (app, registry) = (App::start("pricing"), Registry::start());
    let _held = registry.register("pricing", &app);
    let sidecar = Sidecar::start(&format!(
        "[registry]\nservers = [\"{}\"]\n[outbound.policies]\nown = \"mine\"\n\
         [policies.mine]\ntimeouts = {{ request = \"10s\" }}\n",
        registry.url()
    ));
    let outbound = sidecar.port("outbound");
    let slow = |host: &str| status(&ask(outbound, host, "/slow").expect("an answer"));
    // It takes a second, and has fifteen. On a busy machine the registry is heard of after the second
    // that a first call waits for it.
    eventually("heard of, and not cut off", || slow("pricing") == 200);
    let (code, text) = publish(&registry, "pricing", "timeouts = { request = \"100ms\" }\n");
    assert_eq!(code, 201, "{text}");
    eventually("cut off", || slow("pricing") == 504);
    let clusters = sidecar.admin("/clusters");
    let source = r#""policy":{"document":"pricing","from":"published","version":1}"#;
    assert!(clusters.contains(source), "{clusters}");
    for (bad, place) in [
        ("timeouts = { request = \"soon\" }\n", "policy:1:"),
        ("\nretry = { attempts = 1000 }\n", "retry.attempts"),
        ("bulkhead = 0\n", "bulkhead"),
    ] {
        let (code, text) = publish(&registry, "pricing", bad);
        assert!(matches!(code, 400 | 422), "{bad}: {code}");
        assert!(text.contains(place), "{bad}: {text}");
    }
    assert_eq!(slow("pricing"), 504, "the old one is in force");
    // Of a service that has one written down, the file's counts.
    let _own = registry.register("own", &app);
    let (code, _) = publish(&registry, "own", "timeouts = { request = \"100ms\" }\n");
    assert_eq!(code, 201);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(slow("own"), 200);
    let (code, _) = publish(&registry, "pricing", "timeouts = { request = \"10s\" }\n");
    assert_eq!(code, 200);
    eventually("all of its time", || slow("pricing") == 200);
    assert_eq!(publish(&registry, "pricing", "").0, 204);
    let configured = r#""policy":{"from":"configuration"}"#;
    eventually("withdrawn", || {
        sidecar.admin("/clusters").contains(configured)
    });
    assert_eq!(slow("pricing"), 200);
}

#[test]
fn what_is_published_stays_in_force_while_the_registry_is_away() {
    let (app, registry) = (App::start("pricing"), Registry::start());
    let _held = registry.register("pricing", &app);
    let sidecar = Sidecar::start(&format!("[registry]\nservers = [\"{}\"]\n", registry.url()));
    let outbound = sidecar.port("outbound");
    let slow = || status(&ask(outbound, "pricing", "/slow").expect("an answer"));
    // For every service that has none of its own.
    let (code, text) = publish(&registry, "default", "timeouts = { request = \"100ms\" }\n");
    assert_eq!(code, 201, "{text}");
    eventually("cut off", || slow() == 504);
    drop(registry);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(slow(), 504, "the last good policy");
}

#[test]
fn an_app_takes_on_what_is_published_for_it() {
    let (app, registry) = (App::start("orders"), Registry::start());
    let sidecar = Sidecar::start(&format!(
        "[service]\nname = \"orders\"\napp = \"{}\"\n[registry]\nservers = [\"{}\"]\n",
        app.addr,
        registry.url()
    ));
    eventually("it is ready", || sidecar.is_ready());
    let mesh = sidecar.port("inbound");
    let asked = || status(&ask(mesh, "orders", "/").expect("an answer"));
    assert!((0..20).all(|_| asked() == 200));
    // Two a minute, and none of it repeated by the sidecar: retries are the callers'.
    let policy = "retry = { attempts = 3, codes = [429, 503] }\n\
                  inbound = { rate_limit = { rate = \"2/m\" } }\n";
    let (code, text) = publish(&registry, "orders", policy);
    assert_eq!(code, 201, "{text}");
    eventually("too many", || asked() == 429);
    let before = app.requests();
    assert!((0..5).all(|_| asked() == 429));
    assert_eq!(app.requests(), before, "the app has not heard of them");
    let (code, text) = publish(&registry, "orders", "bulkhead = 5\n");
    assert_eq!(code, 200, "{text}");
    eventually("as many as come", || asked() == 200);
}

#[test]
fn who_asks_the_same_at_the_same_time_shares_one_call() {
    let (app, registry) = (App::start("pricing"), Registry::start());
    let _held = registry.register("pricing", &app);
    let sidecar = Sidecar::start(&format!(
        "[registry]\nservers = [\"{}\"]\n[outbound.policies]\npricing = \"one\"\n\
         [policies.one]\ncoalesce = {{ headers = [\"accept\"], body = \"1KiB\" }}\n",
        registry.url()
    ));
    let outbound = sidecar.port("outbound");
    eventually("it is found", || {
        ask(outbound, "pricing", "/").is_some_and(|answer| status(&answer) == 200)
    });
    let before = app.requests();
    let together = |heads: &[String]| -> Vec<String> {
        std::thread::scope(|scope| {
            let asked: Vec<_> = heads
                .iter()
                .map(|head| scope.spawn(move || talk(outbound, head)))
                .collect();
            let answers = asked.into_iter().map(|it| it.join().expect("no panic"));
            answers.map(|it| it.expect("an answer")).collect()
        })
    };
    let get = |more: &str| {
        format!("GET /slow HTTP/1.1\r\nhost: pricing\r\n{more}connection: close\r\n\r\n")
    };
    let answers = together(&vec![get(""); 8]);
    assert!(answers.iter().all(|it| status(it) == 200), "{answers:?}");
    let body = |answer: &str| answer.split_once("\r\n\r\n").map(|it| it.1.to_owned());
    assert!(answers.iter().all(|it| body(it) == body(&answers[0])));
    assert_eq!(app.requests() - before, 1, "one call for all of them");
    let clusters = sidecar.admin("/clusters");
    assert!(clusters.contains(r#""answered":7"#), "{clusters}");
    let metrics = sidecar.admin("/metrics");
    let answered = metrics.lines().find(|line| {
        line.starts_with("selvedge_coalesce_ended_total")
            && line.contains(r#"service="pricing""#)
            && line.contains(r#"end="answered""#)
    });
    assert!(
        answered.is_some_and(|line| line.ends_with(" 7")),
        "{metrics}"
    );
    // Each of these asks something else, or for itself.
    let before = app.requests();
    let answers = together(&[
        get("authorization: Bearer a\r\n"),
        get("authorization: Bearer b\r\n"),
        get("accept: text/html\r\n"),
        get("cookie: s=1\r\n"),
        get("cookie: s=1\r\n"),
    ]);
    assert!(answers.iter().all(|it| status(it) == 200), "{answers:?}");
    assert_eq!(app.requests() - before, 5);
}
