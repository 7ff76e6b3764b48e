//! Bodies on their way: what the client sends, what the upstream sends, what we say ourselves.
//!
//! An upstream connection may carry another request only if both bodies of this one ended exactly.
//! So the request's body says how it ended, and the response's body holds the connection and gives
//! it back at its own exact end. A body that is dropped, cut or broken takes its connection with it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use selvedge_resilience::layer::{BodyError, BoxError, EitherBody, FixedBody, GuardedBody};

use crate::{destination::Held, exchange::Exchange, headers::strip_trailers, pool::Lease};

/// How a client's body stands. Shared by the body and by those who must know.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyState(Option<Arc<AtomicU8>>);

const STREAMING: u8 = 0;
const ENDED: u8 = 1;
const FAILED: u8 = 2;
const TOO_LARGE: u8 = 3;

impl BodyState {
    fn get(&self) -> u8 {
        self.0
            .as_ref()
            .map_or(ENDED, |state| state.load(Ordering::Acquire))
    }

    fn set(&self, to: u8) {
        if let Some(state) = &self.0 {
            state.store(to, Ordering::Release);
        }
    }

    /// All of it has come.
    pub(crate) fn has_ended(&self) -> bool {
        self.get() == ENDED
    }

    /// The client broke it off, or it was not well formed.
    pub(crate) fn has_failed(&self) -> bool {
        self.get() == FAILED
    }

    /// It outgrew the listener's limit.
    pub(crate) fn is_too_large(&self) -> bool {
        self.get() == TOO_LARGE
    }
}

/// What a client sends.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Incoming,
    state: BodyState,
    left: u64,
}

/// The client's body is longer than its listener allows.
#[derive(Debug, thiserror::Error)]
#[error("the request's body is longer than is allowed")]
struct TooLarge;

impl RequestBody {
    pub(crate) fn new(inner: Incoming, limit: Option<u64>) -> Self {
        // Nothing to come, nothing to share.
        let state = (!inner.is_end_stream()).then(|| Arc::new(AtomicU8::new(STREAMING)));
        Self {
            inner,
            state: BodyState(state),
            left: limit.unwrap_or(u64::MAX),
        }
    }

    pub(crate) fn state(&self) -> BodyState {
        self.state.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        Poll::Ready(match std::task::ready!(polled) {
            None => {
                self.state.set(ENDED);
                None
            }
            Some(Err(error)) => {
                self.state.set(FAILED);
                Some(Err(error.into()))
            }
            Some(Ok(mut frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(left) = self.left.checked_sub(length) else {
                    self.state.set(TOO_LARGE);
                    return Poll::Ready(Some(Err(TooLarge.into())));
                };
                self.left = left;
                if let Some(trailers) = frame.trailers_mut() {
                    strip_trailers(trailers);
                }
                if self.inner.is_end_stream() {
                    self.state.set(ENDED);
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What an upstream sends, with the connection it comes over.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    inner: Incoming,
    lease: Option<Lease>,
}

impl UpstreamBody {
    pub(crate) fn new(inner: Incoming, lease: Option<Lease>) -> Self {
        let mut body = Self { inner, lease };
        // hyper never polls a body that is empty from the start.
        body.settle();
        body
    }

    fn settle(&mut self) {
        if self.inner.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        Poll::Ready(match std::task::ready!(polled) {
            None => {
                if let Some(lease) = self.lease.take() {
                    lease.give_back();
                }
                None
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    strip_trailers(trailers);
                }
                self.settle();
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.lease = None;
                Some(Err(error.into()))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of a stack's answer.
pub(crate) type AnswerBody = GuardedBody<EitherBody<UpstreamBody, FixedBody>, Held>;

/// What a client gets. At its end, or when it is dropped, the exchange is over: logged and counted.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    kind: Kind,
    exchange: Option<Box<Exchange>>,
}

#[derive(Debug)]
enum Kind {
    /// Our own words.
    Local(Option<Bytes>),
    /// The upstream's, or what a policy has put in its place.
    Upstream(AnswerBody),
}

impl ResponseBody {
    pub(crate) fn local(text: Bytes, exchange: Box<Exchange>) -> Self {
        let text = (!text.is_empty()).then_some(text);
        Self::new(Kind::Local(text), exchange)
    }

    pub(crate) fn upstream(body: AnswerBody, exchange: Box<Exchange>) -> Self {
        Self::new(Kind::Upstream(body), exchange)
    }

    fn new(kind: Kind, exchange: Box<Exchange>) -> Self {
        let mut body = Self {
            kind,
            exchange: Some(exchange),
        };
        if body.is_end_stream() {
            body.finish(true);
        }
        body
    }

    fn finish(&mut self, complete: bool) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.end(complete);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match &mut self.kind {
            Kind::Local(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Upstream(body) => Pin::new(body).poll_frame(cx),
        };
        let frame = std::task::ready!(polled);
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(exchange)) = (frame.data_ref(), &mut self.exchange) {
                    exchange.sent(data.len());
                }
                if self.is_end_stream() {
                    self.finish(true);
                }
            }
            Some(Err(_)) => self.finish(false),
            None => self.finish(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Local(text) => text.is_none(),
            Kind::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Local(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Kind::Upstream(body) => body.size_hint(),
        }
    }
}
