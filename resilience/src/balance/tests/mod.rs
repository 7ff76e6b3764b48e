//! The balancer as a whole: picks, verdicts, membership.

// Thousands of picks on one thread: nothing that Miri could see.
#[cfg(not(miri))]
mod laws;
#[cfg(not(miri))]
mod policies;
mod threads;
mod told;
#[cfg(not(miri))]
mod verdicts;

use super::*;
use crate::{FailureClass, config::Ratio, outcome::Outcome};

const REFUSED: Outcome = Outcome::Failure(FailureClass::Connect);
const ERR: Outcome = Outcome::Failure(FailureClass::ServerError);

const POLICIES: [BalancePolicy; 6] = [
    BalancePolicy::PeakEwma,
    BalancePolicy::LeastRequest,
    BalancePolicy::RoundRobin,
    BalancePolicy::Random,
    BalancePolicy::RingHash,
    BalancePolicy::Maglev,
];

fn start() -> Instant {
    Instant::now()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn policy(policy: BalancePolicy) -> BalanceConfig {
    BalanceConfig {
        policy,
        ..BalanceConfig::default()
    }
}

fn build(config: BalanceConfig, outlier: OutlierConfig) -> Balancer<u32> {
    Balancer::new(config, outlier, Rng::new(1)).expect("valid")
}

/// A balancer of members 0 to n, in since long.
fn with(n: u32, config: BalanceConfig, outlier: OutlierConfig, now: Instant) -> Balancer<u32> {
    let balancer = build(config, outlier);
    balancer.set_members((0..n).map(Member::new), now);
    balancer
}

fn balancer(n: u32, now: Instant) -> Balancer<u32> {
    with(n, BalanceConfig::default(), OutlierConfig::default(), now)
}

/// Ejections that were made, and those that were not allowed.
fn made(b: &Balancer<u32>) -> (u64, u64) {
    let ejections = b.ejections();
    (ejections.made, ejections.not_allowed)
}

fn pick(b: &Balancer<u32>, now: Instant) -> Pick<u32> {
    b.pick(&PickContext::at(now)).expect("members")
}

/// Makes `n` calls to whoever is picked; returns how often each was.
fn drive(
    b: &Balancer<u32>,
    now: Instant,
    n: usize,
    outcome: impl Fn(u32) -> (Outcome, u64),
) -> Vec<usize> {
    let most = b.status(now).iter().map(|e| e.key).max().expect("members");
    let mut counts = vec![0; most as usize + 1];
    for _ in 0..n {
        let pick = pick(b, now);
        let key = *pick.key();
        counts[key as usize] += 1;
        let (outcome, latency) = outcome(key);
        pick.complete(outcome, now + ms(latency));
    }
    counts
}

fn well(_: u32) -> (Outcome, u64) {
    (Outcome::Success, 1)
}

/// Ends `n` calls to `key` with `outcome` while the others do well.
fn fail(b: &Balancer<u32>, key: u32, outcome: Outcome, n: usize, now: Instant) {
    let others: Vec<u32> = b.status(now).iter().map(|e| e.key).collect();
    let others: Vec<u32> = others.into_iter().filter(|&k| k != key).collect();
    for _ in 0..n {
        let pick = b
            .pick(&PickContext::at(now).avoid(&others))
            .expect("members");
        if *pick.key() == key {
            pick.complete(outcome, now);
        }
    }
}

fn status(b: &Balancer<u32>, key: u32, now: Instant) -> EndpointStatus<u32> {
    let all = b.status(now);
    all.into_iter().find(|e| e.key == key).expect("a member")
}

fn is_ejected(b: &Balancer<u32>, key: u32, now: Instant) -> bool {
    !status(b, key, now).ejected_for.is_zero()
}

fn pending(b: &Balancer<u32>, now: Instant) -> u32 {
    b.status(now).iter().map(|e| e.pending).sum()
}
