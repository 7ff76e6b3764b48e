//! Starting, refusing to start, leaving.

use std::{net::TcpListener, time::Duration};

use rustix::process::Signal;

use crate::support::{Gateway, Upstream, eventually, get, output, status};

fn file(to: &Upstream) -> String {
    format!(
        r#"
[listeners.http]
bind = "127.0.0.1:0"
[services.web]
endpoints = ["{}"]
[[routes]]
name = "all"
to = "web"
[access_log]
path = "{{dir}}/access.log"
[process]
lame_duck = "200ms"
drain = "10s"
"#,
        to.addr
    )
}

#[test]
fn a_request_under_way_is_finished_before_it_leaves() {
    let slow = Upstream::slow("slow", Duration::from_secs(1));
    let mut gateway = Gateway::start(&file(&slow));
    let addr = gateway.port("http");
    let request = std::thread::spawn(move || get(addr, "x", "/").expect("an answer"));
    eventually("the request is under way", || slow.requests() == 1);
    gateway.signal(Signal::TERM);
    // Un-ready at once, so that those in front look elsewhere, but still there for them.
    eventually("it says that it leaves", || {
        get(gateway.port("admin"), "localhost", "/readyz")
            .is_some_and(|text| text.contains("shutdown: leaving"))
    });
    let answer = request.join().expect("joined");
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(gateway.ended().code(), Some(0), "{}", gateway.log());
    let log = std::fs::read_to_string(gateway.dir.path().join("access.log")).expect("a log");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(get(addr, "x", "/").is_none(), "the port is closed");
}

#[test]
fn a_second_signal_does_not_wait() {
    let slow = Upstream::slow("slow", Duration::from_secs(60));
    let text = file(&slow).replace("\"200ms\"", "\"60s\"");
    let mut gateway = Gateway::start(&text);
    gateway.signal(Signal::INT);
    eventually("it says that it leaves", || {
        gateway.admin("/readyz").contains("leaving")
    });
    gateway.signal(Signal::INT);
    gateway.ended();
}

#[test]
fn files_are_checked_without_starting() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("gateway.toml");
    let name = path.to_str().expect("text");
    let good = "[listeners.http]\nbind = \"127.0.0.1:0\"\n";
    let (code, text) = output(&["--config", name, "--check"], Some((&path, good)));
    assert_eq!((code, text.as_str()), (Some(0), ""));
    let bad = "[listeners.http]\nbind = \"127.0.0.1:0\"\nlimits = { idle = \"75\" }\n";
    let (code, text) = output(&["--config", name, "--check"], Some((&path, bad)));
    assert_eq!(code, Some(2), "{text}");
    for part in [
        &format!("{name}:3:"),
        "\"75\" is not a duration",
        "write it as",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let (code, text) = output(&["--config", "/nowhere.toml"], None);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("/nowhere.toml"), "{text}");
}

#[test]
fn a_port_in_use_is_one_clear_message() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = taken.local_addr().expect("bound").to_string();
    let route = "/=http://127.0.0.1:9";
    let (code, text) = output(&["--route", route, "--bind", &addr], None);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&addr) && text.contains("in use"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
