//! The circuit breaker, told by answers and by an operator.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use selvedge_resilience::{
    Outcome,
    breaker::CircuitBreaker,
    layer::{BreakerLayer, ByClass, Error},
};
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, ServiceExt, service_fn};

use super::{PAST, answer, get, paused, whole};
use crate::cases::{
    calls::read_breaker,
    core::{Found, operate},
    table,
};

pub(in crate::cases) fn breaker(case: &table::Breaker) -> Vec<String> {
    paused(breaks(case))
}

async fn breaks(case: &table::Breaker) -> Vec<String> {
    let core = CircuitBreaker::new(case.config.clone()).expect("valid");
    let layer = BreakerLayer::new(core.clone()).judge(ByClass);
    let start = Instant::now() + PAST;
    let mut found = Found::default();
    let call = |outcome: Outcome, took: Duration| {
        let callee = service_fn(move |_: Request<Empty<Bytes>>| async move {
            sleep(took).await;
            answer(outcome).map_err(Error::Service)
        });
        let service = layer.layer(callee);
        async move { whole(service.oneshot(get()).await).await }
    };
    // Calls that take their time begin before their step, so each has a task of its own.
    let mut begun: BTreeMap<usize, Vec<tokio::task::JoinHandle<bool>>> = BTreeMap::new();
    for (n, step) in case.steps.iter().enumerate() {
        let (at, took) = (start + step.at.0.0, step.took.0.0);
        if took.is_zero() {
            continue;
        }
        for ended in &step.ended {
            let call = call(ended.0, took);
            let task = async move {
                sleep_until(at - took).await;
                !matches!(call.await, Err(Error::Rejected(_)))
            };
            begun
                .entry(n)
                .or_default()
                .push(tokio::task::spawn_local(task));
        }
    }
    for (n, step) in case.steps.iter().enumerate() {
        let at = start + step.at.0.0;
        sleep_until(at).await;
        if let Some(operator) = &step.operator {
            let obeyed = operate(&core, operator, at.into_std());
            found.look(n, "illegal", &!obeyed, &step.illegal);
        }
        let mut admitted = 0;
        for task in begun.remove(&n).unwrap_or_default() {
            admitted += u32::from(task.await.expect("no panic"));
        }
        if step.took.0.0.is_zero() {
            for _ in 0..step.times {
                for ended in &step.ended {
                    let result = call(ended.0, Duration::ZERO).await;
                    admitted += u32::from(!matches!(result, Err(Error::Rejected(_))));
                }
            }
        }
        let all = step.times * step.ended.len() as u32;
        found.look(n, "admitted", &admitted, &all);
        if let Some(reason) = &step.denied {
            let denied = call(Outcome::Success, Duration::ZERO).await.err();
            let denied = denied.as_ref().and_then(Error::rejected);
            let denied = denied.map(|rejected| rejected.reason.as_str());
            found.look(n, "denied", &denied, &Some(reason.as_str()));
        }
        if let Some(want) = &step.read {
            let mut seen = table::Reading::default();
            read_breaker(&mut seen, &core.snapshot(Instant::now().into_std()));
            let differ = want.differences(&seen);
            found.all(differ.iter().map(|text| format!("step {n}, {text}")));
        }
    }
    found.0
}
