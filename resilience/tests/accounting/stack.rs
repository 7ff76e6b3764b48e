//! The whole stack: answers, failures, hangs that nobody waits for, panics, bodies that are read,
//! dropped, kept.

use std::{
    convert::Infallible,
    future::{Future, pending},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use selvedge_resilience::{
    FailureClass, Policy, TrafficPolicy,
    balance::Member,
    layer::{Error, ReplayBody, Stack, Transport, TransportError},
    retry::budget::InFlight,
};

use super::{CALLS, on_two};

/// What becomes of the tries, in turns.
#[derive(Debug, Default)]
struct Callee {
    sent: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    hung: AtomicU64,
    panicked: AtomicU64,
    answered: AtomicU64,
}

#[derive(Debug)]
struct Refused;

impl TransportError for Refused {
    fn class(&self) -> FailureClass {
        FailureClass::Connect
    }
}

fn up(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}

fn answer(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer
}

impl Transport<u32, Full<Bytes>> for Callee {
    type Body = Full<Bytes>;
    type Error = Refused;

    fn send(
        &self,
        _: &u32,
        _: Request<ReplayBody<Full<Bytes>>>,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, Refused>> + Send {
        let n = up(&self.sent);
        let hangs = n % 16 == 2;
        let result = match n % 16 {
            // Nothing was sent: the stack tries again, at once and elsewhere.
            0 | 9 => {
                up(&self.refused);
                Err(Refused)
            }
            1 => {
                up(&self.failed);
                Ok(answer(StatusCode::INTERNAL_SERVER_ERROR, "no"))
            }
            2 => {
                up(&self.hung);
                Ok(answer(StatusCode::OK, "never"))
            }
            3 => {
                up(&self.panicked);
                // Past the hook, which would print it a hundred thousand times.
                resume_unwind(Box::new("on purpose"))
            }
            n => {
                up(&self.answered);
                Ok(answer(StatusCode::OK, if n < 8 { "" } else { "well" }))
            }
        };
        async move {
            if hangs {
                pending::<Infallible>().await;
            }
            result
        }
    }
}

/// How the calls of one thread ended, as it sees them.
#[derive(Debug, Default, Clone, Copy)]
struct Ends {
    answered: u64,
    failed: u64,
    limited: u64,
    cancelled: u64,
    panicked: u64,
    /// Bodies that were dropped before their end.
    cut: u64,
}

const POLICY: &str = r#"
    timeouts = { request = "60s", backendRequest = "30s" }
    retry = { attempts = 1, codes = [502], budget = "100% min 100/s" }
    breaker = { over = "10000 calls", min_requests = 10000, failure_rate = "100%" }
    bulkhead = 3
    rate_limit = "1000000000/s"
    throttle = { form = { kind = "accepts", k = 100.0 } }
    concurrency = { initial = 1000, min = 1000, max = 1000 }
    outlier = { consecutive_5xx = 0 }
"#;

fn thread(stack: &Stack<u32>, callee: &Callee, seed: u64) -> Ends {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime");
    let _timers = runtime.enter();
    let mut ends = Ends::default();
    let mut kept = Vec::new();
    for n in 0..CALLS {
        // Nothing waits but what hangs, so one poll is a whole call; what hangs is cancelled by it.
        let call = || {
            let request = Request::new(Full::from("ask"));
            stack.call(callee, request, ()).now_or_never()
        };
        match catch_unwind(AssertUnwindSafe(call)) {
            Err(_) => ends.panicked += 1,
            Ok(None) => ends.cancelled += 1,
            Ok(Some(Err(Error::Service(Refused)))) => ends.failed += 1,
            Ok(Some(Err(error))) => {
                let rejected = error.rejected().expect("refused by a policy");
                assert_eq!(rejected.policy, Policy::Bulkhead, "{rejected:?}");
                ends.limited += 1;
            }
            Ok(Some(Ok(answer))) => {
                ends.answered += 1;
                let whole = answer.status() != StatusCode::OK
                    || http_body::Body::is_end_stream(answer.body());
                match (n + seed) % 3 {
                    0 => drop(
                        answer
                            .into_body()
                            .collect()
                            .now_or_never()
                            .expect("all there"),
                    ),
                    1 => {
                        ends.cut += u64::from(!whole);
                        drop(answer);
                    }
                    // Held for a while, with its slot.
                    _ => kept.push((answer, whole)),
                }
            }
        }
        if kept.len() > 1 {
            ends.cut += kept.drain(..).filter(|(_, whole)| !whole).count() as u64;
        }
    }
    ends.cut += kept.iter().filter(|(_, whole)| !whole).count() as u64;
    ends
}

#[test]
fn two_million_calls_through_the_whole_stack() {
    let policy: TrafficPolicy = toml::from_str(POLICY).expect("a policy");
    let stack = Stack::new(policy).expect("valid");
    stack.set_members((0..10).map(Member::new));
    let callee = Callee::default();
    let ends = on_two(|n| thread(&stack, &callee, n));
    let sum = |of: fn(&Ends) -> u64| ends.iter().map(of).sum::<u64>();
    let all = sum(|e| e.answered + e.failed + e.limited + e.cancelled + e.panicked);
    assert_eq!(all, 2 * CALLS, "every call ended in one way");

    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let ways = [
        &callee.refused,
        &callee.failed,
        &callee.hung,
        &callee.panicked,
        &callee.answered,
    ];
    assert_eq!(ways.map(of).iter().sum::<u64>(), of(&callee.sent));
    assert!(ways.iter().all(|way| of(way) > 10_000), "{callee:?}");
    assert_eq!(
        sum(|e| e.answered),
        of(&callee.answered) + of(&callee.failed)
    );
    assert_eq!(sum(|e| e.cancelled), of(&callee.hung));
    assert_eq!(sum(|e| e.panicked), of(&callee.panicked));

    let status = stack.status();
    assert_eq!(stack.balancer().picks(), of(&callee.sent), "one pick a try");
    // A call that came to nothing was refused once more or not paid for; a retry was one or the
    // other.
    let budget = status.budget.expect("in the policy");
    let first = of(&callee.sent) - budget.made;
    let breaker = status.breaker.expect("in the policy").calls;
    let bulkhead = status.bulkhead.expect("in the policy");
    assert_eq!(breaker.admitted(), of(&callee.sent) + bulkhead.full);
    assert_eq!(breaker.admitted(), breaker.completed() + breaker.cancelled);
    assert_eq!(breaker.failures(), of(&callee.refused) + of(&callee.failed));
    assert_eq!(breaker.success, of(&callee.answered) - sum(|e| e.cut));
    assert_eq!(
        breaker.cancelled,
        bulkhead.full + of(&callee.hung) + of(&callee.panicked) + sum(|e| e.cut)
    );
    // Each call sends its first try, unless the bulkhead refuses it.
    assert!(first <= 2 * CALLS && 2 * CALLS <= first + bulkhead.full);
    assert_eq!(bulkhead.full, sum(|e| e.limited));

    // And nothing is out.
    assert_eq!((breaker.in_flight, bulkhead.in_flight), (0, 0));
    assert_eq!(status.concurrency.expect("in the policy").in_flight, 0);
    assert!(
        status
            .endpoints
            .iter()
            .all(|endpoint| endpoint.pending == 0)
    );
    assert_eq!(budget.in_flight, InFlight::default());
}
