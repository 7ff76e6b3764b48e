//! A file that changes is taken as a whole, or not at all and says why.

use rustix::process::Signal;

use crate::support::{Gateway, Upstream, eventually, status, talk};

fn file(to: &Upstream, routes: &str) -> String {
    format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[services.web]
endpoints = ["{}"]
{routes}
[admin]
token = {{ env = "ADMIN_TOKEN" }}
[process]
watch = "20ms"
"#,
        to.addr
    )
}

const ONE: &str = "[[routes]]\nname = \"one\"\npath = \"/one\"\nto = \"web\"\n";
const TWO: &str = "[[routes]]\nname = \"two\"\npath = \"/two\"\nto = \"web\"\n";
const TOKEN: (&str, &str) = ("ADMIN_TOKEN", "t0p-s3cret");

#[test]
fn good_files_are_taken_and_bad_ones_change_nothing() {
    let web = Upstream::start("web");
    let gateway = Gateway::start_with(&file(&web, ONE), &[TOKEN]);
    assert_eq!(status(&gateway.get("x", "/two")), 404);
    gateway.write(&file(&web, &format!("{ONE}{TWO}")));
    eventually("the second route is served", || {
        status(&gateway.get("x", "/two")) == 200
    });

    // Half of it is good; none of it is taken.
    let bad = file(&web, &format!("{TWO}{}", ONE.replace("to =", "too =")));
    gateway.write(&bad);
    let dump = || gateway.admin("/config_dump");
    eventually("the mistake is shown", || {
        dump().contains("unknown field `too`")
    });
    let shown = dump();
    for part in [
        "gateway.toml:",
        "did you mean `to`",
        "\"rejected\":1",
        "\"taken\":1",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!shown.contains(TOKEN.1), "a secret in {shown}");
    assert_eq!(status(&gateway.get("x", "/one")), 200);
    let metrics = gateway.admin("/metrics");
    assert!(
        metrics.contains("selvedge_config_rejected_total 1"),
        "{metrics}"
    );

    gateway.write(&file(&web, TWO));
    eventually("the mended file is taken", || {
        status(&gateway.get("x", "/one")) == 404
    });
    assert!(dump().contains("\"last_error\":null"));
}

#[test]
fn a_reload_can_be_asked_for_and_answers() {
    let web = Upstream::start("web");
    let text = file(&web, ONE).replace("20ms", "0s");
    let gateway = Gateway::start_with(&text, &[TOKEN]);
    let post = |token: &str| {
        let text = format!(
            "POST /reload HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-length: 0\r\nconnection: close\r\n\r\n"
        );
        talk(gateway.port("admin"), &text).expect("an answer")
    };
    assert_eq!(status(&post("wrong")), 401);
    gateway.write(&text.replace("/one", "/uno"));
    assert_eq!(status(&post(TOKEN.1)), 200);
    assert_eq!(status(&gateway.get("x", "/uno")), 200);
    // What a reload cannot change is said, and nothing else of the file is taken.
    let other = text
        .replace("/one", "/eins")
        .replace("127.0.0.1:0\"", "127.0.0.1:1\"");
    gateway.write(&other);
    let answer = post(TOKEN.1);
    assert_eq!(status(&answer), 422, "{answer}");
    assert!(
        answer.contains("listeners differs from what runs"),
        "{answer}"
    );
    assert_eq!(status(&gateway.get("x", "/eins")), 404);
    // SIGHUP asks the same.
    gateway.write(&text);
    gateway.signal(Signal::HUP);
    eventually("the hang-up was heard", || {
        status(&gateway.get("x", "/one")) == 200
    });
}

#[test]
fn reloads_under_load_lose_nothing() {
    let web = Upstream::start("web");
    let gateway = Gateway::start_with(&file(&web, ONE), &[TOKEN]);
    let addr = gateway.port("http");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let answer = crate::support::get(addr, "x", "/one").expect("an answer");
                        assert_eq!(status(&answer), 200, "{answer}");
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        for n in 0..30 {
            let text = if n % 2 == 0 {
                format!("{ONE}{TWO}")
            } else {
                ONE.to_owned()
            };
            gateway.write(&file(&web, &text));
            let want = if n % 2 == 0 { 200 } else { 404 };
            eventually("the file is taken", || {
                status(&gateway.get("x", "/two")) == want
            });
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for client in clients {
            assert!(client.join().expect("no failure") > 0);
        }
    });
}
