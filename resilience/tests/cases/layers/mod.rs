//! The kinds that are one core's affair, through the Tower layer of that core: what a table says
//! of a permit holds of a request, its answer and its body.
//!
//! Three have no request to be driven by, and are the cores' alone: the rule of an adaptive limit
//! by itself, a budget of which more is taken than calls were made (every call deposits), and waits
//! that grow by a step, which no policy has.
//! Of the curve of `cubic` a limit shows whole calls.

mod balancing;
mod breaker;
mod limits;
mod retries;

use std::{future::Future, io, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use selvedge_resilience::{
    FailureClass, Outcome,
    layer::{BoxError, ReplayBody},
};

pub(super) use self::{
    balancing::{ewma, outlier},
    breaker::breaker,
    limits::{cubic, partitions, rate_limit, throttle},
    retries::{backoff, bucket, budget, headers},
};

type Answer = Result<Response<Empty<Bytes>>, BoxError>;
type Asked = Request<ReplayBody<Empty<Bytes>>>;

/// Long after the process's first instant, so that calls of a case may have begun before it.
const PAST: Duration = Duration::from_secs(3600);

fn paused<F: Future>(story: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(tokio::task::LocalSet::new().run_until(story))
}

fn get() -> Request<Empty<Bytes>> {
    Request::get("http://callee/")
        .body(Empty::new())
        .expect("valid")
}

/// The answer, or the error, that a layer takes for `outcome`.
fn answer(outcome: Outcome) -> Answer {
    let broken = |kind: io::ErrorKind| Err(BoxError::from(io::Error::from(kind)));
    let status = match outcome {
        Outcome::Success => 200,
        Outcome::Ignored => 404,
        Outcome::RateLimited => 429,
        Outcome::Failure(FailureClass::ServerError) => 500,
        Outcome::Failure(FailureClass::Gateway) => 503,
        Outcome::Failure(FailureClass::Connect) => return broken(io::ErrorKind::ConnectionRefused),
        Outcome::Failure(FailureClass::Reset) => return broken(io::ErrorKind::ConnectionReset),
        Outcome::Failure(FailureClass::Timeout) => return broken(io::ErrorKind::TimedOut),
        other => panic!("no callee does {other:?}"),
    };
    let status = StatusCode::from_u16(status).expect("a status");
    let mut answer = Response::new(Empty::new());
    *answer.status_mut() = status;
    Ok(answer)
}

/// Reads the answer to its end: the call is over then.
async fn whole<B, E>(answer: Result<Response<B>, E>) -> Result<StatusCode, E>
where
    B: http_body::Body + Unpin,
{
    let mut answer = answer?;
    while answer.body_mut().frame().await.is_some() {}
    Ok(answer.status())
}
