//! What a sidecar's policies did, as its operator reads it.

use crate::{
    reader::{
        POLICIES, comes, has_few_lines_of_many_events, has_five_seats_and_manners, nowhere,
        resumes_and_counts_what_it_missed, sees_an_ejection,
    },
    support::{App, Registry, Sidecar, ask, eventually, status},
};

#[test]
fn an_operator_sees_beside_an_app_what_happened_and_in_which_order() {
    let (app, registry, dead) = (App::start("loses"), Registry::start(), nowhere());
    let _live = registry.register("loses", &app);
    let _dead = registry.register_at("loses", "loses-dead", dead);
    let _flaps = registry.register_at("flaps", "flaps-dead", dead);
    let sidecar = Sidecar::start(&format!(
        r#"
[service]
name = "orders"
app = "{}"
policy = "guarded"
health = {{ http = "/healthz", interval = "50ms" }}
[registry]
servers = ["{}"]
[outbound.policies]
loses = "loses"
flaps = "flaps"
{POLICIES}
[policies.guarded]
inbound = {{ rate_limit = {{ rate = "1/h" }} }}
"#,
        app.addr,
        registry.url()
    ));
    eventually("it is ready", || sidecar.is_ready());
    let (admin, outbound) = (sidecar.port("admin"), sidecar.port("outbound"));
    let call = |host: &str| status(&ask(outbound, host, "/").expect("an answer"));
    sees_an_ejection(admin, dead, || call("loses"));
    resumes_and_counts_what_it_missed(admin, || {
        call("flaps");
    });
    has_few_lines_of_many_events(&sidecar.read("log"));
    has_five_seats_and_manners(admin);
    // What the app does not take on is told by the clock, when it begins.
    let codes = [(); 2].map(|()| {
        let answer = ask(sidecar.port("inbound"), "orders", "/").expect("an answer");
        status(&answer)
    });
    assert_eq!(codes, [200, 429]);
    comes(
        admin,
        &[
            ("kind", "refusals_began"),
            ("side", "server"),
            ("service", "orders"),
            ("policy", "rate_limit"),
            ("reason", "exhausted"),
        ],
    );
}
