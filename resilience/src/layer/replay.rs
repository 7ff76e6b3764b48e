//! A request body that can be sent again, up to a size.
//!
//! A retry needs the body that the first try has consumed. Buffering all of it first would delay
//! every upload and let memory grow with the client; so the first try streams, a copy of what went
//! by is kept while it is small, and a body that outgrows the limit makes its try the last one.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

/// One try's view of a request body.
#[derive(Debug)]
pub struct ReplayBody<B>(View<B>);

#[derive(Debug)]
enum View<B> {
    /// Nothing to send, as often as need be.
    Empty,
    /// Sent once: nobody will ask for it again.
    Once(B),
    /// Kept while small.
    Kept {
        source: Arc<Mutex<Source<B>>>,
        next: usize,
    },
}

#[derive(Debug)]
pub(super) struct Source<B> {
    body: B,
    chunks: Vec<Bytes>,
    len: usize,
    limit: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Too long or broken: no other try can have it.
    spent: bool,
}

/// Hands out views of one body, a try at a time.
#[derive(Debug)]
pub(super) enum Replay<B> {
    Empty,
    Once(Option<B>),
    Kept(Arc<Mutex<Source<B>>>),
}

impl<B: Body<Data = Bytes> + Unpin> Replay<B> {
    /// `limit` 0: the body is sent once.
    pub(super) fn new(body: B, limit: usize) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        // A body that says it is too long is not copied to find that out.
        if limit == 0 || body.size_hint().lower() > limit as u64 {
            return Self::Once(Some(body));
        }
        Self::Kept(Arc::new(Mutex::new(Source {
            body,
            chunks: Vec::new(),
            len: 0,
            limit,
            trailers: None,
            ended: false,
            spent: false,
        })))
    }

    /// The body for the next try; `None` if it cannot be had again.
    pub(super) fn view(&mut self) -> Option<ReplayBody<B>> {
        match self {
            Self::Empty => Some(ReplayBody(View::Empty)),
            Self::Once(body) => body.take().map(|body| ReplayBody(View::Once(body))),
            Self::Kept(source) if source.lock().spent => None,
            Self::Kept(source) => Some(ReplayBody(View::Kept {
                source: Arc::clone(source),
                next: 0,
            })),
        }
    }

    /// Whether all of it has been read and kept: several tries may have it at once.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(_) => false,
            Self::Kept(source) => {
                let source = source.lock();
                !source.spent && (source.ended || source.body.is_end_stream())
            }
        }
    }

    /// Whether another try could have it.
    pub(super) fn can_replay(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.is_some(),
            Self::Kept(source) => !source.lock().spent,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Source<B> {
    fn poll(
        &mut self,
        next: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(chunk) = self.chunks.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if self.ended {
            // Once after the last chunk: the trailers, if there were any.
            let trailers = if *next == self.chunks.len() {
                self.trailers.clone()
            } else {
                None
            };
            *next += 1;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.spent = true;
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                self.ended = true;
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            self.keep(data.clone(), next);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn keep(&mut self, data: Bytes, next: &mut usize) {
        if self.spent {
            return;
        }
        self.len += data.len();
        if self.len > self.limit {
            self.spent = true;
            self.chunks = Vec::new();
            *next = 0;
        } else {
            self.chunks.push(data);
            *next += 1;
        }
    }

    fn size_hint(&self, next: usize) -> SizeHint {
        let kept: usize = self
            .chunks
            .get(next..)
            .unwrap_or(&[])
            .iter()
            .map(Bytes::len)
            .sum();
        let rest = if self.ended {
            SizeHint::with_exact(0)
        } else {
            self.body.size_hint()
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept as u64);
        }
        hint
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ReplayBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.get_mut().0 {
            View::Empty => Poll::Ready(None),
            View::Once(body) => Pin::new(body).poll_frame(cx),
            View::Kept { source, next } => source.lock().poll(next, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            View::Empty => true,
            View::Once(body) => body.is_end_stream(),
            View::Kept { source, next } => {
                let source = source.lock();
                let all_sent = *next >= source.chunks.len();
                let ended = source.ended || source.body.is_end_stream();
                all_sent && ended && source.trailers.is_none()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            View::Empty => SizeHint::with_exact(0),
            View::Once(body) => body.size_hint(),
            View::Kept { source, next } => source.lock().size_hint(*next),
        }
    }
}
