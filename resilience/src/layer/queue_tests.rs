//! Waiting in the future, in paused time.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::{
    Outcome, Reason,
    bulkhead::{Bulkhead, BulkheadConfig},
    layer::BulkheadLayer,
};

type Answer = Result<Response<Full<Bytes>>, Infallible>;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn queued(text: &str) -> Bulkhead {
    let config: BulkheadConfig = toml::from_str(text).expect(text);
    Bulkhead::with_config(&config).expect(text)
}

/// Answers "hello" after `after`.
fn slow(
    after: Duration,
) -> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone
{
    service_fn(move |_: Request<()>| async move {
        tokio::time::sleep(after).await;
        Answer::Ok(Response::new(Full::from("hello")))
    })
}

fn reason<T, E>(result: Result<T, Error<E>>) -> Option<Reason> {
    match result {
        Err(Error::Rejected(rejected)) => Some(rejected.reason),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn calls_wait_their_turn_and_no_longer_than_they_may() {
    let bulkhead = queued("max = 1\nqueue = { max = 3, wait = \"25ms\" }");
    let service = QueueLayer::new(bulkhead.clone()).layer(slow(ms(10)));
    let call = || {
        let service = service.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let answer = service.oneshot(Request::new(())).await;
            let answer = match answer {
                Ok(answer) => Ok(answer.into_body().collect().await.expect("body").to_bytes()),
                Err(error) => Err(error),
            };
            (start.elapsed(), answer)
        })
    };
    let calls: Vec<_> = (0..5).map(|_| call()).collect();
    let mut ends = Vec::new();
    for call in calls {
        let (after, answer) = call.await.expect("no panic");
        ends.push((after.as_millis(), answer.is_ok(), reason(answer)));
    }
    assert_eq!(
        ends,
        [
            (10, true, None),
            (20, true, None),
            (30, true, None),
            (25, false, Some(Reason::QueueTimeout)),
            (0, false, Some(Reason::QueueFull)),
        ]
    );
    assert_eq!((bulkhead.in_flight(), bulkhead.status().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn tower_concurrency_limit_deadlock_of_idle_clones() {
    let bulkhead = queued("max = 1\nqueue = {}");
    let layer = QueueLayer::new(bulkhead.clone());
    let service = layer.layer(slow(ms(1)));
    // tower's would give the only permit to the first clone that is polled ready, for as long as it
    // idles, and the rest would wait for ever.
    let mut idle: Vec<_> = (0..64).map(|_| service.clone()).collect();
    for clone in &mut idle {
        clone.ready().await.expect("ready");
    }
    assert_eq!(bulkhead.in_flight(), 0);
    let busy = service.clone().oneshot(Request::new(())).await;
    assert!(busy.is_ok());
}

#[tokio::test(start_paused = true)]
async fn tower_resilience_limiter_holds_inner_readiness_while_it_waits() {
    // A service that is ready once at a time, and tells how often it is held ready.
    #[derive(Debug)]
    struct Counted {
        ready: Arc<AtomicU32>,
        mine: bool,
    }
    impl Clone for Counted {
        fn clone(&self) -> Self {
            Self {
                ready: Arc::clone(&self.ready),
                mine: false,
            }
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.ready
                .fetch_sub(u32::from(self.mine), Ordering::Relaxed);
        }
    }
    impl Service<Request<()>> for Counted {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = std::future::Pending<Answer>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            if !self.mine {
                self.mine = true;
                self.ready.fetch_add(1, Ordering::Relaxed);
            }
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Request<()>) -> Self::Future {
            assert!(self.mine, "called without being ready");
            self.mine = false;
            self.ready.fetch_sub(1, Ordering::Relaxed);
            std::future::pending()
        }
    }
    let ready = Arc::new(AtomicU32::new(0));
    let bulkhead = queued("max = 1\nqueue = {}");
    let inner = Counted {
        ready: Arc::clone(&ready),
        mine: false,
    };
    let mut service = QueueLayer::new(bulkhead.clone()).layer(inner);
    let mut first = Box::pin(service.ready().await.expect("ready").call(Request::new(())));
    let mut second = Box::pin(service.ready().await.expect("ready").call(Request::new(())));
    drop(service);
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(
        ready.load(Ordering::Relaxed),
        0,
        "who waits holds no readiness"
    );
    drop(first);
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(
        (bulkhead.in_flight(), ready.load(Ordering::Relaxed)),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn tower_frees_at_headers_ours_holds_to_the_body_unless_told_otherwise() {
    for (at, held) in [(CompletionPoint::Body, 1), (CompletionPoint::Headers, 0)] {
        let bulkhead = Bulkhead::new(1);
        let with_queue = QueueLayer::new(bulkhead.clone())
            .complete_at(at)
            .layer(slow(ms(1)));
        let without = BulkheadLayer::new(bulkhead.clone())
            .complete_at(at)
            .layer(slow(ms(1)));
        let answer = with_queue.oneshot(Request::new(())).await.expect("answer");
        assert_eq!(bulkhead.in_flight(), held, "{at:?}");
        drop(answer);
        let answer = without.oneshot(Request::new(())).await.expect("answer");
        assert_eq!(bulkhead.in_flight(), held, "{at:?}");
        drop(answer);
        assert_eq!(bulkhead.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_learns_from_answers_errors_and_dropped_bodies() {
    use crate::adaptive::AdaptiveLimit;
    let config = toml::from_str("algorithm = \"aimd\"\nmin = 5\nmin_samples = 1\nqueue = {}");
    let limit = AdaptiveLimit::new(config.expect("parses"), crate::Rng::new(1)).expect("valid");
    let service = QueueLayer::new(limit.clone())
        .judge(|_: &&str| Outcome::Failure(crate::FailureClass::Timeout))
        .layer(service_fn(|request: Request<u16>| async move {
            tokio::time::sleep(ms(1)).await;
            match StatusCode::from_u16(request.into_body()) {
                Ok(status) => {
                    let mut answer = Response::new(Full::<Bytes>::from("x"));
                    *answer.status_mut() = status;
                    Ok(answer)
                }
                Err(_) => Err("timed out"),
            }
        }));
    for (status, dropped) in [(200, 0), (429, 1), (503, 1), (0, 2)] {
        drop(service.clone().oneshot(Request::new(status)).await);
        assert_eq!(limit.status().dropped, dropped, "{status}");
    }
    assert_eq!(limit.in_flight(), 0);
}
