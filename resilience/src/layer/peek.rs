//! A response body whose first frame has been looked at already.
//!
//! A gRPC callee that fails often sends a head that says 200, no data, and its verdict in the
//! trailers. To try such a call again, the head must be held until the first frame is there. If it
//! is trailers, they are the verdict on a call that answered nothing, as if they had been the head.
//! If it is data, the callee has begun to answer: the call is committed (gRFC A6), and the frame is
//! given back in front of the rest.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::{classify::awaits_grpc_trailers, config::Millis};

/// Reads frames of `body` until one says anything, or it ends.
pub(super) fn poll_first<B, E>(
    body: &mut B,
    first: &mut Option<Box<Result<Frame<Bytes>, E>>>,
    ended: &mut bool,
    error: impl Fn(B::Error) -> E,
    cx: &mut Context<'_>,
) -> Poll<()>
where
    B: Body<Data = Bytes> + Unpin,
{
    while first.is_none() && !*ended {
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        let is_data = match &frame {
            // Nothing, said in a frame.
            Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => continue,
            Some(Ok(frame)) => frame.is_data(),
            Some(Err(_)) | None => false,
        };
        *ended = !is_data;
        *first = frame.map(|frame| Box::new(frame.map_err(&error)));
    }
    Poll::Ready(())
}

impl<'a> First<'a> {
    pub(super) fn of<E>(first: Option<&'a Result<Frame<Bytes>, E>>) -> Self {
        match first {
            Some(Ok(frame)) => frame.trailers_ref().map_or(First::Other, First::Trailers),
            Some(Err(_)) => First::Broken,
            None => First::Other,
        }
    }
}

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
    /// Data, or an end without a word; or nothing has come yet.
    Other,
}

impl<B: Body> PeekedBody<B> {
    pub(super) fn new(inner: B) -> Self {
        Self {
            first: None,
            ended: false,
            inner,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> PeekedBody<B> {
    /// Waits for the first frame that says anything.
    fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (first, ended) = (&mut self.first, &mut self.ended);
        poll_first(&mut self.inner, first, ended, |error| error, cx)
    }

    /// What was found.
    pub(super) fn first(&self) -> First<'_> {
        First::of(self.first.as_deref())
    }
}

pin_project! {
    /// An answer that is held until its body has said something, or time is up.
    pub(super) struct Peeking<B: Body> {
        response: Option<Response<PeekedBody<B>>>,
        #[pin]
        sleep: Sleep,
    }
}

/// Whether the verdict on `response` is still to come, and is waited for: no longer than `patience`.
pub(super) fn is_due<B: Body>(response: &Response<B>, patience: Millis) -> bool {
    // What is cheapest to know first: a stack asks this of every answer.
    !patience.0.is_zero()
        && !response.body().is_end_stream()
        && awaits_grpc_trailers(response.status(), response.headers())
}

impl<B: Body<Data = Bytes> + Unpin> Peeking<B> {
    pub(super) fn new(response: Response<B>, patience: Millis) -> Self {
        Self {
            response: Some(response.map(PeekedBody::new)),
            sleep: tokio::time::sleep(patience.0),
        }
    }

    /// The answer; its body knows what came [`first`](PeekedBody::first). `patient`: or else it is
    /// had at once, whatever has come.
    pub(super) fn poll(
        self: Pin<&mut Self>,
        patient: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Response<PeekedBody<B>>> {
        let this = self.project();
        let body = this.response.as_mut().expect("taken once").body_mut();
        if body.poll_peek(cx).is_pending() && patient {
            ready!(this.sleep.poll(cx));
        }
        Poll::Ready(this.response.take().expect("there above"))
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
        let first = self.first.as_deref().and_then(|frame| frame.as_ref().ok());
        size_hint(first, (!self.ended).then(|| self.inner.size_hint()))
    }
}

/// The size of a body of which `first` was read, and of whose `rest` that much is known.
pub(super) fn size_hint(first: Option<&Frame<Bytes>>, rest: Option<SizeHint>) -> SizeHint {
    let mut hint = rest.unwrap_or_else(|| SizeHint::with_exact(0));
    if let Some(frame) = first {
        let kept = frame.data_ref().map_or(0, Bytes::len) as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + kept);
        }
        hint.set_lower(hint.lower() + kept);
    }
    hint
}
