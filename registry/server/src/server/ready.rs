//! When a server answers as one that knows everything.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use selvedge_registry::node::readiness::ReadyGuard;
use tokio::{sync::watch, time::Instant};

use super::{shared::Shared, sweep::TOMBSTONES};
use crate::{catalogue::NodeId, persist::Header, replicate};

/// How often it looks whether there is somebody to ask.
const LOOK: Duration = Duration::from_millis(20);
/// How long those that served before a restart are waited for. A guess: they are asked directly,
/// and what was remembered should be served within a second.
const REMEMBERED: Duration = Duration::from_millis(700);

/// Ready once the catalogue of a serving peer has arrived and its log has been followed from there,
/// or when there is no such peer.
///
/// `remembered`: what an earlier life has left. It is served at once, unless one of the peers that
/// it names still serves: that one knows better.
pub(crate) async fn become_ready(
    shared: Arc<Shared>,
    mut alone_after: Option<Duration>,
    remembered: Option<Header>,
    ready: ReadyGuard,
) {
    let start = Instant::now();
    let mut stale = false;
    if let Some(header) = remembered {
        let age = shared.wall_ms().saturating_sub(header.saved_ms);
        stale = Duration::from_millis(age) > TOMBSTONES;
        if ask_remembered(&shared, header, stale).await {
            shared.caught_up.send_replace(true);
        } else {
            alone_after = Some(Duration::ZERO);
        }
    }
    loop {
        let peers = shared.serving_peers();
        let caught_up = *shared.caught_up.borrow();
        let followed = {
            let synced = shared.synced.lock();
            peers.iter().any(|(node, _)| synced.contains(node))
        };
        let alone = peers.is_empty() && alone_after.is_none_or(|after| start.elapsed() >= after);
        if alone || (caught_up && followed) {
            if !peers.is_empty() {
                shared.settle_in();
            }
            shared.caught_up.send_replace(true);
            shared.serving.send_replace(true);
            ready.ready();
            tracing::info!(node = %shared.node, peers = peers.len(), "registry server serves");
            // Kept: dropping it would say the same, but this part can be asked about for ever.
            std::future::pending::<()>().await;
        }
        if !peers.is_empty() && !caught_up {
            ready.not_ready("fetching the catalogue from a peer");
            if std::mem::take(&mut stale) {
                shared.forget_restored();
            }
            match replicate::bootstrap(&shared, &peers).await {
                Ok(()) => {
                    shared.caught_up.send_replace(true);
                }
                Err(error) => tracing::warn!(%error, "catching up failed, trying again"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Catches up from the peers that an earlier life has known, if they still serve.
async fn ask_remembered(shared: &Arc<Shared>, header: Header, stale: bool) -> bool {
    let peers: Vec<(NodeId, SocketAddr)> = header
        .peers
        .into_iter()
        .filter(|(node, addr)| **node != *shared.node && *addr != shared.http)
        .map(|(node, addr)| (node.into(), addr))
        .collect();
    let serving = replicate::who_serves(shared, &peers, REMEMBERED).await;
    if serving.is_empty() {
        return false;
    }
    if stale {
        shared.forget_restored();
    }
    match replicate::bootstrap(shared, &serving).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "catching up from remembered peers failed");
            false
        }
    }
}

/// Of two processes with one name the one with the lower generation stops to serve: the others
/// listen to the higher only.
pub(crate) async fn step_down_if_superseded(
    shared: Arc<Shared>,
    mut superseded: watch::Receiver<Option<u64>>,
    ready: ReadyGuard,
) {
    let mut stepped_down = false;
    loop {
        let later = *superseded.borrow_and_update();
        if let Some(later) = later {
            ready.not_ready(format!(
                "another process is called {} too, with the later generation {later}: this one \
                 ({}) stepped down; give it a name of its own",
                shared.node, shared.generation
            ));
            stepped_down |= shared.serving.send_replace(false);
        } else {
            if std::mem::take(&mut stepped_down) {
                shared.serving.send_replace(true);
            }
            ready.ready();
        }
        if superseded.changed().await.is_err() {
            return;
        }
    }
}
