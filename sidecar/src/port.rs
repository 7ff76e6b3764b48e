//! A port of the sidecar: sockets on every worker, connections that are counted and can be closed.

use std::{net::TcpListener as StdListener, sync::Arc, time::Duration};

use selvedge_proxy::{Client, Door, Worker, serve_connection};
use selvedge_registry::node::{cidr::Cidr, drain::Drain};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

use crate::{inbound::Inbound, outbound::Outbound};

/// One port. Clones share its connections and its end.
pub(crate) struct Port<D> {
    name: &'static str,
    door: Arc<D>,
    /// Whether everybody who can reach it is believed: the app, on loopback.
    trust_all: bool,
    trusted: Arc<[Cidr]>,
    leaving: watch::Sender<bool>,
    drain: Drain,
}

impl<D> Clone for Port<D> {
    fn clone(&self) -> Self {
        Self {
            door: Arc::clone(&self.door),
            trusted: Arc::clone(&self.trusted),
            leaving: self.leaving.clone(),
            drain: self.drain.clone(),
            ..*self
        }
    }
}

/// How long to wait after an accept that failed: for want of descriptors, as a rule.
const PAUSE: Duration = Duration::from_millis(100);

impl<D: Door> Port<D> {
    pub(crate) fn new(name: &'static str, door: D, trust_all: bool) -> Self {
        Self {
            name,
            door: Arc::new(door),
            trust_all,
            trusted: Arc::default(),
            leaving: watch::channel(false).0,
            drain: Drain::default(),
        }
    }

    /// Believes the `X-Forwarded-*` of these networks.
    pub(crate) fn trusting(self, trusted: Arc<[Cidr]>) -> Self {
        Self { trusted, ..self }
    }

    pub(crate) fn door(&self) -> &D {
        &self.door
    }

    /// Accepts no more, lets what is under way finish, and cuts what is left at `until`.
    pub(crate) async fn close(&self, until: Instant) {
        self.leaving.send_replace(true);
        let limit = until.saturating_duration_since(Instant::now());
        let left = self.drain.wait(limit).await;
        if left > 0 {
            tracing::warn!(
                port = self.name,
                connections = left,
                "cut connections that were not done"
            );
        }
    }

    /// Accepts on `socket` until the port closes.
    async fn accept(self, socket: StdListener, worker: Arc<Worker>) {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(port = self.name, %error, "a socket cannot be used");
                return;
            }
        };
        let mut leaving = self.leaving.subscribe();
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.serve(stream, peer, &worker),
                    Err(error) => {
                        tracing::warn!(port = self.name, %error, "accept failed");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                // After the accepts: who is in the queue already is still served.
                () = closed(&mut leaving) => return,
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: std::net::SocketAddr, worker: &Arc<Worker>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it began");
            return;
        }
        let near = |network: &Cidr| network.contains(peer.ip());
        let trusted = self.trust_all || self.trusted.iter().any(near);
        let client = Client::new(peer, trusted, "http");
        let (worker, door) = (Arc::clone(worker), Arc::clone(&self.door));
        let (leaving, under_way) = (self.leaving.subscribe(), self.drain.enter());
        tokio::spawn(async move {
            let _until_it_ends = under_way;
            serve_connection(stream, worker, door, client, leaving).await;
        });
    }
}

async fn closed(leaving: &mut watch::Receiver<bool>) {
    if leaving.wait_for(|leaving| *leaving).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Starts the thread of worker `n`: a runtime of its own, so that a connection, its upstream
/// connections and their wake-ups stay on one core.
///
/// # Errors
/// If the thread or its runtime cannot be started.
pub(crate) fn spawn_worker(
    n: usize,
    worker: Arc<Worker>,
    inbound: Option<(Port<Inbound>, StdListener)>,
    outbound: (Port<Outbound>, StdListener),
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name(format!("worker {n}"))
        .spawn(move || {
            runtime.block_on(async move {
                if let Some((port, socket)) = inbound {
                    tokio::spawn(port.accept(socket, Arc::clone(&worker)));
                }
                let (port, socket) = outbound;
                tokio::spawn(port.accept(socket, worker));
                // Connections go on when accepting has ended; the process's end ends the thread.
                std::future::pending::<()>().await;
            });
        })?;
    Ok(())
}
