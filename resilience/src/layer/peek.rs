//! A response body whose first frame has been looked at already.
//!
//! A gRPC callee that fails often sends a head that says 200, no data, and its verdict in the
//! trailers. To try such a call again, the head must be held until the first frame is there. If it
//! is trailers, they are the verdict on a call that answered nothing, as if they had been the head.
//! If it is data, the callee has begun to answer: the call is committed (gRFC A6), and the frame is
//! given back in front of the rest.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// A body with what was read of it in front: one frame, or the error that came instead.
    #[derive(Debug)]
    pub struct PeekedBody<B: Body> {
        // Boxed: a frame is larger than many a body, and few bodies are looked at.
        first: Option<Box<Result<Frame<Bytes>, B::Error>>>,
        // Whether the end, or trailers or an error before it, has been read.
        ended: bool,
        #[pin]
        inner: B,
    }
}

/// What came first.
#[derive(Debug)]
pub(super) enum First<'a> {
    /// The verdict, and nothing before it.
    Trailers(&'a HeaderMap),
    /// The stream broke before it said anything.
    Broken,
    /// Data, or an end without a word.
    Other,
}

impl<B: Body<Data = Bytes> + Unpin> PeekedBody<B> {
    pub(super) fn new(inner: B) -> Self {
        Self {
            first: None,
            ended: false,
            inner,
        }
    }

    /// Waits for the first frame that says anything.
    pub(super) fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<First<'_>> {
        while self.first.is_none() && !self.ended {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
            let is_data = match &frame {
                // Nothing, said in a frame.
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => continue,
                Some(Ok(frame)) => frame.is_data(),
                Some(Err(_)) | None => false,
            };
            self.ended = !is_data;
            self.first = frame.map(Box::new);
        }
        Poll::Ready(match self.first.as_deref() {
            Some(Ok(frame)) => frame.trailers_ref().map_or(First::Other, First::Trailers),
            Some(Err(_)) => First::Broken,
            None => First::Other,
        })
    }
}

impl<B: Body<Data = Bytes>> Body for PeekedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        match this.first.take() {
            Some(frame) => Poll::Ready(Some(*frame)),
            None if *this.ended => Poll::Ready(None),
            None => this.inner.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = if self.ended {
            SizeHint::with_exact(0)
        } else {
            self.inner.size_hint()
        };
        if let Some(Ok(frame)) = self.first.as_deref() {
            let kept = frame.data_ref().map_or(0, Bytes::len) as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + kept);
            }
            hint.set_lower(hint.lower() + kept);
        }
        hint
    }
}
