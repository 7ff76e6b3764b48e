//! Something to call, whose path says what it does.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Channel, Either, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinSet};

type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// What it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

#[derive(Default)]
struct Shared {
    requests: AtomicU32,
    asked: Mutex<Vec<Asked>>,
}

/// Dropping it kills it with all its connections.
pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Backend {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&shared)));
        Self {
            addr,
            shared,
            _tasks: tasks,
        }
    }

    /// Requests that came to an end here, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().clone()
    }

    pub(crate) fn requests(&self) -> u32 {
        self.shared.requests.load(SeqCst)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| answer(Arc::clone(&shared), request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            // A client that goes away is no news.
            drop(connection.await);
        });
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let nth = shared.requests.fetch_add(1, SeqCst) + 1;
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    shared.asked.lock().push(Asked {
        headers: head.headers,
        body,
    });
    let status = |status, text: &'static str| {
        let mut answer = Response::new(Either::Left(Full::from(text)));
        *answer.status_mut() = status;
        Ok(answer)
    };
    match path.as_str() {
        // Every other request fails.
        "/flaky" if nth % 2 == 1 => status(StatusCode::SERVICE_UNAVAILABLE, "not now"),
        "/reset" if nth % 2 == 1 => Err(io::ErrorKind::ConnectionReset.into()),
        "/down" => status(StatusCode::SERVICE_UNAVAILABLE, "my own words"),
        "/broken" => status(StatusCode::INTERNAL_SERVER_ERROR, "broken"),
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            status(StatusCode::OK, "late")
        }
        // Half a body, and then nothing for a long time.
        "/endless" => {
            let (mut sender, body) = Channel::new(1);
            tokio::spawn(async move {
                for _ in 0..600 {
                    if sender.send_data(Bytes::from_static(b"more")).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
            Ok(Response::new(Either::Right(body)))
        }
        _ => status(StatusCode::OK, "ok"),
    }
}
