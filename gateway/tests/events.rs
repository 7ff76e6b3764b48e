//! What the gateway's policies did, as its operator reads it.

use crate::{
    reader::{
        POLICIES, comes, has_few_lines_of_many_events, has_five_seats_and_manners, nowhere,
        resumes_and_counts_what_it_missed, sees_an_ejection,
    },
    support::{Gateway, Upstream, status},
};

#[test]
fn an_operator_sees_at_the_edge_what_happened_and_in_which_order() {
    let (web, dead) = (Upstream::start("web"), nowhere());
    let gateway = Gateway::start(&format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[listeners.narrow]
bind = "127.0.0.1:0"
inbound = {{ rate_limit = {{ rate = "1/h" }} }}
[services.loses]
endpoints = ["{}", "{dead}"]
policy = "loses"
[services.flaps]
endpoints = ["{dead}"]
policy = "flaps"
[[routes]]
name = "loses"
hosts = ["loses"]
to = "loses"
[[routes]]
name = "flaps"
hosts = ["flaps"]
to = "flaps"
{POLICIES}
"#,
        web.addr
    ));
    let admin = gateway.port("admin");
    sees_an_ejection(admin, dead, || status(&gateway.get("loses", "/")));
    resumes_and_counts_what_it_missed(admin, || {
        gateway.get("flaps", "/");
    });
    has_few_lines_of_many_events(&gateway.log());
    has_five_seats_and_manners(admin);
    // What a listener refuses is told by the clock, when it begins.
    let narrow = gateway.port("narrow");
    let codes = [(); 2].map(|()| {
        let answer = crate::support::get(narrow, "loses", "/").expect("an answer");
        status(&answer)
    });
    assert_eq!(codes, [200, 429]);
    comes(
        admin,
        &[
            ("kind", "refusals_began"),
            ("side", "server"),
            ("listener", "narrow"),
            ("policy", "rate_limit"),
            ("reason", "exhausted"),
        ],
    );
    // The log calls it what it is, as the list does.
    let log = gateway.log();
    let of_listener = |line: &&str| line.contains("refusals_began");
    let line = log.lines().find(of_listener).expect("a line");
    assert!(line.contains(r#""listener":"narrow""#), "{line}");
    assert!(!line.contains(r#""service""#), "{line}");
}
