//! Leases that change hands: renewals that go to the server that keeps them, and leases that a
//! leaving server hands over.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use selvedge_registry::wire::MemberState;

use super::serve::{HandoffAnswer, HandoffQuestion, Passed, RenewAnswer, RenewQuestion};
use crate::{
    catalogue::{Key, NodeId},
    lease::guardian,
    server::{Errand, PassedRenewal, Shared, now},
};

/// How long renewals are collected before they are passed on. A guess: well below the shortest
/// lease, and fifty batches a second at most.
const COLLECT: Duration = Duration::from_millis(20);
/// Leases handed over in one question.
const BATCH: usize = 2_000;

/// Passes renewals on to the servers that keep the leases.
pub(crate) async fn pass_on_for_ever(shared: Arc<Shared>) {
    loop {
        shared.passed_on.arrived.notified().await;
        tokio::time::sleep(COLLECT).await;
        for ((to, errand), renewals) in shared.passed_on.take() {
            // One that hangs must not hold up the renewals of the others.
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                pass_on(&shared, &to, errand, &renewals).await;
                shared.passed_on.settled(&renewals);
            });
        }
    }
}

async fn pass_on(shared: &Shared, to: &NodeId, errand: Errand, renewals: &[PassedRenewal]) {
    let addr = shared.members.borrow().get(to).map(|m| m.http);
    let question = RenewQuestion {
        via: shared.node.to_string(),
        find: errand == Errand::Find,
        renewals: renewals
            .iter()
            .map(|((service, id), life)| (service.clone(), id.clone(), *life))
            .collect(),
    };
    let answer = match addr {
        Some(addr) => {
            let path = "/v1/replicate/renew";
            shared.peers.ask::<RenewAnswer>(addr, path, &question).await
        }
        None => Err("it is gone".into()),
    };
    // One that cannot be told will let the leases run out, though we have heard the instances.
    let yours: Vec<usize> = match answer {
        Ok(answer) => answer.yours,
        Err(error) => {
            tracing::warn!(peer = %to, %error, leases = renewals.len(), "renewals could not be passed on, taking the leases over");
            (0..renewals.len()).collect()
        }
    };
    if shared.is_draining() {
        return;
    }
    for (key, life) in yours.into_iter().filter_map(|n| renewals.get(n)) {
        // Deregistered in the meantime, or never known here: nothing to take over.
        let _gone = shared.claim(key, *life);
    }
}

/// Hands every lease over to the servers that stay, with the time that remains of it; tells how
/// many nobody took.
pub(crate) async fn hand_off(shared: &Arc<Shared>) -> usize {
    let successors: Vec<(NodeId, SocketAddr)> = {
        let members = shared.members.borrow();
        members
            .iter()
            .filter(|(node, m)| **node != shared.node && m.state == MemberState::Serving)
            .map(|(node, member)| (Arc::clone(node), member.http))
            .collect()
    };
    let mut by_successor: HashMap<SocketAddr, Vec<(Passed, u64, Key)>> = HashMap::new();
    let mut left = 0;
    for key in shared.leases.keys() {
        let catalogue = shared.catalogue();
        let Some(record) = catalogue.live_record(&key.0, &key.1) else {
            shared.leases.release(&key);
            continue;
        };
        let successor = guardian(&key, successors.iter().map(|(node, _)| &**node));
        let addr = successors
            .iter()
            .find(|(node, _)| successor == Some(&**node))
            .map(|(_, addr)| *addr);
        let (Some(addr), Some(rest)) = (addr, shared.leases.remaining(&key, now())) else {
            left += 1;
            continue;
        };
        let passed = (key.0.clone(), key.1.clone(), record.stamp.incarnation);
        let rest = rest.as_millis() as u64;
        by_successor
            .entry(addr)
            .or_default()
            .push((passed, rest, key));
    }
    for (addr, leases) in by_successor {
        for batch in leases.chunks(BATCH) {
            left += batch.len() - hand_off_batch(shared, addr, batch).await;
        }
    }
    left
}

async fn hand_off_batch(
    shared: &Arc<Shared>,
    addr: SocketAddr,
    batch: &[(Passed, u64, Key)],
) -> usize {
    let question = HandoffQuestion {
        from: shared.node.to_string(),
        leases: batch
            .iter()
            .map(|(passed, rest, _)| (passed.clone(), *rest))
            .collect(),
    };
    let path = "/v1/replicate/handoff";
    match shared
        .peers
        .ask::<HandoffAnswer>(addr, path, &question)
        .await
    {
        Ok(answer) => {
            for (_, _, key) in answer.taken.iter().filter_map(|n| batch.get(*n)) {
                shared.leases.release(key);
            }
            answer.taken.len()
        }
        Err(error) => {
            tracing::warn!(peer = %addr, %error, leases = batch.len(), "leases could not be handed over");
            0
        }
    }
}
