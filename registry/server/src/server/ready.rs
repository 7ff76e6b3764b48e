//! When a server answers as one that knows everything.

use std::{sync::Arc, time::Duration};

use selvedge_registry::node::readiness::ReadyGuard;
use tokio::{sync::watch, time::Instant};

use super::shared::Shared;
use crate::replicate;

/// How often it looks whether there is somebody to ask.
const LOOK: Duration = Duration::from_millis(20);

/// Ready once the catalogue of a serving peer has arrived, or when there is no such peer.
pub(super) async fn become_ready(
    shared: Arc<Shared>,
    alone_after: Option<Duration>,
    ready: ReadyGuard,
) {
    let start = Instant::now();
    let mut said = false;
    loop {
        let peers = shared.serving_peers();
        let caught_up = *shared.caught_up.borrow();
        let followed = {
            let synced = shared.synced.lock();
            peers.iter().any(|(node, _)| synced.contains(node))
        };
        let alone = peers.is_empty() && alone_after.is_none_or(|after| start.elapsed() >= after);
        if alone || (caught_up && followed) {
            shared.caught_up.send_replace(true);
            shared.serving.send_replace(true);
            ready.ready();
            tracing::info!(node = %shared.node, peers = peers.len(), "registry server serves");
            // Kept: dropping it would say the same, but this part can be asked about for ever.
            std::future::pending::<()>().await;
        }
        if !peers.is_empty() && !caught_up {
            if !std::mem::replace(&mut said, true) {
                ready.not_ready("fetching the catalogue from a peer");
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

/// Of two processes with one name the one with the lower generation stops to serve: the others
/// listen to the higher only.
pub(super) async fn step_down_if_superseded(
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
