//! Following the other servers' logs, each over one HTTP/2 stream.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use tokio::{task::AbortHandle, time::Instant};

use super::{
    by_another::by_way_of_another,
    catch_up::{fetch, fetch_seen},
    frame::{In, Lines, Position, Sums},
    peer::{BoxError, STALL},
    serve::of_buckets,
};
use crate::{
    catalogue::{BUCKETS, NodeId},
    gossip::Member,
    server::Shared,
};

/// Follows every server that gossip knows, for as long as it knows it.
pub(crate) async fn follow_everybody(shared: Arc<Shared>) {
    // First the catalogue, then what changes in it: a new server would ask each peer for what one
    // snapshot tells of all.
    let mut caught_up = shared.caught_up.subscribe();
    if caught_up.wait_for(|caught_up| *caught_up).await.is_err() {
        return;
    }
    let mut members = shared.members();
    let mut following: HashMap<(NodeId, u64), AbortOnDrop> = HashMap::new();
    let mut known = Vec::new();
    loop {
        let now = members.borrow_and_update().clone();
        following.retain(|(node, generation), _| {
            now.get(node)
                .is_some_and(|member| member.generation == *generation && member.is_present())
        });
        for (node, member) in now {
            let key = (Arc::clone(&node), member.generation);
            let known = following.contains_key(&key);
            if node == shared.node || known || !member.is_present() {
                continue;
            }
            let task = tokio::spawn(follow(Arc::clone(&shared), node, member));
            following.insert(key, AbortOnDrop(task.abort_handle()));
        }
        // Not for every head that moves: who is there, and whether it serves.
        let there: Vec<_> = members
            .borrow()
            .iter()
            .map(|(node, member)| (Arc::clone(node), member.generation, member.state))
            .collect();
        if there != known {
            shared.membership_changed();
            known = there;
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(shared: Arc<Shared>, node: NodeId, member: Member) {
    let mut pause = Duration::from_millis(20);
    loop {
        let started = Instant::now();
        let Err(error) = follow_once(&shared, &node, &member).await;
        tracing::debug!(peer = %node, %error, "replication stream ended");
        if let Err(error) = by_way_of_another(&shared, &node).await {
            tracing::warn!(peer = %node, %error, "it is ahead, cannot be reached, and nobody else could be asked");
        }
        pause = if started.elapsed() > STALL {
            Duration::from_millis(20)
        } else {
            (pause * 2).min(Duration::from_secs(1))
        };
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

async fn follow_once(
    shared: &Arc<Shared>,
    node: &NodeId,
    member: &Member,
) -> Result<std::convert::Infallible, BoxError> {
    let known = shared.followed.lock().get(&**node).copied();
    let mut at = match known.filter(|at| at.generation == member.generation) {
        Some(at) => at,
        None => fetch_owned(shared, node, member).await?,
    };
    let path = format!(
        "/v1/replicate?node={}&generation={}&next={}",
        shared.node, at.generation, at.next
    );
    let mut body = shared.peers.stream(member.http, &path).await?;
    let mut lines = Lines::default();
    let mut repair = Repair::default();
    loop {
        let frame = tokio::time::timeout(STALL, body.frame())
            .await?
            .ok_or("the peer ended the stream")??;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        for frame in shared.accept_lines(lines.push(&data)?) {
            match frame {
                In::At(now) => {
                    at = now;
                    shared.followed_to(node, at);
                    shared.synced_with(node);
                }
                In::Sums(sums) => {
                    shared.heard_by(node, sums.heard);
                    repair.compare(shared, node, member, &sums).await?;
                }
                In::Gap => {
                    shared.followed.lock().remove(&**node);
                    tracing::info!(peer = %node, next = at.next, "too far behind, fetching all that it owns");
                    return Err("the log does not reach back so far".into());
                }
                _ => return Err("a snapshot's line in a log".into()),
            }
        }
    }
}

/// All that `node` owns, from itself.
async fn fetch_owned(
    shared: &Arc<Shared>,
    node: &NodeId,
    member: &Member,
) -> Result<Position, BoxError> {
    let positions = fetch(shared, member.http, &format!("owner={node}")).await?;
    let at = positions
        .get(&**node)
        .copied()
        .filter(|at| at.generation == member.generation)
        .ok_or("a snapshot that does not say what it is of")?;
    shared.followed_to(node, at);
    Ok(at)
}

/// What differed at the last comparison with one peer.
#[derive(Debug, Default)]
struct Repair {
    buckets: Vec<usize>,
    gone: bool,
    policies: bool,
}

impl Repair {
    /// Compares with what the peer says, and fetches what has differed twice in a row: a claim by
    /// a third server may be under way once.
    async fn compare(
        &mut self,
        shared: &Arc<Shared>,
        node: &NodeId,
        member: &Member,
        sums: &Sums,
    ) -> Result<(), BoxError> {
        let (differing, gone, policies) = differences(shared, node, sums);
        let twice: Vec<usize> = differing
            .iter()
            .copied()
            .filter(|bucket| self.buckets.contains(bucket))
            .collect();
        let all = gone && std::mem::replace(&mut self.gone, gone);
        let anything = policies && std::mem::replace(&mut self.policies, policies);
        (self.gone, self.policies) = (gone, policies);
        self.buckets = differing;
        if all || twice.len() > BUCKETS / 2 {
            tracing::info!(peer = %node, "catalogues differ, fetching the peer's whole");
            Shared::count(&shared.counters.repairs);
            fetch(shared, member.http, "").await?;
        } else if !twice.is_empty() || anything {
            tracing::info!(peer = %node, buckets = ?twice, policies = anything, "catalogues differ, fetching what does");
            self.fetch_buckets(shared, node, member, &twice).await?;
        }
        Ok(())
    }

    /// Takes what the peer knows of some buckets, and of policies. What it does not know, though it
    /// is said to own it, has nobody who keeps its time: its tombstone has been forgotten, or the
    /// peer's memory of it was lost. That is taken over, and has one lease to be heard of.
    async fn fetch_buckets(
        &self,
        shared: &Arc<Shared>,
        node: &NodeId,
        member: &Member,
        buckets: &[usize],
    ) -> Result<(), BoxError> {
        Shared::count(&shared.counters.repairs);
        // Policies come with any.
        let some = if buckets.is_empty() { &[0] } else { buckets };
        let known = fetch_seen(shared, member.http, &of_buckets(some)).await?;
        let disowned: Vec<_> = {
            let state = shared.state.read();
            let owned = state.store.owned_in(node, some);
            owned.filter(|key| !known.contains(*key)).cloned().collect()
        };
        for key in disowned {
            tracing::info!(peer = %node, service = %key.0, instance = %key.1, "its server does not know it, taking it over");
            // Gone in the meantime: then there is nothing to take over.
            let _gone = shared.claim(&key, None);
        }
        Ok(())
    }
}

fn differences(shared: &Shared, node: &NodeId, sums: &Sums) -> (Vec<usize>, bool, bool) {
    let state = shared.state.read();
    let mine = state
        .store
        .owned(node)
        .map_or([0; BUCKETS], |owned| owned.buckets);
    let differing = (0..BUCKETS)
        .filter(|n| mine[*n] != sums.own.0[*n])
        .collect();
    let gone = sums.gone.iter().any(|(owner, hash)| {
        let mine = state
            .store
            .owned(owner)
            .map_or(0, super::super::catalogue::Owned::hash);
        !shared.is_alive(owner) && mine != *hash
    });
    let policies = state.store.catalogue().policies_hash() != sums.policies;
    (differing, gone, policies)
}
