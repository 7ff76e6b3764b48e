//! What a real subscriber makes of it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    Policy, Reason, balance,
    breaker::{Cause, State},
    events::{Events, Return},
};

/// Where lines go.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `work` writes: level, target, and the fields.
fn lines(work: impl FnOnce()) -> Vec<(String, Value)> {
    let paper = Paper::default();
    let writer = paper.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let bytes = paper.0.lock().expect("no panic").clone();
    let text = String::from_utf8(bytes).expect("UTF-8");
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["target"], "selvedge_resilience::events");
        let level = line["level"].as_str().expect("a level").to_owned();
        (level, line["fields"].take())
    };
    text.lines().map(line).collect()
}

fn event(kind: EventKind) -> Event {
    Event {
        name: "orders".into(),
        policy: Policy::Breaker,
        endpoint: None,
        at: None,
        kind,
    }
}

#[test]
fn every_kind_has_its_fields_and_its_level() {
    let reason = Reason::Full;
    let moved = |to| EventKind::Transition {
        from: State::Closed,
        to,
        cause: Cause::FailureRate,
        open_for: (to == State::Open).then_some(Duration::from_micros(5_000_321)),
    };
    let panic = |begun| EventKind::Panic {
        begun,
        healthy: 1,
        all: 4,
    };
    let cases = [
        (
            moved(State::Open),
            "WARN",
            json!({"from": "closed", "to": "open", "cause": "failure_rate", "open_for_ms": 5000}),
        ),
        (
            moved(State::HalfOpen),
            "INFO",
            json!({"from": "closed", "to": "half_open", "cause": "failure_rate"}),
        ),
        (
            EventKind::Exceeded {
                cause: Cause::SlowRate,
            },
            "WARN",
            json!({"cause": "slow_rate"}),
        ),
        (
            EventKind::Rejected { reason },
            "DEBUG",
            json!({"reason": "full"}),
        ),
        (
            EventKind::Reconfigured { generation: 2 },
            "DEBUG",
            json!({"generation": 2}),
        ),
        (
            EventKind::Ejected {
                cause: balance::Cause::ConsecutiveConnect,
                lasts: Duration::from_secs(30),
            },
            "WARN",
            json!({"cause": "consecutive_connect", "lasts_ms": 30_000}),
        ),
        (
            EventKind::Returned { why: Return::Left },
            "INFO",
            json!({"cause": "left"}),
        ),
        (
            EventKind::Checked { passed: false },
            "WARN",
            json!({"passed": false}),
        ),
        (
            EventKind::Checked { passed: true },
            "INFO",
            json!({"passed": true}),
        ),
        (
            panic(true),
            "WARN",
            json!({"begun": true, "healthy": 1, "endpoints": 4}),
        ),
        (
            panic(false),
            "INFO",
            json!({"begun": false, "healthy": 1, "endpoints": 4}),
        ),
        (
            EventKind::RefusalsBegan { reason },
            "WARN",
            json!({"reason": "full"}),
        ),
        (
            EventKind::RefusalsEnded { refused: 13 },
            "INFO",
            json!({"refused": 13}),
        ),
        (
            EventKind::LimitFell { from: 98, to: 40 },
            "WARN",
            json!({"limit.from": 98, "limit.to": 40}),
        ),
        (
            EventKind::LimitSettled { from: 98, to: 80 },
            "INFO",
            json!({"limit.from": 98, "limit.to": 80}),
        ),
    ];
    for (kind, level, mut want) in cases {
        let name = kind.to_string();
        let fields = want.as_object_mut().expect("a table");
        fields.insert("service".into(), "orders".into());
        fields.insert("policy".into(), "breaker".into());
        fields.insert("kind".into(), kind.as_str().into());
        fields.insert("event".into(), name.clone().into());
        fields.insert("message".into(), "policy event".into());
        let written = lines(|| event(kind).trace());
        assert_eq!(written, [(level.to_owned(), want)], "{name}");
    }
}

#[test]
fn a_host_says_whose_it_is_and_which_endpoint() {
    let ejected = Event {
        policy: Policy::Balancer,
        endpoint: Some("10.0.0.1:80".into()),
        ..event(EventKind::Returned { why: Return::Left })
    };
    let owner = Owner {
        side: Some("server"),
        listener: Some("edge"),
        ..Owner::default()
    };
    let written = lines(|| ejected.trace_of(owner));
    let fields = &written[0].1;
    assert_eq!(fields["server.address"], "10.0.0.1:80");
    assert_eq!(
        (&fields["side"], &fields["listener"]),
        (&json!("server"), &json!("edge"))
    );
    assert!(fields.get("service").is_none());
}

#[test]
fn a_subscription_writes_what_waits_once_and_in_its_order() {
    let events = Events::new();
    let heard = events.subscribe(8);
    for generation in 0..3 {
        events.emit(|| event(EventKind::Reconfigured { generation }));
    }
    let written = lines(|| assert_eq!((heard.trace(), heard.trace()), (3, 0)));
    let order: Vec<_> = written
        .iter()
        .map(|(_, fields)| &fields["generation"])
        .collect();
    assert_eq!(order, [0, 1, 2]);
}
