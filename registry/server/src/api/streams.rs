//! Streams of HTTP/2 whose client takes nothing.
//!
//! Over HTTP/1.1 a client that does not read stops the connection, and is let go
//! ([`Impatient`](super::patience::Impatient)). Over HTTP/2 the connection goes on: a client that
//! opens no window for one stream, and answers pings, would hold that stream's place for ever. Its
//! body is not asked for more then, so nothing in it can notice; whoever runs the stream can. An
//! answer goes out in pieces of [`PIECE`], and a stream whose last piece was not taken for
//! [`STALLED`] is given up, which resets it.
//!
//! # Guarantees
//! - A stream that has nothing to say waits for as long as it likes: it is the client who must have
//!   something to take.
//! - Who takes a piece in that time, however slowly, is served on; other streams of the connection
//!   do not notice.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::patience::STALLED;

/// Bytes that have to be taken in that time. Source: HTTP/2's smallest largest frame.
const PIECE: usize = 16 << 10;

tokio::task_local! {
    /// Of the stream that is being run.
    static WAITING: Waiting;
}

/// Since when a stream's client has something to take.
#[derive(Debug, Clone, Default)]
struct Waiting(Arc<Mutex<Option<Instant>>>);

/// Runs streams, each as a task, and gives up those that stall.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(patiently(stream));
    }
}

/// `stream`, dropped when its client has not taken a piece for [`STALLED`].
async fn patiently(stream: impl Future<Output = ()>) {
    let waiting = Waiting::default();
    let mut stream = pin!(stream);
    // Few streams ever wait for their client.
    let mut stalled: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        let polled = WAITING.sync_scope(waiting.clone(), || stream.as_mut().poll(cx));
        if polled.is_ready() {
            return polled;
        }
        let Some(since) = *waiting.0.lock() else {
            stalled = None;
            return Poll::Pending;
        };
        let until = since + STALLED;
        let sleep = stalled.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        let is_over = sleep.as_mut().poll(cx);
        if is_over.is_ready() {
            tracing::debug!("a stream is given up: its client takes nothing");
        }
        is_over
    })
    .await;
}

/// An answer's body, in pieces if it goes out on a stream that [`Streams`] runs. To be called by
/// what runs there.
pub(super) fn in_pieces(body: Body) -> Body {
    match WAITING.try_with(Waiting::clone) {
        Ok(waiting) => Body::new(Pieces {
            body,
            rest: Bytes::new(),
            waiting,
        }),
        Err(_) => body,
    }
}

#[derive(Debug)]
struct Pieces {
    body: Body,
    /// Of what the body has given.
    rest: Bytes,
    waiting: Waiting,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // The last piece was taken, or this would not be asked for.
        *self.waiting.0.lock() = None;
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let len = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(len);
        *self.waiting.0.lock() = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        let (lower, upper) = (hint.lower() + rest, hint.upper().map(|upper| upper + rest));
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint.set_lower(lower);
        hint
    }
}
