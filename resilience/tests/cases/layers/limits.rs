//! Rate limit, partitions of an adaptive limit, throttle.

use std::{collections::BTreeMap, future::pending, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::Request;
use http_body_util::Empty;
use selvedge_resilience::{
    FailureClass, Outcome, Reason, Rng,
    adaptive::{AdaptiveConfig, AdaptiveLimit, AlgorithmConfig},
    config::{Millis, Ratio},
    layer::{ByClass, Error, PolicyLayer, RateLimitLayer, ThrottleLayer},
    rate_limit::{RateLimit, headers::PolicyName},
    throttle::{Throttle, ThrottleConfig},
};
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, ServiceExt, service_fn};

use super::{Answer, answer, get, paused, whole};
use crate::cases::{core::Found, table};

pub(in crate::cases) fn rate_limit(case: &table::RateLimit) -> Vec<String> {
    paused(async {
        let core = RateLimit::new(case.rate);
        let start = Instant::now();
        let mut found = Found::default();
        for (n, step) in case.steps.iter().enumerate() {
            sleep_until(start + step.at.0.0).await;
            let cells = step.cells;
            let layer = RateLimitLayer::new(core.clone())
                .cost(move |_: &Request<Empty<Bytes>>| cells)
                .headers(PolicyName::new("table").expect("a name"));
            let ask = async || {
                let callee = service_fn(async |_| answer(Outcome::Success));
                layer.layer(callee).oneshot(get()).await
            };
            let mut passed = 0;
            for _ in 0..step.pass {
                let answer = ask().await;
                passed += u32::from(answer.is_ok_and(|it| it.headers().contains_key("ratelimit")));
            }
            found.look(n, "passed", &passed, &step.pass);
            if let Some(want) = step.wait {
                let refused = ask().await.err();
                let wait = refused.and_then(|error| error.rejected()?.retry_after);
                found.look(n, "wait", &wait.map(Millis), &Some(want));
            }
            if step.never {
                let refused = ask().await.err();
                let reason = refused.and_then(|error| Some(error.rejected()?.reason));
                found.look(n, "never", &reason, &Some(Reason::InsufficientCapacity));
            }
            if let Some(want) = step.remaining {
                let left = core.status(Instant::now().into_std()).remaining;
                found.look(n, "remaining", &left, &want);
            }
        }
        found.0
    })
}

pub(in crate::cases) fn partitions(case: &table::Partitions) -> Vec<String> {
    paused(async {
        let core = AdaptiveLimit::new(case.config.clone(), Rng::new(1)).expect("valid");
        let mut held: BTreeMap<String, Vec<_>> = BTreeMap::new();
        let mut found = Found::default();
        for (n, step) in case.steps.iter().enumerate() {
            if let Some(config) = &step.config {
                core.reconfigure(config.clone()).expect("valid");
            }
            if let Some(name) = &step.class {
                let layer = PolicyLayer::new(core.partition(name).expect("a class of the case"));
                let mine = held.entry(name.clone()).or_default();
                mine.truncate(mine.len() - step.release as usize);
                let mut admitted = 0;
                for _ in 0..step.ask {
                    let callee = service_fn(async |_| pending::<Answer>().await);
                    let mut call = Box::pin(layer.layer(callee).oneshot(get()));
                    // Under way, or refused at once.
                    if call.as_mut().now_or_never().is_none() {
                        admitted += 1;
                        mine.push(call);
                    }
                }
                found.look(n, "admitted", &admitted, &step.admitted);
            } else {
                held.clear();
            }
            for (name, want) in &step.shares {
                let class = core.partition(name).expect("a class of the case");
                found.look(n, name, &class.share(), want);
            }
        }
        drop(held);
        found.look(case.steps.len(), "still held", &core.in_flight(), &0);
        found.0
    })
}

pub(in crate::cases) fn throttle(case: &table::Throttle) -> Vec<String> {
    let mut found = Vec::new();
    for &(requests, accepts, want) in &case.points {
        let config = ThrottleConfig {
            form: case.form,
            max: case.max.unwrap_or(Ratio::new(0.999).expect("a share")),
            min_requests: 1,
            ..ThrottleConfig::default()
        };
        let core = Throttle::new(config, Rng::new(4)).expect("valid");
        let layer = ThrottleLayer::new(core.clone());
        let got = paused(async {
            // All under way before the first has ended: none is refused here.
            let calls = (0..requests).map(|n| {
                let outcome = if n < accepts {
                    Outcome::Success
                } else {
                    Outcome::Failure(FailureClass::Gateway)
                };
                let callee = service_fn(move |_| async move {
                    sleep(Duration::from_millis(1)).await;
                    answer(outcome)
                });
                let service = layer.layer(callee);
                async move { whole(service.oneshot(get()).await).await.is_ok() }
            });
            let made = join_all(calls).await;
            assert!(made.into_iter().all(|made| made), "{}", case.name);
            core.probability(Instant::now().into_std())
        });
        if (got - want).abs() > case.within {
            found.push(format!("({requests}, {accepts}): {got}, want {want}"));
        }
    }
    found
}

/// As far as a limit goes by it: whole calls, and the top of a second drop is its own.
pub(in crate::cases) fn cubic(case: &table::Cubic) -> Vec<String> {
    let config = AdaptiveConfig {
        algorithm: AlgorithmConfig::Cubic(case.config.clone()),
        initial: case.top as u32,
        min: 1,
        max: 1_000,
        window: Millis::new(500),
        min_samples: 1,
        min_rtt: Millis::new(0),
        ..AdaptiveConfig::default()
    };
    paused(async {
        let core = AdaptiveLimit::new(config, Rng::new(1)).expect("valid");
        let layer = PolicyLayer::new(core.clone());
        let start = Instant::now();
        let mut found = Found::default();
        let good = |point: &&table::CubicPoint| !point.dropped;
        for (n, point) in case.points.iter().take_while(good).enumerate() {
            sleep_until(start + Duration::from_secs_f64(point.at)).await;
            // The first point is the drop; at each of the others half of the limit is used.
            let (calls, outcome) = match n {
                0 => (1, Outcome::Failure(FailureClass::Timeout)),
                _ => (core.limit().div_ceil(2), Outcome::Success),
            };
            let layer = layer.clone().judge(ByClass);
            // The last ends first, and with it the window: it has seen how many there are.
            let calls = (1..=calls).map(|n| {
                let took = Duration::from_millis(if n == calls { 1 } else { 2 });
                let callee = service_fn(move |_: Request<Empty<Bytes>>| async move {
                    sleep(took).await;
                    answer(outcome).map_err(Error::Service)
                });
                layer.layer(callee).oneshot(get())
            });
            for answer in join_all(calls).await {
                drop(whole(answer).await);
            }
            found.look(n, "limit", &core.limit(), &(point.is as u32));
        }
        found.0
    })
}
