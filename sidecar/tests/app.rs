//! The app beside it: watched, registered, protected, and taken out in the right order.

use rustix::process::Signal;
use selvedge_registry::InstanceStatus;

use crate::support::{App, Registry, Sidecar, ask, eventually, status};

fn file(app: &App, registry: &Registry) -> String {
    format!(
        r#"
[service]
name = "orders"
id = "orders-1"
app = "{}"
health = {{ http = "/healthz", interval = "50ms", unhealthy = 2 }}
metadata = {{ team = "shop" }}
[registry]
servers = ["{}"]
[access_log]
path = "{{dir}}/access.log"
[process]
lame_duck = "200ms"
drain = "10s"
"#,
        app.addr,
        registry.url()
    )
}

#[test]
fn an_app_is_registered_once_it_is_well_and_taken_out_while_it_is_not() {
    let (app, registry) = (App::start("orders"), Registry::start());
    app.falls_ill(true);
    let sidecar = Sidecar::start(&file(&app, &registry));
    eventually("it says what it waits for", || {
        sidecar.admin("/readyz").contains("app")
    });
    assert!(registry.instances("orders").is_empty());
    app.falls_ill(false);
    eventually("it is registered", || {
        registry.instances("orders").len() == 1
    });
    let instance = registry.instances("orders").remove(0);
    assert_eq!(instance.id.as_str(), "orders-1");
    assert_eq!(instance.addr, sidecar.port("inbound"));
    assert_eq!(instance.metadata["team"], "shop");
    eventually("it is ready", || sidecar.is_ready());
    let status_now = || registry.instances("orders")[0].status;
    app.falls_ill(true);
    eventually("it is down", || status_now() == InstanceStatus::Down);
    let readyz = sidecar.admin("/readyz");
    assert!(
        readyz.contains("/healthz") && readyz.contains("503"),
        "{readyz}"
    );
    app.falls_ill(false);
    eventually("it is up again", || status_now() == InstanceStatus::Up);
}

#[test]
fn a_call_under_way_is_finished_before_it_leaves() {
    let (app, registry) = (App::start("orders"), Registry::start());
    let mut sidecar = Sidecar::start(&file(&app, &registry));
    eventually("it is registered", || {
        registry.instances("orders").len() == 1
    });
    let inbound = sidecar.port("inbound");
    let slow = std::thread::spawn(move || ask(inbound, "orders", "/slow").expect("an answer"));
    eventually("it is under way", || app.requests() == 1);
    sidecar.signal(Signal::TERM);
    eventually("the registry knows", || {
        let all = registry.instances("orders");
        all.iter().all(|i| i.status == InstanceStatus::OutOfService)
    });
    let answer = slow.join().expect("joined");
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(sidecar.ended().code(), Some(0), "{}", sidecar.read("log"));
    assert!(registry.instances("orders").is_empty(), "deregistered");
    let log = sidecar.read("access.log");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(ask(inbound, "orders", "/").is_none(), "the port is closed");
}

#[test]
fn a_second_signal_does_not_wait() {
    let (app, registry) = (App::start("orders"), Registry::start());
    let text = file(&app, &registry).replace("\"200ms\"", "\"60s\"");
    let mut sidecar = Sidecar::start(&text);
    eventually("it is registered", || {
        registry.instances("orders").len() == 1
    });
    sidecar.signal(Signal::INT);
    eventually("it says that it leaves", || {
        sidecar.admin("/readyz").contains("leaving")
    });
    sidecar.signal(Signal::INT);
    sidecar.ended();
}

#[test]
fn an_app_that_is_gone_is_a_problem_with_a_name_and_a_time() {
    let registry = Registry::start();
    let gone = {
        let app = App::start("orders");
        app.addr
    };
    let text = format!(
        "[service]\nname = \"orders\"\napp = \"{gone}\"\n[registry]\nservers = [\"{}\"]\n",
        registry.url()
    );
    let sidecar = Sidecar::start(&text);
    let answer = ask(sidecar.port("inbound"), "orders", "/").expect("an answer");
    assert!([502, 503].contains(&status(&answer)), "{answer}");
    for part in [
        "application/problem+json",
        "urn:selvedge:problem:",
        "proxy-status: selvedge-sidecar",
    ] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    assert!(registry.instances("orders").is_empty(), "never registered");
}

#[test]
fn the_app_takes_on_what_its_policy_says() {
    let (app, registry) = (App::start("orders"), Registry::start());
    let text = format!(
        "{}\n{}",
        file(&app, &registry).replace(
            "id = \"orders-1\"",
            "id = \"orders-1\"\npolicy = \"guarded\""
        ),
        r#"
[policies.guarded]
inbound = { rate_limit = { rate = "2/h", by = { header = "x-caller" } } }
"#
    );
    let sidecar = Sidecar::start(&text);
    eventually("it is ready", || sidecar.is_ready());
    let inbound = sidecar.port("inbound");
    let from = |caller: &str| {
        let host = format!("orders\r\nx-caller: {caller}");
        let answer = ask(inbound, &host, "/").expect("an answer");
        (status(&answer), answer)
    };
    let answers: Vec<u16> = ["a", "a", "b"].map(|caller| from(caller).0).into();
    assert_eq!(answers, [200, 200, 200]);
    let (code, refused) = from("a");
    assert_eq!(code, 429, "{refused}");
    for part in [
        "retry-after: ",
        "ratelimit-policy: ",
        "\"policy\":\"rate_limit\"",
    ] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    let metrics = sidecar.admin("/metrics");
    let counted = "selvedge_policy_rejections_total{service=\"orders\",policy=\"rate_limit\"";
    assert!(metrics.contains(counted), "{metrics}");
}
