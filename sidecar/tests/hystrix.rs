//! What a Hystrix dashboard reads from a sidecar's admin port.

use crate::{
    dashboard::{POLICY, has_five_seats, sees_what_goes_wrong},
    support::{App, Registry, Sidecar, ask, status},
};

#[test]
fn a_dashboard_sees_what_goes_wrong_for_an_app() {
    let (app, registry) = (App::start("pricing"), Registry::start());
    let _held = registry.register("pricing", &app);
    let sidecar = Sidecar::start(&format!(
        "[registry]\nservers = [\"{}\"]\n[outbound.policies]\npricing = \"tested\"\n\
         [policies.tested]\n{POLICY}",
        registry.url()
    ));
    sees_what_goes_wrong(sidecar.port("admin"), "pricing", |fields| {
        let host = format!("pricing\r\n{}", fields.trim_end());
        status(&ask(sidecar.port("outbound"), host.trim_end(), "/slow").expect("an answer"))
    });
    has_five_seats(sidecar.port("admin"));
}
