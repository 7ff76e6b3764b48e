//! What a Hystrix dashboard reads from the gateway's admin port.

use std::time::Duration;

use crate::{
    dashboard::{POLICY, has_five_seats, sees_what_goes_wrong},
    support::{Gateway, Upstream, status},
};

#[test]
fn a_dashboard_sees_what_goes_wrong_at_the_edge() {
    let web = Upstream::slow("web", Duration::from_secs(1));
    let gateway = Gateway::start(&format!(
        "[listeners.http]\nbind = \"127.0.0.1:0\"\n\
         [services.web]\nendpoints = [\"{}\"]\npolicy = \"tested\"\n\
         [[routes]]\nname = \"all\"\nto = \"web\"\n[policies.tested]\n{POLICY}",
        web.addr
    ));
    sees_what_goes_wrong(gateway.port("admin"), "web", |fields| {
        let host = format!("a\r\n{}", fields.trim_end());
        status(&gateway.get(host.trim_end(), "/"))
    });
    has_five_seats(gateway.port("admin"));
}
