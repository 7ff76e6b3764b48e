//! An answer's body, read until it is whole, or until it turns out that it cannot be shared.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

/// What was read of a body before it was handed on.
#[derive(Debug)]
pub(in crate::layer) struct Front<E> {
    chunks: VecDeque<Bytes>,
    /// The error that the body broke off with.
    error: Option<E>,
}

impl<E> Front<E> {
    pub(in crate::layer) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.error.is_none()
    }

    pub(in crate::layer) fn next(&mut self) -> Option<Result<Frame<Bytes>, E>> {
        match self.chunks.pop_front() {
            Some(chunk) => Some(Ok(Frame::data(chunk))),
            None => self.error.take().map(Err),
        }
    }

    /// The size of the whole, if `rest` is that of what was not read.
    pub(in crate::layer) fn hint(&self, rest: &SizeHint) -> SizeHint {
        let kept: u64 = self.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept);
        // Broken off: how long it would have been is not known any more.
        if let (Some(upper), None) = (rest.upper(), &self.error) {
            hint.set_upper(upper + kept);
        }
        hint
    }
}

/// What became of a body.
#[derive(Debug)]
pub(in crate::layer) enum Gathered<B: Body> {
    /// All of it.
    Whole(Bytes, Option<HeaderMap>),
    /// Too long, or not there in time: what was read, and the rest.
    Part(Front<B::Error>, B),
    /// It broke off: what was read, and the error.
    Broken(Front<B::Error>, B),
}

/// Reads a body, up to a size and for a time.
#[derive(Debug)]
pub(in crate::layer) struct Gather<B> {
    body: Option<B>,
    chunks: VecDeque<Bytes>,
    length: usize,
    limit: usize,
    over: Pin<Box<Sleep>>,
}

impl<B: Body<Data = Bytes> + Unpin> Gather<B> {
    pub(in crate::layer) fn new(body: B, limit: usize, time: Duration) -> Self {
        Self {
            body: Some(body),
            chunks: VecDeque::new(),
            length: 0,
            limit,
            over: Box::pin(tokio::time::sleep(time)),
        }
    }

    fn part(&mut self, error: Option<B::Error>) -> (Front<B::Error>, B) {
        let front = Front {
            chunks: std::mem::take(&mut self.chunks),
            error,
        };
        (
            front,
            self.body.take().expect("not polled after it is ready"),
        )
    }

    fn whole(&mut self, trailers: Option<HeaderMap>) -> Gathered<B> {
        let all = match self.chunks.len() {
            0 => Bytes::new(),
            1 => self.chunks.pop_front().expect("there is one"),
            _ => {
                let mut all = BytesMut::with_capacity(self.length);
                self.chunks
                    .iter()
                    .for_each(|chunk| all.extend_from_slice(chunk));
                all.freeze()
            }
        };
        self.body = None;
        Gathered::Whole(all, trailers)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Future for Gather<B>
where
    B::Error: Unpin,
{
    type Output = Gathered<B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Gathered<B>> {
        let this = &mut *self;
        loop {
            let body = this.body.as_mut().expect("not polled after it is ready");
            // One that says that it is too long need not be read to find that out.
            let announced = body.size_hint().lower().saturating_add(this.length as u64);
            if announced > this.limit as u64 {
                let (front, body) = this.part(None);
                return Poll::Ready(Gathered::Part(front, body));
            }
            let frame = match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => {
                    let (front, body) = this.part(Some(error));
                    return Poll::Ready(Gathered::Broken(front, body));
                }
                Poll::Ready(None) => return Poll::Ready(this.whole(None)),
                Poll::Pending => {
                    std::task::ready!(this.over.as_mut().poll(cx));
                    let (front, body) = this.part(None);
                    return Poll::Ready(Gathered::Part(front, body));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    this.length += data.len();
                    if !data.is_empty() {
                        this.chunks.push_back(data);
                    }
                    if this.length > this.limit {
                        let (front, body) = this.part(None);
                        return Poll::Ready(Gathered::Part(front, body));
                    }
                }
                Err(frame) => return Poll::Ready(this.whole(frame.into_trailers().ok())),
            }
        }
    }
}
