//! Ejections and costs, of endpoints that a stack calls.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use selvedge_resilience::{
    Outcome, Rng, Timeouts, TrafficPolicy,
    balance::{BalanceConfig, BalancePolicy, Member},
    config::Millis,
    layer::{ServiceTransport, Stack},
};
use tokio::time::{Instant, sleep_until};
use tower::service_fn;

use super::{Asked, PAST, answer, get, paused, whole};
use crate::cases::{calls::up, core::Found, table};

/// A stack over `endpoints`, and a callee that does what `does` says: endpoint and outcome.
struct Balanced {
    stack: Stack<u32>,
    endpoints: u32,
}

impl Balanced {
    fn new(policy: TrafficPolicy, endpoints: u32) -> Self {
        let stack = Stack::with_rng(policy, Rng::new(1)).expect("valid");
        stack.set_members((0..endpoints).map(Member::new));
        Self { stack, endpoints }
    }

    /// One call. Where it went, once it is over or `patience` is.
    async fn call(
        &self,
        patience: Duration,
        does: impl Fn(u32) -> Option<Outcome> + Send + Sync + Clone,
    ) -> Option<u32> {
        let went = Arc::new(Mutex::new(None));
        let aim = |key: &u32, request: &mut Asked| {
            request.extensions_mut().insert(*key);
        };
        let seen = Arc::clone(&went);
        let callee = service_fn(move |request: Asked| {
            let key = *request.extensions().get::<u32>().expect("aimed");
            *seen.lock().expect("no panic") = Some(key);
            let does = does(key);
            async move {
                match does {
                    Some(outcome) => answer(outcome),
                    None => pending().await,
                }
            }
        });
        let transport = ServiceTransport::new(callee, aim);
        let call = async { whole(self.stack.call(&transport, get(), ()).await).await };
        drop(tokio::time::timeout(patience, call).await);
        let went = went.lock().expect("no panic");
        *went
    }
}

const LONG: Duration = Duration::from_millis(1);

/// Each endpoint in its turn, as often as endpoint 0 is to be called; the others do well meanwhile
/// unless the step speaks of all.
pub(in crate::cases) fn outlier(case: &table::Outlier) -> Vec<String> {
    let policy = TrafficPolicy {
        outlier: case.config.clone(),
        balance: BalanceConfig {
            policy: BalancePolicy::RoundRobin,
            ..BalanceConfig::default()
        },
        ..TrafficPolicy::default()
    };
    let them = Balanced::new(policy, case.endpoints);
    paused(async {
        let start = Instant::now();
        let mut found = Found::default();
        for (n, step) in case.steps.iter().enumerate() {
            sleep_until(start + step.at.0.0).await;
            them.stack.tick();
            for ended in &step.ended {
                let (outcome, all, mut left) = (ended.0, step.all, step.times);
                let mut calls = (2 + step.times) * them.endpoints;
                while left > 0 && calls > 0 {
                    calls -= 1;
                    let does = move |key: u32| {
                        let meant = all || key == 0;
                        Some(if meant { outcome } else { Outcome::Success })
                    };
                    left -= u32::from(them.call(LONG, does).await == Some(0));
                }
                found.look(n, "calls of endpoint 0 that are missing", &left, &0);
            }
            them.stack.tick();
            let status = them.stack.status();
            if let Some(want) = step.out_for {
                let mine = status.endpoints.iter().find(|it| it.key == 0);
                let out = mine.expect("a member").ejected_for;
                found.look(n, "out_for", &up(out), &want);
            }
            if let Some(want) = step.picked {
                let mut picked = false;
                let at_all = Duration::ZERO;
                for _ in 0..2 * them.endpoints {
                    // Given up at once: no result of any of them.
                    picked |= them.call(at_all, |_| None).await == Some(0);
                }
                found.look(n, "picked", &picked, &want);
            }
            if let Some(want) = step.ejections {
                found.look(
                    n,
                    "ejections",
                    &them.stack.balancer().ejections().made,
                    &want,
                );
            }
        }
        found.0
    })
}

pub(in crate::cases) fn ewma(case: &table::Ewma) -> Vec<String> {
    let policy = TrafficPolicy {
        timeouts: Timeouts {
            request: Millis::new(0),
            ..Timeouts::default()
        },
        balance: BalanceConfig {
            decay: case.decay,
            ..BalanceConfig::default()
        },
        ..TrafficPolicy::default()
    };
    paused(async {
        let them = Arc::new(Balanced::new(policy, 1));
        let (start, done) = (Instant::now() + PAST, Arc::new(AtomicU32::new(0)));
        let mut found = Found::default();
        for (at, rtt, _) in &case.samples {
            let (end, rtt) = (start + Duration::from_secs(*at), Duration::from_secs(*rtt));
            let (them, done) = (Arc::clone(&them), Arc::clone(&done));
            tokio::task::spawn_local(async move {
                sleep_until(end - rtt).await;
                let aim = |_: &u32, _: &mut Asked| ();
                let callee = service_fn(move |_: Asked| async move {
                    sleep_until(end).await;
                    answer(Outcome::Success)
                });
                let transport = ServiceTransport::new(callee, aim);
                let answer = them.stack.call(&transport, get(), ()).await;
                whole(answer).await.expect("answers");
                done.fetch_add(1, SeqCst);
            });
        }
        for (n, (at, _, want)) in case.samples.iter().enumerate() {
            sleep_until(start + Duration::from_secs(*at)).await;
            while (done.load(SeqCst) as usize) <= n {
                tokio::task::yield_now().await;
            }
            let cost = them.stack.status().endpoints[0].cost.as_secs_f64();
            if (cost - want).abs() > 1e-6 {
                found.all([format!("step {n}: cost {cost}, want {want}")]);
            }
        }
        if let Some(want) = case.newcomer_picks {
            them.stack.set_members([0, 1].map(Member::new));
            let calls = (0..50).map(|_| them.call(LONG, |_| None));
            let went = join_all(calls).await;
            let new = went.iter().filter(|went| **went == Some(1)).count() as u32;
            found.look(case.samples.len(), "calls of the newcomer", &new, &want);
        }
        found.0
    })
}
