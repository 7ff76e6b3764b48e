//! How long a client may take.
//!
//! A connection holds memory and one of the places that there are. Whoever says nothing on it, or
//! says it a byte at a time, or does not read what it asked for, pays nothing for that; a few such
//! clients must not keep all others out.
//!
//! | of a connection | at most | source |
//! |---|---|---|
//! | without a request under way, from the first byte on | [`IDLE`] | nginx `keepalive_timeout`, 75 s |
//! | from a request's head to the end of its body | [`BODY`] | Envoy's advice for the edge, 30 s of body for what is small |
//! | a write that the client takes nothing of | [`STALLED`] | nginx `send_timeout`, 60 s |
//! | a stream of HTTP/2 that the client opens no window for | [`STALLED`] | the same |
//!
//! The last is the business of [`streams`](super::streams).

use std::{
    error::Error,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// How long a connection may be without a request, and a request's head may take.
pub(super) const IDLE: Duration = Duration::from_secs(75);
/// How long a request's body may take. The longest are batches of some hundred KiB.
pub(super) const BODY: Duration = Duration::from_secs(30);
/// How long a client may take nothing of what is written to it.
pub(super) const STALLED: Duration = Duration::from_secs(60);

/// What goes on on one connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    under_way: usize,
    /// When the last request ended, or the connection began.
    quiet_since: Instant,
}

/// A request under way; over when dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Activity>);

impl Activity {
    /// Of a connection that has just been made.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            under_way: 0,
            quiet_since: Instant::now(),
        })))
    }

    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.0.lock().under_way += 1;
        UnderWay(Arc::clone(self))
    }

    /// Resolves once there was no request for as long as `limit`. Cancel-safe.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let until = {
                let state = self.0.lock();
                if state.under_way > 0 {
                    now + limit
                } else {
                    state.quiet_since + limit
                }
            };
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.under_way -= 1;
        state.quiet_since = Instant::now();
    }
}

impl UnderWay {
    /// It goes on until its answer's `body` is written or given up.
    pub(super) fn until_end_of(self, body: Body) -> Body {
        Body::new(Answer {
            body,
            _under_way: self,
        })
    }
}

/// An answer's body.
#[derive(Debug)]
struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body took longer than [`BODY`].
#[derive(Debug, thiserror::Error)]
#[error("the body took longer than {BODY:?}")]
pub(crate) struct TooSlow;

/// Whether `error`, or what caused it, is [`TooSlow`].
pub(crate) fn is_too_slow(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.any(<dyn Error>::is::<TooSlow>)
}

/// A request's body, which ends in [`TooSlow`] if it is.
pub(super) fn within_time<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    // Most requests have none.
    if body.is_end_stream() {
        return Body::empty();
    }
    Body::new(Timed {
        body,
        by: Instant::now() + BODY,
        late: None,
    })
}

struct Timed<B> {
    body: B,
    by: Instant,
    /// Most bodies come with their head, and no timer is needed.
    late: Option<Pin<Box<Sleep>>>,
}

impl<B> http_body::Body for Timed<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let by = self.by;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(by)));
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that breaks when its client takes nothing for [`STALLED`].
#[derive(Debug)]
pub(super) struct Impatient<I> {
    io: I,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<I> Impatient<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, stalled: None }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + STALLED)));
        ready!(stalled.as_mut().poll(cx));
        let why = format!("the client has taken nothing for {STALLED:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Impatient<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Impatient<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.watch(cx, shut)
    }
}
