//! Two connections that have become one: bytes both ways until either side ends.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{io::copy_bidirectional, sync::watch};

/// A WebSocket's two halves, before they are joined.
#[derive(Debug)]
pub(crate) struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
}

impl Tunnel {
    pub(crate) fn new(client: OnUpgrade, upstream: OnUpgrade) -> Self {
        Self { client, upstream }
    }

    /// Carries bytes until both directions have ended or one has broken.
    ///
    /// A process that leaves lets tunnels go on for as long as its drain does: nothing in them says
    /// when a message ends, so there is no good moment to cut.
    pub(crate) async fn run(self) {
        let (Ok(client), Ok(upstream)) = (self.client.await, self.upstream.await) else {
            return;
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        if let Err(error) = copy_bidirectional(&mut client, &mut upstream).await {
            tracing::debug!(%error, "a tunnel broke");
        }
    }
}

/// Resolves when `leaving` says so; never if whoever would say so is gone.
pub(crate) async fn told_to_leave(leaving: &mut watch::Receiver<bool>) {
    if leaving.wait_for(|leaving| *leaving).await.is_err() {
        std::future::pending::<()>().await;
    }
}
