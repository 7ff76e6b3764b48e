//! Retries: their waits, their budget, their bucket of costs, and what headers say of them.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Response, StatusCode};
use http_body_util::Empty;
use selvedge_resilience::{
    FailureClass, Outcome, Reason, Rng,
    config::{BackoffRange, ByteSize, Millis, Rate},
    layer::{RateLimitLayer, RetryLayer, TimeoutLayer},
    rate_limit::{RateLimit, headers::PolicyName},
    retry::{RetryConfig, backoff::Jitter},
};
use tokio::time::{Instant, sleep_until};
use tower::{Layer, ServiceExt, service_fn};

use super::{Answer, Asked, PAST, answer, get, paused, whole};
use crate::cases::{
    core::{Found, make_budget},
    table::{self, HeaderLine, What},
};

/// Retries of everything, at once, as far as `change` leaves it so.
fn retries(change: impl FnOnce(&mut RetryConfig)) -> RetryConfig {
    let mut config = RetryConfig {
        attempts: 10,
        codes: vec![429, 500, 502, 503, 504],
        backoff: BackoffRange {
            base: Duration::ZERO,
            max: Duration::ZERO,
        },
        jitter: Jitter::None,
        budget: "1000% min 1000/s".parse().expect("a budget"),
        in_flight: "0% min 1000000".parse().expect("a share"),
        replay: ByteSize(0),
        ..RetryConfig::default()
    };
    change(&mut config);
    config
}

/// One call; the callee does at try `n` what `at_try` says, `None` is nothing ever. The call is given
/// up after an hour. When the tries began, from the first on.
async fn tried(
    layer: &RetryLayer,
    at_try: impl Fn(usize) -> Option<Answer> + Send + Sync + 'static,
) -> Vec<Duration> {
    let tries = Arc::new(Mutex::new(Vec::new()));
    let (seen, began) = (Arc::clone(&tries), Instant::now());
    let at_try = Arc::new(at_try);
    let callee = service_fn(move |_: Asked| {
        let mut seen = seen.lock().expect("no panic");
        let n = seen.len();
        seen.push(began.elapsed());
        let does = at_try(n);
        async move {
            match does {
                Some(answer) => answer,
                None => pending().await,
            }
        }
    });
    let call = async { whole(layer.layer(callee).oneshot(get()).await).await };
    drop(tokio::time::timeout(PAST, call).await);
    let tries = tries.lock().expect("no panic");
    tries.clone()
}

pub(in crate::cases) fn backoff(case: &table::Backoff) -> Vec<String> {
    if case.step.is_some() {
        return Vec::new();
    }
    let config = retries(|config| {
        config.attempts = case.waits.len() as u32;
        config.backoff = case.range;
    });
    let layer = RetryLayer::new(config).expect("valid");
    let broken = |_| Some(answer(Outcome::Failure(FailureClass::Gateway)));
    let began = paused(tried(&layer, broken));
    let waits: Vec<Millis> = began
        .windows(2)
        .map(|two| Millis(two[1].saturating_sub(two[0])))
        .collect();
    let mut found = Found::default();
    found.look(0, "waits", &waits, &case.waits);
    found.0
}

/// Every call deposits, so that what is taken by a call that was not paid for cannot be said of
/// requests: such steps are the core's.
pub(in crate::cases) fn budget(case: &table::Budget) -> Vec<String> {
    let takes = case.steps.iter().any(|step| step.take > 0);
    if case.refused.is_some() || (takes && case.ratio > 0.0) {
        return Vec::new();
    }
    let budget = make_budget(case).expect("not refused");
    let config = retries(|config| config.attempts = 1);
    let layer = RetryLayer::with_budget(config, budget.clone(), Rng::new(1)).expect("valid");
    paused(async {
        let start = Instant::now();
        let mut found = Found::default();
        let good = |_| Some(answer(Outcome::Success));
        let broken = |_| Some(answer(Outcome::Failure(FailureClass::Gateway)));
        for (n, step) in case.steps.iter().enumerate() {
            sleep_until(start + step.at.0.0).await;
            for _ in 0..step.deposit {
                tried(&layer, good).await;
            }
            let mut taken = 0;
            for _ in 0..step.take {
                taken += tried(&layer, broken).await.len() - 1;
            }
            found.look(n, "retries", &(taken as u32), &step.take);
            if step.then_empty {
                let tries = tried(&layer, broken).await.len();
                found.look(n, "tries of one more", &tries, &1);
            }
            if let Some(want) = step.balance {
                let balance = budget.balance(Instant::now().into_std());
                found.look(n, "balance", &balance, &want);
            }
        }
        found.0
    })
}

/// Nobody tells how many tokens there are; but how many retries they pay for shows it.
pub(in crate::cases) fn bucket(case: &table::Bucket) -> Vec<String> {
    let mut found = Found::default();
    for (n, step) in case.steps.iter().enumerate() {
        let config = retries(|config| config.cost = Some(case.config));
        let layer = RetryLayer::new(config).expect("valid");
        paused(async {
            let ended: Vec<Outcome> = case.steps[..=n].iter().map(|step| step.ended.0).collect();
            for call in ended.split_inclusive(|outcome| *outcome == Outcome::Success) {
                let call = call.to_vec();
                let at_try = move |n: usize| call.get(n).map(|outcome| answer(*outcome));
                tried(&layer, at_try).await;
            }
            let before = layer.stats().retries;
            let broken = |_| Some(answer(Outcome::Failure(FailureClass::Gateway)));
            while layer.stats().exhausted == 0 {
                tried(&layer, broken).await;
            }
            let paid = layer.stats().retries - before;
            let want = u64::from(step.tokens / case.config.retry);
            found.look(n, "retries that are paid for", &paid, &want);
        });
    }
    found.0
}

pub(in crate::cases) fn headers(case: &table::Headers) -> Vec<String> {
    let mut found = Found::default();
    for (n, line) in case.lines.iter().enumerate() {
        let (got, want) = match case.what {
            What::GrpcTimeout => (cut_after(line), line.gives.or(Some(WITHOUT))),
            What::RetryAfter => retried_after(line),
            What::Pushback => pushed_back(line),
            What::RateLimit => refused_with(line),
        };
        found.look(n, &line.value, &got, &want);
    }
    found.0
}

/// What the layer gives a call that brings no deadline.
const WITHOUT: Millis = Millis::new(10 * 3_600_000);

/// When a call is cut whose callee never answers.
fn cut_after(line: &HeaderLine) -> Option<Millis> {
    paused(async {
        let callee = service_fn(async |_| pending::<Answer>().await);
        let mut request = get();
        let value = line.value.parse().expect("a header's value");
        request.headers_mut().insert("grpc-timeout", value);
        let began = Instant::now();
        let call = TimeoutLayer::new(WITHOUT.0).layer(callee).oneshot(request);
        let error = call.await.err()?;
        (error.rejected()?.reason == Reason::Elapsed).then(|| Millis(began.elapsed()))
    })
}

/// An answer with one header, then a good one: how long the retry layer waited between them.
fn waited(line: &HeaderLine, name: &'static str, status: u16, cap: Millis) -> Option<Millis> {
    let layer = RetryLayer::new(retries(|config| config.retry_after_max = cap)).expect("valid");
    let value = line.value.clone();
    let at_try = move |n| {
        let mut first = Response::new(Empty::new());
        *first.status_mut() = StatusCode::from_u16(status).expect("a status");
        let value = value.parse().expect("a header's value");
        first.headers_mut().insert(name, value);
        Some(if n == 0 {
            Ok(first)
        } else {
            answer(Outcome::Success)
        })
    };
    let tries = paused(tried(&layer, at_try));
    tries.get(1).map(|at| Millis(*at))
}

fn retried_after(line: &HeaderLine) -> (Option<Millis>, Option<Millis>) {
    let status = line.status.expect("of a status");
    let cap = line.cap.unwrap_or(Millis::new(3_600_000));
    let got = waited(line, "retry-after", status, cap);
    // Without a word of the callee a refusal is retried at once, a good answer not at all.
    let without = (status != 200).then_some(Millis::new(0));
    (got, line.gives.or(without))
}

fn pushed_back(line: &HeaderLine) -> (Option<Millis>, Option<Millis>) {
    let cap = Millis::new(3_600_000);
    (waited(line, "grpc-retry-pushback-ms", 503, cap), line.gives)
}

/// The quota that a refusal names and when it says to return: what is left and when the rest comes
/// back are not the table's in a limit that runs.
fn refused_with(line: &HeaderLine) -> (Option<Millis>, Option<Millis>) {
    let mut parts = line.value.split(';').map(str::trim);
    let name = parts.next().expect("a name");
    let rate: Rate = parts.next().expect("a rate").parse().expect("a rate");
    let layer =
        RateLimitLayer::new(RateLimit::new(rate)).headers(PolicyName::new(name).expect("a name"));
    paused(async {
        let callee = || service_fn(async |_| answer(Outcome::Success));
        let first = layer.layer(callee()).oneshot(get()).await.expect("passes");
        let policy = first.headers()["ratelimit-policy"].to_str().expect("text");
        let named = policy == line.writes[0];
        for _ in 1..rate.burst {
            drop(layer.layer(callee()).oneshot(get()).await.expect("passes"));
        }
        let refused = layer.layer(callee()).oneshot(get()).await.err();
        let after = refused.and_then(|error| error.rejected()?.retry_after);
        let one = Millis(rate.per / rate.count);
        (after.filter(|_| named).map(Millis), Some(one))
    })
}
