//! What Pingora calls for each connection, and who answers it.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use pingora_core::{
    apps::ServerApp,
    protocols::{Stream, l4},
    server::ShutdownWatch,
};
use selvedge_proxy::{Client, Worker, serve_connection};
use selvedge_registry::node::drain::Drain;

use crate::door::ListenerDoor;

/// One worker thread's side of the edge.
pub(crate) struct Edge {
    pub(crate) worker: Arc<Worker>,
    /// Where this worker listens: the bound address, and whose door is there.
    pub(crate) doors: Arc<[(SocketAddr, Arc<ListenerDoor>)]>,
    /// Connections under way, of all workers.
    pub(crate) drain: Drain,
    pub(crate) refusals: selvedge_proxy::ProxyMetrics,
}

impl Edge {
    /// The door at `local`: a listener on all addresses is found by its port.
    fn door(&self, local: Option<SocketAddr>) -> Option<&Arc<ListenerDoor>> {
        let (_, first) = self.doors.first()?;
        if self.doors.len() == 1 {
            return Some(first);
        }
        let local = local?;
        let here = |bound: &SocketAddr| {
            let everywhere = bound.ip().is_unspecified();
            bound.port() == local.port()
                && (everywhere || bound.ip().to_canonical() == local.ip().to_canonical())
        };
        let (_, door) = self.doors.iter().find(|(bound, _)| here(bound))?;
        Some(door)
    }
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(
        self: &Arc<Self>,
        session: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let digest = session.get_socket_digest();
        let inet = |addr: Option<&pingora_core::protocols::l4::socket::SocketAddr>| {
            addr.and_then(|addr| addr.as_inet()).copied()
        };
        let peer = inet(digest.as_ref().and_then(|digest| digest.peer_addr()))?;
        let local = inet(digest.as_ref().and_then(|digest| digest.local_addr()));
        let door = Arc::clone(self.door(local)?);
        let seat = match door.seats.take(peer.ip()) {
            Ok(seat) => seat,
            Err(none) => {
                self.refusals.refused(none.reason());
                tracing::debug!(%peer, listener = door.name, limit = none.reason(), "no seat");
                return None;
            }
        };
        // The concrete type saves a virtual call a read; nothing else listens here.
        let stream = session.into_any().downcast::<l4::stream::Stream>().ok()?;
        let trusted = door
            .trusted
            .iter()
            .any(|network| network.contains(peer.ip()));
        let client = Client::new(peer, trusted, "http");
        let (worker, leaving) = (Arc::clone(&self.worker), shutdown.clone());
        let under_way = self.drain.enter();
        // A task of its own: Pingora's holds the state of a handshake for as long as it lives.
        tokio::spawn(async move {
            let _until_it_ends = (seat, under_way);
            serve_connection(*stream, worker, door, client, leaving).await;
        });
        None
    }
}
