//! What a server has accepted that cannot be reached from here: from a third that can reach both.
//!
//! One bad link is no death: gossip finds another way round it, a stream does not. So each server
//! says by gossip where it stands ([`head`](Shared::head)), and one that has no stream of it, but
//! hears that it has gone on, asks the others. They are asked for hashes first, as what is missing
//! is little next to what there is.

use std::{net::SocketAddr, sync::Arc};

use super::{
    catch_up::fetch,
    peer::BoxError,
    serve::{SumsAnswer, SumsQuestion, of_buckets},
};
use crate::{
    catalogue::{BUCKETS, NodeId},
    server::Shared,
};

/// Takes what is missing of `node`, whose stream has just ended, if anything is.
///
/// # Errors
/// If something is and none of the others could be asked.
pub(super) async fn by_way_of_another(shared: &Arc<Shared>, node: &NodeId) -> Result<(), BoxError> {
    if !is_behind(shared, node) {
        return Ok(());
    }
    let mut others = shared.serving_peers();
    others.retain(|(other, _)| other != node);
    fastrand::shuffle(&mut others);
    let mut failed: BoxError = "there is no other server".into();
    for (_, addr) in others {
        match from(shared, node, addr).await {
            Ok(()) => return Ok(()),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Whether `node` says that it holds something else than what is known of it here.
fn is_behind(shared: &Shared, node: &NodeId) -> bool {
    let head = {
        let members = shared.members.borrow();
        members.get(node).and_then(|member| member.head.clone())
    };
    let Some(hash) = head.as_deref().and_then(hash) else {
        return false;
    };
    let state = shared.state.read();
    let known = state.store.owned(node);
    hash != known.map_or(0, super::super::catalogue::Owned::hash)
}

/// The last part of `epoch:seq:count:hash`.
fn hash(head: &str) -> Option<u64> {
    let mut parts = head.split(':').skip(3);
    u64::from_str_radix(parts.next()?, 16).ok()
}

async fn from(shared: &Arc<Shared>, node: &NodeId, addr: SocketAddr) -> Result<(), BoxError> {
    let question = SumsQuestion {
        of: node.to_string(),
    };
    let path = "/v1/replicate/sums";
    let answer: SumsAnswer = shared.peers.ask(addr, path, &question).await?;
    let mine = {
        let state = shared.state.read();
        let owned = state.store.owned(node);
        owned.map_or([0; BUCKETS], |owned| owned.buckets)
    };
    let differing: Vec<usize> = (0..BUCKETS)
        .filter(|n| mine[*n] != answer.owned.0[*n])
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    tracing::info!(peer = %node, via = %addr, buckets = differing.len(), "its stream cannot be had, taking what differs from another server");
    Shared::count(&shared.counters.relayed);
    if differing.len() > BUCKETS / 2 {
        fetch(shared, addr, &format!("owner={node}")).await?;
        return Ok(());
    }
    let what = format!("owner={node}&{}", of_buckets(&differing));
    fetch(shared, addr, &what).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_is_not_understood_says_nothing() {
        for (head, want) in [
            ("1f:7:3:00000000000000ff", Some(255)),
            ("1f:7:3:00000000000000ff:more", Some(255)),
            ("1f:7:3", None),
            ("1f:7:3:", None),
            ("", None),
        ] {
            assert_eq!(hash(head), want, "{head}");
        }
    }
}
