//! Something to call: a tonic server in a runtime of its own, so that it can be killed.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use selvedge_resilience::layer::{ContextLayer, Inbound, InboundLayer};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::{
    Request, Response, Status,
    codegen::http,
    metadata::MetadataMap,
    transport::{
        self,
        server::{TcpConnectInfo, TcpIncoming},
    },
};
use tower::util::MapRequestLayer;

use crate::prices::{Price, Prices, PricesServer, Sku};

/// One instance of the callee. Dropping it kills it with all its connections.
pub(crate) struct Server {
    addr: SocketAddr,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests look at it"))]
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// What the instance does, and what it was asked.
#[derive(Default)]
pub(crate) struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    fails: Option<(Status, u32)>,
    takes: Duration,
    asked: Vec<MetadataMap>,
    answered: u32,
}

impl Server {
    /// Listens on `addr`, port 0 for a free one; takes on what `inbound` lets in.
    pub(crate) fn start(addr: SocketAddr, inbound: Inbound) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared::default());
        let listener = {
            let _inside = runtime.enter();
            let listener = std::net::TcpListener::bind(addr)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)?
        };
        let addr = listener.local_addr()?;
        let prices = PricesServer::from_arc(Arc::new(Instance {
            addr,
            shared: Arc::clone(&shared),
        }));
        let serving = transport::Server::builder()
            .timeout(Duration::from_secs(5)) // or what the caller says, if that is less
            .layer(MapRequestLayer::new(caller))
            .layer(ContextLayer::new())
            .layer(InboundLayer::new(inbound))
            .add_service(prices)
            .serve_with_incoming(TcpIncoming::from(listener));
        runtime.spawn(serving);
        Ok(Self {
            addr,
            shared,
            runtime: Some(runtime),
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its connections break, and nobody listens any more: when this returns, it answers nobody.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On a thread of its own: a runtime must not be ended where another one runs.
            let end = move || runtime.shutdown_timeout(Duration::from_secs(5));
            let _ended = std::thread::spawn(end).join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
impl Server {
    /// The next `times` calls fail with `status`.
    pub(crate) fn fail(&self, status: Status, times: u32) {
        self.shared
            .with(|state| state.fails = Some((status, times)));
    }

    /// Every call takes that long from now on.
    pub(crate) fn take(&self, time: Duration) {
        self.shared.with(|state| state.takes = time);
    }

    /// The metadata of all calls so far, and how many were answered.
    pub(crate) fn asked(&self) -> (Vec<MetadataMap>, u32) {
        self.shared
            .with(|state| (state.asked.clone(), state.answered))
    }
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Says who asks, for `by = "source"`.
fn caller<B>(mut request: http::Request<B>) -> http::Request<B> {
    let connection = request.extensions().get::<TcpConnectInfo>();
    if let Some(from) = connection.and_then(TcpConnectInfo::remote_addr) {
        request.extensions_mut().insert(from.ip());
    }
    request
}

struct Instance {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Prices for Instance {
    async fn quote(&self, request: Request<Sku>) -> Result<Response<Price>, Status> {
        let takes = self.shared.with(|state| {
            state.asked.push(request.metadata().clone());
            match &mut state.fails {
                Some((status, times)) if *times > 0 => {
                    *times -= 1;
                    Err(status.clone())
                }
                _ => Ok(state.takes),
            }
        })?;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        self.shared.with(|state| state.answered += 1);
        Ok(Response::new(Price {
            cents: request.get_ref().number * 3,
            server: self.addr.to_string(),
        }))
    }
}
