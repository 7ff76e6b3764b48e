//! One client connection: which HTTP it speaks, how long it may take, how it ends.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    sync::watch,
    time::timeout,
};

use crate::{
    Door, Rules,
    clock::{Clock, Over},
    service::{Client, Connection, Worker, serve},
    tunnel::told_to_leave,
};

/// What an HTTP/2 connection begins with (RFC 9113 §3.4).
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often the connection's times are looked at: they are exact to this.
const GLANCE: Duration = Duration::from_secs(1);

/// Serves one connection until it ends: HTTP/1.1, or HTTP/2 if it begins with its preface.
///
/// Once `leaving` holds `true`, requests under way are finished and the connection closes
/// (`connection: close`, GOAWAY). Dropping the future cuts the connection and cancels what it had
/// under way.
pub async fn serve_connection<IO, D>(
    io: IO,
    worker: Arc<Worker>,
    door: Arc<D>,
    client: Client,
    mut leaving: watch::Receiver<bool>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Door,
{
    worker.start();
    let _open = worker.metrics.connection();
    let clock = Arc::new(Clock::new());
    let detected = tokio::select! {
        detected = detect(io, &clock, door.rules()) => detected,
        () = told_to_leave(&mut leaving) => return,
    };
    let Some((io, is_http2)) = detected else {
        return;
    };
    let connection = Arc::new(Connection {
        worker,
        door,
        client,
        clock,
        tunnel: Mutex::new(None),
    });
    let result = if is_http2 {
        // Boxed: it is twice the other's size, and every idle connection would pay for it.
        Box::pin(serve_http2(io, &connection, leaving)).await
    } else {
        serve_http1(io, &connection, leaving).await
    };
    if let Err(error) = result {
        tell(&connection.worker, &error);
    }
    let tunnel = connection.tunnel.lock().take();
    if let Some(tunnel) = tunnel {
        tunnel.run().await;
    }
}

/// Counts what hyper refused before we saw a request.
fn tell(worker: &Worker, error: &hyper::Error) {
    if error.is_parse_too_large() {
        worker.metrics.refused("head-too-large");
    } else if error.is_parse() {
        worker.metrics.refused("parse");
    }
    tracing::debug!(
        error = error as &dyn std::error::Error,
        "a connection broke"
    );
}

async fn serve_http1<IO, D>(
    io: Rewound<IO>,
    connection: &Arc<Connection<D>>,
    leaving: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Door,
{
    let limits = &connection.door.rules().limits;
    let shared = Arc::clone(connection);
    let service = service_fn(move |request| serve(Arc::clone(&shared), request));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Ours counts from a head's first byte, and does not end idle connections.
        .header_read_timeout(None)
        .max_headers(limits.fields)
        .max_header_size(limits.head)
        .max_buf_size(limits.head.max(32 << 10));
    let http = builder.serve_connection(TokioIo::new(io), service);
    drive(
        pin!(http.with_upgrades()),
        http1::UpgradeableConnection::graceful_shutdown,
        Some(connection.door.rules().header_timeout),
        connection,
        leaving,
    )
    .await
}

async fn serve_http2<IO, D>(
    io: Rewound<IO>,
    connection: &Arc<Connection<D>>,
    leaving: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Door,
{
    let rules = connection.door.rules();
    let shared = Arc::clone(connection);
    let service = service_fn(move |request| serve(Arc::clone(&shared), request));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(rules.h2_streams)
        .max_header_list_size(u32::try_from(rules.limits.head).unwrap_or(u32::MAX))
        // Source: Envoy's edge guide. They bound what one connection can make us hold.
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(64 << 10)
        // Source: h2's answers to rapid reset (CVE-2023-44487) and MadeYouReset.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1_024)
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20));
    let http = builder.serve_connection(TokioIo::new(io), service);
    drive(
        pin!(http),
        http2::Connection::graceful_shutdown,
        None,
        connection,
        leaving,
    )
    .await
}

/// Lets a connection go on until it ends, its time is up, or the process leaves.
async fn drive<C, D>(
    mut http: Pin<&mut C>,
    finish: impl Fn(Pin<&mut C>),
    head: Option<Duration>,
    connection: &Connection<D>,
    mut leaving: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
    D: Door,
{
    let mut finishing = false;
    let mut glances = tokio::time::interval(GLANCE);
    loop {
        tokio::select! {
            biased;
            result = http.as_mut() => return result,
            () = told_to_leave(&mut leaving), if !finishing => {
                finishing = true;
                finish(http.as_mut());
            }
            _ = glances.tick() => {
                let idle = connection.door.rules().idle_timeout;
                match connection.clock.over(head, idle) {
                    Some(Over::Head) => {
                        connection.worker.metrics.refused("head-timeout");
                        return Ok(());
                    }
                    // A peer that does not take the GOAWAY is dropped at the next glance.
                    Some(Over::Idle) if finishing || head.is_some() => return Ok(()),
                    Some(Over::Idle) => {
                        finishing = true;
                        finish(http.as_mut());
                    }
                    None => {}
                }
            }
        }
    }
}

/// Reads the first bytes: as few as tell HTTP/1 from HTTP/2, however TCP has split them.
async fn detect<IO>(mut io: IO, clock: &Arc<Clock>, rules: &Rules) -> Option<(Rewound<IO>, bool)>
where
    IO: AsyncRead + Unpin,
{
    let mut start = [0; PREFACE.len()];
    let mut have = 0;
    let mut limit = rules.idle_timeout;
    while have < start.len() && start.get(..have) == PREFACE.get(..have) {
        let read = timeout(limit, io.read(start.get_mut(have..)?)).await;
        match read {
            Ok(Ok(n)) if n > 0 => have += n,
            _ => return None,
        }
        clock.heard();
        limit = rules.header_timeout;
    }
    let is_http2 = start == PREFACE;
    let io = Rewound {
        io,
        start,
        at: 0,
        have,
        clock: Arc::clone(clock),
    };
    Some((io, is_http2))
}

/// A stream whose first bytes were looked at, and are read again.
struct Rewound<IO> {
    io: IO,
    start: [u8; PREFACE.len()],
    at: usize,
    have: usize,
    clock: Arc<Clock>,
}

impl<IO> Rewound<IO> {
    /// Puts what was read already into `buf`; whether there was anything.
    ///
    /// The caller reads on at once: given a few bytes first, hyper would take them for a head that
    /// comes in pieces, and double its buffer for as long as the connection lives.
    fn again(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let waiting = self.start.get(self.at..self.have).unwrap_or_default();
        let n = waiting.len().min(buf.remaining());
        buf.put_slice(waiting.get(..n).unwrap_or_default());
        self.at += n;
        n > 0
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewound<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let again = this.again(buf);
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.clock.heard();
        }
        // An error or an end that comes now comes again when it is asked for next.
        if again { Poll::Ready(Ok(())) } else { polled }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewound<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
