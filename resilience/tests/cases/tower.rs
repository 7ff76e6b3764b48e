//! Calls through `Stack::layer(policy)` over a service that does as the table says, in Tokio's
//! paused time.

use std::{
    collections::HashMap,
    future::Future,
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use selvedge_resilience::layer::{
    BodyError, BoxError, Error, ReplayBody, Stack, StackService, StackStatus, TransportError,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tower::{Layer, ServiceExt};

use super::{
    calls::{Seen, check, judge, leaks, read_breaker, read_coalesce, refusal},
    cores::header_map,
    table::{Calls, Fault, Reading, Step, Tries, Want},
};

/// Polls of everything that is ready, before the next thing happens at the same time.
const TURNS: usize = 64;
/// Which call of the script a request belongs to: tells every try of it.
const CALL: &str = "x-case-call";

pub(super) fn run(case: &Calls) -> Vec<String> {
    check(case);
    // A runtime each, so that its clock begins at a whole tick.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(play(case))
}

async fn play(case: &Calls) -> Vec<String> {
    let start = Instant::now();
    let layer = Stack::layer(case.policy.clone()).expect("valid");
    let callee = Callee::default();
    let service = layer.layer(callee.clone());
    let mut calls: Vec<Call<'_>> = Vec::new();
    let mut found = Vec::new();
    for (n, step) in case.steps.iter().enumerate() {
        // Everything due before or at that time happens first.
        sleep_until(start + step.at.0.0).await;
        settle().await;
        if let Some(policy) = &step.policy {
            layer.stack().reconfigure(policy.clone()).expect("valid");
        }
        if let Some(label) = &step.ends {
            callee.end_body(labelled(&calls, label).id);
            settle().await;
        }
        if let Some(label) = &step.drop {
            let call = labelled(&calls, label);
            call.task.abort();
            settle().await;
            lock(&call.seen).over = true;
        }
        if let Some(script) = &step.call {
            for _ in 0..step.times {
                let id = calls.len();
                callee.learn(id, script);
                calls.push(begin(service.clone(), n, step, id));
                settle().await;
            }
        }
        if let Some(want) = &step.read {
            let differ = want.differences(&read(&layer.stack().status()));
            found.extend(differ.iter().map(|text| format!("step {n}, {text}")));
        }
    }
    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    settle().await;
    for call in &calls {
        let mut seen = lock(&call.seen).clone();
        seen.tries = callee.tries(call.id);
        found.extend(judge(call.n, call.step, &seen));
    }
    found.extend(leaks(&read(&layer.stack().status())));
    found
}

async fn settle() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn labelled<'a, 'b>(calls: &'b [Call<'a>], label: &str) -> &'b Call<'a> {
    let found = calls
        .iter()
        .find(|call| call.step.label.as_deref() == Some(label));
    found.unwrap_or_else(|| panic!("no call is called {label:?}"))
}

fn read(status: &StackStatus<()>) -> Reading {
    let mut reading = Reading::default();
    if let Some(snapshot) = &status.breaker {
        read_breaker(&mut reading, snapshot);
    }
    if let Some(bulkhead) = &status.bulkhead {
        reading.in_flight = Some(bulkhead.in_flight);
        reading.waiting = Some(bulkhead.waiting);
    }
    if let Some(limit) = &status.concurrency {
        reading.limit = Some(limit.limit);
        reading.adaptive_in_flight = Some(limit.in_flight);
    }
    if let Some(budget) = &status.budget {
        reading.retries = Some(budget.made);
        reading.retries_refused = Some(budget.rejected);
        reading.balance = Some(budget.balance);
    }
    if let Some(coalesce) = &status.coalesce {
        read_coalesce(&mut reading, coalesce);
    }
    reading.remaining = status.rate_limit.as_ref().map(|rate| rate.remaining);
    reading.throttle = status.throttle;
    reading.pending = Some(status.endpoints.iter().map(|e| e.pending).sum());
    reading
}

// ---- the caller -------------------------------------------------------------------------------

struct Call<'a> {
    n: usize,
    step: &'a Step,
    id: usize,
    task: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

fn begin(service: StackService<Callee>, n: usize, step: &Step, id: usize) -> Call<'_> {
    let mut request = Request::builder()
        .method(step.method.as_deref().unwrap_or("GET"))
        .uri(format!(
            "http://callee{}",
            step.path.as_deref().unwrap_or("/")
        ))
        .header(CALL, id)
        .body(Full::from(step.sends.clone().unwrap_or_default()))
        .expect("a request");
    request.headers_mut().extend(header_map(&step.headers));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let task = tokio::spawn(make(service, request, Arc::clone(&seen)));
    Call {
        n,
        step,
        id,
        task,
        seen,
    }
}

async fn make(
    service: StackService<Callee>,
    request: Request<Full<Bytes>>,
    seen: Arc<Mutex<Seen>>,
) {
    let began = Instant::now();
    // As a server does that keeps a panic from its other connections.
    let caught = AssertUnwindSafe(service.oneshot(request)).catch_unwind();
    let result = caught.await;
    let took = began.elapsed();
    let Ok(result) = result else {
        let mut seen = lock(&seen);
        seen.head = Some((Want::Failure("panic".to_owned()), took));
        seen.over = true;
        return;
    };
    let response = match result {
        Ok(response) => response,
        Err(error) => {
            let mut seen = lock(&seen);
            seen.over = true;
            seen.retry_after = error.rejected().and_then(|rejected| rejected.retry_after);
            let want = match &error {
                Error::Rejected(rejected) => refusal(rejected),
                Error::Service(error) => Want::Failure(error.class().as_str().to_owned()),
                _ => unreachable!("a stack's error is one of the two"),
            };
            seen.head = Some((want, took));
            return;
        }
    };
    lock(&seen).head = Some((Want::Status(response.status().as_u16()), took));
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => lock(&seen).text += std::str::from_utf8(&data).expect("text"),
            Ok(Err(_)) => {}
            Err(error) => {
                lock(&seen).broke = Some(match error {
                    BodyError::Deadline => "deadline".to_owned(),
                    BodyError::Inner(error) => error.to_string(),
                    other => other.to_string(),
                });
                break;
            }
        }
    }
    lock(&seen).over = true;
}

// ---- the callee -------------------------------------------------------------------------------

/// Does at each try what the script of its call says.
#[derive(Debug, Clone, Default)]
struct Callee(Arc<Mutex<HashMap<usize, Known>>>);

#[derive(Debug)]
struct Known {
    script: Tries,
    tries: u32,
    ends: watch::Sender<bool>,
}

impl Callee {
    fn learn(&self, id: usize, script: &Tries) {
        let known = Known {
            script: script.clone(),
            tries: 0,
            ends: watch::Sender::new(false),
        };
        lock(&self.0).insert(id, known);
    }

    fn end_body(&self, id: usize) {
        lock(&self.0)[&id].ends.send_replace(true);
    }

    fn tries(&self, id: usize) -> u32 {
        lock(&self.0)[&id].tries
    }
}

type Acts = Pin<Box<dyn Future<Output = Result<Response<ActBody>, BoxError>> + Send>>;

impl tower::Service<Request<ReplayBody<Full<Bytes>>>> for Callee {
    type Response = Response<ActBody>;
    type Error = BoxError;
    type Future = Acts;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Acts {
        let id = request.headers()[CALL].to_str().expect("a number");
        let id: usize = id.parse().expect("a number");
        let mut all = lock(&self.0);
        let known = all.get_mut(&id).expect("a call of the script");
        let answer = known.script.nth(known.tries as usize).answer();
        known.tries += 1;
        let mut ends = known.ends.subscribe();
        drop(all);
        Box::pin(async move {
            if !answer.took.0.0.is_zero() {
                tokio::time::sleep(answer.took.0.0).await;
            }
            match answer.fault {
                Some(Fault::Connect) => {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
                }
                Some(Fault::Reset) => {
                    return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
                }
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Panic) => panic!("as the table says"),
                None => {}
            }
            let body = ActBody {
                held: answer.held.then(|| {
                    Box::pin(async move {
                        ends.wait_for(|ends| *ends).await.expect("the callee lives");
                    }) as Pin<Box<dyn Future<Output = ()> + Send>>
                }),
                text: (!answer.text.is_empty()).then(|| Bytes::from(answer.text)),
                trailers: (!answer.trailers.is_empty()).then(|| header_map(&answer.trailers)),
            };
            let mut response = Response::new(body);
            *response.status_mut() =
                http::StatusCode::from_u16(answer.status.expect("no fault")).expect("a status");
            *response.headers_mut() = header_map(&answer.headers);
            Ok(response)
        })
    }
}

/// Ends at once, or when the table says so; perhaps says something, and how it really was.
struct ActBody {
    held: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    text: Option<Bytes>,
    trailers: Option<http::HeaderMap>,
}

impl Body for ActBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(held) = &mut self.held {
            std::task::ready!(held.as_mut().poll(cx));
            self.held = None;
        }
        if let Some(text) = self.text.take() {
            return Poll::Ready(Some(Ok(Frame::data(text))));
        }
        let trailers = self.trailers.take();
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.text.is_none() && self.trailers.is_none()
    }
}
