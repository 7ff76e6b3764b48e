use http::{HeaderName, HeaderValue};

use super::*;
use crate::config::BackoffRange;

fn config() -> RetryConfig {
    RetryConfig {
        backoff: BackoffRange {
            base: Duration::from_millis(100),
            max: Duration::from_millis(100),
        },
        jitter: crate::retry::backoff::Jitter::None,
        ..RetryConfig::default()
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
        .collect()
}

fn head(status: u16, pairs: &[(&'static str, &'static str)]) -> Judgement {
    let status = StatusCode::from_u16(status).expect("status");
    config().judge_head(status, &headers(pairs), SystemTime::UNIX_EPOCH)
}

const NACK: (&str, &str) = ("finagle-http-nack", "true");
const NO_NACK: (&str, &str) = ("finagle-http-nonretryable-nack", "true");
const LIMITED: (&str, &str) = ("x-envoy-ratelimited", "true");
const UNAVAILABLE: (&str, &str) = ("grpc-status", "14");
const INTERNAL: (&str, &str) = ("grpc-status", "13");
const MINUS: (&str, &str) = ("grpc-retry-pushback-ms", "-1");
const PUSH: (&str, &str) = ("grpc-retry-pushback-ms", "70");
const COME_NOW: (&str, &str) = ("retry-after", "0");
const COME_LATER: (&str, &str) = ("retry-after", "2");

/// What a try came to → worth a retry, harmless, asked wait in ms.
type Case = (
    u16,
    &'static [(&'static str, &'static str)],
    bool,
    bool,
    Option<u64>,
);

#[test]
fn answers_are_judged_by_status_grpc_status_and_what_the_callee_says() {
    const CASES: &[Case] = &[
        (200, &[], false, false, None),
        (404, &[], false, false, None),
        (500, &[], false, false, None),
        (503, &[], true, false, None),
        (429, &[COME_LATER], false, false, Some(2_000)),
        (503, &[COME_LATER], true, false, Some(2_000)),
        (503, &[("retry-after", "60")], true, false, Some(5_000)),
        (503, &[COME_NOW], true, false, Some(0)),
        (503, &[NACK], true, true, None),
        (503, &[NACK, COME_NOW], true, true, Some(0)),
        (503, &[NO_NACK], false, false, None),
        (503, &[NO_NACK, COME_NOW], false, false, Some(0)),
        (503, &[LIMITED], false, false, None),
        (503, &[("x-envoy-overloaded", "true")], false, false, None),
        (200, &[UNAVAILABLE], true, false, None),
        (200, &[INTERNAL], false, false, None),
        (200, &[UNAVAILABLE, MINUS], false, false, None),
        (200, &[UNAVAILABLE, PUSH], true, true, Some(70)),
        // The callee asks for it, whatever the status says (gRFC A6).
        (200, &[INTERNAL, PUSH], true, true, Some(70)),
        (200, &[("grpc-status", "0"), PUSH], false, false, None),
        (
            200,
            &[INTERNAL, ("grpc-retry-pushback-ms", "x")],
            false,
            false,
            None,
        ),
        (
            200,
            &[INTERNAL, ("grpc-retry-pushback-ms", "3600000")],
            true,
            true,
            Some(5_000),
        ),
    ];
    for (status, pairs, worth, harmless, after) in CASES {
        let got = head(*status, pairs);
        let got = (got.worth_a_retry, got.harmless, got.after);
        let want = (*worth, *harmless, after.map(Duration::from_millis));
        assert_eq!(got, want, "{status} {pairs:?}");
    }
}

#[test]
fn trailers_are_judged_like_a_head_without_a_body() {
    let judge = |pairs| config().judge_trailers(&headers(pairs));
    assert!(judge(&[UNAVAILABLE]).expect("a status").worth_a_retry);
    assert!(!judge(&[INTERNAL]).expect("a status").worth_a_retry);
    let stopped = judge(&[UNAVAILABLE, MINUS]).expect("a status");
    assert!(!stopped.worth_a_retry);
    assert_eq!(judge(&[]), None);
}

#[test]
fn failures_are_judged_by_their_class() {
    let only = RetryConfig {
        errors: vec![super::super::ErrorClass::Connect],
        ..config()
    };
    assert!(
        config()
            .judge_error(FailureClass::Reset, false)
            .worth_a_retry
    );
    assert!(
        !config()
            .judge_error(FailureClass::Protocol, false)
            .worth_a_retry
    );
    assert!(!only.judge_error(FailureClass::Reset, false).worth_a_retry);
    assert!(only.judge_error(FailureClass::Connect, true).harmless);
}

#[test]
fn a_call_is_as_safe_as_its_method_its_mark_or_its_policy_says() {
    let marked = |says| {
        let mut extensions = Extensions::new();
        extensions.insert(Idempotent(says));
        extensions
    };
    let none = Extensions::new();
    let plain = HeaderMap::new();
    let upgrade = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
    let daring = RetryConfig {
        non_idempotent: true,
        ..config()
    };
    let cases = [
        (
            "get",
            config().safety(&Method::GET, &plain, &none),
            Safety::Always,
        ),
        (
            "put",
            config().safety(&Method::PUT, &plain, &none),
            Safety::Always,
        ),
        (
            "post",
            config().safety(&Method::POST, &plain, &none),
            Safety::IfUnprocessed,
        ),
        (
            "patch",
            config().safety(&Method::PATCH, &plain, &none),
            Safety::IfUnprocessed,
        ),
        (
            "opted in",
            daring.safety(&Method::POST, &plain, &none),
            Safety::Always,
        ),
        (
            "marked",
            config().safety(&Method::POST, &plain, &marked(true)),
            Safety::Always,
        ),
        (
            "marked not",
            daring.safety(&Method::GET, &plain, &marked(false)),
            Safety::IfUnprocessed,
        ),
        (
            "upgrade",
            daring.safety(&Method::GET, &upgrade, &marked(true)),
            Safety::Never,
        ),
        (
            "tunnel",
            daring.safety(&Method::CONNECT, &plain, &marked(true)),
            Safety::Never,
        ),
    ];
    for (name, got, want) in cases {
        assert_eq!(got, want, "{name}");
    }
}

struct Asked {
    safety: Safety,
    judgement: Judgement,
    made: u32,
    replayable: bool,
    elsewhere: bool,
    deadline_ms: Option<u64>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            safety: Safety::Always,
            judgement: head(503, &[]),
            made: 1,
            replayable: true,
            elsewhere: false,
            deadline_ms: None,
        }
    }
}

fn ask(asked: Asked) -> Result<u64, Final> {
    let (config, now) = (config(), Instant::now());
    let mut tries = Tries::new(&config, asked.safety);
    (1..asked.made).for_each(|_| tries.count());
    let deadline = asked.deadline_ms.map(|ms| now + Duration::from_millis(ms));
    let context = RetryContext::at(now)
        .deadline(deadline)
        .replayable(asked.replayable)
        .elsewhere(asked.elsewhere);
    tries
        .next_wait(&config, &asked.judgement, &context, &Rng::new(1))
        .map(|wait| wait.as_millis() as u64)
}

#[test]
fn every_condition_of_a_retry_ends_the_call_by_itself() {
    let refused = config().judge_error(FailureClass::Connect, true);
    let of = |judgement| Asked {
        judgement,
        ..Asked::default()
    };
    let cases = [
        ("plain", Asked::default(), Ok(100)),
        ("good", of(head(200, &[])), Err(Final::NotWorthIt)),
        (
            "third of three",
            Asked {
                made: 3,
                ..of(head(503, &[]))
            },
            Err(Final::Attempts),
        ),
        (
            "unsafe",
            Asked {
                safety: Safety::IfUnprocessed,
                ..Asked::default()
            },
            Err(Final::Unsafe),
        ),
        (
            "unsafe, never sent",
            Asked {
                safety: Safety::IfUnprocessed,
                ..of(refused)
            },
            Ok(0),
        ),
        (
            "unsafe, nacked",
            Asked {
                safety: Safety::IfUnprocessed,
                ..of(head(503, &[NACK]))
            },
            Ok(0),
        ),
        (
            "unsafe, pushed back",
            Asked {
                safety: Safety::IfUnprocessed,
                ..of(head(200, &[INTERNAL, PUSH]))
            },
            Ok(70),
        ),
        (
            "come now is no promise that nothing was done",
            Asked {
                safety: Safety::IfUnprocessed,
                ..of(head(503, &[COME_NOW]))
            },
            Err(Final::Unsafe),
        ),
        (
            "tunnel",
            Asked {
                safety: Safety::Never,
                ..of(refused)
            },
            Err(Final::Unsafe),
        ),
        (
            "body",
            Asked {
                replayable: false,
                ..of(refused)
            },
            Err(Final::Body),
        ),
        (
            "never sent, again",
            Asked {
                made: 2,
                ..of(refused)
            },
            Ok(100),
        ),
        ("come now", of(head(503, &[COME_NOW])), Ok(0)),
        ("come later", of(head(503, &[COME_LATER])), Ok(2_000)),
        (
            "elsewhere",
            Asked {
                elsewhere: true,
                ..of(head(503, &[COME_LATER]))
            },
            Ok(100),
        ),
        (
            "pushback, elsewhere",
            Asked {
                elsewhere: true,
                ..of(head(200, &[INTERNAL, PUSH]))
            },
            Ok(70),
        ),
        (
            "in time",
            Asked {
                deadline_ms: Some(101),
                ..Asked::default()
            },
            Ok(100),
        ),
        (
            "never past the deadline",
            Asked {
                deadline_ms: Some(100),
                ..Asked::default()
            },
            Err(Final::Deadline),
        ),
        (
            "not for a pushback either",
            Asked {
                deadline_ms: Some(1_500),
                ..of(head(503, &[COME_LATER]))
            },
            Err(Final::Deadline),
        ),
    ];
    for (name, asked, want) in cases {
        assert_eq!(ask(asked), want, "{name}");
    }
}
