//! Knowing everything before answering: snapshots from peers.

use std::{collections::HashSet, io::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http_body_util::BodyExt;

use super::{
    Unpacked,
    frame::{Lines, Positions},
    peer::{BoxError, STALL},
    serve::{Hello, HelloAnswer},
};
use crate::{
    catalogue::{BUCKETS, Key, NodeId},
    server::Shared,
};

/// Peers that a new server asks at once, each for a part. Source: the reference, §6.4.
const SOURCES: usize = 3;

/// Fetches a snapshot and takes all of it; tells how far its maker had followed each server.
///
/// # Errors
/// If it breaks off: what had come by then is taken, as it is true, but it is not everything.
pub(super) async fn fetch(
    shared: &Arc<Shared>,
    addr: SocketAddr,
    what: &str,
) -> Result<Positions, BoxError> {
    Ok(fetch_all(shared, addr, what, false).await?.0)
}

/// [`fetch`]; tells what was in it.
pub(super) async fn fetch_seen(
    shared: &Arc<Shared>,
    addr: SocketAddr,
    what: &str,
) -> Result<HashSet<Key>, BoxError> {
    Ok(fetch_all(shared, addr, what, true).await?.1)
}

async fn fetch_all(
    shared: &Arc<Shared>,
    addr: SocketAddr,
    what: &str,
    remember: bool,
) -> Result<(Positions, HashSet<Key>), BoxError> {
    Shared::count(&shared.counters.snapshots);
    let path = format!("/v1/replicate/snapshot?{what}");
    let mut body = shared.peers.stream(addr, &path).await?;
    let mut unpacked = Unpacked {
        shared,
        lines: Lines::default(),
        pending: Vec::new(),
        head: None,
        records: 0,
        seen: remember.then(HashSet::new),
        complete: false,
    };
    let mut decoder = zstd::stream::write::Decoder::new(Vec::new())?;
    while let Some(frame) = tokio::time::timeout(STALL, body.frame()).await? {
        if let Ok(data) = frame?.into_data() {
            decoder.write_all(&data)?;
            decoder.flush()?;
            let piece = std::mem::take(decoder.get_mut());
            unpacked.take(&piece)?;
            // A hundred thousand records are a second's work: others run in between.
            tokio::task::yield_now().await;
        }
    }
    match unpacked.head {
        Some(positions) if unpacked.complete => Ok((positions, unpacked.seen.unwrap_or_default())),
        _ => Err("the snapshot broke off".into()),
    }
}

/// Everything, in parts from up to three of `peers` at once.
///
/// # Errors
/// If a part could not be had from any of them.
pub(crate) async fn bootstrap(
    shared: &Arc<Shared>,
    peers: &[(NodeId, SocketAddr)],
) -> Result<(), BoxError> {
    let sources = &peers[..peers.len().min(SOURCES)];
    let share = BUCKETS.div_ceil(sources.len().max(1));
    let parts = (0..sources.len()).map(|n| {
        let last = ((n + 1) * share).min(BUCKETS) - 1;
        let what = format!("buckets={}-{last}", n * share);
        async move {
            let mut failed: Option<BoxError> = None;
            // Another one's part if its own source fails.
            for turn in 0..sources.len() {
                let (node, addr) = &sources[(n + turn) % sources.len()];
                match fetch(shared, *addr, &what).await {
                    Ok(positions) => return Ok(positions),
                    Err(error) => {
                        tracing::warn!(peer = %node, %error, "fetching a part of the catalogue failed");
                        failed = Some(error);
                    }
                }
            }
            Err(failed.unwrap_or_else(|| "no peer to fetch from".into()))
        }
    });
    let mut common: Option<Positions> = None;
    for positions in join_all(parts).await {
        let positions = positions?;
        common = Some(match common {
            None => positions,
            Some(common) => earlier(common, &positions),
        });
    }
    let common = common.ok_or("no peer to fetch from")?;
    let mut followed = shared.followed.lock();
    for (node, position) in common {
        if *node != *shared.node {
            followed.entry(node).or_insert(position);
        }
    }
    Ok(())
}

/// Those of `peers` that answer within `within` that they serve.
pub(crate) async fn who_serves(
    shared: &Arc<Shared>,
    peers: &[(NodeId, SocketAddr)],
    within: Duration,
) -> Vec<(NodeId, SocketAddr)> {
    let asked = peers.iter().map(|(node, addr)| async move {
        let path = "/v1/replicate/hello";
        let question = Hello {
            node: shared.node.to_string(),
        };
        let answer = shared.peers.ask::<HelloAnswer>(*addr, path, &question);
        let answer = tokio::time::timeout(within, answer).await.ok()?.ok()?;
        // Another one may have its address by now.
        let it = answer.serving && *answer.node == **node && answer.cluster == shared.cluster;
        it.then(|| (Arc::clone(node), *addr))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What both have followed.
fn earlier(a: Positions, b: &Positions) -> Positions {
    a.into_iter()
        .filter_map(|(node, mut position)| {
            let other = b.get(&node)?;
            if other.generation != position.generation {
                return None;
            }
            position.next = position.next.min(other.next);
            Some((node, position))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::frame::Position;
    use super::*;

    #[test]
    fn parts_agree_on_what_all_of_them_have_seen() {
        let at = |generation, next| Position { generation, next };
        let positions = |list: &[(&str, Position)]| {
            let named = list.iter().map(|(node, at)| ((*node).to_owned(), *at));
            named.collect::<Positions>()
        };
        let a = positions(&[("n1", at(1, 10)), ("n2", at(1, 5)), ("n3", at(1, 5))]);
        let b = positions(&[("n1", at(1, 7)), ("n2", at(2, 1))]);
        assert_eq!(earlier(a, &b), positions(&[("n1", at(1, 7))]));
    }
}
