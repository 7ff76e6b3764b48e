//! Connections: how many, in clear or TLS, HTTP/1.1 or HTTP/2, and how they end.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request, response::Response};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tower::ServiceExt;

use super::{
    Api, Peer,
    patience::{self, Activity, IDLE, Impatient},
    refusal::name_methods,
    router,
    streams::{Streams, in_pieces},
};
use crate::{
    limits::Addresses,
    tls::{self, Acceptor},
};

/// A client that does not finish its handshake holds a place for this long. Source: nginx's
/// `client_header_timeout` is 60 s; a mesh's own clients are quicker.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests under way may go on once the server leaves.
const GRACE: Duration = Duration::from_secs(2);
/// Pause after the system refuses a connection: out of descriptors, it would spin.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Where the API listens.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: std::net::TcpListener,
    pub(crate) tls: Option<Acceptor>,
}

/// Serves the API, and other dialects behind the same guard, until it is told to stop, then lets requests end.
pub(crate) async fn serve(listener: Listener, api: Arc<Api>, dialects: Router) {
    let socket = match TcpListener::from_std(listener.socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(%error, "registry API cannot listen");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(
        api.limits.connections.min(Semaphore::MAX_PERMITS),
    ));
    let stop = api.stop.clone();
    let router = router(Arc::clone(&api), dialects);
    let from = Addresses::new(api.limits.connections_per_address);
    let mut connections = JoinSet::new();
    loop {
        // Whoever finds no place waits in the kernel's queue.
        let accepted = tokio::select! {
            accepted = accept(&socket, &places) => accepted,
            () = api.stopped() => break,
        };
        // Those that have ended make room.
        while connections.try_join_next().is_some() {}
        let Some((place, stream, addr)) = accepted else {
            tokio::time::sleep(BACK_OFF).await;
            continue;
        };
        let Some(counted) = from.one_more(addr.ip()) else {
            // Not a word: whoever opens so many would be sent as many.
            tracing::debug!(client = %addr, "too many connections from this address");
            continue;
        };
        let connection = Connection {
            addr,
            router: router.clone(),
            stop: stop.clone(),
        };
        let tls = listener.tls.clone();
        connections.spawn(async move {
            connection.run(stream, tls).await;
            drop((counted, place));
        });
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        connections.shutdown().await;
    }
}

async fn accept(
    socket: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match socket.accept().await {
        Ok((stream, addr)) => Some((place, stream, addr)),
        Err(error) => {
            tracing::warn!(%error, "registry API cannot accept");
            None
        }
    }
}

struct Connection {
    addr: SocketAddr,
    router: Router,
    stop: watch::Receiver<bool>,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<Acceptor>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, client = %self.addr, "set TCP_NODELAY failed");
        }
        let Some(tls) = tls else {
            return self.http(stream, Vec::new()).await;
        };
        let handshake = tls.current().accept(stream);
        match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => {
                let names = tls::names(stream.get_ref().1.peer_certificates());
                self.http(stream, names).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, client = %self.addr, "TLS handshake failed");
            }
            Err(_) => tracing::debug!(client = %self.addr, "TLS handshake took too long"),
        }
    }

    async fn http<I>(self, io: I, names: Vec<String>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let peer = Arc::new(Peer {
            addr: self.addr,
            names,
        });
        let router = self.router;
        let activity = Activity::new();
        let active = Arc::clone(&activity);
        let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
            let under_way = active.begin();
            let mut request = request.map(patience::within_time);
            request.extensions_mut().insert(Arc::clone(&peer));
            let router = router.clone();
            async move {
                let answer = answer(router, request).await?;
                Ok::<_, Infallible>(answer.map(|body| in_pieces(under_way.until_end_of(body))))
            }
        });
        let mut builder = auto::Builder::new(Streams);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(64 << 10);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .max_concurrent_streams(256)
            .max_header_list_size(64 << 10);
        let service = TowerToHyperService::new(service);
        let connection = builder.serve_connection(TokioIo::new(Impatient::new(io)), service);
        tokio::pin!(connection);
        let mut stop = self.stop;
        let stopped = async { stop.wait_for(|stop| *stop).await.is_ok() };
        let ended = tokio::select! {
            result = connection.as_mut() => Some(result),
            () = activity.idle(IDLE) => None,
            _ = stopped => None,
        };
        let result = if let Some(result) = ended {
            result
        } else {
            // What is under way, or has come in this moment, is answered.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => result,
                () = activity.idle(GRACE) => return,
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, client = %self.addr, "connection of the API ended");
        }
    }
}

async fn answer(router: Router, request: Request<Body>) -> Result<Response, Infallible> {
    let asked = (request.method().clone(), request.uri().clone());
    let response = router.oneshot(request).await?;
    Ok(name_methods(asked, response))
}

#[cfg(test)]
mod tests;
