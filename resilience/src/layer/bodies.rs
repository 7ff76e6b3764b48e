//! The bodies of answers that layers make themselves.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{BoxError, peek};

/// A body that is known as a whole; may be empty. Its clones share the bytes.
#[derive(Debug, Clone, Default)]
pub struct FixedBody {
    data: Option<Bytes>,
    trailers: Option<Box<HeaderMap>>,
}

impl From<Bytes> for FixedBody {
    fn from(bytes: Bytes) -> Self {
        Self {
            data: (!bytes.is_empty()).then_some(bytes),
            trailers: None,
        }
    }
}

impl FixedBody {
    /// Trailers behind it.
    #[must_use]
    pub(super) fn with_trailers(mut self, trailers: Option<HeaderMap>) -> Self {
        self.trailers = trailers.map(Box::new);
        self
    }
}

impl Body for FixedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.data.take() {
            Some(data) => Some(Frame::data(data)),
            None => self.trailers.take().map(|all| Frame::trailers(*all)),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.data.as_ref().map_or(0, |data| data.len() as u64);
        // HTTP/1 has no trailers behind a body whose length it has announced.
        let mut hint = SizeHint::new();
        hint.set_lower(length);
        if self.trailers.is_none() {
            hint.set_exact(length);
        }
        hint
    }
}

pin_project! {
    /// The answer's own body, or one that a layer put in its place.
    #[derive(Debug)]
    pub struct EitherBody<A, B> {
        #[pin]
        inner: Either<A, B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = EitherProj]
    enum Either<A, B> {
        Own { #[pin] body: A },
        // Its first frame, or the error that came instead, has been read, and perhaps its end.
        Begun {
            first: Option<Box<Result<Frame<Bytes>, BoxError>>>,
            ended: bool,
            #[pin]
            body: A,
        },
        Other { #[pin] body: B },
    }
}

impl<A, B> EitherBody<A, B> {
    pub(super) fn own(body: A) -> Self {
        Self {
            inner: Either::Own { body },
        }
    }

    /// A body that has been looked at: what was read of it, whether that was all, and the rest.
    pub(super) fn begun(
        first: Option<Box<Result<Frame<Bytes>, BoxError>>>,
        ended: bool,
        body: A,
    ) -> Self {
        Self {
            inner: Either::Begun { first, ended, body },
        }
    }

    pub(super) fn other(body: B) -> Self {
        Self {
            inner: Either::Other { body },
        }
    }
}

impl<A, B> Body for EitherBody<A, B>
where
    A: Body<Data = Bytes>,
    A::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().inner.project() {
            EitherProj::Own { body } => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            EitherProj::Begun { first, ended, body } => match first.take() {
                Some(frame) => Poll::Ready(Some(*frame)),
                None if *ended => Poll::Ready(None),
                None => body
                    .poll_frame(cx)
                    .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            },
            EitherProj::Other { body } => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Either::Own { body } => body.is_end_stream(),
            Either::Begun { first, ended, body } => {
                first.is_none() && (*ended || body.is_end_stream())
            }
            Either::Other { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Either::Own { body } => body.size_hint(),
            Either::Begun { first, ended, body } => {
                let first = first.as_deref().and_then(|frame| frame.as_ref().ok());
                peek::size_hint(first, (!ended).then(|| body.size_hint()))
            }
            Either::Other { body } => body.size_hint(),
        }
    }
}
