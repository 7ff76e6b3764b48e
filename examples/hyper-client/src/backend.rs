//! Something to call: an HTTP server that breaks when it is told to.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

/// One instance of the callee. Dropping it kills it with all its connections.
pub(crate) struct Backend {
    addr: SocketAddr,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests look at it"))]
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    broken: AtomicBool,
    asked: AtomicU32,
}

impl Backend {
    /// Listens on a free port of the loopback interface.
    pub(crate) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self {
            addr,
            shared,
            _tasks: tasks,
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

#[cfg(test)]
impl Backend {
    pub(crate) fn set_broken(&self, broken: bool) {
        self.shared.broken.store(broken, Relaxed);
    }

    /// Orders that it was asked for.
    pub(crate) fn asked(&self) -> u32 {
        self.shared.asked.load(Relaxed)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = shared.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            // A client that goes away is no news.
            drop(connection.await);
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Shared {
    fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::POST, "/break") => self.broken.store(true, Relaxed),
            (&Method::POST, "/mend") => self.broken.store(false, Relaxed),
            _ => {
                self.asked.fetch_add(1, Relaxed);
                if self.broken.load(Relaxed) {
                    let mut answer = Response::new("broken\n".to_owned());
                    *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    return answer;
                }
            }
        }
        Response::new(format!("{path}\n"))
    }
}
