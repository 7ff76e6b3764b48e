//! Pingora's server around the proxy, on a socket that we have bound.

use std::{net::TcpListener, os::fd::IntoRawFd};

use async_trait::async_trait;
use pingora_core::{
    server::{
        ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch,
        configuration::ServerConf,
    },
    services::{ServiceReadyNotifier, ServiceWithDependents},
};
use pingora_proxy::http_proxy_service;

use crate::phases::Proxy;

/// What Pingora's services ask for our socket by.
const LISTENER: &str = "listener";

/// Serves on `listener` until `shutdown_signal` says otherwise. Blocks.
///
/// # Errors
/// If the socket cannot be made non-blocking: Pingora takes it as it is.
pub(crate) fn run(
    proxy: &Proxy,
    listener: TcpListener,
    shutdown_signal: Box<dyn ShutdownSignalWatch>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut server = Server::new_with_opt_and_conf(
        None,
        ServerConf {
            // The policies count the tries; this must only be out of their way.
            max_retries: proxy.tries_max() as usize + 1,
            // By default it sleeps for five minutes before it leaves.
            grace_period_seconds: Some(0),
            graceful_shutdown_timeout_seconds: Some(1),
            ..ServerConf::default()
        },
    );
    server.bootstrap();
    let binder = server.add_service(Binder(Some(listener)));
    let mut service = http_proxy_service(&server.configuration, proxy.clone());
    service.add_tcp(LISTENER);
    server.add_service(service).add_dependency(&binder);
    server.run(RunArgs { shutdown_signal });
    Ok(())
}

/// Gives Pingora the socket: bound before it starts, a port in use is an error that can be shown,
/// and port 0 one that can be asked for.
struct Binder(Option<TcpListener>);

#[async_trait]
impl ServiceWithDependents for Binder {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _: ShutdownWatch,
        _: usize,
        ready: ServiceReadyNotifier,
    ) {
        if let (Some(fds), Some(socket)) = (fds, self.0.take()) {
            fds.lock().add(LISTENER.to_owned(), socket.into_raw_fd());
        }
        ready.notify_ready();
    }

    fn name(&self) -> &'static str {
        "binder"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Ctrl-C.
pub(crate) struct Signals;

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        match tokio::signal::ctrl_c().await {
            Ok(()) => ShutdownSignal::GracefulTerminate,
            // Nobody can end it but by force.
            Err(_) => std::future::pending().await,
        }
    }
}
